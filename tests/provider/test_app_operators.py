"""The operators that start and stop an app, with both halves of their deferrals, and together as setup and teardown."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from airflow_provider_smstudio._compat import AirflowTaskTimeout, BaseOperator
from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.operators import app as operators
from airflow_provider_smstudio.operators.app import (
    SageMakerStudioStartAppOperator,
    SageMakerStudioStopAppOperator,
    sagemaker_studio_app,
)
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator
from airflow_provider_smstudio.studio.errors import (
    AppFailedError,
    AppNotReadyError,
    InvalidInputError,
    StudioError,
)
from airflow_provider_smstudio.studio.sagemaker import app_start, app_stop
from airflow_provider_smstudio.triggers import app_change
from airflow_provider_smstudio.triggers.app_change import SageMakerStudioAppChangeTrigger
from tests.provider.deferring import defer, fire, rebuilt
from tests.provider.running import TaskInstance, context_with

try:
    from airflow.sdk import DAG
except ImportError:
    from airflow import DAG


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_change, "EARLIEST_EVENT", 0.0)
    monkeypatch.setattr(app_start, "_POLL", 0.2)
    monkeypatch.setattr(app_stop, "_POLL", 0.2)
    for module in (operators, app_change):
        monkeypatch.setattr(module, "other_runs", lambda dag_id: (0, 0))


@pytest.fixture
def stopped_lab(lab: LocalStudio) -> Iterator[LocalStudio]:
    lab.stop_app()
    yield lab
    lab.switches.app_start_delay = lab.switches.app_stop_delay = 0.0
    lab.switches.app_start_failure = None
    lab.switches.no_capacity = lab.switches.denied = ()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    for cls in (
        SageMakerStudioStartAppOperator,
        SageMakerStudioStopAppOperator,
        SageMakerStudioAppChangeTrigger,
    ):
        monkeypatch.setattr(cls, "log", logging.getLogger("under-test"))
    caplog.set_level(logging.INFO)
    return caplog


def where(local: LocalStudio) -> dict[str, Any]:
    return {
        "domain_id": local.domain_id,
        "user_profile_name": local.user_profile_name,
        "space_name": local.space_name,
        "region_name": "us-east-1",
    }


def start(local: LocalStudio, **arguments: Any) -> SageMakerStudioStartAppOperator:
    return SageMakerStudioStartAppOperator(task_id="start", **{**where(local), **arguments})


def stop(local: LocalStudio, **arguments: Any) -> SageMakerStudioStopAppOperator:
    return SageMakerStudioStopAppOperator(task_id="stop", **{**where(local), "idle_minutes": 0, **arguments})


def test_start_and_stop(stopped_lab: LocalStudio, log: pytest.LogCaptureFixture) -> None:
    context = context_with(TaskInstance())
    assert start(stopped_lab).execute(context) == {
        "text": "the JupyterLab app of space 'demo-space' runs",
        "started": True,
        "instance_type": "ml.t3.medium",
    }
    assert stopped_lab.app_status == "InService"
    found = stop(stopped_lab).execute(context)
    assert found == {"text": "the JupyterLab app of space 'demo-space' is stopped", "stopped": True}
    assert stopped_lab.app_status == "Deleted"
    told = [record.getMessage() for record in log.records if record.name == "under-test"]
    assert "the JupyterLab app of space 'demo-space' is starting on ml.t3.medium" in told


def test_the_hold_is_the_dag_runs(stopped_lab: LocalStudio) -> None:
    one = context_with(TaskInstance(run_id="one"))
    two = context_with(TaskInstance(run_id="two", dag_id="another"))
    start(stopped_lab).execute(one)
    assert start(stopped_lab).execute(two)["started"] is False
    assert stop(stopped_lab).execute(one) == {
        "text": "the JupyterLab app of space 'demo-space' is left running: it is used by another.two",
        "stopped": False,
    }
    assert stop(stopped_lab).execute(two)["stopped"] is True


def test_or_whose_it_is_said_to_be(stopped_lab: LocalStudio) -> None:
    start(stopped_lab, holder="all of us").execute(context_with(TaskInstance(run_id="one")))
    found = stop(stopped_lab, holder="all of us").execute(context_with(TaskInstance(run_id="two")))
    assert found["stopped"] is True


def test_both_halves(stopped_lab: LocalStudio, log: pytest.LogCaptureFixture) -> None:
    stopped_lab.switches.app_start_delay = 1.0
    stopped_lab.switches.app_stop_delay = 1.0
    ti = TaskInstance()
    begin = start(stopped_lab, deferrable=True, fallback_instance_types=["ml.m5.large"])
    deferred = defer(begin, ti)
    assert deferred.timeout is not None
    trigger = rebuilt(deferred)
    event = fire(trigger)
    assert begin.execute_complete(context_with(ti), event) == {
        "text": "the JupyterLab app of space 'demo-space' runs",
        "started": True,
        "instance_type": "ml.t3.medium",
    }
    end = stop(stopped_lab, deferrable=True)
    event = fire(rebuilt(defer(end, ti)))
    assert end.execute_complete(context_with(ti), event)["stopped"] is True
    assert stopped_lab.app_status == "Deleted"
    assert [secret for secret in stopped_lab.secrets() if secret in json.dumps(event)] == []


def test_what_is_ready_is_not_deferred(lab: LocalStudio) -> None:
    context = context_with(TaskInstance())
    assert start(lab, deferrable=True).execute(context)["started"] is False
    assert "was not started by this provider" in stop(lab, deferrable=True).execute(context)["text"]


def test_a_triggerer_that_is_replaced_goes_on(stopped_lab: LocalStudio) -> None:
    stopped_lab.switches.app_start_delay = 1.5
    ti = TaskInstance()
    begin = start(stopped_lab, deferrable=True)
    deferred = defer(begin, ti)

    async def killed() -> None:
        async def run() -> None:
            async for _ in rebuilt(deferred).run():
                raise AssertionError("too early")

        task = asyncio.create_task(run())
        await asyncio.sleep(0.5)
        task.cancel()

    asyncio.run(killed())
    assert begin.execute_complete(context_with(ti), fire(rebuilt(deferred)))["started"] is True


def test_a_failed_start_tells_its_reason(stopped_lab: LocalStudio) -> None:
    stopped_lab.switches.app_start_failure = "ConfigurationError: LifecycleConfig"
    with pytest.raises(AppFailedError, match="has failed to start: ConfigurationError"):
        start(stopped_lab).execute(context_with(TaskInstance()))
    stopped_lab.switches.app_start_delay = 1.0
    stopped_lab.stop_app()
    ti, begin = TaskInstance(), start(stopped_lab, deferrable=True)
    event = fire(rebuilt(defer(begin, ti)))
    assert event["status"] == "error"
    with pytest.raises(AppFailedError, match="has failed to start: ConfigurationError"):
        begin.execute_complete(context_with(ti), event)


def test_no_capacity_in_the_trigger(stopped_lab: LocalStudio) -> None:
    stopped_lab.switches.no_capacity = ("ml.g5.48xlarge",)
    stopped_lab.switches.app_start_delay = 0.5
    ti = TaskInstance()
    begin = start(
        stopped_lab, deferrable=True, instance_type="ml.g5.48xlarge", fallback_instance_types=["ml.g5.2xlarge"]
    )
    found = begin.execute_complete(context_with(ti), fire(rebuilt(defer(begin, ti))))
    assert found["instance_type"] == "ml.g5.2xlarge"


def test_timeout(stopped_lab: LocalStudio) -> None:
    stopped_lab.switches.app_start_delay = 20.0
    with pytest.raises(AirflowTaskTimeout, match="is starting, after 1 s"):
        start(stopped_lab, timeout=1).execute(context_with(TaskInstance()))
    ti, begin = TaskInstance(), start(stopped_lab, timeout=1, deferrable=True)
    event = fire(rebuilt(defer(begin, ti)))
    assert event["status"] == "timeout"
    with pytest.raises(AirflowTaskTimeout, match="is starting, and the timeout has passed"):
        begin.execute_complete(context_with(ti), event)


def test_throttling_is_waited_out(stopped_lab: LocalStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_lab.switches.app_start_delay = 1.0
    ti, begin = TaskInstance(), start(stopped_lab, deferrable=True)
    trigger: Any = rebuilt(defer(begin, ti))
    made, calls = trigger._make_studio, []

    async def make() -> Any:
        from airflow_provider_smstudio.studio.errors import ControlPlaneError

        studio = await made()
        describe = studio.control_plane.describe_app

        def throttled() -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise ControlPlaneError("SageMaker refused DescribeApp: Throttling", code="ThrottlingException")
            return describe()

        studio.control_plane.describe_app = throttled
        return studio

    trigger._make_studio = make
    monkeypatch.setattr(app_change, "_LONGEST_PAUSE", 0.1)
    assert begin.execute_complete(context_with(ti), fire(trigger))["started"] is True


def test_an_event_that_means_nothing(lab: LocalStudio) -> None:
    for event in (None, {"status": "?"}):
        with pytest.raises(StudioError, match="unknown status"):
            start(lab).execute_complete(context_with(TaskInstance()), event)


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (start, {"fallback_instance_types": "ml.m5.large"}, "must be a list of instance types"),
        (start, {"fallback_instance_types": [1]}, "must be a list of instance types"),
        (start, {"resource_spec": "x"}, "resource_spec must be a dict"),
        (start, {"resource_spec": {"Image": "x"}}, "no field 'Image'"),
        (start, {"hold_hours": 0}, "hold_hours must be a positive number of hours"),
        (start, {"timeout": -1}, "timeout must be a positive number of seconds"),
        (stop, {"if_busy": "ignore"}, "if_busy must be one of 'leave', 'wait', 'fail', 'stop', not 'ignore'"),
        (stop, {"started_by": "me"}, "started_by must be one of 'airflow', 'anyone'"),
        (stop, {"linger": "soon"}, "linger must be a number of seconds"),
        (stop, {"idle_minutes": -1}, "idle_minutes must be a number of seconds"),
    ],
)
def test_bad_input(lab: LocalStudio, make: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make(lab, **wrong).execute(context_with(TaskInstance()))


def test_every_documented_parameter_is_templated_or_plain() -> None:
    for cls in (SageMakerStudioStartAppOperator, SageMakerStudioStopAppOperator):
        task = cls(task_id="x")
        assert all(hasattr(task, name) for name in cls.template_fields)


def test_the_group_puts_tasks_between() -> None:
    with DAG("group", start_date=datetime(2026, 11, 1, tzinfo=timezone.utc), schedule=None) as dag:
        before, after = BaseOperator(task_id="before"), BaseOperator(task_id="after")
        with sagemaker_studio_app(studio_conn_id="mine", stop={"linger": 5}, start={"hold_hours": 2}):
            one, two = BaseOperator(task_id="one"), BaseOperator(task_id="two")
            one >> two
        before >> one
        two >> after
    begin, end = dag.get_task("start_studio_app"), dag.get_task("stop_studio_app")
    assert isinstance(begin, SageMakerStudioStartAppOperator)
    assert isinstance(end, SageMakerStudioStopAppOperator)
    assert begin.is_setup
    assert end.is_teardown
    assert (begin.hold_hours, end.linger, begin.studio_conn_id, end.studio_conn_id) == (2, 5, "mine", "mine")
    assert begin.downstream_task_ids >= {"one", "stop_studio_app"}
    assert two.downstream_task_ids == {"stop_studio_app", "after"}
    assert end.upstream_task_ids == {"two", "start_studio_app"}


def test_a_notebook_without_its_app_names_the_task_that_starts_it(
    stopped_lab: LocalStudio, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where only the failed tasks of a DAG run are cleared."""
    monkeypatch.setattr(SageMakerStudioNotebookOperator, "log", logging.getLogger("under-test"))
    with DAG("cleared", start_date=datetime(2026, 11, 1, tzinfo=timezone.utc), schedule=None):
        with sagemaker_studio_app(**where(stopped_lab)):
            one = BaseOperator(task_id="one")
            two = SageMakerStudioNotebookOperator(task_id="two", notebook_path="a.ipynb", **where(stopped_lab))
            one >> two
        alone = SageMakerStudioNotebookOperator(task_id="alone", notebook_path="a.ipynb", **where(stopped_lab))
    for task in (two, alone):
        with pytest.raises(AppNotReadyError, match="is stopped"):
            task.execute(context_with(TaskInstance()))
    told = [record.getMessage() for record in caplog.records if "clear that task" in record.getMessage()]
    assert told == ["if start_studio_app started the app, clear that task as well, or clear the whole DAG run"]
