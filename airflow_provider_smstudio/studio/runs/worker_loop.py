"""Drives one run in a thread: executes the run's commands, and passes messages and time to it."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable

from airflow_provider_smstudio.studio.errors import (
    ConnectionLostError,
    RunError,
    RunKilledError,
    RunTakenOverError,
    StudioError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.run import NotebookRun
from airflow_provider_smstudio.studio.jupyter.background import in_daemon
from airflow_provider_smstudio.studio.jupyter.idle_shutdown import ActivityReporter
from airflow_provider_smstudio.studio.jupyter.kernel_probe import KernelProbe
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer, save_request
from airflow_provider_smstudio.studio.protocol import messages
from airflow_provider_smstudio.studio.runs import decisions
from airflow_provider_smstudio.studio.runs.cancellable import while_wanted
from airflow_provider_smstudio.studio.runs.decisions import KILL_GRACE
from airflow_provider_smstudio.studio.runs.ending import RunEnding, left_error, release_kernel
from airflow_provider_smstudio.studio.runs.memory_watch import look
from airflow_provider_smstudio.studio.runs.output_guard import OutputGuard
from airflow_provider_smstudio.studio.runs.remote_kernel import RemoteKernel
from airflow_provider_smstudio.studio.runs.saver import NotebookSaver

log = logging.getLogger(__name__)


class WorkerLoop:
    """The loop of one attempt; see :class:`NotebookRun` for the protocol between the two.

    :param server: the Jupyter server.
    :param kernel: the run's kernel.
    :param ending: whether the run must stop, and what becomes of it then.
    :param guard: writes the executed notebook while this process owns the run.
    :param probe: checks the kernel's process.
    :param listener: receives every event of the run.
    :param client_session: the client session's ID, for the websocket.
    :param session_name: returns the Jupyter session's name, given the index of the cell that may be sent.
    :param hand_over_at: the monotonic clock's reading after which another process continues the run. None: it does
        not.
    """

    def __init__(
        self,
        server: JupyterServer,
        kernel: RemoteKernel,
        ending: RunEnding,
        guard: OutputGuard,
        *,
        probe: KernelProbe,
        listener: Callable[[ev.Event], None],
        client_session: str,
        session_name: Callable[[int], str],
        hand_over_at: float | None,
    ) -> None:
        self.unbroken = False
        """Whether this process received every message and saved the notebook before the hand-over."""
        self.saver = NotebookSaver(guard)
        self._server = server
        self._kernel = kernel
        self._ending = ending
        self._guard = guard
        self._probe = probe
        self._listener = listener
        self._websocket_id = client_session
        self._session_name = session_name
        self._hand_over_at = hand_over_at
        self._activity = ActivityReporter(server)
        self._backlog: list[messages.Message] = []

    def drive(self, run: NotebookRun) -> None:
        """Drive the run until it ends, or until it can be handed over."""
        while not run.finished:
            if self._kernel.ownership.taken_over is not None:
                self.carry_out(run, run.abandon(self._kernel.ownership.taken_over, time.monotonic()))
                return
            late = self._hand_over_at is not None and time.monotonic() >= self._hand_over_at
            if late and not self._ending.reason:
                run.replays = run.replays and self._kernel.keeps_messages()
                if run.rests_between_cells:
                    run.rest()
                if run.may_rest and self._rest(run):
                    return
            if self._ending.reason:
                self._stop(run, self._ending.reason)
            self._step(run)

    def _stop(self, run: NotebookRun, reason: str) -> None:
        """Stop the run, or only this process's part of it."""
        if self._ending.is_left():
            self.carry_out(run, run.abandon(left_error(), time.monotonic()))
        else:
            self.carry_out(run, run.stop(reason, time.monotonic(), grace=KILL_GRACE))

    def _rest(self, run: NotebookRun) -> bool:
        """Pause the run: send no more requests for cells, close the websocket in order, and save the notebook.

        :return: whether the run now waits for another process. False if the run ended meanwhile, or if its running
            cell is about to end.
        """
        run.rest()
        websocket, self._kernel.websocket = self._kernel.websocket, None
        unbroken = run.unbroken and websocket is not None
        try:
            for message in websocket.hand_over() if websocket is not None else ():
                self.carry_out(run, run.receive(message, time.monotonic()))
        except StudioError as error:
            unbroken = False
            log.info("%s; the missing messages will be fetched", error)
        if run.finished:
            return False
        if run.half_over:
            run.rest(False)
            self._reconnect(run, ev.Reconnect(orderly=unbroken))
            return False
        try:
            self.saver.save_last(save_request(run.snapshot(time.monotonic())), hurry=False)
        except RunTakenOverError:
            raise
        except StudioError as error:  # the next process asks the kernel for the part that was not saved
            unbroken = False
            log.warning("%s; the run continues", error)
        self.unbroken = unbroken and run.unbroken
        return True

    def _step(self, run: NotebookRun) -> None:
        """Wait for the next message, or until something else is due, and pass it to the run."""
        if run.finished:
            return
        websocket, deadline = self._kernel.websocket, run.next_deadline()
        wait = 1.0 if deadline is None else min(max(deadline - time.monotonic(), 0.0), 1.0)
        if self._ending.reason or websocket is None:
            wait = min(wait, 0.2)
        message = None
        try:
            if websocket is None:
                time.sleep(wait)
            else:
                message = websocket.receive(wait)
        except StudioError as error:
            self._lose(run, error)
            return
        now = time.monotonic()
        self.carry_out(run, look(run, self._server.meter, in_daemon, now))
        self._activity.look(self._kernel.kernel_id if run.at_work else None, now, in_daemon)
        found = self._probe.take()
        if found is not None:
            decisions.tell_finding(found)
            self.carry_out(run, run.process_found(found.there, found.began, now))
        if message is not None:
            self.carry_out(run, run.receive(message, now))
        if message is None or (deadline is not None and now >= deadline):
            self.carry_out(run, run.tick(now))  # limits also apply to a kernel that never falls silent

    def _lose(self, run: NotebookRun, error: StudioError) -> None:
        """Close the broken websocket, and report the lost connection to the run."""
        if self._kernel.websocket is not None:
            self._kernel.websocket.close()
            self._kernel.websocket = None
        self.carry_out(run, run.disconnected(error, time.monotonic()))

    def carry_out(self, run: NotebookRun, events: list[ev.Event]) -> None:
        """Execute the commands among the run's events in order, and pass all events to the listener."""
        for event in events:
            if isinstance(event, ev.Send):
                self._send(run, event.message)
            elif isinstance(event, ev.Interrupt):
                self._interrupt(run)
            elif isinstance(event, ev.CheckKernel):
                self.carry_out(run, self._check(run))
            elif isinstance(event, ev.CheckProcess):
                decisions.tell_silence(event)
                self._probe.begin(self._kernel.kernel_id or "", event.process, in_daemon)
            elif isinstance(event, ev.Save):
                self._save(run, last=event.required)
            elif isinstance(event, ev.Announce):
                self._announce(run, event.cell.index)
            elif isinstance(event, ev.Reconnect):
                self._reconnect(run, event)
            self._listener(event)

    def _interrupt(self, run: NotebookRun) -> None:
        """Interrupt the cell, unless another process may own the run by now."""
        try:
            self._guard.check(hurry=bool(self._ending.reason))
        except RunTakenOverError:
            return  # the loop ends the run
        except StudioError as error:
            log.warning("the cell is not interrupted: %s", error)
            return
        self._kernel.interrupt()
        run.interrupted(time.monotonic())

    def _announce(self, run: NotebookRun, cell: int) -> None:
        """Record that a cell may be sent: in the session's name, or else in the notebook."""
        try:
            self._guard.check()
        except RunTakenOverError:
            return  # the cell will not be sent
        except StudioError as error:
            log.warning("%s; the run continues", error)
        if not self._kernel.ownership.rename(self._session_name(cell)):
            try:
                self.saver.save(save_request(run.snapshot(time.monotonic())))
            except StudioError as error:
                log.warning("%s; the run continues", error)

    def _send(self, run: NotebookRun, message: messages.Message) -> None:
        websocket = self._kernel.websocket
        if websocket is None or self._kernel.ownership.taken_over is not None:
            return  # the websocket just broke, or another process owns the run: the loop handles both
        try:
            websocket.send(message)
        except StudioError as error:
            self._lose(run, error)

    def _reconnect(self, run: NotebookRun, wanted: ev.Reconnect) -> None:
        """Open the websocket again, in the way that the run requested."""
        orderly = wanted.orderly and not wanted.fresh
        if wanted.fresh:
            self._websocket_id = uuid.uuid4().hex
        if orderly and run.replays:
            run.replays = self._kernel.keeps_messages()
        try:
            if wanted.orderly:
                self._hand_over()
            alive = self._kernel.reconnect(self._websocket_id)
        except RunTakenOverError as error:
            self.carry_out(run, run.abandon(error, time.monotonic()))
        except RunKilledError:
            self.carry_out(run, run.disconnected(ConnectionLostError("stopped"), time.monotonic()))
        except StudioError as error:
            self.carry_out(run, run.disconnected(error, time.monotonic()))
        else:
            waiting, self._backlog = self._backlog, []
            for message in waiting:
                self.carry_out(run, run.receive(message, time.monotonic()))
            now = time.monotonic()
            self.carry_out(run, run.reconnected(now, orderly=orderly) if alive else run.kernel_state(None, now))

    def _hand_over(self) -> None:
        """Close the open websocket. Its last messages are processed when the next websocket is open."""
        websocket, self._kernel.websocket = self._kernel.websocket, None
        if websocket is not None:
            for message in websocket.hand_over():
                self._backlog.append(message)

    def _check(self, run: NotebookRun) -> list[ev.Event]:
        """Ask the server for the state of the kernel. A failed request does not end the run."""
        kernel_id = self._kernel.kernel_id
        if kernel_id is None:
            return []
        try:
            state = while_wanted(
                lambda: self._server.kernel_state(kernel_id),
                check=self._ending.require_wanted,
                undo=lambda _: None,
            )
        except RunKilledError:
            return []  # the loop stops the run
        except StudioError as error:
            log.warning("could not ask the server about the kernel: %s", error)
            return []
        return run.kernel_state(state, time.monotonic())

    def end_after(self, run: NotebookRun, error: BaseException) -> None:
        """Interrupt the cell, wait a moment for its end, and save: after Ctrl-C, a task's timeout or a kill.

        An unexpected ``Exception`` does not have to end the run. An example is a failed request to Airflow. Then
        the run may be left to the next try.
        """
        self._ending.stop(type(error).__name__, for_good=not isinstance(error, Exception))
        try:
            if self._kernel.websocket is None:
                ends = self._ending.or_left(RunKilledError("the run was stopped"), self._kernel)
                self.carry_out(run, run.abandon(ends, time.monotonic()))
            self.drive(run)
            if not self.saver.closed:  # the exception came between the end of the run and its last save
                self._save(run, last=True)
        except Exception as second:  # the caller must get the first exception
            log.warning("the run could not be ended properly: %s", second)
        if isinstance(error, Exception) and self._ending.left:
            raise left_error() from error

    # --- Saving and clean-up

    def _save(self, run: NotebookRun, *, last: bool) -> None:
        if not last:
            if run.finished:
                return  # the run ended while its events were carried out: its last save is already made
            if self.saver.busy:
                run.postpone_save(time.monotonic())
                return
            body = save_request(run.snapshot(time.monotonic()))
            self.saver.save_soon(body, lambda seconds: run.saved(time.monotonic(), seconds, len(body)))
            return
        if isinstance(run.error, RunTakenOverError):
            return  # the executed notebook belongs to the other process
        try:
            # A killed task has few seconds left, so the kernel is removed first. But a completed run is saved
            # before its kernel is removed: else the next try would run it again.
            if (
                self._ending.reason
                and run.error is not None
                and not self._ending.keeps_kernel(run.error, self._kernel)
            ):
                self._guard.check(hurry=True)
                self.release()
            self.saver.save_last(save_request(run.snapshot(time.monotonic())), hurry=bool(self._ending.reason))
        except RunTakenOverError as error:
            log.warning("%s: nothing is saved", error)
        except StudioError as error:
            log.error("%s", error)
            self._ending.last_save_error = error

    def leave(self, error: StudioError | None) -> None:
        """Leave the kernel running for another process."""
        if error is not None and not isinstance(error, RunError):
            log.warning("the kernel is left running for the next try")
        self._probe.end(5.0)
        self._kernel.leave()

    def release(self) -> None:
        """Remove the kernel and its session."""
        self._probe.end(2.0 if self._ending.reason else 10.0)
        release_kernel(self._kernel, self._ending)
