"""The websocket of one kernel on an event loop, built on aiohttp. :mod:`websocket` is the same for a thread.

A process that watches a thousand runs has a thousand of these websockets. So they share one client and one set of
certificates. They send few pings, and they make asyncio's TLS buffer smaller, which has 256 KiB for each
connection (measured: 313 KiB a connection with the large buffer, 85 KiB without it).
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
"""Seconds of silence after which the client sends a ping."""

SILENCE_LIMIT = 25.0
"""Seconds without a byte, not even an answer to a ping, after which the websocket counts as broken."""

WebSocket: TypeAlias = "aiohttp.ClientWebSocketResponse[Any]"

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_HAND_OVER_LIMIT = 10.0
_CLOSE_LIMIT = 2.0
_SEND_LIMIT = 60.0
_TLS_BUFFER = 32 * 1024
_HURRIED = 2
"""The number of messages after a request that are acknowledged at once. A few more would save 40 ms a cell, but
would cost a process with a thousand runs a sixth of its time."""


class AsyncKernelWebSocket:
    """An open websocket to a kernel; make one with :func:`connect`."""

    def __init__(self, ws: WebSocket) -> None:
        self.answers_pings = False
        """Whether the other side has ever answered a ping; a proxy may drop pings."""
        self._ws = ws
        self.subprotocol: str | None = V1 if ws.protocol == V1 else None
        self._socket: Any = ws.get_extra_info("socket")
        self._heard = self._pinged = time.monotonic()
        self._hurried = 0

    async def send(self, message: Message) -> None:
        """Send a message.

        :raises ConnectionLostError: if the websocket broke.
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

        :param timeout: how long to wait, in seconds.
        :return: the message, or None if none came in time.
        :raises ConnectionLostError: if the websocket broke or was closed, or if nothing came for 25 seconds, not
            even the answer to a ping. The limit is 90 seconds if no ping was ever answered.
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
        """Close the websocket in order, and yield the messages that still arrive.

        The next websocket with the same client session then receives all later messages.

        :raises ConnectionLostError: if the websocket broke meanwhile. Then messages may be lost.
        """
        deadline = time.monotonic() + _HAND_OVER_LIMIT
        try:
            # The library's own method to close discards the messages that it reads.
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
        """Close the websocket. Do not read later messages of the server."""
        await self._quietly(asyncio.wait_for(self._ws.close(), _CLOSE_LIMIT))

    async def _look_after(self) -> None:
        """Send a ping after some silence. Raise an error after a long silence."""
        now = time.monotonic()
        if now >= self._heard + (SILENCE_LIMIT if self.answers_pings else max(DEAF_LIMIT, SILENCE_LIMIT)):
            raise ConnectionLostError(f"the kernel's websocket has been silent for {now - self._heard:.0f} s")
        if now >= max(self._heard, self._pinged) + PING_AFTER:
            await self.ping()

    async def ping(self) -> None:
        """Send a ping to find out whether the other side still answers."""
        self._pinged = time.monotonic()
        await self._quietly(self._ws.ping())

    async def _hurry(self) -> None:
        """Acknowledge received messages at once: the server may wait for that; see :mod:`websocket`."""
        if self._hurried >= _HURRIED:
            return
        self._hurried += 1
        if _QUICKACK is not None and self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        await self._quietly(self._ws.pong(b""))

    @staticmethod
    async def _quietly(sending: Any) -> None:
        """Send something unimportant. If the websocket broke, the next receive reports it."""
        with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError, asyncio.TimeoutError):
            await sending


class Sockets:
    """Opens websockets for one event loop. They share an HTTP client, and the certificates of each file."""

    def __init__(self) -> None:
        self._trusted: dict[str, ssl.SSLContext] = {}
        self._client: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def open(self, session: StudioSession, path: str, timeout: float) -> WebSocket:
        """Make one handshake, and return the open websocket.

        :param session: the authenticated session.
        :param path: the path below the server's base URL.
        :param timeout: limit for the handshake, in seconds.
        """
        if self._client is None:
            # Each handshake sends its own cookies; the client keeps none.
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

    :param renew: called with the known number of logins, and awaited, if the login has ended.
    :raises KernelStartError: if the server knows no such kernel, or could not reach it.
    :raises ConnectionLostError: if the websocket could not be opened.
    """
    seen, path = session.logins, channel_path(kernel_id, session_id)
    ws, status = await _try_handshake(sockets, session, path, timeout)
    if ws is None and status in LOGIN_ENDED:
        await renew(seen)
        ws, status = await _try_handshake(sockets, session, path, timeout)
    if ws is not None:
        channel = AsyncKernelWebSocket(ws)
        await channel.ping()  # to learn whether the other side answers pings
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
    """Give a TLS connection a smaller read buffer, if asyncio stores it as in Python 3.11 to 3.13."""
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
    """Return the name of a failure. The library's own texts may contain the request, and so cookies."""
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__} ({error.strerror})"
    return type(error).__name__
