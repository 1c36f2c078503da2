"""Faults of a request at the gateway, before the gateway handles it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from urllib.parse import unquote

from airflow_provider_smstudio.local.faults.switches import Switches
from airflow_provider_smstudio.local.transport.http import HttpError, Request, Stream, answer, read_body, response

_HTML = "<html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>"
OnRequest = Callable[[str, str], object]


class Registration:
    """A callback for requests. To unregister it, call this object or leave its ``with`` block."""

    def __init__(self, callbacks: list[OnRequest], callback: OnRequest) -> None:
        self._callbacks = callbacks
        # A new function object, because the same function may be registered twice.
        self._callback: OnRequest = lambda method, path: callback(method, path)
        callbacks.append(self._callback)

    def __call__(self) -> None:
        """Unregister the callback. Do nothing if it is not registered any more."""
        with contextlib.suppress(ValueError):
            self._callbacks.remove(self._callback)

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self()


class BlockedRequests:
    """Requests that wait at the gateway until :meth:`release`, or until the end of the ``with`` block.

    :ivar requests: method and path of the requests that have arrived.
    """

    def __init__(self, method: str, path_part: str) -> None:
        self.requests: list[tuple[str, str]] = []
        self._method = method.upper()
        self._path_part = path_part
        self._arrived = threading.Event()
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until a request has arrived.

        :param timeout: the longest wait, in seconds; None for no limit.
        :return: whether a request has arrived.
        """
        return self._arrived.wait(timeout)

    def release(self) -> None:
        """Let the waiting requests continue, and hold no further ones."""
        with contextlib.suppress(RuntimeError):  # the local Studio has been stopped
            self._loop.call_soon_threadsafe(self._over.set)

    async def keep(self, request: Request) -> None:
        """Let a request wait if it matches."""
        paths = (request.path, unquote(request.path))
        if self._over.is_set() or request.method != self._method or not any(self._path_part in p for p in paths):
            return
        self.requests.append((request.method, request.path))
        self._arrived.set()
        await self._over.wait()

    @property
    def over(self) -> bool:
        """Whether it no longer holds requests."""
        return self._over.is_set()

    def __enter__(self) -> BlockedRequests:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Faults:
    """The faults of the requests at one gateway. The switches and the blocked requests define them.

    :param base: the base path of the app's server.
    """

    def __init__(self, switches: Switches, base: str) -> None:
        self._switches = switches
        self._contents = f"{base}/api/contents/"
        self._callbacks: list[OnRequest] = []
        self._holds: list[BlockedRequests] = []

    @property
    def refuses(self) -> bool:
        """Whether the gateway must reset new connections."""
        return self._switches.refuse_connections

    def on_request(self, callback: OnRequest) -> Registration:
        """Call a function with the method and the path of each request."""
        return Registration(self._callbacks, callback)

    def hold(self, method: str, path_part: str) -> BlockedRequests:
        """Let matching requests wait from now on."""
        self._holds = [hold for hold in self._holds if not hold.over]
        self._holds.append(BlockedRequests(method, path_part))
        return self._holds[-1]

    async def meet(self, request: Request, stream: Stream) -> bool | None:
        """Apply the faults to a request.

        :return: None if the gateway must now handle the request. Otherwise the request is done: True if the
            connection can carry another request, else False.
        """
        for callback in list(self._callbacks):
            callback(request.method, request.path)
        for hold in list(self._holds):
            await hold.keep(request)
        switches = self._switches
        if switches.http_delay > 0:
            await asyncio.sleep(switches.http_delay)
        if request.is_websocket:
            if switches.take("websocket_refusals"):
                return await answer(stream, request, _page(switches.websocket_refusal_status))
            return None
        if switches.take("http_drops"):
            await _drop(request, stream)
            return False
        if switches.take("http_errors"):
            return await answer(stream, request, _page(switches.http_error_status))
        return await self._meet_save(request, stream)

    async def _meet_save(self, request: Request, stream: Stream) -> bool | None:
        path = request.path
        if not (request.method == "PUT" and path.startswith(self._contents) and path.endswith(".ipynb")):
            return None
        if self._switches.save_delay > 0:
            await asyncio.sleep(self._switches.save_delay)
        if not self._switches.take("save_failures"):
            return None
        name = unquote(path[len(self._contents) :])
        told = {"message": f"Unexpected error while saving file: {name}", "reason": None}
        status = self._switches.save_failure_status
        return await answer(stream, request, response(status, json.dumps(told), "application/json"))


def _page(status: int) -> bytes:
    return response(status, _HTML.format(f"{status} {HTTPStatus(status).phrase}"))


async def _drop(request: Request, stream: Stream) -> None:
    with contextlib.suppress(OSError, HttpError):
        if not request.headers.get("expect"):  # such a client waits before it sends the body
            await read_body(stream.reader, request.headers)
    stream.reset()
