"""The trigger that watches a notebook's run after its task has released the worker slot."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

from airflow_provider_smstudio._compat import (
    BaseTrigger,
    TriggerEvent,
    get_ready_to_ask,
    is_deferred,
    was_killed,
)
from airflow_provider_smstudio._secrets import mask_login_here

if TYPE_CHECKING:
    from airflow_provider_smstudio.studio.client import Studio
    from airflow_provider_smstudio.studio.runs.watcher import NotebookWatcher

EARLIEST_EVENT = 10.0
"""The shortest time from the trigger's start to its event, in seconds.

Airflow 3.2 to 3.3.2 notice the end of a worker process up to five seconds late. If the trigger fires before that,
they fail its task (apache/airflow#66374, #67287).
"""

KILLED = "the task was killed"


class SageMakerStudioNotebookTrigger(BaseTrigger):
    """Continues a notebook's run that a worker has started. Fires once when the run is over.

    The trigger holds no state of its own. If it is killed and started again elsewhere, it continues on the same
    kernel. It logs progress and output as the operator does, and it removes the kernel. The event is a dict:
    ``status`` is ``success`` with a ``result`` (:class:`~airflow_provider_smstudio.studio.RunResult`), ``error``
    or ``timeout`` with an ``error`` (:func:`~airflow_provider_smstudio.studio.errors.to_plain`).

    :param studio: the arguments of :class:`~airflow_provider_smstudio.hooks.studio.SageMakerStudioHook`.
    :param handover: the worker's hand-over, see :class:`~airflow_provider_smstudio.studio.runs.handover.Handover`.
    :param log_output: write the output of the cells to the log.
    :param deadline: when to stop the run, in seconds since the epoch; None for no limit.
    :param cancel_on_kill: stop the run when its task is cleared, or marked as failed or successful. Default True.
    """

    def __init__(
        self,
        studio: dict[str, Any],
        handover: dict[str, Any],
        log_output: bool = True,
        deadline: float | None = None,
        cancel_on_kill: bool = True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.studio = studio
        self.handover = handover
        self.log_output = log_output
        self.deadline = deadline
        self.cancel_on_kill = cancel_on_kill
        self._exit_stack: AsyncExitStack | None = None
        self._watcher: NotebookWatcher | None = None
        self._getting_ready: asyncio.Future[None] | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, as plain JSON and without a secret."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "studio": self.studio,
                "handover": self.handover,
                "log_output": self.log_output,
                "deadline": self.deadline,
                "cancel_on_kill": self.cancel_on_kill,
            },
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.handover['spec'].get('run_name')!r})"

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch the run until it ends, then fire."""
        began = time.monotonic()
        try:
            payload = await self._watch()
            await asyncio.sleep(max(began + EARLIEST_EVENT - time.monotonic(), 0))
        except asyncio.CancelledError as error:
            # In 3.3 and later Airflow calls on_kill() next if a user killed the task. Before 3.3, and after a
            # timeout, only the task's state distinguishes this from a triggerer that ends.
            if not was_killed(error):
                await _undisturbed(self._cancelled())
            raise
        except BaseException:
            await self._close()
            raise
        await self._close()
        yield TriggerEvent(payload)

    async def on_kill(self) -> None:
        """Stop the run: interrupt the cell, save the notebook, remove the kernel (Airflow 3.3 and later)."""
        if self.cancel_on_kill:
            await self._kill()

    async def cleanup(self) -> None:
        """Close what is still open. A run that is not over continues, and no process watches it."""
        await self._close()

    async def _watch(self) -> dict[str, Any]:
        """Watch the run until it ends.

        :return: the event's payload.
        """
        from airflow_provider_smstudio.studio.errors import (
            RunTakenOverError,
            RunTimeoutError,
            StudioError,
            to_plain,
        )

        try:
            watcher = await self._begin()
            result = await watcher.watch()
        except RunTimeoutError as error:
            return {"status": "timeout", "error": to_plain(error)}
        except RunTakenOverError as error:
            if self._watcher is not None and await self._watcher.is_watched_elsewhere():
                # Airflow has moved this trigger to another triggerer, and will cancel it here in a while.
                self.log.warning("another triggerer watches this run now")
                await asyncio.Event().wait()
            return {"status": "error", "error": to_plain(error)}
        except StudioError as error:
            return {"status": "error", "error": to_plain(error)}
        return {"status": "success", "result": result.as_dict()}

    async def _begin(self) -> NotebookWatcher:
        # The first import of the client takes half a second, which is too long for an event loop.
        await asyncio.to_thread(import_module, "airflow_provider_smstudio.studio.runs.watcher")

        from airflow_provider_smstudio.studio.runs.handover import Handover
        from airflow_provider_smstudio.studio.runs.log import RunLog
        from airflow_provider_smstudio.studio.runs.shared_resources import SharedResources
        from airflow_provider_smstudio.studio.runs.watcher import NotebookWatcher

        exit_stack = self._exit_stack = AsyncExitStack()
        resources = await exit_stack.enter_async_context(SharedResources.use())
        key = json.dumps(self.studio, sort_keys=True, default=str)
        shared = await exit_stack.enter_async_context(resources.studio(key, self._make_studio))
        watcher = self._watcher = NotebookWatcher(
            resources,
            shared,
            Handover.from_dict(self.handover),
            # A line contains what the notebook prints, so it must not be used as a format.
            listener=RunLog(lambda level, line: self.log.log(level, "%s", line), show_output=self.log_output),
            deadline=self.deadline,
        )
        exit_stack.push_async_callback(watcher.leave)
        self._getting_ready = asyncio.ensure_future(get_ready_to_ask(self))
        return watcher

    async def _make_studio(self) -> Studio:
        from airflow_provider_smstudio.hooks.studio import SageMakerStudioHook

        def make() -> Studio:
            return SageMakerStudioHook(**self.studio).make_studio(on_secret=mask_login_here)

        return await sync_to_async(make)()  # it looks up connections, which Airflow forbids in a plain thread

    async def _cancelled(self) -> None:
        """Stop the run if its task no longer waits for it. If only the triggerer ends, let the run continue."""
        try:
            if self.cancel_on_kill and not await is_deferred(self):
                await self._kill()
        except Exception as error:  # the trigger ends in any case
            self.log.warning("could not find out whether the task was killed: %s", type(error).__name__)
        await self._close()

    async def _kill(self) -> None:
        from airflow_provider_smstudio.studio.errors import StudioError

        try:
            watcher = self._watcher or await self._begin()
            await watcher.kill(KILLED)
        except StudioError as error:
            self.log.warning("the run could not be stopped properly: %s", error)
        else:
            self.log.info("the run was stopped: %s", KILLED)

    async def _close(self) -> None:
        exit_stack, self._exit_stack = self._exit_stack, None
        self._watcher = None
        if exit_stack is not None:
            await exit_stack.aclose()


async def _undisturbed(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end. Before 3.3 Airflow cancels a trigger again every second until it has ended."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
