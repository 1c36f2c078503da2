"""Drives one run on an event loop: executes the run's commands, and passes messages and time to it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable

from airflow_provider_smstudio.studio.errors import (
    ConnectionLostError,
    KernelStartError,
    RunTakenOverError,
    StudioError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.run import NotebookRun
from airflow_provider_smstudio.studio.jupyter import async_websocket as websockets
from airflow_provider_smstudio.studio.jupyter.background import in_daemon
from airflow_provider_smstudio.studio.jupyter.idle_shutdown import ActivityReporter
from airflow_provider_smstudio.studio.jupyter.kernel_probe import KernelProbe
from airflow_provider_smstudio.studio.protocol.messages import Message
from airflow_provider_smstudio.studio.runs import decisions
from airflow_provider_smstudio.studio.runs.async_saver import AsyncNotebookSaver
from airflow_provider_smstudio.studio.runs.decisions import KILL_GRACE
from airflow_provider_smstudio.studio.runs.memory_watch import look
from airflow_provider_smstudio.studio.runs.remote_kernel import RemoteKernel
from airflow_provider_smstudio.studio.runs.shared_resources import (
    SharedResources,
    SharedStudio,
    StudioClient,
    in_thread,
)

log = logging.getLogger(__name__)

HANDSHAKE_LIMIT = 20.0
_LONGEST_WAIT = 5.0
_TURN = 0.01
"""Seconds after which a run with waiting messages lets the other runs work."""

_SPREAD = 2.0
"""Seconds over which all runs spread their reconnects, when a server comes back."""


class TriggererLoop:
    """The loop of one run; see :class:`NotebookRun` for the protocol between the two.

    :param resources: the resources that the runs of this event loop share.
    :param shared: the client of the Studio app.
    :param kernel: the run's kernel.
    :param saver: saves the executed notebook.
    :param probe: checks the kernel's process.
    :param listener: receives every event of the run. It must not block.
    :param client_session: the client session's ID, for the websocket.
    :param session_name: returns the Jupyter session's name, given the index of the cell that may be sent.
    :param deadline: when the run must be stopped, in seconds since the epoch; None for no limit.
    """

    def __init__(
        self,
        resources: SharedResources,
        shared: SharedStudio[StudioClient],
        kernel: RemoteKernel,
        saver: AsyncNotebookSaver,
        *,
        probe: KernelProbe,
        listener: Callable[[ev.Event], None],
        client_session: str,
        session_name: Callable[[int | None], str],
        deadline: float | None,
    ) -> None:
        self.stop_reason: str | None = None
        """Why the run must stop, None while it must not."""
        self.timed_out = False
        """Whether the run was stopped at its deadline."""
        self.last_save_error: StudioError | None = None
        """Why the last save of the executed notebook failed."""
        self._resources, self._shared = resources, shared
        self._server = shared.studio.server
        self._kernel = kernel
        self._saver = saver
        self._probe = probe
        self._listener = listener
        self._websocket_id = client_session
        self._session_name = session_name
        self._deadline = deadline
        self._activity = ActivityReporter(self._server)
        self._websocket: websockets.AsyncKernelWebSocket | None = None
        self._backlog: list[Message] = []
        self._turn_ends = 0.0
        self._answers_pings = False

    @property
    def is_connected(self) -> bool:
        """Whether the websocket is open."""
        return self._websocket is not None

    async def drive(self, run: NotebookRun) -> None:
        """Drive the run until it ends."""
        while not run.finished:
            if self._kernel.ownership.taken_over is not None:
                await self.carry_out(run, run.abandon(self._kernel.ownership.taken_over, time.monotonic()))
            elif self.stop_reason:
                await self.carry_out(run, run.stop(self.stop_reason, time.monotonic(), grace=KILL_GRACE))
            elif self._deadline is not None and time.time() >= self._deadline:
                self.timed_out = True
                self.stop_reason = "it took longer than its execution_timeout"
                continue
            await self._step(run)

    async def _step(self, run: NotebookRun) -> None:
        """Wait for the next message, or until something else is due, and pass it to the run."""
        if run.finished:
            return
        due = run.next_deadline()
        wait = _LONGEST_WAIT if due is None else min(max(due - time.monotonic(), 0.0), _LONGEST_WAIT)
        if self._deadline is not None and not self.stop_reason:
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
        begin = self._resources.patient.submit
        self._activity.look(self._kernel.kernel_id if run.at_work else None, now, begin)
        found = self._probe.take()
        if found is not None:
            decisions.tell_finding(found)
            await self.carry_out(run, run.process_found(found.there, found.began, now))
        if run.memory.due(now):
            await self.carry_out(run, look(run, self._server.meter, self._shared.begin, now))
        if message is not None:
            await self.carry_out(run, run.receive(message, now))
        if message is None or (due is not None and now >= due):
            await self.carry_out(run, run.tick(now))
        if message is not None and now >= self._turn_ends:
            await asyncio.sleep(0)
            self._turn_ends = time.monotonic() + _TURN

    async def _lose(self, run: NotebookRun, error: StudioError) -> None:
        """Close the broken websocket, and report the lost connection to the run."""
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            await websocket.close()
        await self.carry_out(run, run.disconnected(error, time.monotonic()))

    async def carry_out(self, run: NotebookRun, events: list[ev.Event]) -> None:
        """Execute the commands among the run's events in order, and pass all events to the listener."""
        for event in events:
            if isinstance(event, ev.Send):
                await self._send(run, event.message)
            elif isinstance(event, ev.Interrupt):
                await self._interrupt(run)
            elif isinstance(event, ev.CheckKernel):
                await self.carry_out(run, await self._check(run))
            elif isinstance(event, ev.CheckProcess):
                decisions.tell_silence(event)
                self._probe.begin(self._kernel.kernel_id or "", event.process, in_daemon)
            elif isinstance(event, ev.Save):
                await self.save(run, last=event.required)
            elif isinstance(event, ev.Announce):
                await self._announce(run, event.cell.index)
            elif isinstance(event, ev.Reconnect):
                await self._reconnect(run, event)
            self._listener(event)

    async def _send(self, run: NotebookRun, message: Message) -> None:
        if self._websocket is None or self._kernel.ownership.taken_over is not None:
            return  # the websocket just broke, or another process owns the run: the loop handles both
        try:
            await self._websocket.send(message)
        except StudioError as error:
            await self._lose(run, error)

    async def _interrupt(self, run: NotebookRun) -> None:
        """Interrupt the cell, unless another process may own the run by now."""
        try:
            await self._shared.call(self._saver.check_owner, hurry=bool(self.stop_reason))
        except RunTakenOverError:
            return  # the loop ends the run
        except StudioError as error:
            log.warning("the cell is not interrupted: %s", error)
            return
        await self._shared.call(self._kernel.interrupt)
        run.interrupted(time.monotonic())

    async def _announce(self, run: NotebookRun, cell: int) -> None:
        """Record that a cell may be sent: in the session's name, or else in the notebook."""
        try:
            await self._shared.call(self._saver.check_owner)
        except RunTakenOverError:
            return  # the cell will not be sent
        except StudioError as error:
            log.warning("%s; the run continues", error)
        if not await self._shared.call(self._kernel.ownership.rename, self._session_name(cell)):
            await self._saver.end_save(hurry=bool(self.stop_reason))
            try:
                await self._saver.write(run, hurry=bool(self.stop_reason))
            except StudioError as error:
                log.warning("%s; the run continues", error)

    async def _check(self, run: NotebookRun) -> list[ev.Event]:
        """Ask the server for the state of the kernel. A failed request does not end the run."""
        if self._kernel.kernel_id is None:
            return []
        try:
            state = await self._shared.call(self._server.kernel_state, self._kernel.kernel_id)
        except StudioError as error:
            log.warning("could not ask the server about the kernel: %s", error)
            return []
        return run.kernel_state(state, time.monotonic())

    async def _reconnect(self, run: NotebookRun, wanted: ev.Reconnect) -> None:
        """Open the websocket again, in the way that the run requested."""
        orderly = wanted.orderly and not wanted.fresh
        if wanted.fresh:
            self._websocket_id = uuid.uuid4().hex
        if orderly and run.replays:
            run.replays = await self._shared.call(self._kernel.keeps_messages)
        try:
            await self._close_for_next(orderly=wanted.orderly)
            alive = await self._shared.call(self._kernel.ownership.is_ours)
            if alive:
                await self.open()
        except RunTakenOverError as error:
            await self.carry_out(run, run.abandon(error, time.monotonic()))
        except StudioError as error:
            await self.carry_out(run, await self.not_connected(run, error))
        else:
            waiting, self._backlog = self._backlog, []
            for message in waiting:
                await self.carry_out(run, run.receive(message, time.monotonic()))
            now = time.monotonic()
            again = run.reconnected(now, orderly=orderly) if alive else run.kernel_state(None, now)
            await self.carry_out(run, again)

    async def _close_for_next(self, *, orderly: bool) -> None:
        """Close the open websocket. Its last messages are processed when the next websocket is open."""
        websocket, self._websocket = self._websocket, None
        if websocket is not None and orderly:
            async for message in websocket.hand_over():
                self._backlog.append(message)
        elif websocket is not None:
            await websocket.close()
        if not orderly:
            await asyncio.sleep(random.uniform(0, min(_SPREAD, self._resources.runs / 100)))  # noqa: S311  # no secret

    async def not_connected(self, run: NotebookRun, error: StudioError) -> list[ev.Event]:
        """Report to the run that its websocket could not be opened."""
        if isinstance(error, KernelStartError):  # the handshake raises it if the kernel does not answer
            if await self._shared.call(self._kernel.is_gone):
                return run.kernel_state(None, time.monotonic())
            error = ConnectionLostError(f"the kernel's websocket was not opened: {error}")
        return run.disconnected(error, time.monotonic())

    async def open(self) -> None:
        """Open the websocket.

        :raises StudioError: when that failed.
        """
        self._websocket = await self._connect()

    async def _connect(self) -> websockets.AsyncKernelWebSocket:
        async with self._resources.handshakes:
            websocket = await websockets.connect(
                self._resources.sockets,
                self._server.session,
                self._kernel.kernel_id or "",
                self._websocket_id,
                timeout=HANDSHAKE_LIMIT,
                renew=lambda seen: self._shared.call(self._server.session.renew, seen),
            )
        websocket.answers_pings = self._answers_pings  # as on the websocket before
        return websocket

    async def save(self, run: NotebookRun, *, last: bool) -> None:
        """Save the executed notebook; a failure of the last save is kept as :attr:`last_save_error`."""
        if not last:
            self._saver.save_soon(run)
        elif not isinstance(run.error, RunTakenOverError):  # else the notebook belongs to the other process
            try:
                await self._save_last(run)
            except RunTakenOverError as error:
                log.warning("%s: nothing is saved", error)
            except StudioError as error:
                log.error("%s", error)
                self.last_save_error = error

    async def _save_last(self, run: NotebookRun) -> None:
        if self.stop_reason and run.error is not None:  # remove the kernel first, unless the run was completed
            await self._shared.call(self._saver.check_owner, hurry=True)
            await self.release()
        await self._saver.save_last(run, hurry=bool(self.stop_reason))

    async def release(self) -> None:
        """Close the websocket, and remove the kernel and its session."""
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            await websocket.close()
        await in_thread(self._resources.patient, self._probe.end, 2.0 if self.stop_reason else 10.0)
        await in_thread(self._resources.patient, self._kernel.release)

    async def leave(self) -> None:
        """Close the connection, and let the run continue without a watcher."""
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            await websocket.close()
        await in_thread(None, self._probe.end, 5.0)
