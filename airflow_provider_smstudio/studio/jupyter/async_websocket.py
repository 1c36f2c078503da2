"""One kernel's websocket on an event loop, on aiohttp; what :mod:`websocket` is for a thread.

A process that watches over a thousand runs has a thousand of these, so they share one client and one set of
certificates, and ask for less: the other side is pinged rarely, and asyncio's buffer for TLS, 256 KiB for each
connection, is made smaller (measured: 313 KiB a connection with it, 85 without).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import aiohttp

from airflow_provider_smstudio.studio.errors import ConnectionLostError, KernelStartError
from airflow_provider_smstudio.studio.jupyter.auth import StudioSession
from airflow_provider_smstudio.studio.jupyter.websocket import DEAF_LIMIT, LOGIN_ENDED, channel_path, trust
from airflow_provider_smstudio.studio.protocol.messages import V1, Message, MessageError, decode, encode

PING_AFTER = 10.0
"""Seconds of silence after which the other side is asked whether it is there."""

SILENCE_LIMIT = 25.0
"""Seconds without a byte, our ping unanswered, after which the websocket counts as broken."""

WebSocket: TypeAlias = "aiohttp.ClientWebSocketResponse[Any]"

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_HAND_OVER_LIMIT = 10.0
_CLOSE_LIMIT = 2.0
_SEND_LIMIT = 60.0
_TLS_BUFFER = 32 * 1024
_HURRIED = 2
"""So many messages behind a request are acknowledged at once; a few more would save 40 ms a cell, which a thousand
runs pay for with a sixth of their process's time."""


class AsyncKernelWebSocket:
    """An open websocket to a kernel; make one with :func:`connect`."""

    def __init__(self, ws: WebSocket) -> None:
        self.answers_pings = False
        """Whether the other side has ever answered a ping; a proxy may swallow them."""
        self._ws = ws
        self.subprotocol: str | None = V1 if ws.protocol == V1 else None
        self._socket: Any = ws.get_extra_info("socket")
        self._heard = self._pinged = time.monotonic()
        self._hurried = 0

    async def send(self, message: Message) -> None:
        """Send a message.

        :raises ConnectionLostError: when the websocket has broken.
        """
        payload = encode(message, self.subprotocol)
        self._hurried = 0
        sending = self._ws.send_bytes(payload) if isinstance(payload, bytes) else self._ws.send_str(payload)
        try:
            await asyncio.wait_for(sending, _SEND_LIMIT)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise _lost(error) from None

    async def receive(self, timeout: float) -> Message | None:
        """Wait for the next message.

        :param timeout: how long, in seconds.
        :return: the message, or None when none came in time.
        :raises ConnectionLostError: when the websocket has broken or was closed, or when nothing came for long,
            not even the answer to a ping.
        """
        try:
            found = await self._ws.receive(timeout=max(timeout, 0.001))
        except asyncio.TimeoutError:
            await self._look_after()
            return None
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise _lost(error) from None
        self._heard = time.monotonic()
        if found.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
            await self._hurry()
            return self._message(found.data)
        if found.type is aiohttp.WSMsgType.PING:
            await self._quietly(self._ws.pong(found.data))
            return None
        if found.type is aiohttp.WSMsgType.PONG:
            self.answers_pings = True
            return None
        if found.type is aiohttp.WSMsgType.ERROR:
            raise _lost(found.data)
        raise ConnectionLostError(f"the server closed the kernel's websocket (code {self._ws.close_code})")

    def _message(self, payload: bytes | str) -> Message:
        try:
            return decode(payload, self.subprotocol)
        except MessageError as error:
            raise ConnectionLostError(f"the kernel's websocket brought {error}") from error

    async def hand_over(self) -> AsyncIterator[Message]:
        """Close the websocket in order and yield what was still under way.

        The next websocket with the same client session then gets all that comes later.

        :raises ConnectionLostError: when it broke meanwhile, so that something may be lost.
        """
        deadline = time.monotonic() + _HAND_OVER_LIMIT
        try:
            # The library's own way to close throws away what it reads.
            await self._ws.send_frame((1000).to_bytes(2, "big"), aiohttp.WSMsgType.CLOSE)
            while True:
                found = await self._ws.receive(timeout=max(deadline - time.monotonic(), 0.001))
                if found.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                    yield self._message(found.data)
                elif found.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING):
                    break
                elif found.type not in (aiohttp.WSMsgType.PING, aiohttp.WSMsgType.PONG):
                    raise ConnectionLostError("the kernel's websocket broke while it was being closed")
        except (aiohttp.ClientError, OSError, RuntimeError, asyncio.TimeoutError) as error:
            raise _lost(error) from None
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the websocket; whatever the server still sends is not read."""
        await self._quietly(asyncio.wait_for(self._ws.close(), _CLOSE_LIMIT))

    async def _look_after(self) -> None:
        """Ask whether the other side is there after some silence; give up after much."""
        now = time.monotonic()
        if now >= self._heard + (SILENCE_LIMIT if self.answers_pings else max(DEAF_LIMIT, SILENCE_LIMIT)):
            raise ConnectionLostError(f"the kernel's websocket has been silent for {now - self._heard:.0f} s")
        if now >= max(self._heard, self._pinged) + PING_AFTER:
            await self.ping()

    async def ping(self) -> None:
        """Ask whether the other side is there."""
        self._pinged = time.monotonic()
        await self._quietly(self._ws.ping())

    async def _hurry(self) -> None:
        """Acknowledge what has come at once: the server may wait for that; see :mod:`websocket`."""
        if self._hurried >= _HURRIED:
            return
        self._hurried += 1
        if _QUICKACK is not None and self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        await self._quietly(self._ws.pong(b""))

    @staticmethod
    async def _quietly(sending: Any) -> None:
        """Send something that matters little; if the websocket has broken, the next receive tells."""
        with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError, asyncio.TimeoutError):
            await sending


class Sockets:
    """Opens websockets for one event loop; all share an HTTP client and, for each file, a set of certificates."""

    def __init__(self) -> None:
        self._trusted: dict[str, ssl.SSLContext] = {}
        self._client: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def open(self, session: StudioSession, path: str, timeout: float) -> WebSocket:
        """Make one handshake.

        :param session: the authenticated session.
        :param path: below the server's base URL.
        :param timeout: limit, in seconds.
        """
        if self._client is None:
            # Cookies are given with each handshake, and kept nowhere.
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=True,
            )
        url, cookie = session.websocket(path)
        opening = self._client.ws_connect(
            url,
            protocols=(V1,),
            headers={"Cookie": cookie} if cookie else {},
            autoclose=False,
            autoping=False,
            max_msg_size=0,
            ssl=self._context(session.verify) if url.startswith("wss:") else True,
        )
        ws = await asyncio.wait_for(opening, timeout)
        _shrink(ws)
        return ws

    def _context(self, verify: bool | str) -> ssl.SSLContext:
        certificates = trust(verify)
        key = str(certificates)
        if key not in self._trusted:
            self._trusted[key] = ssl.create_default_context(
                cafile=certificates.get("ca_certs"), capath=certificates.get("ca_cert_path")
            )
        return self._trusted[key]


async def connect(
    sockets: Sockets, session: StudioSession, kernel_id: str, session_id: str, *, timeout: float, renew: Any
) -> AsyncKernelWebSocket:
    """Open a kernel's websocket; like :func:`websocket.connect`.

    :param renew: called with the number of logins known, and awaited, when the login has ended.
    :raises KernelStartError: when the server knows no such kernel, or could not reach it.
    :raises ConnectionLostError: when the websocket could not be opened.
    """
    seen, path = session.logins, channel_path(kernel_id, session_id)
    ws, status = await _try_handshake(sockets, session, path, timeout)
    if ws is None and status in LOGIN_ENDED:
        await renew(seen)
        ws, status = await _try_handshake(sockets, session, path, timeout)
    if ws is not None:
        channel = AsyncKernelWebSocket(ws)
        await channel.ping()  # does the other side answer pings at all?
        return channel
    if status in (404, 500):
        raise KernelStartError(f"the server answered the kernel's websocket with HTTP {status}")
    raise ConnectionLostError(f"the kernel's websocket was refused with HTTP {status}")


async def _try_handshake(
    sockets: Sockets, session: StudioSession, path: str, timeout: float
) -> tuple[WebSocket | None, int]:
    """Return the open websocket, or None and the handshake's HTTP status."""
    try:
        return await sockets.open(session, path, timeout), 101
    except aiohttp.WSServerHandshakeError as error:
        return None, error.status
    except asyncio.TimeoutError:
        raise KernelStartError(f"the kernel did not answer within {timeout:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise ConnectionLostError(f"the kernel's websocket could not be opened: {_kind(error)}") from None


def _shrink(ws: WebSocket) -> None:
    """Give a TLS connection a smaller read buffer, where asyncio keeps it as in Python 3.11 to 3.13."""
    protocol: Any = getattr(getattr(getattr(ws, "_conn", None), "transport", None), "_ssl_protocol", None)
    if isinstance(getattr(protocol, "_ssl_buffer", None), bytearray) and isinstance(
        getattr(protocol, "_ssl_buffer_view", None), memoryview
    ):
        protocol.max_size = _TLS_BUFFER
        protocol._ssl_buffer = bytearray(_TLS_BUFFER)
        protocol._ssl_buffer_view = memoryview(protocol._ssl_buffer)


def _lost(error: BaseException) -> ConnectionLostError:
    return ConnectionLostError(f"the kernel's websocket broke: {_kind(error)}")


def _kind(error: BaseException) -> str:
    """Name a failure; the library's own texts may hold the request, and so cookies."""
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__} ({error.strerror})"
    return type(error).__name__
