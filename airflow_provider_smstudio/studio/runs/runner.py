"""Runs a notebook on a Jupyter server, synchronously: does what the state machine says, and tidies up."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import (
    ConnectionLostError,
    KernelDiedError,
    KernelStartError,
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
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.protocol import messages
from airflow_provider_smstudio.studio.runs import handover, identity, resume, saved_run
from airflow_provider_smstudio.studio.runs.cancellable import while_wanted
from airflow_provider_smstudio.studio.runs.handover import KILL_GRACE, Handover
from airflow_provider_smstudio.studio.runs.identity import owner_of
from airflow_provider_smstudio.studio.runs.kernel import RemoteKernel
from airflow_provider_smstudio.studio.runs.memory_watch import look
from airflow_provider_smstudio.studio.runs.observer import Observer
from airflow_provider_smstudio.studio.runs.output_guard import OutputGuard
from airflow_provider_smstudio.studio.runs.prepare import Prepared, prepare
from airflow_provider_smstudio.studio.runs.saver import NotebookSaver
from airflow_provider_smstudio.studio.runs.spec import RunResult, RunSpec

log = logging.getLogger(__name__)

Listener = Callable[[ev.Event], None]

_MUTE_LIMIT = 60.0
"""Seconds after which a kernel of a space that has said nothing, its websocket open, is replaced once."""


class NotebookRunner:
    """One run of one notebook.

    :param server: the Jupyter server.
    :param spec: what to run.
    :param listener: told every event of the run, in order. If it raises an error, the log says so, and it is told
        nothing more.
    :param on_output: told the executed notebook's path once it is saved for the first time; likewise.
    :param where: names the machine under a space's kernels, for messages.
    :param leaves_run: asked when this process has to end before the run does, once, in the run's own thread, while
        a kernel is at work: whether the run is left to another process. If it is, all stays as it is, and
        :meth:`run` raises :class:`RunTakenOverError`. It must not raise anything. Default: the run ends with this
        process.
    :param try_follows: told the error that a run has ended by, and tells whether another try follows, which could
        use the kernel. Default: what the spec says.
    """

    def __init__(
        self,
        server: JupyterServer,
        spec: RunSpec,
        *,
        listener: Listener | None = None,
        on_output: Callable[[str], None] | None = None,
        where: str | None = None,
        leaves_run: Callable[[], bool] | None = None,
        try_follows: Callable[[StudioError], bool] | None = None,
    ) -> None:
        self._server = server
        self._spec = spec
        self._listener = Observer(listener, "the run's listener")
        self._on_output = Observer(on_output, "the callback on_output")
        self._where = where
        self._leaves_run = leaves_run or (lambda: False)
        self._try_follows = try_follows or (lambda error: spec.will_retry)
        self._stop_reason: str | None = None
        self._stop_for_good = False
        self._left: bool | None = None
        self._who = identity.identity_of(spec.run_key, spec.run_name)
        self._owner, self._since = uuid.uuid4().hex[:12], int(time.time())
        self._kernel = RemoteKernel(
            server,
            timeout=spec.kernel_start_timeout,
            delete_app=spec.delete_kernel_app,
            stop_reason=lambda: self._stop_reason,
            owner=self._owner,
        )
        self._last_save_error: StudioError | None = None
        self._lookout = KernelProbe(server, self._who.look_path(self._session_path))
        self._activity = ActivityReporter(server)
        self._backlog: list[messages.Message] = []
        self._hand_over_at: float | None = None
        self._handed = self._unbroken = False
        self._websocket_id = self._who.client_session

    def stop(self, reason: str, *, for_good: bool = True) -> None:
        """Ask the run to end soon; for another thread or a signal handler.

        The cell is interrupted, the notebook saved, the kernel removed, and :meth:`run` raises
        :class:`RunKilledError`.

        :param reason: who or what stops it, for the error's message.
        :param for_good: False if only this process has to end: then ``leaves_run`` is asked.
        """
        if self._stop_reason is None:
            self._stop_for_good = for_good
            self._stop_reason = reason

    def run(self) -> RunResult:
        """Run the notebook to its end.

        :raises InvalidInputError: for what cannot be run; then nothing was started.
        :raises RunError: when the run failed; the notebook is saved as far as it ran.
        :raises StudioError: for what else went wrong, after tidying up.
        """
        result = self._attempts()
        assert isinstance(result, RunResult)  # noqa: S101  # it was not asked for anything else
        return result

    def run_or_hand_over(self, after: float) -> RunResult | Handover:
        """Run the notebook, or only its first seconds: what is not over then is left for another process.

        :param after: how many seconds to stay with it, from now; a kernel's start is waited for in any case.
        :return: the result of a run that was over by then; else what the other process needs to go on.
        :raises StudioError: as :meth:`run` does.
        """
        self._hand_over_at = time.monotonic() + after
        return self._attempts()

    def _attempts(self) -> RunResult | Handover:
        result = self._attempt(first=True) or self._attempt(first=False)
        assert result is not None  # noqa: S101  # only a first attempt is given up
        return result

    def _attempt(self, *, first: bool) -> RunResult | Handover | None:
        """Run it, or go on with what an earlier try has left.

        :return: None when that came to nothing before anything was run, and the first attempt shall not be the
            last: what an earlier try has left was worthless, or the kernel never said a word.
        """
        began = time.monotonic()
        prepared = self._prepare(first=first)
        notebook, choice = prepared.notebook, prepared.kernel
        self._guard = OutputGuard(self._server, prepared.output_path, notebook, self._kernel.ownership)
        self._saver = NotebookSaver(self._guard)
        session = resume.session_of(self._server, self._spec, self._who, prepared) if first else None
        if session is not None and saved_run.state_of(notebook) in ("completed", "stopped"):
            return self._ended_unheard(prepared, session)
        if session is None and first and (known := self._known(prepared)):
            return known
        self._kernel.ownership.accept_writer(saved_run.writer_of(notebook))
        saved_run.own(notebook, self._owner, self._spec)
        where = choice.instance_type or self._where
        client_session = self._websocket_id = self._who.client_session
        announced = owner_of(session.get("name"))[1] if session else None
        run = NotebookRun(
            notebook,
            session_id=client_session,
            options=handover.run_options(
                self._spec, start_timeout=self._start_timeout(first=first), classic=self._server.classic
            ),
            now=time.monotonic(),
            where=where,
            resumed=session is not None,
            announced=announced,
        )
        if session is None:
            self._saver.save(save_request(run.snapshot(time.monotonic())))
        self._on_output(self._guard.path)
        startup = 0.0
        try:
            if session is None:
                self._kernel.start(choice, self._session_path, self._session_name(), client_session)
            else:
                self._kernel.attach(session, client_session)
                self._kernel.ownership.rename(self._session_name(announced))
                self._tell_had_run(notebook)
            startup = time.monotonic() - began
            self._carry_out(run, run.start(time.monotonic()))
            self._drive(run)
            if not run.finished:
                return self._handed_over(run, prepared, startup, resumed=session is not None)
        except StudioError as error:
            self._carry_out(run, run.abandon(self._or_left(error), time.monotonic()))
        except BaseException as error:
            self._end_kindly(run, error)
            raise
        finally:
            if self._handed or self._is_unended(run) or self._keeps_kernel(run.error):
                self._leave(run.error)
            else:
                self._release()
        return self._outcome(run, prepared, session, startup, first=first)

    def _outcome(
        self, run: NotebookRun, prepared: Prepared, session: dict[str, Any] | None, startup: float, *, first: bool
    ) -> RunResult | None:
        """Tell what an attempt has come to; see :meth:`_attempt`."""
        if session is not None and not run.requested and self._kernel.ownership.taken_over is not None:
            known = resume.ended_meanwhile(self._server, self._who, self._guard.path)
            if known is not None:
                log.info("another process of an earlier try has run it to its end meanwhile")
                return self._known_result(prepared, known)
        if first and not run.requested and self._begins_again(run, session):
            return None
        self._raise(self._kernel.ownership.taken_over or run.error)
        return self._result(prepared, run.executed, startup, resumed=session is not None)

    def _raise(self, error: StudioError | None) -> None:
        if isinstance(error, RunError):
            error.fields["output_path"] = error.output_path = self._guard.path
        error = error or self._last_save_error
        if error is not None:
            raise error

    def _begins_again(self, run: NotebookRun, session: dict[str, Any] | None) -> bool:
        """Tell whether an attempt that has run nothing is followed by another one."""
        if self._kernel.ownership.taken_over is not None:
            return False
        if session and isinstance(run.error, (KernelDiedError, KernelStartError)):
            log.warning("the variables of the kernel that an earlier try has left are gone: starting afresh")
            return True
        mute = run.never_answered and self._spec.kernel_start_timeout > _MUTE_LIMIT and not self._stop_reason
        if mute and not self._server.classic:
            log.warning("%s: starting another one", run.error)
            return True
        return False

    def _start_timeout(self, *, first: bool) -> float:
        # A kernel that could not get its ports may live on and never answer (seen with ipykernel 7.3). In Classic
        # there is no telling how long one may take.
        patience = self._spec.kernel_start_timeout
        return min(patience, _MUTE_LIMIT) if first and not self._server.classic else patience

    def _result(self, prepared: Prepared, executed: int, startup: float, *, resumed: bool) -> RunResult:
        return handover.result(
            prepared.notebook,
            self._spec,
            output_path=self._guard.path,
            output_url=self._server.output_url(self._guard.path),
            kernel_name=prepared.kernel.name,
            instance_type=prepared.kernel.instance_type or self._where,
            cells_executed=executed,
            startup_seconds=startup,
            resumed=resumed,
        )

    def _ended_unheard(self, prepared: Prepared, session: dict[str, Any]) -> RunResult:
        """Tidy up after a run whose process was lost between its end and its tidying up."""
        log.info("an earlier try has run it to its end")
        self._kernel.adopt(session)
        self._on_output(self._guard.path)
        try:
            self._tell_had_run(prepared.notebook)
        finally:  # what ends this process meanwhile ends the kernel as well
            self._release()
        return self._result(prepared, nb.cells_run(prepared.notebook), 0.0, resumed=True)

    # --- Before anything is started

    def _prepare(self, *, first: bool) -> Prepared:
        try:
            return prepare(self._server, self._spec, self._who, check=self._require_wanted)
        except StudioError as error:
            if first and self._spec.run_key is not None and not self._comes_back(error):
                self._remove_earlier()
            raise

    def _comes_back(self, error: StudioError) -> bool:
        """Tell whether another try could still go on with what an earlier one has left."""
        return self._is_left() if isinstance(error, RunKilledError) else self._try_follows(error)

    def _remove_earlier(self) -> None:
        """Remove what an earlier try has left, since this one is the last and does not come as far as that."""
        try:
            resume.remove_session(self._server, self._spec, self._who)
        except StudioError as error:
            log.warning("whether an earlier try has left a kernel could not be asked: %s", error)

    def _known(self, prepared: Prepared) -> RunResult | None:
        """Find that there is nothing to run, because it was run already."""
        return self._ended_untold(prepared) or self._skipped(prepared)

    def _ended_untold(self, prepared: Prepared) -> RunResult | None:
        """Find that an earlier try has run it to its end, and was lost before Airflow heard of that."""
        saved = resume.ended_untold(self._server, self._spec, prepared)
        if saved is None:
            return None
        self._on_output(self._guard.path)
        return self._known_result(prepared, saved)

    def _known_result(self, prepared: Prepared, saved: NotebookNode) -> RunResult:
        """Report a run that another process has ended."""
        self._tell_had_run(saved)
        return self._result(replace(prepared, notebook=saved), nb.cells_run(saved), 0.0, resumed=True)

    def _tell_had_run(self, notebook: NotebookNode) -> None:
        for event in resume.cells_that_had_run(notebook):
            self._listener(event)

    def _skipped(self, prepared: Prepared) -> RunResult | None:
        """Find that there is nothing to run, if that is wished."""
        saved = resume.complete_output(self._server, self._spec, prepared)
        if saved is None:
            return None
        self._on_output(self._guard.path)
        found = self._result(replace(prepared, notebook=saved), nb.cells_run(saved), 0.0, resumed=False)
        return replace(found, skipped=True)

    def _keeps_kernel(self, error: StudioError | None) -> bool:
        """Tell whether the kernel is left for whoever goes on with the run."""
        error = self._kernel.ownership.taken_over or error or self._last_save_error
        if error is None:
            return False
        stopped = bool(self._stop_reason) and (isinstance(error, RunKilledError) or not self._is_left())
        kept = handover.keeps_kernel(self._spec, error, stopped=stopped, reached=self._kernel.was_reached)
        if kept and not isinstance(error, RunTakenOverError):
            kept = self._try_follows(error)
        return kept

    def _is_unended(self, run: NotebookRun) -> bool:
        """Tell whether a second signal has come while the run was still to be left to another process."""
        ending = bool(self._stop_reason) and not run.finished and self._kernel.was_reached
        return ending and self._is_left()

    def _or_left(self, error: StudioError) -> StudioError:
        """Say that the run is left, if that is what becomes of one that was stopped; else give the error back.

        A kernel that was never reached is nothing that another process could go on with.
        """
        stopped = isinstance(error, RunKilledError) and self._kernel.was_reached
        return _left() if stopped and self._is_left() else error

    def _is_left(self) -> bool:
        """Tell whether another process goes on with the run that this one has to end."""
        if self._left is None:
            # A next try that does not want the run would only remove it.
            useful = not self._stop_for_good and self._spec.resume != "never"
            self._left = useful and self._leaves_run()
        return self._left

    def _require_wanted(self) -> None:
        if self._stop_reason:
            raise RunKilledError(f"the run was stopped before its kernel was started: {self._stop_reason}")

    @property
    def _session_path(self) -> str:
        return handover.session_path(self._spec, self._who)

    def _session_name(self, cell: int | None = None) -> str:
        return self._who.session_name(self._owner, cell, since=self._since)

    # --- The cells

    def _drive(self, run: NotebookRun) -> None:
        """See the run to its end, or to where it may be handed over."""
        while not run.finished:
            if self._kernel.ownership.taken_over is not None:
                self._carry_out(run, run.abandon(self._kernel.ownership.taken_over, time.monotonic()))
                return
            late = self._hand_over_at is not None and time.monotonic() >= self._hand_over_at
            if late and not self._stop_reason:
                run.replays = run.replays and self._kernel.keeps_messages()
                if run.rests_between_cells:
                    run.rest()
                if run.may_rest and self._rest(run):
                    return
            if self._stop_reason:
                self._stop(run, self._stop_reason)
            self._step(run)

    def _stop(self, run: NotebookRun, reason: str) -> None:
        """Stop the run, or only this process's part in it."""
        if self._is_left():
            self._carry_out(run, run.abandon(_left(), time.monotonic()))
        else:
            self._carry_out(run, run.stop(reason, time.monotonic(), grace=KILL_GRACE))

    def _rest(self, run: NotebookRun) -> bool:
        """Have the run make no more requests, close its websocket in order, and save how far it is.

        :return: whether it now waits for another process; False when it came to its end just then.
        """
        run.rest()
        websocket, self._kernel.websocket = self._kernel.websocket, None
        unbroken = run.unbroken and websocket is not None
        try:
            for message in websocket.hand_over() if websocket is not None else ():
                self._carry_out(run, run.receive(message, time.monotonic()))
        except StudioError as error:
            unbroken = False
            log.info("%s; what is missing will be fetched", error)
        if run.finished:
            return False
        if run.half_over:
            run.rest(False)
            self._reconnect(run, ev.Reconnect(orderly=unbroken))
            return False
        try:
            self._saver.save_last(save_request(run.snapshot(time.monotonic())), hurry=False)
        except RunTakenOverError:
            raise
        except StudioError as error:  # what it would have held is asked of the kernel later
            unbroken = False
            log.warning("%s; the run goes on", error)
        self._unbroken = unbroken and run.unbroken
        return True

    def _handed_over(self, run: NotebookRun, prepared: Prepared, startup: float, *, resumed: bool) -> Handover:
        if self._stop_reason:
            raise RunKilledError(f"the run was stopped: {self._stop_reason}")
        self._handed = True
        return Handover(
            spec=replace(self._spec, parameters={}, upload_from=None, output_path=self._guard.path),
            session_id=self._kernel.ownership.session_id or "",
            owner=self._owner,
            kernel_name=prepared.kernel.name,
            instance_type=prepared.kernel.instance_type or self._where,
            startup_seconds=round(startup, 3),
            unbroken=self._unbroken,
            resumed=resumed,
            shown=run.shown,
            memory_level=run.memory.level,
        )

    def _step(self, run: NotebookRun) -> None:
        """Wait for the next message, or until something else is due, and have the run deal with it."""
        if run.finished:
            return
        websocket, deadline = self._kernel.websocket, run.next_deadline()
        wait = 1.0 if deadline is None else min(max(deadline - time.monotonic(), 0.0), 1.0)
        if self._stop_reason or websocket is None:
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
        self._carry_out(run, look(run, self._server.meter, in_daemon, now))
        self._activity.look(self._kernel.kernel_id if run.at_work else None, now, in_daemon)
        found = self._lookout.take()
        if found is not None:
            handover.tell_finding(found)
            self._carry_out(run, run.process_found(found.there, found.began, now))
        if message is not None:
            self._carry_out(run, run.receive(message, now))
        if message is None or (deadline is not None and now >= deadline):
            self._carry_out(run, run.tick(now))  # a kernel that never falls silent has limits, too

    def _lose(self, run: NotebookRun, error: StudioError) -> None:
        """Give up the websocket that broke."""
        if self._kernel.websocket is not None:
            self._kernel.websocket.close()
            self._kernel.websocket = None
        self._carry_out(run, run.disconnected(error, time.monotonic()))

    def _carry_out(self, run: NotebookRun, events: list[ev.Event]) -> None:
        for event in events:
            if isinstance(event, ev.Send):
                self._send(run, event.message)
            elif isinstance(event, ev.Interrupt):
                self._interrupt(run)
            elif isinstance(event, ev.CheckKernel):
                self._carry_out(run, self._check(run))
            elif isinstance(event, ev.CheckProcess):
                handover.tell_silence(event)
                self._lookout.begin(self._kernel.kernel_id or "", event.process, in_daemon)
            elif isinstance(event, ev.Save):
                self._save(run, last=event.required)
            elif isinstance(event, ev.Announce):
                self._announce(run, event.cell.index)
            elif isinstance(event, ev.Reconnect):
                self._reconnect(run, event)
            self._listener(event)

    def _interrupt(self, run: NotebookRun) -> None:
        """Interrupt the cell, unless it may be another process's by now."""
        try:
            self._guard.check(hurry=bool(self._stop_reason))
        except RunTakenOverError:
            return  # the loop deals with that
        except StudioError as error:
            log.warning("the cell is not interrupted: %s", error)
            return
        self._kernel.interrupt()
        run.interrupted(time.monotonic())

    def _announce(self, run: NotebookRun, cell: int) -> None:
        """Write down that a cell may be sent: in the session's name, or else in the notebook."""
        try:
            self._guard.check()
        except RunTakenOverError:
            return  # what comes next is not sent
        except StudioError as error:
            log.warning("%s; the run goes on", error)
        if not self._kernel.ownership.rename(self._session_name(cell)):
            try:
                self._saver.save(save_request(run.snapshot(time.monotonic())))
            except StudioError as error:
                log.warning("%s; the run goes on", error)

    def _send(self, run: NotebookRun, message: messages.Message) -> None:
        websocket = self._kernel.websocket
        if websocket is None or self._kernel.ownership.taken_over is not None:
            return  # it broke a moment ago, or the run is another process's; the loop deals with that
        try:
            websocket.send(message)
        except StudioError as error:
            self._lose(run, error)

    def _reconnect(self, run: NotebookRun, wanted: ev.Reconnect) -> None:
        """Open the websocket anew, as the run wants it."""
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
            self._carry_out(run, run.abandon(error, time.monotonic()))
        except RunKilledError:
            self._carry_out(run, run.disconnected(ConnectionLostError("stopped"), time.monotonic()))
        except StudioError as error:
            self._carry_out(run, run.disconnected(error, time.monotonic()))
        else:
            waiting, self._backlog = self._backlog, []
            for message in waiting:
                self._carry_out(run, run.receive(message, time.monotonic()))
            now = time.monotonic()
            self._carry_out(run, run.reconnected(now, orderly=orderly) if alive else run.kernel_state(None, now))

    def _hand_over(self) -> None:
        """Close the open websocket; what was still under way is dealt with when the next one is open."""
        websocket, self._kernel.websocket = self._kernel.websocket, None
        if websocket is not None:
            for message in websocket.hand_over():
                self._backlog.append(message)

    def _check(self, run: NotebookRun) -> list[ev.Event]:
        """Ask for the kernel; a question that fails is no reason to end a run."""
        kernel_id = self._kernel.kernel_id
        if kernel_id is None:
            return []
        try:
            state = while_wanted(
                lambda: self._server.kernel_state(kernel_id), check=self._require_wanted, undo=lambda _: None
            )
        except RunKilledError:
            return []  # the loop ends the run in its own way
        except StudioError as error:
            log.warning("the server could not be asked for the kernel: %s", error)
            return []
        return run.kernel_state(state, time.monotonic())

    def _end_kindly(self, run: NotebookRun, error: BaseException) -> None:
        """After Ctrl-C, a task's timeout or kill: interrupt the cell, hear it out shortly, save.

        An ``Exception`` that nobody has foreseen, such as that of a question to an Airflow that is gone, is no
        reason to end the run: that it is left to the next try is possible.
        """
        self.stop(type(error).__name__, for_good=not isinstance(error, Exception))
        try:
            if self._kernel.websocket is None:
                ends = self._or_left(RunKilledError("the run was stopped"))
                self._carry_out(run, run.abandon(ends, time.monotonic()))
            self._drive(run)
            if not self._saver.closed:  # the exception came between the end and its save
                self._save(run, last=True)
        except Exception as second:  # what ended the run must get out
            log.warning("the run could not be ended in order: %s", second)
        if isinstance(error, Exception) and self._left:
            raise _left() from error

    # --- Saving and tidying up

    def _save(self, run: NotebookRun, *, last: bool) -> None:
        if not last:
            if run.finished:
                return  # the run has ended in the middle of what was to be carried out: the last save was that
            if self._saver.busy:
                run.postpone_save(time.monotonic())
                return
            body = save_request(run.snapshot(time.monotonic()))
            self._saver.save_soon(body, lambda seconds: run.saved(time.monotonic(), seconds, len(body)))
            return
        if isinstance(run.error, RunTakenOverError):
            return  # what is there is the other process's
        try:
            # A task that is killed has few seconds left: the kernel first. But that a run has been completed is
            # written down before its kernel is gone, or else the next try would run it again.
            if self._stop_reason and run.error is not None and not self._keeps_kernel(run.error):
                self._guard.check(hurry=True)
                self._release()
            self._saver.save_last(save_request(run.snapshot(time.monotonic())), hurry=bool(self._stop_reason))
        except RunTakenOverError as error:
            log.warning("%s: nothing is saved", error)
        except StudioError as error:
            log.error("%s", error)
            self._last_save_error = error

    def _leave(self, error: StudioError | None) -> None:
        """Let the kernel live, for another process."""
        if error is not None and not isinstance(error, RunError):
            log.warning("the kernel is left running for the next try")
        self._lookout.end(5.0)
        self._kernel.leave()

    def _release(self) -> None:
        self._lookout.end(2.0 if self._stop_reason else 10.0)
        try:
            self._kernel.release()
        except BaseException as error:  # a signal came in the middle of it: once more, in a hurry
            self.stop(type(error).__name__)
            self._kernel.release(hurry=True)
            raise


def _left() -> RunTakenOverError:
    return RunTakenOverError("this process ends; the run stays on Studio, and the next try continues it")
