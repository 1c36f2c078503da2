"""Continue a run on an event loop, where one thread watches many runs. :mod:`runner` uses one thread for each run.

The watcher starts no kernel. The hand-over of the process before names the Jupyter session of the run. The
executed notebook and the kernel record say how far the run is. So a watcher can end at any time, and another
watcher can continue the run elsewhere.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import (
    KernelDiedError,
    RunError,
    RunTakenOverError,
    RunTimeoutError,
    StudioError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.run import NotebookRun
from airflow_provider_smstudio.studio.jupyter.kernel_probe import KernelProbe
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.runs import decisions, identity, saved_run
from airflow_provider_smstudio.studio.runs.async_saver import SAVES_A_SECOND, AsyncNotebookSaver
from airflow_provider_smstudio.studio.runs.handover import Handover
from airflow_provider_smstudio.studio.runs.identity import owner_of
from airflow_provider_smstudio.studio.runs.observer import Observer
from airflow_provider_smstudio.studio.runs.output_guard import OutputGuard
from airflow_provider_smstudio.studio.runs.remote_kernel import RemoteKernel
from airflow_provider_smstudio.studio.runs.result import RunResult, result_of
from airflow_provider_smstudio.studio.runs.shared_resources import SharedResources, SharedStudio, StudioClient
from airflow_provider_smstudio.studio.runs.triggerer_loop import HANDSHAKE_LIMIT, TriggererLoop

log = logging.getLogger(__name__)


class NotebookWatcher:
    """Continues one run. Each process that continues the run creates its own watcher.

    :param resources: the resources that the runs of this event loop share.
    :param shared: the client of the Studio app.
    :param handover: the hand-over of the run.
    :param listener: receives every event of the run, in order. It must not block.
    :param deadline: when the run must be stopped, in seconds since the epoch; None for no limit.
    """

    def __init__(
        self,
        resources: SharedResources,
        shared: SharedStudio[StudioClient],
        handover: Handover,
        *,
        listener: Callable[[ev.Event], None] | None = None,
        deadline: float | None = None,
    ) -> None:
        self._resources, self._shared = resources, shared
        self._server = shared.studio.server
        self._handover, self._spec = handover, handover.spec
        self._who = identity.identity_of(self._spec.run_key, self._spec.run_name)
        self._owner = f"{handover.owner}{uuid.uuid4().hex[:8]}"
        self._since = int(time.time())
        self._path = self._spec.output_path or ""
        self._kernel = RemoteKernel(
            self._server,
            timeout=HANDSHAKE_LIMIT,
            delete_app=self._spec.delete_kernel_app,
            stop_reason=lambda: self._loop.stop_reason,
            owner=self._owner,
        )
        self._saver = AsyncNotebookSaver(resources, shared, self._path)
        self._loop = TriggererLoop(
            resources,
            shared,
            self._kernel,
            self._saver,
            probe=KernelProbe(self._server, self._who.probe_path(decisions.session_path(self._spec, self._who))),
            listener=Observer(listener, "the run's listener"),
            client_session=self._who.client_session,
            session_name=self._name,
            deadline=deadline,
        )
        self._run: NotebookRun | None = None

    async def watch(self) -> RunResult:
        """Watch the run to its end.

        If this coroutine is cancelled, it removes nothing. Then call :meth:`kill` or :meth:`leave`.

        :return: the result of the run.
        :raises RunTakenOverError: when a later try, or another watcher, continues the run.
        :raises RunTimeoutError: when the deadline has passed. The run was stopped.
        :raises StudioError: in the same cases as :meth:`NotebookRunner.run`.
        """
        session = await self._find()
        notebook = await self._read()
        if session is None:
            return await self._ended_before(notebook)
        if saved_run.state_of(notebook) in ("completed", "stopped"):
            self._kernel.adopt(session)
            await self._loop.release()
            return self._result(notebook)
        run = self._resume(notebook, session)
        run.memory.go_on(self._handover.memory_level)
        await self._take(run, session)
        await self._loop.drive(run)
        return await self._end(run)

    async def kill(self, reason: str) -> None:
        """Interrupt the cell, save the notebook and remove the kernel, if this watcher still owns the run.

        Call it after :meth:`watch` was cancelled. If the run has ended already, only its last save is made. A run
        that another process has taken over is not touched.
        """
        self._loop.stop_reason = self._loop.stop_reason or reason
        run = self._run
        if run is None:
            await self._kill_unwatched()
            return
        if run.finished:
            await self._loop.save(run, last=True)
            return
        await self._shared.call(self._kernel.ownership.is_ours)  # raises an error if another process owns the run
        await self._loop.drive(run)
        await self._loop.release()

    async def _kill_unwatched(self) -> None:
        """Kill a run that this watcher did not own yet, and save the output of its running cell."""
        session = await self._find()
        if session is None:
            return
        self._kernel.adopt(session)
        try:
            notebook = await self._read()
            if saved_run.state_of(notebook) in ("running", "lost"):  # else the notebook says how the run ended
                run = self._resume(notebook, session, unbroken=False)  # the kernel record has the missing output
                await self._take(run, session)
                await self._loop.drive(run)
        finally:
            await self._loop.release()

    async def is_watched_elsewhere(self) -> bool:
        """Return whether another watcher, made from the same hand-over, watches the run."""
        try:
            session = await self._shared.call(self._server.find_session, self._handover.session_id)
        except StudioError:
            return False
        owner = owner_of(session.get("name"))[0] if session else None
        return owner is not None and owner.startswith(self._handover.owner) and owner != self._owner

    async def leave(self) -> None:
        """Close the connection, and let the run continue without a watcher."""
        self._saver.cancel()
        await self._loop.leave()
        await self._saver.close()

    # --- The beginning

    async def _find(self) -> dict[str, Any] | None:
        """Find the run's Jupyter session.

        :raises RunTakenOverError: when a process of another try watches the run.
        """
        session = await self._shared.call(self._server.find_session, self._handover.session_id)
        if session is None or session.get("path") != decisions.session_path(self._spec, self._who):
            return None
        owner = owner_of(session.get("name"))[0]
        if owner is not None and not owner.startswith(self._handover.owner):
            raise RunTakenOverError("a later try has taken over this run; the run continues there")
        return session

    async def _read(self) -> NotebookNode:
        """Read the executed notebook, and store its outputs in the spool.

        :raises RunError: when the notebook does not hold this run.
        """
        notebook = await self._saver.read()
        if not saved_run.holds(notebook, self._who):
            raise RunError(f"the executed notebook at {self._path!r} holds another run; nothing more was run")
        return notebook

    def _resume(self, notebook: NotebookNode, session: dict[str, Any], *, unbroken: bool = True) -> NotebookRun:
        owner, announced = owner_of(session.get("name"))
        self._kernel.ownership.accept_writer(saved_run.writer_of(notebook))
        saved_run.own(notebook, self._owner, self._spec)
        pause = self._resources.runs / SAVES_A_SECOND
        self._saver.guard = OutputGuard(
            self._server, self._path, notebook, self._kernel.ownership, pause=5 * pause
        )
        return NotebookRun(
            notebook,
            session_id=self._who.client_session,
            options=self._spec.run_options(
                start_timeout=self._spec.kernel_start_timeout, classic=self._server.classic
            ),
            now=time.monotonic(),
            where=self._handover.instance_type,
            resumed=True,
            announced=announced,
            unbroken=unbroken and self._handover.unbroken and owner == self._handover.owner,
            shown=self._handover.shown,
        )

    async def _take(self, run: NotebookRun, session: dict[str, Any]) -> None:
        """Make this watcher the owner of the run, and begin to receive messages.

        If :meth:`watch` was cancelled before that, :meth:`kill` does it.
        """
        self._kernel.adopt(session)
        await self._shared.call(self._kernel.ownership.rename, self._name(owner_of(session.get("name"))[1]))
        try:
            await self._loop.open()
        except StudioError as error:
            self._run = run
            begun = run.start(time.monotonic())  # its requests are not sent; the run learns that next
            await self._loop.carry_out(run, [*begun, *await self._loop.not_connected(run, error)])
        else:
            self._run = run
            await self._loop.carry_out(run, run.start(time.monotonic()))

    async def _ended_before(self, notebook: NotebookNode) -> RunResult:
        """Return the result of a run whose kernel is already gone.

        Another watcher may have saved how the run ended. If no process has, this watcher saves it.

        :raises StudioError: when the run failed.
        """
        state = saved_run.state_of(notebook)
        if state in ("completed", "stopped"):
            return self._result(notebook)
        error = saved_run.error_of(notebook)
        if error is None:
            error = KernelDiedError(
                "the kernel of the run is gone: the server does not know it any more. Its variables are gone, so "
                "nothing more was run"
            )
            writer = saved_run.writer_of(notebook)
            if writer is None or writer.startswith(self._handover.owner):
                run, now = self._resume(notebook, {}), time.monotonic()
                run.start(now)  # its requests are not sent
                await self._loop.carry_out(run, run.abandon(error, now))
        raise self._with_path(error)

    # --- The end

    async def _end(self, run: NotebookRun) -> RunResult:
        error = self._kernel.ownership.taken_over or run.error or self._loop.last_save_error
        reached = self._kernel.was_reached
        kept = decisions.keeps_kernel(self._spec, error, stopped=bool(self._loop.stop_reason), reached=reached)
        if kept:
            if error is not None and not isinstance(error, RunError):
                log.warning("the kernel is left running for the next try")
        else:
            await self._loop.release()
        if self._loop.timed_out and error is not None:
            raise RunTimeoutError(f"the run was stopped: {self._loop.stop_reason}", output_path=self._path)
        if error is not None:
            raise self._with_path(error)
        return self._result(run.notebook)

    def _with_path(self, error: StudioError) -> StudioError:
        if isinstance(error, RunError):
            error.fields["output_path"] = error.output_path = self._path
        return error

    def _result(self, notebook: NotebookNode) -> RunResult:
        return result_of(
            notebook,
            self._spec,
            output_path=self._path,
            output_url=self._server.output_url(self._path),
            kernel_name=self._handover.kernel_name,
            instance_type=self._handover.instance_type,
            cells_executed=nb.cells_run(notebook) if self._run is None else self._run.executed,
            startup_seconds=self._handover.startup_seconds,
            resumed=self._handover.resumed,
        )

    def _name(self, cell: int | None) -> str:
        return self._who.session_name(self._owner, cell, since=self._since)
