"""What becomes of a run whose process must end: it is killed, or it is left to another process."""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_smstudio.studio.errors import RunKilledError, RunTakenOverError, StudioError
from airflow_provider_smstudio.studio.execution.run import NotebookRun
from airflow_provider_smstudio.studio.runs import decisions
from airflow_provider_smstudio.studio.runs.remote_kernel import RemoteKernel
from airflow_provider_smstudio.studio.runs.spec import RunSpec


class RunEnding:
    """The request to stop a run, and the decision whether its kernel stays.

    :param spec: what is run.
    :param leaves_run: see :class:`~airflow_provider_smstudio.studio.runs.runner.NotebookRunner`.
    :param try_follows: see there.
    """

    def __init__(
        self, spec: RunSpec, leaves_run: Callable[[], bool], try_follows: Callable[[StudioError], bool]
    ) -> None:
        self.reason: str | None = None
        """Why the run must stop, None while it must not."""
        self.left: bool | None = None
        """Whether the run is left to another process, None while that is not decided."""
        self.last_save_error: StudioError | None = None
        """Why the last save of the executed notebook failed."""
        self.try_follows = try_follows
        self._spec = spec
        self._leaves_run = leaves_run
        self._for_good = False

    def stop(self, reason: str, *, for_good: bool = True) -> None:
        """Ask the run to stop; only the first request counts.

        :param reason: who or what stops the run.
        :param for_good: False if only this process must end.
        """
        if self.reason is None:
            self._for_good = for_good
            self.reason = reason

    def require_wanted(self) -> None:
        """Raise :class:`RunKilledError` if the run must stop before its kernel is started."""
        if self.reason:
            raise RunKilledError(f"the run was stopped before its kernel was started: {self.reason}")

    def is_left(self) -> bool:
        """Return whether another process continues the run that this process must end."""
        if self.left is None:
            # With resume='never', the next try would only remove the run.
            useful = not self._for_good and self._spec.resume != "never"
            self.left = useful and self._leaves_run()
        return self.left

    def or_left(self, error: StudioError, kernel: RemoteKernel) -> StudioError:
        """Replace the error of a stopped run if the run is left to another process. Else return it unchanged.

        A run whose kernel was never reached is not left, because another process could not continue it.
        """
        stopped = isinstance(error, RunKilledError) and kernel.was_reached
        return left_error() if stopped and self.is_left() else error

    def is_unended(self, run: NotebookRun, kernel: RemoteKernel) -> bool:
        """Return whether a second signal came before this process had left the run to another process."""
        return bool(self.reason) and not run.finished and kernel.was_reached and self.is_left()

    def keeps_kernel(self, error: StudioError | None, kernel: RemoteKernel) -> bool:
        """Return whether to keep the kernel for a process that continues the run.

        :param error: the error that ended the run.
        :param kernel: the run's kernel.
        """
        error = kernel.ownership.taken_over or error or self.last_save_error
        if error is None:
            return False
        stopped = bool(self.reason) and (isinstance(error, RunKilledError) or not self.is_left())
        kept = decisions.keeps_kernel(self._spec, error, stopped=stopped, reached=kernel.was_reached)
        if kept and not isinstance(error, RunTakenOverError):
            kept = self.try_follows(error)
        return kept


def left_error() -> RunTakenOverError:
    """Return the error of a run that is left to another process."""
    return RunTakenOverError("this process ends; the run stays on Studio, and the next try continues it")


def release_kernel(kernel: RemoteKernel, ending: RunEnding) -> None:
    """Remove a run's kernel and its session, also if a signal interrupts the removal."""
    try:
        kernel.release()
    except BaseException as error:  # try again, in a hurry
        ending.stop(type(error).__name__)
        kernel.release(hurry=True)
        raise
