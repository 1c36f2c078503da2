"""What tells a task's process that it has to end, and what becomes of its run then."""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

from airflow_provider_smstudio import _task_process
from airflow_provider_smstudio._task_process import TaskProcess, retries, retry_series
from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator
from airflow_provider_smstudio.studio.errors import (
    CellError,
    RunKilledError,
    RunTakenOverError,
    StudioError,
    UnknownOutcomeError,
    to_plain,
)
from tests.provider.running import (
    RUNNING,
    TaskInstance,
    assert_clean,
    context_with,
    executed,
    operator,
    when_the_cell_runs,
    write,
)

STARTED = datetime(2026, 11, 27, 3, tzinfo=timezone.utc)
LOST = "Airflow is gone"


class Policy:
    """A retry policy of Airflow 3.3 that lets no try follow some errors."""

    def __init__(self, *forbidden: type[Exception]) -> None:
        self.forbidden = forbidden
        self.asked: list[tuple[Exception, int, int]] = []

    def evaluate(self, exception: Exception, try_number: int, max_tries: int, context: Any = None) -> Any:
        self.asked.append((exception, try_number, max_tries))
        action = "fail" if isinstance(exception, self.forbidden) else "default"
        return SimpleNamespace(action=SimpleNamespace(value=action), reason=None)


def attempt(number: int, most: int, ti: TaskInstance | None = None, **task: Any) -> TaskInstance:
    found = ti or TaskInstance()
    found.try_number, found.max_tries = number, most
    found.task = SimpleNamespace(retries=most, **task)
    return found


def context_of(ti: TaskInstance, started: datetime | None = STARTED, logical: datetime | None = None) -> Any:
    return {"ti": ti, "dag_run": SimpleNamespace(start_date=started, logical_date=logical)}


def says(monkeypatch: pytest.MonkeyPatch, state: str | None | BaseException) -> None:
    """Have Airflow answer so when it is asked for the task's state."""

    def answer(ti: Any) -> str | None:
        if isinstance(state, BaseException):
            raise state
        return state

    monkeypatch.setattr(_task_process, "state_of", answer)


@pytest.mark.parametrize(
    ("state", "tries", "left"),
    [
        (None, (1, 0), True),
        ("scheduled", (1, 0), True),
        ("queued", (1, 0), True),
        ("up_for_retry", (1, 1), True),
        ("deferred", (1, 1), True),  # a later try has handed it over
        ("running", (1, 1), True),
        ("running", (2, 1), False),  # nobody would come back for the kernel
        ("restarting", (1, 1), False),  # cleared
        ("failed", (1, 1), False),
        ("success", (1, 1), False),
        ("removed", (1, 1), False),
        (KeyError("run"), (1, 1), False),  # its DAG run was deleted
        # Airflow cannot be asked: its supervisor is gone, or the API server.
        (BrokenPipeError(), (1, 1), True),
        (EOFError(), (1, 1), True),
        (RuntimeError("the API server"), (1, 1), True),
        (BrokenPipeError(), (2, 1), False),
    ],
)
def test_who_goes_on_with_the_run(
    monkeypatch: pytest.MonkeyPatch, state: str | None | BaseException, tries: tuple[int, int], left: bool
) -> None:
    says(monkeypatch, state)
    assert TaskProcess(context_of(attempt(*tries))).leaves_run() is left


@pytest.mark.parametrize(("tries", "left"), [((1, 2), True), ((3, 2), False)])
def test_airflow_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tries: tuple[int, int], left: bool
) -> None:
    """Airflow 3 kills a task five seconds after its SIGTERM, and an API server may be away for longer."""
    monkeypatch.setattr(_task_process, "_ANSWER_LIMIT", 0.2)
    answered = threading.Event()
    monkeypatch.setattr(_task_process, "state_of", lambda ti: answered.wait(30))
    try:
        assert TaskProcess(context_of(attempt(*tries))).leaves_run() is left
    finally:
        answered.set()


@pytest.mark.parametrize(("forbidden", "left"), [(RunTakenOverError, False), (CellError, True)])
def test_the_retry_policy_says_whether_a_try_follows(
    monkeypatch: pytest.MonkeyPatch, forbidden: type[Exception], left: bool
) -> None:
    says(monkeypatch, "running")
    policy = Policy(forbidden)
    assert TaskProcess(context_of(attempt(1, 2, retry_policy=policy))).leaves_run() is left
    assert [(type(error), *numbers) for error, *numbers in policy.asked] == [(RunTakenOverError, 1, 2)]


def test_who_cannot_ask_cannot_report_either_so_the_policy_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The policy is asked in the task's process only; where that is lost, Airflow goes by the number of tries."""
    says(monkeypatch, EOFError())
    policy = Policy(RunTakenOverError)
    assert TaskProcess(context_of(attempt(1, 2, retry_policy=policy))).leaves_run()
    assert policy.asked == []


def test_a_retry_policy_that_fails_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, "running")
    assert TaskProcess(context_of(attempt(1, 2, retry_policy=object()))).leaves_run()


try:
    from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
except ImportError:  # it came with 3.3
    pass
else:

    def test_airflows_own_retry_policy() -> None:
        policy = ExceptionRetryPolicy(rules=[RetryRule(exception=CellError, action=RetryAction.FAIL)])
        process = TaskProcess(context_of(attempt(1, 2, retry_policy=policy)))
        assert not process.try_follows(CellError("raised"))
        assert process.try_follows(StudioError("else"))


def goes_on(lab: LocalStudio, path: str, ti: TaskInstance) -> None:
    """Run the next try of a task that has left its run in the first of two cells."""
    assert len(lab.kernels()) == 1
    result = operator(lab, path).execute(context_of(attempt(2, 1, ti)))
    assert result["resumed"]
    cells = executed(lab, result["output_path"]).cells
    assert [cell.outputs[0]["text"] for cell in cells] == ["on\noff\n", "end\n"]
    assert_clean(lab)


SHORTER = RUNNING.replace("sleep(60)", "sleep(4)") + "\nprint('off')"


class BrokenLog:
    """The log of a task whose supervisor is gone: each line raises."""

    def __init__(self, *, after: str) -> None:
        self.after, self.broken = after, False

    def log(self, level: int, text: str, *values: object) -> None:
        self.broken = self.broken or self.after in str(values)
        if self.broken:
            raise BrokenPipeError(LOST)

    def info(self, text: str, *values: object) -> None:
        self.log(logging.INFO, text, *values)

    warning = error = info


def test_a_log_that_nobody_takes(lab: LocalStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, BrokenPipeError(LOST))
    path = write(lab, SHORTER, "print('end')")
    task = operator(lab, path)
    with monkeypatch.context() as patch:
        patch.setattr(SageMakerStudioNotebookOperator, "log", BrokenLog(after="'on'"))
        ti = attempt(1, 1)
        with pytest.raises(RunTakenOverError):
            task.execute(context_of(ti))
    goes_on(lab, path, ti)


def test_a_cell_that_prints_nothing_while_the_supervisor_goes(
    lab: LocalStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, EOFError())
    path = write(lab, SHORTER, "print('end')")
    ti, parents = attempt(1, 1), [os.getppid()]
    with monkeypatch.context() as patch:
        patch.setattr(_task_process, "supervisor_pid", lambda: parents[0])
        patch.setattr(os, "getppid", lambda: parents[-1])
        when_the_cell_runs(lab, path, lambda: parents.append(1))
        with pytest.raises(RunTakenOverError, match="the next try continues it"):
            operator(lab, path).execute(context_of(ti))
    goes_on(lab, path, ti)


def test_the_supervisor_that_goes_in_the_last_try_takes_the_kernel_along(
    lab: LocalStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, EOFError())
    path = write(lab, RUNNING)
    parents = [os.getppid()]
    monkeypatch.setattr(_task_process, "supervisor_pid", lambda: parents[0])
    monkeypatch.setattr(os, "getppid", lambda: parents[-1])
    when_the_cell_runs(lab, path, lambda: parents.append(1))
    with pytest.raises(RunKilledError, match="while cell 1/1 ran.*its supervisor is gone"):
        operator(lab, path).execute(context_of(attempt(2, 1)))
    assert_clean(lab)


def test_a_kill_in_the_hand_over(lab: LocalStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes while the last snapshot is saved, before the triggerer has the run."""
    says(monkeypatch, "running")
    path = write(lab, SHORTER, "print('end')")
    task = operator(lab, path, deferrable=True, defer_after=0.5)
    from airflow_provider_smstudio.studio.runs.saver import NotebookSaver

    save = NotebookSaver.save_last

    def killed(*arguments: Any, **options: Any) -> None:
        task.on_kill()
        save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(NotebookSaver, "save_last", killed)
        ti = attempt(1, 1)
        with pytest.raises(RunTakenOverError, match="the next try continues it"):
            task.execute(context_of(ti))
    goes_on(lab, path, ti)


@pytest.mark.parametrize("state", ["failed", "success", "restarting"])
def test_a_person_who_kills_in_the_hand_over(
    lab: LocalStudio, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    says(monkeypatch, state)
    task = operator(lab, write(lab, RUNNING), deferrable=True, defer_after=0.5)
    from airflow_provider_smstudio.studio.runs.saver import NotebookSaver

    save = NotebookSaver.save_last

    def killed(*arguments: Any, **options: Any) -> None:
        task.on_kill()
        save(*arguments, **options)

    monkeypatch.setattr(NotebookSaver, "save_last", killed)
    with pytest.raises(RunKilledError):
        task.execute(context_of(attempt(1, 1)))
    assert_clean(lab)


def test_the_next_try_tells_what_an_earlier_one_could_not(lab: LocalStudio) -> None:
    """Its worker was lost between the end of the notebook and the task's success."""
    path = write(lab, "open('ran', 'a').write('x')\nprint('done')")
    ran = (lab.home / path).with_name("ran")
    ti = attempt(1, 3)
    first = operator(lab, path).execute(context_of(ti))
    second = operator(lab, path).execute(context_of(attempt(2, 3, ti)))
    assert (first["resumed"], second["resumed"]) == (False, True)
    assert {**second, "resumed": False, "startup_seconds": first["startup_seconds"]} == first
    assert ran.read_text() == "x"
    # Whoever clears the task, or the DAG run, wants it to run.
    third = operator(lab, path).execute(context_of(attempt(2, 4, ti)))
    fourth = operator(lab, path).execute(context_of(attempt(3, 4, ti), STARTED + timedelta(hours=1)))
    # And so does who says so.
    fifth = operator(lab, path, resume="never").execute(
        context_of(attempt(4, 4, ti), STARTED + timedelta(hours=1))
    )
    assert not any(result["resumed"] for result in (third, fourth, fifth))
    assert ran.read_text() == "xxxx"
    assert_clean(lab)


def test_a_dag_run_that_is_tested_again_runs_again(lab: LocalStudio) -> None:
    """``dags test`` of the same date: the same run ID, and a start that is the date; it may have tries, too."""
    path = write(lab, "open('ran', 'a').write('x')")
    ti = attempt(1, 2)
    for number in (1, 1, 2):
        context = context_of(attempt(number, 2, ti), logical=STARTED)
        assert not operator(lab, path).execute(context)["resumed"]
    assert (lab.home / path).with_name("ran").read_text() == "xxx"


def test_who_clears_a_task_has_it_run_from_the_first_cell(
    lab: LocalStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if an earlier try has left its run: the data may have been put right since."""
    says(monkeypatch, "running")
    path = write(lab, RUNNING.replace("sleep(60)", "sleep(2)"), "open('ran', 'a').write('x')")
    task, ti = operator(lab, path), attempt(1, 1)
    when_the_cell_runs(lab, path, task.on_kill)
    with pytest.raises(RunTakenOverError):
        task.execute(context_of(ti))
    (left,) = lab.kernels()
    result = operator(lab, path).execute(context_of(attempt(2, 2, ti)))
    assert not result["resumed"]
    assert left["id"] not in [kernel["id"] for kernel in lab.kernels()]
    assert_clean(lab)


def test_who_has_changed_the_number_of_retries_wants_it_to_run(lab: LocalStudio) -> None:
    """A clear may give a task as many tries as it had, if the DAG says fewer retries now."""
    path = write(lab, "open('ran', 'a').write('x')")
    ti = attempt(1, 1)
    operator(lab, path).execute(context_of(ti))
    attempt(2, 1, ti).task.retries = 0
    assert not operator(lab, path).execute(context_of(ti))["resumed"]
    assert (lab.home / path).with_name("ran").read_text() == "xx"


def test_a_cell_whose_end_is_unknown_is_not_run_by_a_later_try_either(lab: LocalStudio) -> None:
    """The task fails without a retry, if Airflow hears of it; a worker that is lost just then cannot tell it."""
    path = write(lab, "open('ran', 'a').write('x')")
    ti = attempt(1, 3)
    result = operator(lab, path).execute(context_of(ti))
    saved = executed(lab, result["output_path"])
    error = {"type": "UnknownOutcomeError", "message": "cell 1/1 may have run"}
    saved.metadata["smstudio"]["run"].update(state="failed", error=error)
    nbformat.write(saved, lab.home / result["output_path"])
    from airflow_provider_smstudio._compat import AirflowFailException

    with pytest.raises(AirflowFailException, match="cell 1/1 may have run") as caught:
        operator(lab, path).execute(context_of(attempt(2, 3, ti)))
    assert isinstance(caught.value.__cause__, UnknownOutcomeError)
    assert (lab.home / path).with_name("ran").read_text() == "x"


def test_series() -> None:
    ti = attempt(1, 2)
    series = retry_series(context_of(ti))
    assert series == retry_series(context_of(attempt(2, 2, ti)))
    others = [
        retry_series(context_of(attempt(2, 3, ti))),  # cleared
        retry_series(context_of(attempt(1, 2, ti), STARTED + timedelta(microseconds=1))),  # its DAG run was
    ]
    assert series not in others
    assert retry_series(context_of(ti, None)) is None
    assert retry_series(context_of(ti, logical=STARTED)) is None  # dags test
    assert retry_series(context_with(TaskInstance())) is None
    assert (retries(context_of(ti)), retries(context_with(TaskInstance()))) == (2, None)


@pytest.mark.parametrize("forbidden", [True, False])
def test_a_kernel_that_is_kept_for_a_try_that_the_policy_forbids(lab: LocalStudio, forbidden: bool) -> None:
    policy = Policy(CellError) if forbidden else Policy()
    ti = attempt(1, 2, retry_policy=policy)
    path = write(lab, "1/0")
    with pytest.raises(CellError):
        operator(lab, path, resume="failed_cell").execute(context_of(ti))
    if not forbidden:
        assert len(lab.kernels()) == 1
        with pytest.raises(CellError):
            operator(lab, path, resume="failed_cell").execute(context_of(attempt(3, 2, ti)))
    assert_clean(lab)


@pytest.mark.parametrize("forbidden", [True, False])
def test_the_same_after_a_trigger_that_could_not_ask_the_policy(lab: LocalStudio, forbidden: bool) -> None:
    ti = attempt(1, 2)
    path = write(lab, "1/0")
    with pytest.raises(CellError) as caught:
        operator(lab, path, resume="failed_cell").execute(context_of(ti))
    assert len(lab.kernels()) == 1
    ti.task.retry_policy = Policy(CellError) if forbidden else Policy()
    event = {"status": "error", "error": to_plain(caught.value)}
    with pytest.raises(CellError):
        operator(lab, path, resume="failed_cell", deferrable=True).execute_complete(context_of(ti), event)
    assert len(lab.kernels()) == (0 if forbidden else 1)
    if not forbidden:
        with pytest.raises(CellError):
            operator(lab, path, resume="failed_cell").execute(context_of(attempt(3, 2, ti)))
    assert_clean(lab)


def test_a_person_is_heard_within_five_seconds(lab: LocalStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, "failed")
    path = write(lab, RUNNING)
    task = operator(lab, path)
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        task.on_kill()

    when_the_cell_runs(lab, path, kill)
    with pytest.raises(RunKilledError):
        task.execute(context_of(attempt(1, 3)))
    assert time.monotonic() - killed[0] < 5
    assert_clean(lab)
