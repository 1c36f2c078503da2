"""The open kernel websockets of a gateway, and the faults that they can have."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import replace
from urllib.parse import parse_qs, parse_qsl, urlencode

from airflow_provider_smstudio.local.threads import run_on
from airflow_provider_smstudio.local.transport.frames import FrameSplitter
from airflow_provider_smstudio.local.transport.http import CHUNK, Head, HttpError, Request, Stream, read_head
from airflow_provider_smstudio.local.transport.proxy import request_head, splice

WAYS = ("close", "reset", "half-open", "deaf")
# How long one side, after its end, waits for the end of the other side.
_PARTING_SECONDS = 10.0
# The server sends a message to the kernel in a later round of its loop. It drops the message if the websocket has
# closed by then.
_DELIVERY_SECONDS = 0.5
# A client sends this to close a websocket properly: a masked close frame with code 1000.
_CLOSE_FRAME = b"\x88\x82\x00\x00\x00\x00\x03\xe8"


class _Gate(Stream):
    """A connection that sends nothing more once it is shut."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream.reader, stream.writer)
        self.shut = False

    async def send(self, data: bytes) -> None:
        """Send data, unless the gate is shut."""
        if data and not self.shut:
            await super().send(data)


class _Sieve(_Gate):
    """The connection to the server. It can hold messages back while control frames pass."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self.holding = False
        self.held: list[bytes] = []
        self._splitter = FrameSplitter()
        self._hold_frame = False

    async def send(self, data: bytes) -> None:
        """Send the frames that are not held back."""
        passed: list[bytes] = []
        for control, begins, piece in self._splitter.feed(data):
            if begins:
                self._hold_frame = self.holding and not control
            # After a release in the middle of a frame, the rest of the frame must follow its beginning.
            (self.held if self._hold_frame and self.holding else passed).append(piece)
        await super().send(b"".join(passed))

    def take(self) -> bytes:
        """Stop holding messages back. Return the messages that were held."""
        self.holding = False
        held, self.held = b"".join(self.held), []
        return held


class Websocket:
    """A kernel websocket.

    :ivar kernel_id: the kernel.
    :ivar session_id: the ``session_id`` in the client's query; empty if there was none.
    :ivar state: ``"open"``, the way in which it was cut, or ``"ended"``.
    """

    def __init__(self, kernel_id: str, session_id: str, request: Request, client: Stream, server: Stream) -> None:
        self.kernel_id = kernel_id
        self.session_id = session_id
        self.state = "open"
        self._request = request
        self._client = _Gate(client)
        self._server = _Sieve(server)
        self._client_gone = False
        self._late: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._traffic = self._loop.create_task(splice(self._client, self._server))

    @property
    def listed(self) -> bool:
        """Whether the websocket is open from its client's point of view."""
        return self.state in ("open", "deaf") or (self.state == "half-open" and not self._client_gone)

    def cut(self, how: str = "reset") -> bool:
        """Break this websocket, from any thread. The fault is active when this method returns.

        :param how: ``"close"``: both sides see a normal end of the TCP connection, without a close frame.
            ``"reset"``: both sides see a TCP reset.
            ``"half-open"``: no data passes in either direction, but both connections stay open. This happens when
            a network device has forgotten the connections. The gateway reads and drops all data from both sides.
            Neither side notices the end of the other side.
            ``"deaf"``: the gateway holds back the messages of the client until another websocket of the same
            kernel opens. Then it sends them to the kernel in order. Pings, pongs and all data from the server
            pass. To a client it looks as if a request stays unread in the kernel (ipykernel 7.0 to 7.3, issue
            1554). If this websocket has ended by then, its messages still reach the kernel. They go over the new
            websocket if it has the same identity. Otherwise no client receives their replies.
        :return: whether the websocket has changed: it was open, and not yet broken in this way.
        """
        return run_on(self._loop, lambda: self.cut_here(how))

    def cut_here(self, how: str) -> bool:
        """:meth:`cut`, in the loop's thread."""
        _check_way(how)
        if not self.listed or self.state == how or (how == "deaf" and self.state == "half-open"):
            return False
        self.state = how
        if how == "deaf":
            self._server.holding = True
            return True
        self._client.shut = self._server.shut = True
        self._traffic.cancel()
        if how == "reset":
            self._client.reset()
            self._server.reset()
            return True
        self._traffic = self._loop.create_task(self._swallow_after(self._traffic, end=how == "close"))
        return True

    async def _swallow_after(self, traffic: asyncio.Task[None], *, end: bool) -> None:
        # Only one task may read at a time.
        await asyncio.wait({traffic})
        await (self._end() if end else self._swallow())

    async def _end(self) -> None:
        for stream in (self._client, self._server):
            with contextlib.suppress(OSError):
                stream.writer.write_eof()
        # If a connection is closed with unread data, it ends with a reset. So read everything first.
        with contextlib.suppress(asyncio.TimeoutError):
            both = asyncio.gather(_discard(self._client), _discard(self._server))
            await asyncio.wait_for(both, _PARTING_SECONDS)

    async def _swallow(self) -> None:
        server = asyncio.create_task(_discard(self._server))
        try:
            await _discard(self._client)
            self._client_gone = True
            await server
        finally:
            server.cancel()

    async def run(self) -> None:
        """Forward bytes until the connections have ended."""
        try:
            traffic = None
            while traffic is not self._traffic:
                traffic = self._traffic
                await asyncio.wait({traffic})
            if not traffic.cancelled():
                traffic.result()
        finally:
            self.state = "ended"
            self._traffic.cancel()
            await asyncio.gather(self._traffic, return_exceptions=True)

    @property
    def waits(self) -> bool:
        """Whether this websocket waits for another one to open: it is deaf, or it holds messages back."""
        return bool(self._server.held) or self.state == "deaf"

    def hear_again(self, newer: Websocket) -> None:
        """Send the held messages to the kernel, because another websocket of the kernel has opened."""
        held = self._server.take()
        if self.state == "deaf":
            self.state = "open"
        identity = session_id_of(self._request)
        if identity and identity == session_id_of(newer._request):
            # To the server, both have the same identity, and it has dropped the older one.
            newer._server.writer.write(held)
        elif self.state != "ended":
            self._server.writer.write(held)
        elif held:
            self._late = self._loop.create_task(self._deliver_late(held, newer._server))

    async def _deliver_late(self, held: bytes, newer: Stream) -> None:
        """Send messages to the kernel under a new identity.

        The old identity would not work: a kernel ignores a new peer of that name until it has noticed the end of
        the old peer.
        """
        port = newer.writer.get_extra_info("peername")[1]
        with contextlib.suppress(OSError, HttpError, asyncio.TimeoutError):
            stream = await Stream.connect(port)
            try:
                await stream.send(request_head(with_new_identity(self._request)).encode())
                head = await asyncio.wait_for(read_head(stream.reader), _PARTING_SECONDS)
                if head is not None and head.status == 101:
                    await stream.send(held)
                    await asyncio.sleep(_DELIVERY_SECONDS)
                    await stream.send(_CLOSE_FRAME)
                    await asyncio.wait_for(_discard(stream), _PARTING_SECONDS)
            finally:
                stream.close()


def _check_way(how: str) -> None:
    if how not in WAYS:
        raise ValueError(f"how must be one of {', '.join(WAYS)}, not {how!r}")


async def _discard(stream: Stream) -> None:
    """Read and drop all data until the connection ends in any way."""
    with contextlib.suppress(OSError):
        while await stream.reader.read(CHUNK):
            pass


class Websockets:
    """The kernel websockets of one gateway."""

    def __init__(self) -> None:
        self._known: list[Websocket] = []

    def listed(self) -> list[Websocket]:
        """Return the open websockets, oldest first."""
        return [websocket for websocket in self._known if websocket.listed]

    def cut(self, how: str, kernel_id: str | None = None) -> int:
        """Break all websockets, or those of one kernel. Return how many have changed."""
        _check_way(how)
        meant = [websocket for websocket in self.listed() if kernel_id in (None, websocket.kernel_id)]
        return sum(websocket.cut_here(how) for websocket in meant)

    async def carry(
        self, kernel_id: str, session_id: str, request: Request, client: Stream, server: Stream, answer: Head
    ) -> None:
        """Serve a websocket, from the server's response to the handshake until the end.

        :param session_id: the ``session_id`` in the client's query.
        :param request: the handshake, as the server received it.
        :param answer: the server's response to the handshake, to be sent to the client.
        """
        client.writer.write(answer.encode())
        websocket = Websocket(kernel_id, session_id, request, client, server)
        for older in self._known:
            if older.kernel_id == kernel_id and older.waits:
                older.hear_again(websocket)
        self._known.append(websocket)
        try:
            await websocket.run()
        finally:
            self._known = [known for known in self._known if known.state != "ended" or known.waits]


def session_id_of(request: Request) -> str:
    """Return the ID of the client session in a handshake; empty if there is none."""
    return parse_qs(request.query).get("session_id", [""])[0]


def with_new_identity(request: Request) -> Request:
    """Return the handshake with the ID of a new client session, so that the server sees a new client."""
    query = [
        (name, value) for name, value in parse_qsl(request.query, keep_blank_values=True) if name != "session_id"
    ]
    target = f"{request.path}?{urlencode([*query, ('session_id', secrets.token_hex(16))])}"
    return replace(
        request, head=Head(f"{request.method} {target} {request.version}", request.headers), target=target
    )
