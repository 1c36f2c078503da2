"""Goes on with a run on an event loop: what :mod:`runner` is for a thread, for as many runs as there are.

It starts no kernel. It finds the run by what the process before has handed over, as a later try does: by the
Jupyter session's path, and how far it is by the executed notebook and the kernel's record. So it can be ended at
any time and be begun anew elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import (
    ConnectionLostError,
    KernelDiedError,
    KernelStartError,
    RunError,
    RunTakenOverError,
    RunTimeoutError,
    StudioError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.run import NotebookRun
from airflow_provider_smstudio.studio.jupyter import async_websocket as websockets
from airflow_provider_smstudio.studio.jupyter.background import in_daemon
from airflow_provider_smstudio.studio.jupyter.idle_shutdown import ActivityReporter
from airflow_provider_smstudio.studio.jupyter.kernel_probe import KernelProbe
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.notebook.spool import NotebookSpool
from airflow_provider_smstudio.studio.protocol.messages import Message
from airflow_provider_smstudio.studio.runs import handover as conduct
from airflow_provider_smstudio.studio.runs import identity, saved_run, spooled_notebook
from airflow_provider_smstudio.studio.runs.handover import KILL_GRACE, Handover
from airflow_provider_smstudio.studio.runs.identity import owner_of
from airflow_provider_smstudio.studio.runs.kernel import RemoteKernel
from airflow_provider_smstudio.studio.runs.memory_watch import look
from airflow_provider_smstudio.studio.runs.observer import Observer
from airflow_provider_smstudio.studio.runs.output_guard import OutputGuard
from airflow_provider_smstudio.studio.runs.shared import SharedResources, SharedStudio, StudioClient, in_thread
from airflow_provider_smstudio.studio.runs.spec import RunResult

log = logging.getLogger(__name__)

_LONGEST_WAIT = 5.0
_TURN = 0.01
"""Seconds after which a run that has messages waiting lets the others have their turn."""

_HANDSHAKE_LIMIT = 20.0
_SPREAD = 2.0
"""A server that comes back is not asked by all runs in the same moment, but over so many seconds."""

_SAVE_PAUSES = (1.0, 3.0, 10.0)
_SAVES_A_SECOND = 40
"""So many notebooks are saved a second while they run; with more runs, each is saved less often."""


class NotebookWatcher:
    """Goes on with one run; make one for each process.

    :param hub: what the runs of this event loop share.
    :param shared: the Studio.
    :param handover: what is gone on with.
    :param listener: told every event of the run, in order; it must not block.
    :param deadline: when the run shall be stopped, in seconds since the epoch; None for no limit.
    """

    def __init__(
        self,
        hub: SharedResources,
        shared: SharedStudio[StudioClient],
        handover: Handover,
        *,
        listener: Callable[[ev.Event], None] | None = None,
        deadline: float | None = None,
    ) -> None:
        self._hub, self._shared = hub, shared
        self._server = shared.studio.server
        self._handover, self._spec = handover, handover.spec
        self._listener = Observer(listener, "the run's listener")
        self._deadline = deadline
        self._who = identity.identity_of(self._spec.run_key, self._spec.run_name)
        self._owner = f"{handover.owner}{uuid.uuid4().hex[:8]}"
        self._since = int(time.time())
        self._websocket_id = self._who.client_session
        self._path = self._spec.output_path or ""
        self._stop_reason: str | None = None
        self._timed_out = False
        self._kernel = RemoteKernel(
            self._server,
            timeout=_HANDSHAKE_LIMIT,
            delete_app=self._spec.delete_kernel_app,
            stop_reason=lambda: self._stop_reason,
            owner=self._owner,
        )
        self._lookout = KernelProbe(self._server, self._who.look_path(conduct.session_path(self._spec, self._who)))
        self._activity = ActivityReporter(self._server)
        self._guard: OutputGuard | None = None
        self._websocket: websockets.AsyncKernelWebSocket | None = None
        self._spool: NotebookSpool | None = None
        self._run: NotebookRun | None = None
        self._saving: asyncio.Task[None] | None = None
        self._last_save_error: StudioError | None = None
        self._backlog: list[Message] = []
        self._turn_ends = 0.0
        self._saved_at = 0.0
        self._answers_pings = False

    async def watch(self) -> RunResult:
        """See the run to its end.

        When it is cancelled, nothing is given back: call :meth:`kill` or :meth:`leave` then.

        :return: how it went.
        :raises RunTakenOverError: when a later try, or another watcher, goes on with the run.
        :raises RunTimeoutError: when the deadline had come; the run was stopped.
        :raises StudioError: as :meth:`NotebookRunner.run` does.
        """
        session = await self._find()
        notebook = await self._read()
        if session is None:
            return await self._ended_before(notebook)
        if saved_run.state_of(notebook) in ("completed", "stopped"):
            self._kernel.adopt(session)
            await self._give_back()
            return self._result(notebook)
        run = self._resume(notebook, session)
        run.memory.go_on(self._handover.memory_level)
        await self._take(run, session)
        await self._drive(run)
        return await self._end(run)

    async def kill(self, reason: str) -> None:
        """Interrupt the cell, save the notebook, remove the kernel; of a run that is still this watcher's.

        For after :meth:`watch` was cancelled. A run that is over, or that another process has taken over, is left
        alone.
        """
        self._stop_reason = self._stop_reason or reason
        run = self._run
        if run is None:
            await self._kill_unwatched()
            return
        if run.finished:
            await self._save(run, last=True)
            return
        await self._shared.call(self._kernel.ownership.is_ours)  # raises if it is another's
        await self._drive(run)
        await self._give_back()

    async def _kill_unwatched(self) -> None:
        """Kill a run that this watcher had not come to watch over, with what its cell has printed so far."""
        session = await self._find()
        if session is None:
            return
        self._kernel.adopt(session)
        try:
            notebook = await self._read()
            if saved_run.state_of(notebook) in ("running", "lost"):  # else it is written down how it ended
                run = self._resume(notebook, session, unbroken=False)  # its record shall tell what is missing
                await self._take(run, session)
                await self._drive(run)
        finally:
            await self._give_back()

    async def is_watched_elsewhere(self) -> bool:
        """Tell whether another watcher, made from the same hand-over, watches over the run."""
        try:
            session = await self._shared.call(self._server.find_session, self._handover.session_id)
        except StudioError:
            return False
        owner = owner_of(session.get("name"))[0] if session else None
        return owner is not None and owner.startswith(self._handover.owner) and owner != self._owner

    async def leave(self) -> None:
        """Close the connection and let the run go on, unwatched."""
        if self._saving is not None:
            self._saving.cancel()
        if self._websocket is not None:
            await self._websocket.close()
            self._websocket = None
        await in_thread(None, self._lookout.end, 5.0)
        spool, self._spool = self._spool, None
        if spool is not None:
            await in_thread(None, spool.close)  # on a busy disk it takes long

    # --- The beginning

    async def _find(self) -> dict[str, Any] | None:
        """Find the run's Jupyter session.

        :raises RunTakenOverError: when it is watched over on behalf of another try.
        """
        session = await self._shared.call(self._server.find_session, self._handover.session_id)
        if session is None or session.get("path") != conduct.session_path(self._spec, self._who):
            return None
        owner = owner_of(session.get("name"))[0]
        if owner is not None and not owner.startswith(self._handover.owner):
            raise RunTakenOverError("a later try has taken over this run; it goes on there")
        return session

    async def _read(self) -> NotebookNode:
        """Read the executed notebook, its outputs into the spool.

        :raises RunError: when it does not hold this run.
        """
        former, spool = self._spool, await in_thread(None, NotebookSpool)
        self._spool = spool
        if former is not None:  # of a reading that was cancelled
            await in_thread(None, former.close)
        notebook = await self._shared.call(spooled_notebook.read_into, spool, self._server, self._path)
        if not saved_run.holds(notebook, self._who):
            raise RunError(f"the executed notebook at {self._path!r} holds another run; nothing more was run")
        return notebook

    def _resume(self, notebook: NotebookNode, session: dict[str, Any], *, unbroken: bool = True) -> NotebookRun:
        owner, announced = owner_of(session.get("name"))
        self._kernel.ownership.accept_writer(saved_run.writer_of(notebook))
        saved_run.own(notebook, self._owner, self._spec)
        pause = self._hub.runs / _SAVES_A_SECOND
        self._guard = OutputGuard(self._server, self._path, notebook, self._kernel.ownership, pause=5 * pause)
        return NotebookRun(
            notebook,
            session_id=self._who.client_session,
            options=conduct.run_options(
                self._spec, start_timeout=self._spec.kernel_start_timeout, classic=self._server.classic
            ),
            now=time.monotonic(),
            where=self._handover.instance_type,
            resumed=True,
            announced=announced,
            unbroken=unbroken and self._handover.unbroken and owner == self._handover.owner,
            shown=self._handover.shown,
        )

    async def _take(self, run: NotebookRun, session: dict[str, Any]) -> None:
        """Make the run this watcher's, and begin to listen; until then a kill does so."""
        self._kernel.adopt(session)
        self._saved_at = time.monotonic()
        await self._shared.call(self._kernel.ownership.rename, self._name(owner_of(session.get("name"))[1]))
        try:
            self._websocket = await self._connect()
        except StudioError as error:
            self._run = run
            begun = run.start(time.monotonic())  # its requests go nowhere, as it is told next
            await self._carry_out(run, [*begun, *await self._not_connected(run, error)])
        else:
            self._run = run
            await self._carry_out(run, run.start(time.monotonic()))

    async def _ended_before(self, notebook: NotebookNode) -> RunResult:
        """Tell how a run ended whose kernel is gone already: another watcher may have seen its end.

        Where nobody has, that is written down.

        :raises StudioError: when it failed.
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
                run.start(now)  # what it would ask goes nowhere
                await self._carry_out(run, run.abandon(error, now))
        raise self._with_path(error)

    # --- The cells

    async def _drive(self, run: NotebookRun) -> None:
        while not run.finished:
            if self._kernel.ownership.taken_over is not None:
                await self._carry_out(run, run.abandon(self._kernel.ownership.taken_over, time.monotonic()))
            elif self._stop_reason:
                await self._carry_out(run, run.stop(self._stop_reason, time.monotonic(), grace=KILL_GRACE))
            elif self._deadline is not None and time.time() >= self._deadline:
                self._timed_out = True
                self._stop_reason = "it took longer than its execution_timeout"
                continue
            await self._step(run)

    async def _step(self, run: NotebookRun) -> None:
        """Wait for the next message, or until something else is due, and have the run deal with it."""
        if run.finished:
            return
        due = run.next_deadline()
        wait = _LONGEST_WAIT if due is None else min(max(due - time.monotonic(), 0.0), _LONGEST_WAIT)
        if self._deadline is not None and not self._stop_reason:
            wait = min(wait, max(self._deadline - time.time(), 0.0))
        message = None
        if self._websocket is None:
            await asyncio.sleep(min(wait, 1.0))
        else:
            try:
                message = await self._websocket.receive(wait)
                self._answers_pings = self._answers_pings or self._websocket.answers_pings
            except StudioError as error:
                await self._lose(run, error)
                return
        now = time.monotonic()
        begin = self._hub.patient.submit
        self._activity.look(self._kernel.kernel_id if run.at_work else None, now, begin)
        found = self._lookout.take()
        if found is not None:
            conduct.tell_finding(found)
            await self._carry_out(run, run.process_found(found.there, found.began, now))
        if run.memory.due(now):
            await self._carry_out(run, look(run, self._server.meter, self._shared.begin, now))
        if message is not None:
            await self._carry_out(run, run.receive(message, now))
        if message is None or (due is not None and now >= due):
            await self._carry_out(run, run.tick(now))
        if message is not None and now >= self._turn_ends:
            await asyncio.sleep(0)
            self._turn_ends = time.monotonic() + _TURN

    async def _lose(self, run: NotebookRun, error: StudioError) -> None:
        """Give up the websocket that broke."""
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            await websocket.close()
        await self._carry_out(run, run.disconnected(error, time.monotonic()))

    async def _carry_out(self, run: NotebookRun, events: list[ev.Event]) -> None:
        for event in events:
            if isinstance(event, ev.Send):
                await self._send(run, event.message)
            elif isinstance(event, ev.Interrupt):
                await self._interrupt(run)
            elif isinstance(event, ev.CheckKernel):
                await self._carry_out(run, await self._check(run))
            elif isinstance(event, ev.CheckProcess):
                conduct.tell_silence(event)
                self._lookout.begin(self._kernel.kernel_id or "", event.process, in_daemon)
            elif isinstance(event, ev.Save):
                await self._save(run, last=event.required)
            elif isinstance(event, ev.Announce):
                await self._announce(run, event.cell.index)
            elif isinstance(event, ev.Reconnect):
                await self._reconnect(run, event)
            self._listener(event)

    async def _send(self, run: NotebookRun, message: Message) -> None:
        if self._websocket is None or self._kernel.ownership.taken_over is not None:
            return  # it broke a moment ago, or the run is another process's; the loop deals with that
        try:
            await self._websocket.send(message)
        except StudioError as error:
            await self._lose(run, error)

    async def _interrupt(self, run: NotebookRun) -> None:
        """Interrupt the cell, unless it may be another process's by now."""
        try:
            await self._shared.call(self._check_owner, hurry=bool(self._stop_reason))
        except RunTakenOverError:
            return  # the loop deals with that
        except StudioError as error:
            log.warning("the cell is not interrupted: %s", error)
            return
        await self._shared.call(self._kernel.interrupt)
        run.interrupted(time.monotonic())

    async def _announce(self, run: NotebookRun, cell: int) -> None:
        """Write down that a cell may be sent: in the session's name, or else in the notebook."""
        try:
            await self._shared.call(self._check_owner)
        except RunTakenOverError:
            return  # what comes next is not sent
        except StudioError as error:
            log.warning("%s; the run goes on", error)
        if not await self._shared.call(self._kernel.ownership.rename, self._name(cell)):
            await self._end_save()
            try:
                await self._write(run)
            except StudioError as error:
                log.warning("%s; the run goes on", error)

    async def _check(self, run: NotebookRun) -> list[ev.Event]:
        """Ask for the kernel; a question that fails is no reason to end a run."""
        if self._kernel.kernel_id is None:
            return []
        try:
            state = await self._shared.call(self._server.kernel_state, self._kernel.kernel_id)
        except StudioError as error:
            log.warning("the server could not be asked for the kernel: %s", error)
            return []
        return run.kernel_state(state, time.monotonic())

    async def _reconnect(self, run: NotebookRun, wanted: ev.Reconnect) -> None:
        """Open the websocket anew, as the run wants it."""
        orderly = wanted.orderly and not wanted.fresh
        if wanted.fresh:
            self._websocket_id = uuid.uuid4().hex
        if orderly and run.replays:
            run.replays = await self._shared.call(self._kernel.keeps_messages)
        try:
            await self._close_for_next(orderly=wanted.orderly)
            alive = await self._shared.call(self._kernel.ownership.is_ours)
            if alive:
                self._websocket = await self._connect()
        except RunTakenOverError as error:
            await self._carry_out(run, run.abandon(error, time.monotonic()))
        except StudioError as error:
            await self._carry_out(run, await self._not_connected(run, error))
        else:
            waiting, self._backlog = self._backlog, []
            for message in waiting:
                await self._carry_out(run, run.receive(message, time.monotonic()))
            now = time.monotonic()
            again = run.reconnected(now, orderly=orderly) if alive else run.kernel_state(None, now)
            await self._carry_out(run, again)

    async def _close_for_next(self, *, orderly: bool) -> None:
        """Close the open websocket; what was still under way is dealt with when the next one is open."""
        websocket, self._websocket = self._websocket, None
        if websocket is not None and orderly:
            async for message in websocket.hand_over():
                self._backlog.append(message)
        elif websocket is not None:
            await websocket.close()
        if not orderly:
            await asyncio.sleep(random.uniform(0, min(_SPREAD, self._hub.runs / 100)))  # noqa: S311  # no secret

    async def _not_connected(self, run: NotebookRun, error: StudioError) -> list[ev.Event]:
        """Tell the run that its websocket could not be opened."""
        if isinstance(error, KernelStartError):  # the handshake's words for a kernel that does not answer it
            if await self._shared.call(self._kernel.is_gone):
                return run.kernel_state(None, time.monotonic())
            error = ConnectionLostError(f"the kernel's websocket was not opened: {error}")
        return run.disconnected(error, time.monotonic())

    async def _connect(self) -> websockets.AsyncKernelWebSocket:
        async with self._hub.handshakes:
            websocket = await websockets.connect(
                self._hub.sockets,
                self._server.session,
                self._kernel.kernel_id or "",
                self._websocket_id,
                timeout=_HANDSHAKE_LIMIT,
                renew=lambda seen: self._shared.call(self._server.session.renew, seen),
            )
        websocket.answers_pings = self._answers_pings  # as on the way before
        return websocket

    # --- Saving

    async def _save(self, run: NotebookRun, *, last: bool) -> None:
        if not last:
            self._save_soon(run)
        elif not isinstance(run.error, RunTakenOverError):  # else what is there is the other process's
            try:
                await self._save_last(run)
            except RunTakenOverError as error:
                log.warning("%s: nothing is saved", error)
            except StudioError as error:
                log.error("%s", error)
                self._last_save_error = error

    def _save_soon(self, run: NotebookRun) -> None:
        now = time.monotonic()
        early = now < self._saved_at + self._hub.runs / _SAVES_A_SECOND
        if early or (self._saving is not None and not self._saving.done()):
            run.postpone_save(now)
        elif not run.finished:
            self._saved_at = now
            self._saving = asyncio.create_task(self._save_now(run))

    async def _save_last(self, run: NotebookRun) -> None:
        if self._stop_reason and run.error is not None:  # the kernel first, but not of a run that was completed
            await self._shared.call(self._check_owner, hurry=True)
            await self._give_back()
        await self._end_save()
        for pause in (*(() if self._stop_reason else _SAVE_PAUSES), None):
            try:
                await self._write(run)
                return
            except RunTakenOverError:
                raise
            except StudioError as error:
                if pause is None:
                    raise
                log.warning("%s; trying again", error)
                await asyncio.sleep(pause)

    async def _end_save(self) -> None:
        """Wait for the save that is under way: an older state must not come last."""
        if self._saving is not None:
            await asyncio.wait([self._saving], timeout=5.0 if self._stop_reason else None)

    async def _save_now(self, run: NotebookRun) -> None:
        began = time.monotonic()
        try:
            size = await self._write(run)
        except RunTakenOverError:
            return  # the guard remembers
        except StudioError as error:
            log.warning("%s; the run goes on", error)
        else:
            run.saved(time.monotonic(), time.monotonic() - began, size)

    async def _write(self, run: NotebookRun) -> int:
        """Save the notebook as it stands, and let go of the outputs of cells that have ended.

        :return: how many bytes were written.
        """
        spool, guard = self._spool, self._guard
        assert spool is not None and guard is not None  # noqa: S101, PT018  # leave() comes last
        notebook = run.snapshot(time.monotonic())
        over = {index: outputs for index, outputs in run.at_rest() if not spool.is_away(index, notebook)}
        draft = spool.draft(notebook)
        hurry = bool(self._stop_reason)
        size, places = await self._shared.save(
            spooled_notebook.write_from, spool, draft, set(over), lambda file: guard.write(file, hurry=hurry)
        )
        for index, outputs in run.at_rest():  # something may have come meanwhile
            place = places.get(index)
            if place is not None and outputs is over.get(index):
                fetch = spooled_notebook.Fetch(spool, place)
                if outputs.put_away(fetch):
                    spool.put_away(index, notebook, place)
        return size

    # --- The end

    async def _end(self, run: NotebookRun) -> RunResult:
        error = self._kernel.ownership.taken_over or run.error or self._last_save_error
        reached = self._kernel.was_reached
        kept = conduct.keeps_kernel(self._spec, error, stopped=bool(self._stop_reason), reached=reached)
        if kept:
            if error is not None and not isinstance(error, RunError):
                log.warning("the kernel is left running for the next try")
        else:
            await self._give_back()
        if self._timed_out and error is not None:
            raise RunTimeoutError(f"the run was stopped: {self._stop_reason}", output_path=self._path)
        if error is not None:
            raise self._with_path(error)
        return self._result(run.notebook)

    def _with_path(self, error: StudioError) -> StudioError:
        if isinstance(error, RunError):
            error.fields["output_path"] = error.output_path = self._path
        return error

    async def _give_back(self) -> None:
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            await websocket.close()
        await in_thread(self._hub.patient, self._lookout.end, 2.0 if self._stop_reason else 10.0)
        await in_thread(self._hub.patient, self._kernel.release)

    def _result(self, notebook: NotebookNode) -> RunResult:
        return conduct.result(
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

    def _check_owner(self, *, hurry: bool = False) -> None:
        """See that the run is still this watcher's.

        :raises RunTakenOverError: when it is not.
        :raises SaveError: when there is no answer.
        """
        if self._guard is not None:
            self._guard.check(hurry=hurry)

    def _name(self, cell: int | None) -> str:
        return self._who.session_name(self._owner, cell, since=self._since)
