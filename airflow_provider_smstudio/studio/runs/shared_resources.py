"""Resources that the runs of one event loop share: threads for blocking calls, the websocket client, logins.

A thousand runs may begin at once, for example after a restart. They must not overload Studio or each other. So
blocking calls (boto3, requests) use a limited number of threads. Each Studio app may use a part of them. Runs
on the same Studio app share one login.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_smstudio.studio.jupyter.async_websocket import Sockets
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer

_T = TypeVar("_T")


class StudioClient(Protocol):
    """A client that several runs can share, such as :class:`~airflow_provider_smstudio.studio.client.Studio`."""

    @property
    def server(self) -> JupyterServer:
        """The Jupyter server of the Studio app."""

    def close(self) -> None:
        """Close the connections."""


_S = TypeVar("_S", bound=StudioClient, covariant=True)

_THREADS = 24
_CALLS_EACH = 8
_SAVES_EACH = 4
_HANDSHAKES = 32


class SharedStudio(Generic[_S]):
    """The client of a Studio app that several runs use. It limits the number of simultaneous calls.

    :param studio: the client.
    :param threads: the thread pool for its blocking calls.
    """

    def __init__(self, studio: _S, threads: ThreadPoolExecutor) -> None:
        self.studio = studio
        self.users = 0
        self._threads = threads
        self._calls = asyncio.Semaphore(_CALLS_EACH)
        self._saves = asyncio.Semaphore(_SAVES_EACH)

    async def call(self, work: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Make a blocking call in a thread. At most eight of these run at once."""
        async with self._calls:
            return await in_thread(self._threads, work, *args, **kwargs)

    async def save(self, work: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Make a blocking call that may take long. At most four of these run at once."""
        async with self._saves:
            return await in_thread(self._threads, work, *args, **kwargs)

    def begin(self, work: Callable[[], None]) -> None:
        """Start work in a thread without waiting for its end.

        :raises RuntimeError: when the thread pool is closed.
        """
        self._threads.submit(work)


async def in_thread(threads: ThreadPoolExecutor | None, work: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """Make a blocking call in a thread, with the caller's context, so that its log lines reach the right log."""
    context = contextvars.copy_context()
    call = functools.partial(context.run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(threads, call)


class SharedResources:
    """The resources that the runs of one event loop share. Get them from :meth:`use`, which also closes them."""

    _of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, SharedResources] = WeakKeyDictionary()

    def __init__(self) -> None:
        self.sockets = Sockets()
        self.handshakes = asyncio.Semaphore(_HANDSHAKES)
        self.runs = 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="smstudio")
        # The removal of a Classic kernel waits minutes until its app is gone.
        self.patient = ThreadPoolExecutor(_THREADS, thread_name_prefix="smstudio-patient")
        self._studios: dict[str, SharedStudio[Any]] = {}
        self._making = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def use(cls) -> AsyncIterator[SharedResources]:
        """Use the shared resources of the running event loop. The last user closes them."""
        loop = asyncio.get_running_loop()
        resources = cls._of_loop.get(loop)
        if resources is None:
            resources = cls._of_loop[loop] = cls()
        resources.runs += 1
        try:
            yield resources
        finally:
            resources.runs -= 1
            if resources.runs == 0:
                cls._of_loop.pop(loop, None)
                await resources._close()

    @asynccontextmanager
    async def studio(self, key: str, make: Callable[[], Awaitable[_S]]) -> AsyncIterator[SharedStudio[_S]]:
        """Use the Studio client of this key. The first user creates it, and the last user closes it.

        :param key: the same for all users with the same settings and credentials.
        :param make: creates the client.
        """
        async with self._making:
            shared = self._studios.get(key)
            if shared is None:
                shared = self._studios[key] = SharedStudio(await make(), self._threads)
            shared.users += 1
        try:
            yield shared
        finally:
            shared.users -= 1
            if shared.users == 0:
                self._studios.pop(key, None)
                shared.studio.close()

    async def _close(self) -> None:
        await self.sockets.close()
        for threads in (self._threads, self.patient):
            threads.shutdown(wait=False)
