"""The websocket of one kernel, built on websocket-client.

This module solves three measured problems:

- The server uses Nagle's algorithm for small messages. With delayed acknowledgements, this costs 40 ms a cell. So
  the client acknowledges at once. It uses the socket option of Linux, and it sends an empty pong before each wait.
  The pong also helps behind a proxy.
- The library validates the text of JSON frames byte by byte, which is slow. This validation is switched off,
  because decoding fails on bad text anyway.
- The library refuses a handshake if the server does not repeat the subprotocol. So the client sends its offer as a
  plain header.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import websocket
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from airflow_provider_smstudio.studio.errors import ConnectionLostError, KernelStartError
from airflow_provider_smstudio.studio.jupyter.auth import StudioSession
from airflow_provider_smstudio.studio.protocol.messages import V1, Message, MessageError, decode, encode

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
PING_AFTER = 5.0
"""Seconds of silence after which the client sends a ping."""

SILENCE_LIMIT = 15.0
"""Seconds without a byte, not even an answer to a ping, after which the websocket counts as broken."""

DEAF_LIMIT = 90.0
"""The same limit if no ping was ever answered: a proxy may drop pings. The server's own pings come every 30 s."""

_HAND_OVER_LIMIT = 10.0
LOGIN_ENDED = (200, 301, 302, 303, 307, 308, 401, 403)


class KernelWebSocket:
    """An open websocket to a kernel; make one with :func:`connect`."""

    def __init__(self, ws: Any) -> None:
        self._ws = ws
        headers = {name.lower(): value for name, value in (ws.getheaders() or {}).items()}
        self.subprotocol: str | None = V1 if headers.get("sec-websocket-protocol", "").strip() == V1 else None
        self._unacknowledged = False
        self._heard = self._pinged = time.monotonic()
        self._answers_pings = False
        with contextlib.suppress(websocket.WebSocketException, OSError):  # the first receive reports it
            ws.ping()

    def send(self, message: Message) -> None:
        """Send a message.

        :raises ConnectionLostError: if the websocket broke.
        """
        payload = encode(message, self.subprotocol)
        self._unacknowledged = False  # the message carries the acknowledgement
        try:
            self._ws.settimeout(60)
            if isinstance(payload, bytes):
                self._ws.send_binary(payload)
            else:
                self._ws.send(payload)
        except (websocket.WebSocketException, OSError) as error:
            raise _lost(error) from None

    def receive(self, timeout: float) -> Message | None:
        """Wait for the next message.

        :param timeout: how long to wait, in seconds.
        :return: the message, or None if none came in time.
        :raises ConnectionLostError: if the websocket broke or was closed, or if nothing came for 15 seconds, not
            even the answer to a ping. A connection can break without a signal to either side. The limit is 90
            seconds if no ping was ever answered.
        """
        if self._ws.sock is None:
            raise ConnectionLostError("the kernel's websocket is closed")
        try:
            self._hurry()
            self._ws.settimeout(max(timeout, 0.001))
            opcode, payload = self._ws.recv_data(control_frame=True)
            self._heard = time.monotonic()
            self._quickack()
        except websocket.WebSocketTimeoutException:
            self._ping()
            return None
        except (websocket.WebSocketException, OSError) as error:
            raise _lost(error) from None
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else None
            raise ConnectionLostError(f"the server closed the kernel's websocket (code {code})")
        if opcode in (websocket.ABNF.OPCODE_PING, websocket.ABNF.OPCODE_PONG):
            self._answers_pings = self._answers_pings or opcode == websocket.ABNF.OPCODE_PONG
            return None  # the library has already answered a ping
        self._unacknowledged = True
        return self._message(opcode, payload)

    def _message(self, opcode: int, payload: bytes) -> Message:
        try:
            return decode(payload.decode() if opcode == websocket.ABNF.OPCODE_TEXT else payload, self.subprotocol)
        except (MessageError, UnicodeDecodeError) as error:
            raise ConnectionLostError(f"the kernel's websocket brought {error}") from error

    def hand_over(self) -> Iterator[Message]:
        """Close the websocket in order, and yield the messages that still arrive.

        The next websocket with the same client session then receives all later messages. Measured: no message is
        lost or doubled. The library's own method to close discards the messages that it reads.

        :raises ConnectionLostError: if the websocket broke meanwhile. Then messages may be lost.
        """
        deadline = time.monotonic() + _HAND_OVER_LIMIT
        parts: list[bytes] = []
        try:
            self._ws.send_close()
            while True:
                self._ws.settimeout(max(deadline - time.monotonic(), 0.001))
                frame = self._ws.recv_frame()
                if frame.opcode == websocket.ABNF.OPCODE_CLOSE:
                    break
                if frame.opcode in (websocket.ABNF.OPCODE_PING, websocket.ABNF.OPCODE_PONG):
                    continue
                if frame.opcode != websocket.ABNF.OPCODE_CONT:
                    parts, kind = [], frame.opcode
                parts.append(frame.data if isinstance(frame.data, bytes) else frame.data.encode())
                if frame.fin:
                    yield self._message(kind, b"".join(parts))
        except (websocket.WebSocketException, OSError) as error:
            raise _lost(error) from None
        finally:
            self._ws.shutdown()

    def close(self) -> None:
        """Close the websocket. Do not read later messages of the server."""
        with contextlib.suppress(websocket.WebSocketException, OSError):
            self._ws.close(timeout=0.3)
        self._ws.shutdown()  # the library leaves the socket open if the other side broke it

    def _ping(self) -> None:
        """Send a ping after some silence. Raise an error after a long silence."""
        now = time.monotonic()
        if now >= self._heard + (SILENCE_LIMIT if self._answers_pings else DEAF_LIMIT):
            raise ConnectionLostError(f"the kernel's websocket has been silent for {now - self._heard:.0f} s")
        if now >= max(self._heard, self._pinged) + PING_AFTER:
            self._pinged = now
            try:
                self._ws.ping()
            except (websocket.WebSocketException, OSError) as error:
                raise _lost(error) from None

    def _quickack(self) -> None:
        if _QUICKACK is not None:
            with contextlib.suppress(OSError):  # this only saves time
                self._ws.sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _hurry(self) -> None:
        """Acknowledge the received data if no more data is there yet: the server may wait for that."""
        if self._unacknowledged and not self._readable():
            self._ws.pong(b"")
            self._unacknowledged = False

    def _readable(self) -> bool:
        sock = self._ws.sock
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            return True
        if hasattr(select, "poll"):
            poll = select.poll()  # select itself fails for high file numbers
            poll.register(sock, select.POLLIN)
            return bool(poll.poll(0))
        return bool(select.select([sock], [], [], 0)[0])


def connect(session: StudioSession, kernel_id: str, session_id: str, *, timeout: float) -> KernelWebSocket:
    """Open a kernel's websocket.

    The server answers the handshake when the kernel is ready. If the kernel died, the server does not answer at
    all. So this function may take long.

    :param session: the authenticated session. It logs in again once if its login has ended.
    :param kernel_id: the kernel.
    :param session_id: the client session's id. For a known id, the server sends the messages that were missed.
    :param timeout: limit for the handshake, in seconds.
    :raises KernelStartError: if the server knows no such kernel, or could not reach it.
    :raises ConnectionLostError: if the websocket could not be opened.
    """
    seen = session.logins
    ws, status = _try_handshake(session, kernel_id, session_id, timeout)
    if status in LOGIN_ENDED:
        session.renew(seen)
        ws, status = _try_handshake(session, kernel_id, session_id, timeout)
    if status == 101:
        return KernelWebSocket(ws)
    if status in (404, 500):
        raise KernelStartError(
            f"the kernel died while starting: the server answered its websocket with HTTP {status}"
        )
    raise ConnectionLostError(f"the kernel's websocket was refused with HTTP {status}")


def _try_handshake(session: StudioSession, kernel_id: str, session_id: str, timeout: float) -> tuple[Any, int]:
    """Return the websocket and the handshake's HTTP status. The websocket is open only with status 101."""
    ws: Any = websocket.WebSocket(
        sockopt=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        sslopt=trust(session.verify),
        skip_utf8_validation=True,
        enable_multithread=False,
    )
    ws.settimeout(timeout)
    try:
        _handshake(ws, session, kernel_id, session_id)
    except websocket.WebSocketBadStatusException as error:
        return None, int(error.status_code)
    except websocket.WebSocketTimeoutException:
        raise KernelStartError(f"the kernel did not answer within {timeout:g} s") from None
    except (websocket.WebSocketException, OSError) as error:
        # Version 1.9 of the library raises an error for a redirect that it may not follow. Version 1.8 reports an
        # open websocket.
        status = getattr(ws.handshake_response, "status", 101)
        if status != 101:
            return None, int(status)
        raise ConnectionLostError(f"the kernel's websocket could not be opened: {_kind(error)}") from None
    status = int(ws.getstatus())
    if status != 101:
        ws.shutdown()
    return ws, status


def _handshake(ws: Any, session: StudioSession, kernel_id: str, session_id: str) -> None:
    url, cookie = session.websocket(channel_path(kernel_id, session_id))
    ws.connect(
        url,
        cookie=cookie,
        header=[f"Sec-WebSocket-Protocol: {V1}"],
        suppress_origin=True,
        redirect_limit=0,
    )


def channel_path(kernel_id: str, session_id: str) -> str:
    """Return the path of a kernel's websocket below the server's base URL."""
    return f"api/kernels/{quote(kernel_id)}/channels?session_id={quote(session_id)}"


def trust(verify: bool | str) -> dict[str, str]:
    """Return the certificates that requests trusts: REST and websocket must trust the same ones."""
    environment = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    path = (verify if isinstance(verify, str) else environment) or DEFAULT_CA_BUNDLE_PATH
    return {"ca_cert_path": path} if os.path.isdir(path) else {"ca_certs": path}


def _lost(error: Exception) -> ConnectionLostError:
    return ConnectionLostError(f"the kernel's websocket broke: {_kind(error)}")


def _kind(error: Exception) -> str:
    """Return the name of a failure. The library's own texts may contain headers, and so cookies."""
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__} ({error.strerror})"
    return type(error).__name__
