"""Forwards requests and websockets to a Jupyter server, without changes that a client could notice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from airflow_provider_smstudio.local.transport.http import (
    CHUNK,
    Head,
    HttpError,
    Request,
    Stream,
    body_pieces,
    read_head,
    response,
)

# Serves an upgraded connection. Arguments: the client, the server, and the server's response to the upgrade
# request, which must still be sent to the client.
Carrier = Callable[[Stream, Stream, Head], Awaitable[None]]

_HOP_BY_HOP = ("connection", "keep-alive", "proxy-connection", "te", "upgrade")


class _ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


class Upstream:
    """The connection to the server for one client connection. It is opened again if the server has closed it."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self._port = 0

    async def open(self, port: int) -> Stream:
        """Return the connection to the server's port, open."""
        stale = self.stream is None or self._port != port or self.stream.reader.at_eof()
        if self.stream is None or stale:
            self.close()
            self.stream = await Stream.connect(port)
            self._port = port
        return self.stream

    def close(self) -> None:
        """Close the connection."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None


async def carry(client: Stream, server: Stream, consent: Head) -> None:
    """Forward an upgraded connection as raw bytes until it ends."""
    await client.send(consent.encode())
    await splice(client, server)


async def forward(
    request: Request,
    client: Stream,
    upstream: Upstream,
    port: int,
    on_set_cookie: Callable[[str], None],
    carrier: Carrier = carry,
) -> bool:
    """Forward one request to the server at ``port``, and its response to the client.

    Bodies stream in both directions.

    :param on_set_cookie: called with each ``Set-Cookie`` value of the response.
    :param carrier: serves a websocket.
    :return: whether the client's connection can carry another request.
    """
    try:
        server = await upstream.open(port)
        await server.send(request_head(request).encode())
    except OSError:
        upstream.close()
        await client.send(bad_gateway())
        return False
    exchange = _Exchange(request, client, server, on_set_cookie, carrier)
    try:
        keep = await exchange.run()
    except (HttpError, OSError, asyncio.IncompleteReadError):
        upstream.close()
        if exchange.answered:
            raise
        await client.send(bad_gateway())
        return False
    if not keep:
        upstream.close()
    return keep


def bad_gateway() -> bytes:
    """Return the response if the server cannot be reached."""
    return response(502, "<html><head><title>502 Bad Gateway</title></head></html>", close=True)


def request_head(request: Request) -> Head:
    """Return the head of a request as the server receives it."""
    headers = request.headers.without(*_HOP_BY_HOP)
    if request.is_websocket:
        headers.add("Connection", "Upgrade")
        headers.add("Upgrade", "websocket")
    return Head(request.head.first, headers)


class _Exchange:
    """One request and its response."""

    def __init__(
        self,
        request: Request,
        client: Stream,
        server: Stream,
        on_set_cookie: Callable[[str], None],
        carrier: Carrier,
    ) -> None:
        self.request = request
        self.client = client
        self.server = server
        self.on_set_cookie = on_set_cookie
        self.carrier = carrier
        self.answered = False

    async def run(self) -> bool:
        headers = self.request.headers
        if not (headers.get("content-length") or headers.get("transfer-encoding")):
            return await self._answer()
        # The response may start before the body ends: "100 Continue", or an early refusal.
        body = asyncio.create_task(self._send_body())
        answer = asyncio.create_task(self._answer())
        try:
            await asyncio.wait({body, answer}, return_when=asyncio.FIRST_COMPLETED)
            if body.done() and isinstance(body.exception(), _ClientGoneError):
                self.answered = True  # there is no client left to receive a response
                raise HttpError("client closed the connection inside its request")
            keep = await answer
            return keep and body.done() and body.exception() is None
        finally:
            for task in (body, answer):
                task.cancel()
            await asyncio.gather(body, answer, return_exceptions=True)

    async def _send_body(self) -> None:
        pieces = body_pieces(self.client.reader, self.request.headers, until_close=False)
        while True:
            try:
                piece = await anext(pieces, None)
            except (OSError, HttpError, asyncio.IncompleteReadError) as error:
                raise _ClientGoneError from error
            if piece is None:
                return
            await self.server.send(piece)

    async def _answer(self) -> bool:
        while True:
            head = await read_head(self.server.reader)
            if head is None:
                raise HttpError("server closed without an answer")
            if head.status == 101:
                self.answered = True
                await self.carrier(self.client, self.server, head)
                return False
            if head.status >= 200:
                return await self._final(head)
            await self.client.send(head.encode())

    async def _final(self, head: Head) -> bool:
        for value in head.headers.all("set-cookie"):
            self.on_set_cookie(value)
        bodiless = self.request.method == "HEAD" or head.status in (204, 304)
        framed = bodiless or bool(head.headers.get("content-length") or head.headers.get("transfer-encoding"))
        keep = framed and not self.request.wants_close and "close" not in head.headers.tokens("connection")
        passed = Head(head.first, head.headers.without("connection", "keep-alive"))
        if not keep:
            passed.headers.add("Connection", "close")
        self.answered = True
        await self.client.send(passed.encode())
        if not bodiless:
            async for piece in body_pieces(self.server.reader, head.headers, until_close=True):
                await self.client.send(piece)
        return keep


async def splice(one: Stream, other: Stream) -> None:
    """Forward bytes in both directions until both sides have ended.

    A normal end is forwarded as a normal end, and a reset as a reset. If one side does not read, the other side
    must wait: at most a read buffer and a write buffer are stored here.
    """
    there = asyncio.create_task(_pump(one, other))
    back = asyncio.create_task(_pump(other, one))
    try:
        done, _ = await asyncio.wait({there, back}, return_when=asyncio.FIRST_EXCEPTION)
        for pump in done:
            pump.result()
    except OSError:
        # If a side has already received the end, do not reset it: data may still be on its way.
        if not _ended(back):
            one.reset()
        if not _ended(there):
            other.reset()
    finally:
        for pump in (there, back):
            pump.cancel()
        await asyncio.gather(there, back, return_exceptions=True)


def _ended(pump: asyncio.Task[None]) -> bool:
    return pump.done() and not pump.cancelled() and pump.exception() is None


async def _pump(source: Stream, target: Stream) -> None:
    while data := await source.reader.read(CHUNK):
        await target.send(data)
    if target.writer.can_write_eof():
        target.writer.write_eof()
