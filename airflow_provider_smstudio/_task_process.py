"""The process that runs a task: what tells it to end, and whether its run is then left to the next try.

A task's process mostly ends before its time because something around it does: a worker is replaced, its machine
is lost, Airflow's API server is away for long. That is no reason to end the run, which is on Studio. So there is
one rule, in :meth:`TaskProcess.leaves_run`: the run is left if a try is left. It is ended if Airflow says that a
person has ended the task, or in the last try, whose kernel nobody would come back for. (Ctrl-C and
``execution_timeout`` end it by an exception, without a question.)

The signs that a process has to end:

* SIGTERM: Airflow calls the operator's ``on_kill``.
* A line of the log finds nobody who takes it. In Airflow 3 it goes through a socket to the task's supervisor.
* The supervisor, which is this process's parent in Airflow 3, is gone. Without this look, a cell that prints
  nothing would run on unnoticed. In 2.11 a task goes on without its supervisor, and writes its state itself.
* A question to Airflow raises an error that nobody has foreseen.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_smstudio._compat import policy_forbids_retry, state_of, supervisor_pid

if TYPE_CHECKING:
    from airflow_provider_smstudio._compat import Context
    from airflow_provider_smstudio.studio.errors import StudioError
    from airflow_provider_smstudio.studio.runs.runner import NotebookRunner

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0
_ANSWER_LIMIT = 2.0
"""Seconds to wait for Airflow's answer.

A task gets five between SIGTERM and SIGKILL; a supervisor whose API server is away keeps it waiting for longer.
"""

_GOES_ON = (None, "scheduled", "queued", "up_for_retry", "up_for_reschedule", "deferred")
"""States in which a later try has the run, or will have it."""


class TaskProcess:
    """The process that we are in, while it runs one task.

    :param context: the context of the task instance.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._supervisor = supervisor_pid()
        self._runner: NotebookRunner | None = None

    @contextmanager
    def follows(self, runner: NotebookRunner) -> Iterator[None]:
        """Stop a run, for the length of a ``with`` block, once this process has lost its surroundings."""
        self._runner = runner
        over = threading.Event()

        def look() -> None:
            while not over.wait(_LOOK_EVERY):
                if os.getppid() != self._supervisor:
                    self.has_lost("its supervisor is gone")
                    return

        if self._supervisor is not None:
            threading.Thread(target=look, name="smstudio-supervisor", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            self._runner = None

    def write(self, logger: Any, level: int, line: str) -> None:
        """Write a line to the task's log.

        :param logger: the operator's.
        :param level: as in :mod:`logging`.
        :param line: the line; never used as a format, since it holds whatever a notebook prints.
        """
        try:
            logger.log(level, "%s", line)
        except OSError as error:
            self.has_lost(f"nobody takes its log ({type(error).__name__})")

    def has_lost(self, sign: str) -> None:
        """Stop the run's part in this process, because what is around the process has ended.

        :param sign: what tells so.
        """
        if self._runner is not None:
            self._runner.stop(f"the task's process is being taken away: {sign}", for_good=False)

    def leaves_run(self) -> bool:
        """Decide, once this process has to end, whether the run is left to a later try; see the module."""
        from airflow_provider_smstudio.studio.errors import RunTakenOverError

        known, state = self._ask_state()
        if known and state in _GOES_ON:
            return True
        # Whoever clears a running task, or marks it, has it in another state: restarting, failed, success.
        if known and state != "running":
            log.warning("the task is %s: the run is ended", state)
            return False
        # A process that cannot ask cannot report either. Then Airflow goes by the number of tries alone.
        error = RunTakenOverError("the run is left to the next try")
        if self.try_follows(error) if known else will_retry(self._context):
            return True
        log.warning("no try is left that could continue the run: it is ended")
        return False

    def try_follows(self, error: StudioError) -> bool:
        """Tell whether another try follows if the task fails by an error.

        :param error: the error.
        """
        return will_retry(self._context) and not policy_forbids_retry(self._context, error)

    def _ask_state(self) -> tuple[bool, str | None]:
        """Ask Airflow how the task stands; the first value tells whether there was an answer."""
        answers: list[tuple[bool, str | None]] = []

        def ask() -> None:
            try:
                answers.append((True, state_of(self._context["ti"])))
            except LookupError:  # its DAG run was deleted
                answers.append((True, "removed"))
            except Exception as error:
                log.warning("Airflow could not be asked how the task stands: %s", type(error).__name__)
                answers.append((False, None))

        thread = threading.Thread(target=ask, name="smstudio-ask-airflow", daemon=True)
        thread.start()
        thread.join(_ANSWER_LIMIT)
        if not answers:
            log.warning("Airflow has not said within %g s how the task stands", _ANSWER_LIMIT)
            return False, None
        return answers[0]


def will_retry(context: Context) -> bool:
    """Tell whether another try of this task instance follows if this one fails, by the number of tries."""
    ti = context["ti"]
    tries, most = getattr(ti, "try_number", None), getattr(ti, "max_tries", None)
    return isinstance(tries, int) and isinstance(most, int) and tries <= most


def try_number(context: Context) -> int:
    """Return the number of this try, from 1."""
    number = getattr(context["ti"], "try_number", None)
    return number if isinstance(number, int) else 1


def retry_series(context: Context) -> str | None:
    """Name the tries that Airflow starts by itself, as opposed to those that a person asks for.

    Clearing a task that does not run gives it more tries than before (``max_tries``). Clearing or making a DAG run
    gives that another start. Not so ``dags test``: each test of one date looks like the one before.

    :return: the same text for each of these tries; None where Airflow does not say.
    """
    run: Any = context.get("dag_run")
    started, most = getattr(run, "start_date", None), getattr(context["ti"], "max_tries", None)
    if started is None or started == getattr(run, "logical_date", None) or not isinstance(most, int):
        return None
    return f"{started.timestamp():.6f}/{most}"


def retries(context: Context) -> int | None:
    """Return how many retries the task has, as the DAG says now."""
    found = getattr(getattr(context["ti"], "task", None), "retries", None)
    return found if isinstance(found, int) else None
