"""A small part of HTTP/1.1 over asyncio streams: heads, bodies and connections."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

# The longest head. It is also the read buffer of a connection, and large enough to move big bodies in big pieces.
LIMIT = 256 * 1024
CHUNK = 256 * 1024


class HttpError(Exception):
    """The peer did not send HTTP as expected, or closed the connection in the middle of a message."""


class Headers:
    """Header fields in their order and spelling. Names are compared without case."""

    def __init__(self, fields: list[tuple[str, str]] | None = None) -> None:
        self.fields = list(fields or [])

    def get(self, name: str, default: str = "") -> str:
        """Return the first value of a field."""
        return next((value for key, value in self.fields if key.lower() == name), default)

    def all(self, name: str) -> list[str]:
        """Return every value of a field."""
        return [value for key, value in self.fields if key.lower() == name]

    def without(self, *names: str) -> Headers:
        """Return a copy without these fields."""
        return Headers([(key, value) for key, value in self.fields if key.lower() not in names])

    def add(self, name: str, value: str) -> None:
        """Append a field."""
        self.fields.append((name, value))

    def tokens(self, name: str) -> set[str]:
        """Return the comma-separated words of a field, in lower case."""
        return {word.strip().lower() for value in self.all(name) for word in value.split(",")}


@dataclass
class Head:
    """The first line and the fields of a request or a response."""

    first: str
    headers: Headers = field(default_factory=Headers)

    def words(self) -> list[str]:
        """Return the three words of the first line."""
        parts = self.first.split(" ", 2)
        if len(parts) < 2:
            raise HttpError(f"not HTTP: {self.first[:80]!r}")
        return [*parts, ""][:3]

    @property
    def status(self) -> int:
        """The status code of a response."""
        try:
            return int(self.words()[1])
        except ValueError:
            raise HttpError(f"not an HTTP status: {self.first[:80]!r}") from None

    def encode(self) -> bytes:
        """Return the bytes to send, including the empty line at the end."""
        lines = [self.first, *(f"{name}: {value}" for name, value in self.headers.fields), "", ""]
        return "\r\n".join(lines).encode("latin-1")


@dataclass
class Request:
    """A request. Its body, if it has one, must still be read from the connection."""

    head: Head
    method: str
    target: str
    version: str

    @property
    def headers(self) -> Headers:
        """The request's fields."""
        return self.head.headers

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The text after the question mark."""
        return self.target.partition("?")[2]

    @property
    def is_websocket(self) -> bool:
        """Whether the client asks to upgrade to a websocket."""
        return "upgrade" in self.headers.tokens("connection") and "websocket" in self.headers.tokens("upgrade")

    @property
    def wants_close(self) -> bool:
        """Whether the client will not send another request on this connection."""
        words = self.headers.tokens("connection")
        return "close" in words or (self.version == "HTTP/1.0" and "keep-alive" not in words)


class Stream:
    """A TCP connection: its asyncio reader and writer, and the two ways to end it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Stream:
        """Connect to a port of this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=LIMIT))

    async def send(self, data: bytes) -> None:
        """Write data, and wait while the peer reads too slowly."""
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        """Close the connection normally, after all written data is sent."""
        self.writer.close()

    def reset(self) -> None:
        """End the connection with a TCP reset, at once."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """Read the head of a message. Return None if the peer closed the connection instead."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial.strip():
            return None
        raise HttpError("connection closed inside a head") from None
    except asyncio.LimitOverrunError:
        raise HttpError("head too long") from None
    lines = raw.decode("latin-1").lstrip("\r\n").split("\r\n")
    headers = Headers()
    for line in lines[1:]:
        if line:
            name, colon, value = line.partition(":")
            if not colon:
                raise HttpError("header field without a colon")
            headers.add(name, value.strip())
    return Head(lines[0], headers)


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Read the head of the next request. Return None at the end of the connection."""
    head = await read_head(reader)
    if head is None:
        return None
    method, target, version = head.words()
    return Request(head, method, target, version)


async def body_pieces(
    reader: asyncio.StreamReader, headers: Headers, *, until_close: bool
) -> AsyncIterator[bytes]:
    """Yield the bytes of a body as they arrive, including any chunk framing.

    :param until_close: whether a body without a length ends with the connection (responses).
    """
    if "chunked" in headers.tokens("transfer-encoding"):
        async for piece in _chunked(reader):
            yield piece
    elif headers.get("content-length"):
        async for piece in _exactly(reader, int(headers.get("content-length"))):
            yield piece
    elif until_close:
        while piece := await reader.read(CHUNK):
            yield piece


async def _exactly(reader: asyncio.StreamReader, left: int) -> AsyncIterator[bytes]:
    while left > 0:
        piece = await reader.read(min(left, CHUNK))
        if not piece:
            raise HttpError("connection closed inside a body")
        left -= len(piece)
        yield piece


async def _chunked(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        line = await reader.readline()
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise HttpError("bad chunk") from None
        yield line
        if size == 0:
            break
        async for piece in _exactly(reader, size + 2):
            yield piece
    while True:  # trailers, up to the empty line
        line = await reader.readline()
        yield line
        if line in (b"\r\n", b"\n", b""):
            return


async def read_body(reader: asyncio.StreamReader, headers: Headers) -> bytes:
    """Read and return a whole request body."""
    return b"".join([piece async for piece in body_pieces(reader, headers, until_close=False)])


def response(
    status: int,
    body: bytes | str = b"",
    content_type: str = "text/html; charset=UTF-8",
    fields: list[tuple[str, str]] | None = None,
    *,
    close: bool = False,
) -> bytes:
    """Return the bytes of a complete response."""
    data = body.encode() if isinstance(body, str) else body
    headers = Headers([("Content-Type", content_type), ("Content-Length", str(len(data))), *(fields or [])])
    if close:
        headers.add("Connection", "close")
    return Head(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", headers).encode() + data


async def answer(stream: Stream, request: Request, data: bytes) -> bool:
    """Send a response that does not depend on the request's body.

    :return: whether the connection can carry another request.
    """
    await stream.send(data)
    if request.is_websocket or request.headers.get("expect"):
        return False
    # The body is not needed but is read anyway: most clients send it before they read the response.
    async for _ in body_pieces(stream.reader, request.headers, until_close=False):
        pass
    return True


async def fetch(
    port: int, method: str, target: str, fields: list[tuple[str, str]] | None = None
) -> tuple[int, Any]:
    """Send a request to a server on this machine. Return the status and the decoded JSON (None if not JSON)."""
    stream = await Stream.connect(port)
    try:
        headers = Headers([("Host", f"127.0.0.1:{port}"), ("Connection", "close"), *(fields or [])])
        if method != "GET":
            headers.add("Content-Length", "0")
        await stream.send(Head(f"{method} {target} HTTP/1.1", headers).encode())
        head = await read_head(stream.reader)
        if head is None:
            raise HttpError("no answer")
        pieces = []
        if head.status != 204:
            pieces = [piece async for piece in body_pieces(stream.reader, head.headers, until_close=True)]
        try:
            return head.status, json.loads(b"".join(pieces))
        except ValueError:
            return head.status, None
    finally:
        stream.close()


class Listener:
    """A TCP port of this machine. It keeps a list of its connections, so that it can end all of them at once."""

    def __init__(self, serve: Callable[[Stream], Awaitable[None]]) -> None:
        self._serve = serve
        self._server: asyncio.Server | None = None
        self.connections: dict[asyncio.Task[Any], Stream] = {}
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port of the loopback interface."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=LIMIT)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = Stream(reader, writer)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # the server calls this as a task
        self.connections[task] = stream
        try:
            await self._serve(stream)
        except (OSError, HttpError, asyncio.IncompleteReadError, ValueError):
            stream.reset()
        except asyncio.CancelledError:
            stream.reset()
        finally:
            del self.connections[task]
            stream.close()

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            self._server.close()
        tasks = list(self.connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
