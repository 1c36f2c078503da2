"""What the runs of one event loop share: threads for blocking calls, websockets' client, logins.

A thousand runs that come at once, as after a restart, must neither flood Studio nor each other: blocking calls
(boto3, requests) go through a few threads, and of those each Studio gets a part. Runs of the same Studio share
one login.
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
    """What several runs can share; :class:`~airflow_provider_smstudio.studio.client.Studio` is one."""

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
    """A Studio that several runs use, and how many calls it is asked at once.

    :param studio: the client.
    :param threads: where its blocking calls are made.
    """

    def __init__(self, studio: _S, threads: ThreadPoolExecutor) -> None:
        self.studio = studio
        self.users = 0
        self._threads = threads
        self._calls = asyncio.Semaphore(_CALLS_EACH)
        self._saves = asyncio.Semaphore(_SAVES_EACH)

    async def call(self, work: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Make a blocking call in a thread; it waits for its turn."""
        async with self._calls:
            return await in_thread(self._threads, work, *args, **kwargs)

    async def save(self, work: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Make a blocking call that may take long; fewer of these are made at once."""
        async with self._saves:
            return await in_thread(self._threads, work, *args, **kwargs)

    def begin(self, work: Callable[[], None]) -> None:
        """Have something done in a thread that nobody waits for.

        :raises RuntimeError: when there are no threads any more.
        """
        self._threads.submit(work)


async def in_thread(threads: ThreadPoolExecutor | None, work: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """Make a blocking call in a thread, with the caller's context, by which logs find their way."""
    context = contextvars.copy_context()
    call = functools.partial(context.run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(threads, call)


class SharedResources:
    """What the runs of one event loop share; get it with :meth:`use`, which makes it and closes it."""

    _of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, SharedResources] = WeakKeyDictionary()

    def __init__(self) -> None:
        self.sockets = Sockets()
        self.handshakes = asyncio.Semaphore(_HANDSHAKES)
        self.runs = 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="smstudio")
        # Giving back a kernel of Classic waits minutes for its app to be gone.
        self.patient = ThreadPoolExecutor(_THREADS, thread_name_prefix="smstudio-patient")
        self._studios: dict[str, SharedStudio[Any]] = {}
        self._making = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def use(cls) -> AsyncIterator[SharedResources]:
        """Use the hub of the running event loop; the last user closes it."""
        loop = asyncio.get_running_loop()
        hub = cls._of_loop.get(loop)
        if hub is None:
            hub = cls._of_loop[loop] = cls()
        hub.runs += 1
        try:
            yield hub
        finally:
            hub.runs -= 1
            if hub.runs == 0:
                cls._of_loop.pop(loop, None)
                await hub._close()

    @asynccontextmanager
    async def studio(self, key: str, make: Callable[[], Awaitable[_S]]) -> AsyncIterator[SharedStudio[_S]]:
        """Use the Studio of this key; the first user makes it, the last one closes it.

        :param key: the same for users whose settings and credentials are the same.
        :param make: makes the client.
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
