"""The process that runs a task: when it must end, and whether it then leaves its run to the next try.

The process of a task usually ends early because something around it ends: the worker is replaced, the machine is
lost, or Airflow's API server is down for long. The run is on Studio, so this is no reason to end it. One rule
decides, in :meth:`TaskProcess.leaves_run`. The process leaves the run if another try is left. It ends the run if
Airflow reports that a user has ended the task. It also ends the run in the last try, because no later try would
continue on its kernel. (Ctrl-C and ``execution_timeout`` end the run by an exception, without a request to
Airflow.)

The signs that a process must end:

* SIGTERM: Airflow calls the operator's ``on_kill``.
* A log line cannot be written. In Airflow 3 it goes through a socket to the task's supervisor.
* The supervisor is gone. In Airflow 3 it is the parent of this process. Without this check, a cell that prints
  nothing would continue unnoticed. In 2.11 a task continues without its supervisor, and writes its state itself.
* A request to Airflow raises an unexpected error.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
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

A task has five seconds between SIGTERM and SIGKILL. If the API server is down, the supervisor's answer takes
longer than that.
"""

_GOES_ON = (None, "scheduled", "queued", "up_for_retry", "up_for_reschedule", "deferred")
"""States in which a later try owns the run, or will own it."""


class TaskProcess:
    """The current process, while it runs one task.

    :param context: the context of the task instance.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._supervisor = supervisor_pid()
        self._runner: NotebookRunner | None = None

    @contextmanager
    def follows(self, runner: NotebookRunner) -> Iterator[None]:
        """Stop the run if this process must end while the ``with`` block is active."""
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

        :param logger: the operator's logger.
        :param level: the level, as in :mod:`logging`.
        :param line: the line. It is never used as a format, because it contains what a notebook prints.
        """
        try:
            logger.log(level, "%s", line)
        except OSError as error:
            self.has_lost(f"its log cannot be written ({type(error).__name__})")

    def has_lost(self, sign: str) -> None:
        """Stop this process's part of the run, because the process must end.

        :param sign: what shows this; it becomes part of the message.
        """
        if self._runner is not None:
            self._runner.stop(f"the task's process must end: {sign}", for_good=False)

    def leaves_run(self) -> bool:
        """Return whether this process leaves the run to a later try, now that it must end; see the module."""
        from airflow_provider_smstudio.studio.errors import RunTakenOverError

        known, state = self._ask_state()
        if known and state in _GOES_ON:
            return True
        # If a user clears or marks a running task, its state is no longer running but restarting, failed or
        # success.
        if known and state != "running":
            log.warning("the task is %s: ending the run", state)
            return False
        # A process that cannot ask cannot report its error either. Then Airflow uses only the number of tries.
        error = RunTakenOverError("the run is left to the next try")
        if self.try_follows(error) if known else will_retry(self._context):
            return True
        log.warning("no try is left that could continue the run: ending it")
        return False

    def try_follows(self, error: StudioError) -> bool:
        """Return whether another try follows if the task fails with an error.

        :param error: the error.
        """
        return will_retry(self._context) and not policy_forbids_retry(self._context, error)

    def _ask_state(self) -> tuple[bool, str | None]:
        """Ask Airflow for the task's state. The first value returned is whether Airflow answered."""
        answers: list[tuple[bool, str | None]] = []

        def ask() -> None:
            try:
                answers.append((True, state_of(self._context["ti"])))
            except LookupError:  # its DAG run was deleted
                answers.append((True, "removed"))
            except Exception as error:
                log.warning("could not ask Airflow for the task's state: %s", type(error).__name__)
                answers.append((False, None))

        thread = threading.Thread(target=ask, name="smstudio-ask-airflow", daemon=True)
        thread.start()
        thread.join(_ANSWER_LIMIT)
        if not answers:
            log.warning("Airflow did not report the task's state within %g s", _ANSWER_LIMIT)
            return False, None
        return answers[0]


def will_retry(context: Context) -> bool:
    """Return whether the number of tries allows another try of this task instance if this one fails."""
    ti = context["ti"]
    tries, most = getattr(ti, "try_number", None), getattr(ti, "max_tries", None)
    return isinstance(tries, int) and isinstance(most, int) and tries <= most


def try_number(context: Context) -> int:
    """Return the number of this try, from 1."""
    number = getattr(context["ti"], "try_number", None)
    return number if isinstance(number, int) else 1


def retry_series(context: Context) -> str | None:
    """Return a name for the tries that Airflow starts by itself, not because a user asks for them.

    If a user clears a task that is not running, the task gets more tries than before (``max_tries``). If a user
    clears or creates a DAG run, the DAG run gets another start date. With ``dags test`` the start date does not
    change: each test of one date looks like the one before.

    :return: the same text for each of these tries; None if Airflow does not provide it.
    """
    run: Any = context.get("dag_run")
    started, most = getattr(run, "start_date", None), getattr(context["ti"], "max_tries", None)
    if started is None or started == getattr(run, "logical_date", None) or not isinstance(most, int):
        return None
    return f"{started.timestamp():.6f}/{most}"


def retries(context: Context) -> int | None:
    """Return how many retries the task has, as the DAG defines it now. Return None if that is not known."""
    found = getattr(getattr(context["ti"], "task", None), "retries", None)
    return found if isinstance(found, int) else None


def deadline_of(context: Context, limit: timedelta | None) -> float | None:
    """Return when ``execution_timeout`` ends, in epoch seconds. Airflow ignores it while the task is deferred."""
    if limit is None:
        return None
    started = getattr(context["ti"], "start_date", None)
    return float(started.timestamp() if started is not None else time.time()) + limit.total_seconds()
