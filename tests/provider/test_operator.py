"""The notebook operator against a local Studio, executed as Airflow's task runner executes it."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import os
import pickle
import signal
import threading
import time
import traceback
from datetime import date
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from airflow_provider_smstudio._compat import AirflowFailException
from airflow_provider_smstudio._run_name import run_name
from airflow_provider_smstudio.hooks.studio import SageMakerStudioHook
from airflow_provider_smstudio.links.notebook import SageMakerStudioNotebookLink
from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.operators.base import SageMakerStudioBaseOperator
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator
from airflow_provider_smstudio.studio.errors import (
    AppNotReadyError,
    CellError,
    CellTimeoutError,
    InvalidInputError,
    ParameterError,
    RunKilledError,
    RunTakenOverError,
    UnknownOutcomeError,
)
from airflow_provider_smstudio.studio.runs.runner import NotebookRunner
from tests.provider.running import (
    CLASSIC_KERNEL,
    RUNNING,
    TaskInstance,
    assert_clean,
    context_with,
    executed,
    operator,
    when_the_cell_runs,
    write,
)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    # Airflow 3's own logger does not pass through the standard library, where pytest listens.
    monkeypatch.setattr(SageMakerStudioNotebookOperator, "log", logging.getLogger("operator-under-test"))
    caplog.set_level(logging.INFO)
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records]


def test_runs_a_notebook_in_a_space(lab: LocalStudio, log: pytest.LogCaptureFixture) -> None:
    path = write(
        lab,
        new_code_cell("day = None", metadata={"tags": ["parameters"]}),
        "print(day.isoformat())\nprint('100 %s %d')",
    )
    ti = TaskInstance()
    task = operator(lab, path, parameters={"day": date(2026, 11, 23)})
    result = task.execute(context_with(ti))
    json.dumps(result)
    assert result["status"] == "success"
    assert (result["cells"], result["cells_executed"], result["kernel_name"]) == (3, 3, "python3")
    assert executed(lab, result["output_path"]).cells[2].outputs[0]["text"] == "2026-11-23\n100 %s %d\n"
    assert ti.xcoms == {SageMakerStudioNotebookLink.XCOM_KEY: result["output_url"]}
    shown = lines(log)
    progress = [line for line in shown if line.startswith("cell 3/3")]
    assert progress[0] == "cell 3/3: print(day.isoformat())"
    assert progress[1].startswith("cell 3/3 done in ")
    group = shown[shown.index("::group::output of cell 3") :]
    assert group[1:4] == ["2026-11-23", "100 %s %d", "::endgroup::"]
    assert_clean(lab)


def test_runs_a_notebook_in_classic(classic: LocalStudio) -> None:
    path = write(classic, "print(1)", kernel=CLASSIC_KERNEL)
    result = operator(classic, path, instance_type="ml.m5.large").execute(context_with(TaskInstance()))
    assert (result["kernel_name"], result["instance_type"]) == (CLASSIC_KERNEL, "ml.m5.large")
    assert_clean(classic)


def test_a_connection_says_which_studio(lab: LocalStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"space_name": lab.space_name, "region_name": "us-east-1"}
    connection = {
        "conn_type": "sagemaker_studio",
        "host": lab.domain_id,
        "login": lab.user_profile_name,
        "extra": extra,
    }
    monkeypatch.setenv("AIRFLOW_CONN_MY_STUDIO", json.dumps(connection))
    task = SageMakerStudioNotebookOperator(
        task_id="daily", notebook_path=write(lab, "print(1)"), studio_conn_id="my_studio", aws_conn_id=None
    )
    assert task.execute(context_with(TaskInstance()))["status"] == "success"


def test_output_lines_come_while_the_cell_runs(lab: LocalStudio, log: pytest.LogCaptureFixture) -> None:
    path = write(lab, "import time\nfor i in range(4):\n    print(f'step {i}')\n    time.sleep(0.4)")
    operator(lab, path).execute(context_with(TaskInstance()))
    times = {record.getMessage(): record.created for record in log.records}
    end = next(moment for line, moment in times.items() if line.startswith("cell 1/1 done"))
    assert end - times["step 0"] > 1.0
    assert times["step 3"] - times["step 0"] > 0.8


def test_output_may_be_left_out_of_the_log(lab: LocalStudio, log: pytest.LogCaptureFixture) -> None:
    path = write(lab, "print('a' * 3 + 'b')")
    operator(lab, path, log_output="False").execute(context_with(TaskInstance()))
    assert "aaab" not in lines(log)
    assert "cell 1/1: print('a' * 3 + 'b')" in lines(log)


def test_a_failing_cell_shows_source_and_traceback(lab: LocalStudio, log: pytest.LogCaptureFixture) -> None:
    path = write(lab, "x = 1", "def deep():\n    return {}['missing']\ndeep()")
    ti = TaskInstance()
    with pytest.raises(CellError) as caught:
        operator(lab, path).execute(context_with(ti))
    shown = lines(log)
    assert any(line.startswith("cell 2/2 raised KeyError after") for line in shown)
    source = shown.index("---- source of cell 2 ----")
    assert shown[source + 1 : source + 4] == ["def deep():", "    return {}['missing']", "deep()"]
    assert "KeyError: 'missing'" in shown[shown.index("---- traceback ----") :]
    assert SageMakerStudioNotebookLink.XCOM_KEY in ti.xcoms  # the link works for failed runs, too
    assert executed(lab, caught.value.output_path).cells[1].outputs[0]["ename"] == "KeyError"
    assert_clean(lab)


def test_retries_write_to_the_same_place_and_mapped_tasks_to_their_own(lab: LocalStudio) -> None:
    path = write(lab, "print(1)")
    first = operator(lab, path).execute(context_with(TaskInstance(run_id="r:1")))["output_path"]
    again = operator(lab, path).execute(context_with(TaskInstance(run_id="r:1")))["output_path"]
    names = {run_name(context_with(TaskInstance(run_id="r:1", map_index=index))) for index in (-1, 0, 1)}
    assert first == again
    assert len(names) == 3


def test_every_argument_is_templated() -> None:
    classes = (SageMakerStudioNotebookOperator, SageMakerStudioBaseOperator)
    own = {name for cls in classes for name in inspect.signature(cls.__init__).parameters} - {"self", "kwargs"}
    own -= {"deferrable"}  # a choice of the DAG's, as in the amazon provider
    assert own == set(SageMakerStudioNotebookOperator.template_fields)


def test_arguments_rendered_to_text_work(lab: LocalStudio) -> None:
    path = write(lab, "1/0", "print('on')")
    task = operator(
        lab,
        path,
        output_path=f"{path.removesuffix('.ipynb')}/new/out.ipynb",
        allow_errors="true",
        cell_timeout="30",
        kernel_start_timeout="60.5",
        create_output_folder="True",
        strict_parameters="no",
        kernel_name="",
        upload_from="",
        parameters="",
    )
    assert task.execute(context_with(TaskInstance()))["failed_cells"] == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"notebook_path": None}, "notebook_path must be a text"),
        ({"notebook_path": " "}, "notebook_path must be a text"),
        ({"cell_timeout": "soon"}, "cell_timeout must be a positive number of seconds, not 'soon'"),
        ({"cell_timeout": -1}, "cell_timeout must be a positive number"),
        ({"kernel_start_timeout": "inf"}, "kernel_start_timeout must be a positive number"),
        ({"allow_errors": "maybe"}, "allow_errors must be true or false, not 'maybe'"),
        ({"parameters": "{'a': 1}"}, "parameters must be a dict, not str.*render_template_as_native_obj"),
        ({"parameters": {"class": 1}}, "'class' cannot be a parameter's name"),
        ({"kernel_name": ["python3"]}, "kernel_name must be a text"),
        ({"domain_id": "nonsense"}, "domain_id 'nonsense' is not valid"),
        ({"space_name": None}, "space_name is missing"),
    ],
)
def test_bad_arguments(lab: LocalStudio, arguments: dict[str, Any], message: str) -> None:
    path = write(lab, "print(1)")
    task = operator(lab, path, **{key: value for key, value in arguments.items() if key != "notebook_path"})
    if "notebook_path" in arguments:
        task.notebook_path = arguments["notebook_path"]
    with pytest.raises(InvalidInputError, match=message):
        task.execute(context_with(TaskInstance()))
    assert_clean(lab)


def test_parameters_are_untrusted(lab: LocalStudio) -> None:
    path = write(lab, new_code_cell("who = ''", metadata={"tags": ["parameters"]}), "print(who)")
    evil = "'); open('owned', 'w').write('x'); ('\n\"\"\"\\"
    result = operator(lab, path, parameters={"who": evil}).execute(context_with(TaskInstance()))
    assert executed(lab, result["output_path"]).cells[2].outputs[0]["text"] == evil + "\n"
    assert not list(lab.home.rglob("owned"))
    with pytest.raises(ParameterError):
        operator(lab, path, parameters={"who=1;x": evil}).execute(context_with(TaskInstance()))


def test_an_app_that_is_not_ready_names_the_sensor(lab: LocalStudio) -> None:
    path = write(lab, "print(1)")
    lab.stop_app()
    try:
        with pytest.raises(AppNotReadyError, match="demo-space.*is stopped.*SageMakerStudioAppSensor"):
            operator(lab, path).execute(context_with(TaskInstance()))
    finally:
        lab.start_app()


def test_a_cell_that_takes_too_long(lab: LocalStudio, log: pytest.LogCaptureFixture) -> None:
    task = operator(lab, write(lab, "import time; time.sleep(60)"), cell_timeout=1)
    with pytest.raises(CellTimeoutError):
        task.execute(context_with(TaskInstance()))
    assert any("cell 1/1 ended after 1." in line and "took longer than 1 s" in line for line in lines(log))
    assert_clean(lab)


def test_on_kill_from_a_signal_handler_ends_the_run(lab: LocalStudio) -> None:
    """As Airflow 3's task runner: the handler calls on_kill and returns, and execute has to end by itself."""
    path = write(lab, RUNNING)
    task = operator(lab, path)
    killed: list[float] = []

    def handler(*_: object) -> None:
        killed.append(time.monotonic())
        task.on_kill()

    previous = signal.signal(signal.SIGTERM, handler)
    when_the_cell_runs(lab, path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(RunKilledError, match="the task was killed") as caught:
            task.execute(context_with(TaskInstance()))
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert time.monotonic() - killed[0] < 5  # what Airflow 3 leaves a task after SIGTERM
    notebook = executed(lab, caught.value.output_path)
    assert notebook.cells[0].outputs[0]["text"] == "on\n"
    assert notebook.cells[0].outputs[1]["ename"] == "KeyboardInterrupt"
    assert_clean(lab)


def test_an_exception_from_a_signal_handler_ends_the_run(lab: LocalStudio) -> None:
    """As Airflow 2's task runner, and as execution_timeout on both: an exception at any point of execute."""

    class TaskEnded(BaseException):
        pass

    killed: list[float] = []

    def handler(*_: object) -> None:
        killed.append(time.monotonic())
        task.on_kill()
        raise TaskEnded

    path = write(lab, RUNNING)
    task = operator(lab, path)
    previous = signal.signal(signal.SIGALRM, handler)
    when_the_cell_runs(lab, path, lambda: os.kill(os.getpid(), signal.SIGALRM))
    try:
        with pytest.raises(TaskEnded):
            task.execute(context_with(TaskInstance()))
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - killed[0] < 5
    (output,) = (lab.home / path).parent.glob("work-runs/*.ipynb")
    assert nbformat.read(output, as_version=4).cells[0].outputs[0]["text"] == "on\n"
    assert_clean(lab)


@pytest.mark.parametrize("state", [None, "queued", "running"])
def test_a_worker_that_ends_leaves_the_run_to_the_next_try(
    lab: LocalStudio, monkeypatch: pytest.MonkeyPatch, state: str | None
) -> None:
    """A rollout of workers, or a scheduler that came back and gave the task to another worker."""
    monkeypatch.setattr("airflow_provider_smstudio._task_process.state_of", lambda ti: state)
    path = write(lab, RUNNING.replace("sleep(60)", "sleep(3)") + "\nprint('off')", "print('end')")
    ti = TaskInstance()
    ti.try_number, ti.max_tries = 1, 1
    task = operator(lab, path)
    when_the_cell_runs(lab, path, task.on_kill)
    with pytest.raises(RunTakenOverError, match="the next try continues it"):
        task.execute(context_with(ti))
    (kernel,) = lab.kernels()

    ti.try_number = 2
    result = operator(lab, path).execute(context_with(ti))
    assert result["resumed"]
    notebook = executed(lab, result["output_path"])
    assert [cell.outputs[0]["text"] for cell in notebook.cells] == ["on\noff\n", "end\n"]
    assert notebook.metadata["smstudio"]["run"]["state"] == "completed"
    assert kernel["id"] not in [other["id"] for other in lab.kernels()]
    assert_clean(lab)


@pytest.mark.parametrize("end", ["failed", "killed", "renewed", "refused"])
def test_no_secret_in_what_airflow_keeps(
    lab: LocalStudio, log: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], end: str
) -> None:
    log.set_level(logging.DEBUG)
    sources = {"failed": "1/0", "killed": RUNNING, "renewed": "import time; time.sleep(2)", "refused": "1"}
    path = write(lab, sources[end])
    ti = TaskInstance()
    task = operator(lab, path)
    if end == "killed":
        when_the_cell_runs(lab, path, task.on_kill)
    if end == "renewed":
        threading.Timer(1.5, lab.expire_logins).start()
    if end == "refused":
        task.parameters = {"class": 1}
    shown = ""
    try:
        shown = repr(task.execute(context_with(ti)))
    except Exception as error:
        shown = "".join(traceback.format_exception(error)) + repr(vars(error))
    printed = capfd.readouterr()
    kept = "".join([shown, repr(ti.xcoms), log.text, printed.out, printed.err, repr(task), repr(task.make_hook())])
    assert [secret[:6] for secret in lab.secrets() if secret in kept] == []
    assert lab.secrets()


def test_on_kill_before_and_after_a_run_is_harmless(lab: LocalStudio) -> None:
    task = operator(lab, write(lab, "print(1)"))
    task.on_kill()
    with pytest.raises(RunKilledError):
        task.execute(context_with(TaskInstance()))
    task.on_kill()
    deadline = time.monotonic() + 10
    while lab.kernels() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert_clean(lab)


def test_it_copies_and_pickles_like_any_operator(lab: LocalStudio) -> None:
    task = operator(lab, "a.ipynb")
    assert copy.deepcopy(task).notebook_path == "a.ipynb"
    assert pickle.loads(pickle.dumps(task)).space_name == lab.space_name
    json.dumps({name: getattr(task, name) for name in task.template_fields})


def test_names_that_native_templates_turned_into_numbers() -> None:
    task = SageMakerStudioNotebookOperator(task_id="t", notebook_path="a.ipynb", user_profile_name=12345)
    hook = task.make_hook()
    assert isinstance(hook, SageMakerStudioHook)
    assert hook.user_profile_name == "12345"


class TestLaterTries:
    """What a later try of the same task does with what an earlier one has left."""

    def test_a_cells_error_starts_afresh(self, lab: LocalStudio) -> None:
        path = write(lab, "open('pids', 'a').write(f'{__import__(\"os\").getpid()} ')", "1 / 0")
        ti = TaskInstance(try_number=1, max_tries=1)
        for ti.try_number in (1, 2):
            with pytest.raises(CellError):
                operator(lab, path).execute(context_with(ti))
            assert lab.sessions() == []
        assert len(set((lab.home / path).with_name("pids").read_text().split())) == 2

    def test_failed_cell_keeps_the_kernel_until_the_last_try(self, lab: LocalStudio) -> None:
        path = write(lab, "open('pids', 'a').write(f'{__import__(\"os\").getpid()} ')", "1 / 0")
        ti = TaskInstance(try_number=1, max_tries=1)
        with pytest.raises(CellError):
            operator(lab, path, resume="failed_cell").execute(context_with(ti))
        assert len(lab.sessions()) == 1
        ti.try_number = 2
        with pytest.raises(CellError):
            operator(lab, path, resume="failed_cell").execute(context_with(ti))
        assert lab.sessions() == []
        assert len((lab.home / path).with_name("pids").read_text().split()) == 1

    def test_map_indexes_are_runs_of_their_own(self, lab: LocalStudio) -> None:
        path = write(lab, "open('pids', 'a').write(f'{__import__(\"os\").getpid()} ')", "1 / 0")
        for index in (0, 1):
            ti = TaskInstance(run_id="one", map_index=index, try_number=1, max_tries=1)
            with pytest.raises(CellError):
                operator(lab, path, resume="failed_cell").execute(context_with(ti))
        assert len(lab.sessions()) == 2
        for index in (0, 1):
            ti = TaskInstance(run_id="one", map_index=index, try_number=2, max_tries=1)
            with pytest.raises(CellError):
                operator(lab, path, resume="never").execute(context_with(ti))
        assert lab.sessions() == []

    def test_an_outcome_that_nobody_knows_is_not_tried_again(
        self, lab: LocalStudio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lost(runner: NotebookRunner) -> None:
            raise UnknownOutcomeError("the answer to cell 1/1 was lost")

        monkeypatch.setattr(NotebookRunner, "run", lost)
        with pytest.raises(AirflowFailException, match="the answer to cell 1/1 was lost"):
            operator(lab, write(lab, "1")).execute(context_with(TaskInstance()))

    @pytest.mark.parametrize(
        ("argument", "value", "words"),
        [
            ("resume", "sometimes", "resume must be one of 'auto', 'failed_cell', 'never'"),
            ("on_unknown_cell", "guess", "on_unknown_cell must be one of 'fail', 'rerun'"),
            ("reconnect_timeout", "-1", "reconnect_timeout must be a positive number of seconds"),
            ("record_mib", "-1", "record_mib must be a number of MiB, 0 or more"),
            ("record_mib", "much", "record_mib must be a number of MiB, 0 or more"),
        ],
    )
    def test_bad_choices_are_refused(self, lab: LocalStudio, argument: str, value: str, words: str) -> None:
        with pytest.raises(InvalidInputError, match=words):
            operator(lab, write(lab, "1"), **{argument: value}).execute(context_with(TaskInstance()))

    def test_templates_may_make_text_of_the_numbers(self, lab: LocalStudio) -> None:
        path = write(lab, "print('x' * 3_000_000)")
        texts = {"record_mib": "0", "reconnect_timeout": "60", "resume": "auto", "on_unknown_cell": "fail"}
        assert operator(lab, path, **texts).execute(context_with(TaskInstance()))["status"] == "success"
