"""Run a notebook on a Jupyter server in a thread: carry out the events of the state machine, and clean up."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import (
    KernelDiedError,
    KernelStartError,
    RunError,
    RunKilledError,
    StudioError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.run import NotebookRun
from airflow_provider_smstudio.studio.jupyter.kernel_probe import KernelProbe
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer, save_request
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.runs import decisions, identity, resume, saved_run
from airflow_provider_smstudio.studio.runs.ending import RunEnding, release_kernel
from airflow_provider_smstudio.studio.runs.handover import Handover
from airflow_provider_smstudio.studio.runs.identity import owner_of
from airflow_provider_smstudio.studio.runs.observer import Observer
from airflow_provider_smstudio.studio.runs.output_guard import OutputGuard
from airflow_provider_smstudio.studio.runs.prepare import Prepared, prepare
from airflow_provider_smstudio.studio.runs.remote_kernel import RemoteKernel
from airflow_provider_smstudio.studio.runs.result import RunResult, result_of
from airflow_provider_smstudio.studio.runs.spec import RunSpec
from airflow_provider_smstudio.studio.runs.worker_loop import WorkerLoop

log = logging.getLogger(__name__)

Listener = Callable[[ev.Event], None]

_MUTE_LIMIT = 60.0
"""Seconds without an answer on an open websocket, after which the kernel of a space is replaced once."""


class NotebookRunner:
    """One run of one notebook.

    :param server: the Jupyter server.
    :param spec: what to run.
    :param listener: receives every event of the run, in order. If it raises an error, the log says so, and it
        receives no more events.
    :param on_output: receives the path of the executed notebook after its first save. Its errors are handled in
        the same way.
    :param where: names the machine under a space's kernels, for messages.
    :param leaves_run: returns whether the run is left to another process. The runner calls it at most once, in the
        run's own thread, if this process must end before the run does. If the run is left, its kernel stays, and
        :meth:`run` raises :class:`RunTakenOverError`. The function must not raise an error. Default: the run ends
        with this process.
    :param try_follows: receives the error that ended the run, and returns whether another try follows that could
        use the kernel. Default: the value of ``will_retry`` in the spec.
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
        self._ending = RunEnding(
            spec, leaves_run or (lambda: False), try_follows or (lambda error: spec.will_retry)
        )
        self._who = identity.identity_of(spec.run_key, spec.run_name)
        self._owner, self._since = uuid.uuid4().hex[:12], int(time.time())
        self._kernel = RemoteKernel(
            server,
            timeout=spec.kernel_start_timeout,
            delete_app=spec.delete_kernel_app,
            stop_reason=lambda: self._ending.reason,
            owner=self._owner,
        )
        self._probe = KernelProbe(server, self._who.probe_path(self._session_path))
        self._hand_over_at: float | None = None
        self._handed = False

    def stop(self, reason: str, *, for_good: bool = True) -> None:
        """Ask the run to end soon. Another thread or a signal handler may call it.

        The runner interrupts the cell, saves the notebook and removes the kernel. Then :meth:`run` raises
        :class:`RunKilledError`.

        :param reason: who or what stops the run, for the error's message.
        :param for_good: False if only this process must end. Then ``leaves_run`` decides whether the run is left.
        """
        self._ending.stop(reason, for_good=for_good)

    def run(self) -> RunResult:
        """Run the notebook to its end.

        :raises InvalidInputError: when the notebook cannot be run as requested. Then nothing was started.
        :raises RunError: when the run failed. The notebook is saved as far as it ran.
        :raises StudioError: for any other failure, after the clean-up.
        """
        result = self._attempts()
        assert isinstance(result, RunResult)  # noqa: S101  # only run_or_hand_over() can return a Handover
        return result

    def run_or_hand_over(self, after: float) -> RunResult | Handover:
        """Run the notebook, or only its first seconds. If the run is not over then, another process continues it.

        :param after: for how many seconds from now to watch the run. The kernel's start is awaited in any case.
        :return: the result if the run was over by then; else the hand-over that the other process needs.
        :raises StudioError: in the same cases as :meth:`run`.
        """
        self._hand_over_at = time.monotonic() + after
        return self._attempts()

    def _attempts(self) -> RunResult | Handover:
        result = self._attempt(first=True) or self._attempt(first=False)
        assert result is not None  # noqa: S101  # only the first attempt returns None
        return result

    def _attempt(self, *, first: bool) -> RunResult | Handover | None:
        """Run the notebook, or continue the run that an earlier try has left.

        :return: None if this first attempt failed before it ran anything, and a second attempt must follow. Then
            the kernel of the earlier try was useless, or the new kernel never answered.
        """
        began = time.monotonic()
        prepared = self._prepare(first=first)
        notebook, choice = prepared.notebook, prepared.kernel
        self._guard = OutputGuard(self._server, prepared.output_path, notebook, self._kernel.ownership)
        session = resume.session_of(self._server, self._spec, self._who, prepared) if first else None
        if session is not None and saved_run.state_of(notebook) in ("completed", "stopped"):
            return self._ended_unheard(prepared, session)
        if session is None and first and (known := self._known(prepared)):
            return known
        self._kernel.ownership.accept_writer(saved_run.writer_of(notebook))
        saved_run.own(notebook, self._owner, self._spec)
        where = choice.instance_type or self._where
        client_session = self._who.client_session
        announced = owner_of(session.get("name"))[1] if session else None
        run = NotebookRun(
            notebook,
            session_id=client_session,
            options=self._spec.run_options(
                start_timeout=self._start_timeout(first=first), classic=self._server.classic
            ),
            now=time.monotonic(),
            where=where,
            resumed=session is not None,
            announced=announced,
        )
        loop = WorkerLoop(
            self._server,
            self._kernel,
            self._ending,
            self._guard,
            probe=self._probe,
            listener=self._listener,
            client_session=client_session,
            session_name=self._session_name,
            hand_over_at=self._hand_over_at,
        )
        if session is None:
            loop.saver.save(save_request(run.snapshot(time.monotonic())))
        startup = 0.0
        try:
            if session is not None:
                self._kernel.adopt(session)  # what ends the run from here on ends its kernel
            self._on_output(self._guard.path)
            if session is None:
                self._kernel.start(choice, self._session_path, self._session_name(), client_session)
            else:
                self._tell_had_run(notebook)  # before a websocket is open that must be read
                self._kernel.attach(session, client_session)
                self._kernel.ownership.rename(self._session_name(announced))
            startup = time.monotonic() - began
            loop.carry_out(run, run.start(time.monotonic()))
            loop.drive(run)
            if not run.finished:
                return self._handed_over(run, loop, prepared, startup, resumed=session is not None)
        except StudioError as error:
            loop.carry_out(run, run.abandon(self._ending.or_left(error, self._kernel), time.monotonic()))
        except BaseException as error:
            loop.end_after(run, error)
            raise
        finally:
            if (
                self._handed
                or self._ending.is_unended(run, self._kernel)
                or self._ending.keeps_kernel(run.error, self._kernel)
            ):
                loop.leave(run.error)
            else:
                loop.release()
        return self._outcome(run, prepared, session, startup, first=first)

    def _outcome(
        self, run: NotebookRun, prepared: Prepared, session: dict[str, Any] | None, startup: float, *, first: bool
    ) -> RunResult | None:
        """Return the result of an attempt; see :meth:`_attempt`."""
        if session is not None and not run.requested and self._kernel.ownership.taken_over is not None:
            known = resume.ended_meanwhile(self._server, self._who, self._guard.path)
            if known is not None:
                log.info("another process of an earlier try has completed the run meanwhile")
                return self._known_result(prepared, known)
        if first and not run.requested and self._begins_again(run, session):
            return None
        self._raise(self._kernel.ownership.taken_over or run.error)
        return self._result(prepared, run.executed, startup, resumed=session is not None)

    def _raise(self, error: StudioError | None) -> None:
        if isinstance(error, RunError):
            error.fields["output_path"] = error.output_path = self._guard.path
        error = error or self._ending.last_save_error
        if error is not None:
            raise error

    def _begins_again(self, run: NotebookRun, session: dict[str, Any] | None) -> bool:
        """Return whether another attempt follows an attempt that has run nothing."""
        if self._kernel.ownership.taken_over is not None:
            return False
        if session and isinstance(run.error, (KernelDiedError, KernelStartError)):
            log.warning("the kernel of an earlier try is gone with its variables: starting from the first cell")
            return True
        mute = run.never_answered and self._spec.kernel_start_timeout > _MUTE_LIMIT and not self._ending.reason
        if mute and not self._server.classic:
            log.warning("%s: starting another one", run.error)
            return True
        return False

    def _start_timeout(self, *, first: bool) -> float:
        # A kernel that could not get its ports may keep running and never answer (seen with ipykernel 7.3). In
        # Classic, nothing limits how long a working kernel may take.
        patience = self._spec.kernel_start_timeout
        return min(patience, _MUTE_LIMIT) if first and not self._server.classic else patience

    def _result(self, prepared: Prepared, executed: int, startup: float, *, resumed: bool) -> RunResult:
        return result_of(
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
        """Clean up after an earlier try that completed the run and was lost before its own clean-up."""
        log.info("an earlier try has completed the run")
        self._kernel.adopt(session)
        try:
            self._on_output(self._guard.path)
            self._tell_had_run(prepared.notebook)
        finally:  # what ends this process meanwhile ends the kernel as well
            release_kernel(self._kernel, self._ending)
        return self._result(prepared, nb.cells_run(prepared.notebook), 0.0, resumed=True)

    # --- Before anything is started

    def _prepare(self, *, first: bool) -> Prepared:
        try:
            return prepare(self._server, self._spec, self._who, check=self._ending.require_wanted)
        except StudioError as error:
            if first and self._spec.run_key is not None and not self._comes_back(error):
                self._remove_earlier()
            raise

    def _comes_back(self, error: StudioError) -> bool:
        """Return whether another try could still continue the run that an earlier try has left."""
        return self._ending.is_left() if isinstance(error, RunKilledError) else self._ending.try_follows(error)

    def _remove_earlier(self) -> None:
        """Remove the kernel of an earlier try: this try failed before it used it, and no other try follows."""
        try:
            resume.remove_session(self._server, self._spec, self._who)
        except StudioError as error:
            log.warning("could not check whether an earlier try has left a kernel: %s", error)

    def _known(self, prepared: Prepared) -> RunResult | None:
        """Return the known result of a notebook that was run already; None if it must be run."""
        return self._ended_untold(prepared) or self._skipped(prepared)

    def _ended_untold(self, prepared: Prepared) -> RunResult | None:
        """Return the result of an earlier try that completed the run but could not report it; else None."""
        saved = resume.ended_untold(self._server, self._spec, prepared)
        if saved is None:
            return None
        self._on_output(self._guard.path)
        return self._known_result(prepared, saved)

    def _known_result(self, prepared: Prepared, saved: NotebookNode) -> RunResult:
        """Report the cells of a run that another process has ended, and return its result."""
        self._tell_had_run(saved)
        return self._result(replace(prepared, notebook=saved), nb.cells_run(saved), 0.0, resumed=True)

    def _tell_had_run(self, notebook: NotebookNode) -> None:
        for event in resume.cells_that_had_run(notebook):
            if self._ending.reason:
                return
            self._listener(event)

    def _skipped(self, prepared: Prepared) -> RunResult | None:
        """Return the result of a complete executed notebook, if the spec accepts it; else None."""
        saved = resume.complete_output(self._server, self._spec, prepared)
        if saved is None:
            return None
        self._on_output(self._guard.path)
        found = self._result(replace(prepared, notebook=saved), nb.cells_run(saved), 0.0, resumed=False)
        return replace(found, skipped=True)

    @property
    def _session_path(self) -> str:
        return decisions.session_path(self._spec, self._who)

    def _session_name(self, cell: int | None = None) -> str:
        return self._who.session_name(self._owner, cell, since=self._since)

    def _handed_over(
        self, run: NotebookRun, loop: WorkerLoop, prepared: Prepared, startup: float, *, resumed: bool
    ) -> Handover:
        if self._ending.reason:
            raise RunKilledError(f"the run was stopped: {self._ending.reason}")
        self._handed = True
        return Handover(
            spec=replace(self._spec, parameters={}, upload_from=None, output_path=self._guard.path),
            session_id=self._kernel.ownership.session_id or "",
            owner=self._owner,
            kernel_name=prepared.kernel.name,
            instance_type=prepared.kernel.instance_type or self._where,
            startup_seconds=round(startup, 3),
            unbroken=loop.unbroken,
            resumed=resumed,
            shown=run.shown,
            memory_level=run.memory.level,
        )
