"""The deferrable operator and sensor against a local Studio, with the second half of every deferral."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import nbformat
import pytest

from airflow_provider_smstudio import _compat
from airflow_provider_smstudio._compat import AirflowFailException, AirflowTaskTimeout
from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator
from airflow_provider_smstudio.sensors.app import SageMakerStudioAppSensor
from airflow_provider_smstudio.studio.errors import (
    AppFailedError,
    AppNotReadyError,
    CellError,
    ControlPlaneError,
    KernelDiedError,
    ResourceNotFoundError,
    StudioError,
)
from airflow_provider_smstudio.triggers import notebook as triggers
from airflow_provider_smstudio.triggers.app import SageMakerStudioAppTrigger
from airflow_provider_smstudio.triggers.notebook import SageMakerStudioNotebookTrigger
from tests.provider.deferring import SLOW, TaskDeferred, defer, deferrable, fire, rebuilt
from tests.provider.running import RUNNING, TaskInstance, assert_clean, context_with, executed, operator, write

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture(params=["lab", "classic"])
def studio(request: pytest.FixtureRequest) -> LocalStudio:
    local: LocalStudio = request.getfixturevalue(request.param)
    return local


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    for cls in (SageMakerStudioNotebookOperator, SageMakerStudioNotebookTrigger, SageMakerStudioAppTrigger):
        monkeypatch.setattr(cls, "log", logging.getLogger("under-test"))
    caplog.set_level(logging.INFO)
    return caplog


def test_both_halves(studio: LocalStudio, log: pytest.LogCaptureFixture) -> None:
    path, ti = write(studio, "x = 1", f"{SLOW}\nprint('live')", "print('done', x)"), TaskInstance()
    task = deferrable(studio, path)
    deferred = defer(task, ti)
    assert deferred.timeout is None
    assert len(json.dumps(deferred.trigger.serialize())) < 3000
    assert "_link_SageMakerStudioNotebookLink" in ti.xcoms
    event = fire(rebuilt(deferred))
    assert "live" not in json.dumps(event)
    assert any(record.getMessage() == "live" for record in log.records)
    result = task.execute_complete(context_with(ti), event)
    assert result["status"] == "success"
    assert (result["cells"], result["cells_executed"]) == (3, 3)
    assert executed(studio, result["output_path"]).cells[2].outputs[0]["text"] == "done 1\n"
    assert_clean(studio)


def test_values_become_xcoms(lab: LocalStudio) -> None:
    show = "display({'application/json': [1, 2]}, metadata={'smstudio': {'name': 'customers'}}, raw=True)"
    path, ti = write(lab, show, SLOW), TaskInstance()
    task = deferrable(lab, path)
    result = task.execute_complete(context_with(ti), fire(rebuilt(defer(task, ti))))
    assert result["values"] == {"customers": [1, 2]}
    assert ti.xcoms["customers"] == [1, 2]


def test_short_work_is_never_deferred(lab: LocalStudio) -> None:
    task = deferrable(lab, write(lab, "print('short')"), defer_after="60")
    assert task.execute(context_with(TaskInstance()))["status"] == "success"
    assert_clean(lab)


def test_default_of_airflow(lab: LocalStudio) -> None:
    assert operator(lab, "x.ipynb").deferrable is False


@pytest.mark.parametrize("wrong", [-1, "soon", None])
def test_bad_defer_after(lab: LocalStudio, wrong: object) -> None:
    with pytest.raises(ValueError, match="defer_after must be a number of seconds"):
        deferrable(lab, write(lab, "1"), defer_after=wrong).execute(context_with(TaskInstance()))


@pytest.mark.parametrize("wrong", ["perhaps", 3])
def test_bad_cancel_on_kill(lab: LocalStudio, wrong: object) -> None:
    """It is read before the login: when it was read in the hand-over, the kernel stayed."""
    task = deferrable(lab, write(lab, "1"), cancel_on_kill=wrong, domain_id="d-unknown")
    with pytest.raises(ValueError, match="cancel_on_kill must be"):
        task.execute(context_with(TaskInstance()))
    assert lab.sessions() == []


def test_a_failing_notebook(studio: LocalStudio, log: pytest.LogCaptureFixture) -> None:
    path, ti = write(studio, SLOW, "raise KeyError('nope')"), TaskInstance()
    task = deferrable(studio, path)
    event = fire(rebuilt(defer(task, ti)))
    assert event["status"] == "error"
    assert "Traceback" not in json.dumps(event)
    assert any("KeyError" in record.getMessage() and "Traceback" in record.getMessage() for record in log.records)
    with pytest.raises(CellError, match=r"cell 2/2 raised KeyError: 'nope'") as caught:
        task.execute_complete(context_with(ti), event)
    assert caught.value.source == "raise KeyError('nope')"
    assert "Traceback" in caught.value.traceback
    assert caught.value.cell_number == 2
    assert_clean(studio)


def test_a_failing_notebook_that_cannot_be_read_again(lab: LocalStudio) -> None:
    task = deferrable(lab, write(lab, SLOW, "1/0"))
    event = fire(rebuilt(defer(task, TaskInstance())))
    lab.stop_app()
    with pytest.raises(CellError, match="cell 2/2 raised ZeroDivisionError"):
        task.execute_complete(context_with(TaskInstance()), event)


def test_a_lost_kernel(lab: LocalStudio) -> None:
    task = deferrable(lab, write(lab, f"{SLOW}\nimport os; os._exit(1)"))
    event = fire(rebuilt(defer(task, TaskInstance())))
    with pytest.raises(KernelDiedError, match="memory"):
        task.execute_complete(context_with(TaskInstance()), event)
    assert_clean(lab)


def test_execution_timeout(studio: LocalStudio) -> None:
    ti = TaskInstance(start_date=datetime.now(timezone.utc) - timedelta(seconds=5))
    task = deferrable(studio, write(studio, RUNNING), execution_timeout=timedelta(seconds=12))
    deferred = defer(task, ti)
    assert timedelta(seconds=50) < deferred.timeout < timedelta(seconds=70)
    began = time.monotonic()
    event = fire(rebuilt(deferred))
    assert time.monotonic() - began < 15
    with pytest.raises(AirflowTaskTimeout, match="execution_timeout"):
        task.execute_complete(context_with(ti), event)
    assert_clean(studio)


@pytest.mark.parametrize("event", [None, {}, {"status": "running"}])
def test_an_event_that_means_nothing(lab: LocalStudio, event: dict[str, Any] | None) -> None:
    with pytest.raises(StudioError, match="unknown status"):
        deferrable(lab, "x.ipynb").execute_complete(context_with(TaskInstance()), event)


def test_an_unknown_outcome_is_not_tried_again(lab: LocalStudio) -> None:
    event = {"status": "error", "error": {"type": "UnknownOutcomeError", "message": "who knows", "fields": {}}}
    with pytest.raises(AirflowFailException, match="who knows"):
        deferrable(lab, "x.ipynb").execute_complete(context_with(TaskInstance()), event)


def test_no_secret_is_kept(
    lab: LocalStudio, log: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    log.set_level(logging.DEBUG)
    task = deferrable(lab, write(lab, SLOW, "1/0"))
    deferred = defer(task, TaskInstance())
    trigger = rebuilt(deferred)
    event = fire(trigger)
    printed = capfd.readouterr()
    kept = "".join([log.text, repr(trigger), repr(trigger.serialize()), repr(event), printed.out, printed.err])
    assert [secret[:6] for secret in lab.secrets() if secret in kept] == []


def test_settings_are_those_of_the_operator(lab: LocalStudio) -> None:
    """Connection, region, endpoint and botocore's settings reach the trigger; a peer loses them."""
    config = {"retries": {"max_attempts": 7}, "user_agent_extra": "mine"}
    task = deferrable(lab, write(lab, SLOW), botocore_config=config, verify="/etc/ssl/certs/ca-certificates.crt")
    trigger = rebuilt(defer(task, TaskInstance()))
    assert isinstance(trigger, SageMakerStudioNotebookTrigger)
    assert trigger.studio == task.hook_arguments()
    studio = asyncio.run(trigger._make_studio())
    client = studio.control_plane._client
    assert client.meta.config.user_agent_extra.endswith("mine")
    assert client.meta.config.retries["total_max_attempts"] == 8
    assert client.meta.endpoint_url == lab.environment["AWS_ENDPOINT_URL_SAGEMAKER"]
    assert client.meta.region_name == "us-east-1"
    assert studio.session.verify == "/etc/ssl/certs/ca-certificates.crt"
    assert fire(trigger)["status"] == "success"


class TestKill:
    """Cancelled triggers: by somebody who acts on the task, and by a triggerer that ends."""

    @staticmethod
    def cancelled(trigger: Any, local: LocalStudio, path: str, *message: str) -> None:
        flag = (local.home / path).with_name("running")

        async def scenario() -> None:
            async def run() -> list[Any]:
                return [event async for event in trigger.run()]

            task = asyncio.ensure_future(run())
            while not flag.exists() or trigger._watcher is None or not trigger._watcher._loop.is_connected:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            task.cancel(*message)
            while not message and not task.done():  # as Airflow before 3.3 does
                await asyncio.sleep(0.2)
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if message:
                await trigger.on_kill()
            await trigger.cleanup()

        asyncio.run(scenario())

    def test_on_kill(self, studio: LocalStudio) -> None:
        path = write(studio, RUNNING)
        trigger = rebuilt(defer(deferrable(studio, path), TaskInstance()))
        self.cancelled(trigger, studio, path, "__airflow_user_action__")
        assert_clean(studio)

    def test_on_kill_may_be_switched_off(self, lab: LocalStudio) -> None:
        path = write(lab, RUNNING)
        trigger = rebuilt(defer(deferrable(lab, path, cancel_on_kill="false"), TaskInstance()))
        self.cancelled(trigger, lab, path, "__airflow_user_action__")
        assert len(lab.kernels()) == 1
        for session in lab.sessions():
            _delete(lab, session["id"])

    @pytest.mark.parametrize("waits", [True, False])
    def test_the_tasks_state_tells_a_kill_from_a_restart(
        self, lab: LocalStudio, waits: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def is_deferred(trigger: object) -> bool:
            return waits

        monkeypatch.setattr(triggers, "is_deferred", is_deferred)
        path = write(lab, RUNNING)
        deferred = defer(deferrable(lab, path), TaskInstance())
        self.cancelled(rebuilt(deferred), lab, path)
        assert len(lab.kernels()) == (1 if waits else 0)
        (output,) = (lab.home / path).parent.glob("work-runs/*.ipynb")
        state = nbformat.read(output, 4).metadata.smstudio.run.state
        assert state == ("running" if waits else "killed")
        for session in lab.sessions():
            _delete(lab, session["id"])

    def test_a_stale_trigger_kills_nothing(self, lab: LocalStudio) -> None:
        path, ti = write(lab, RUNNING), TaskInstance()
        earlier = rebuilt(defer(deferrable(lab, path), ti))
        later = rebuilt(defer(deferrable(lab, path), ti))
        asyncio.run(_kill(earlier))
        assert len(lab.kernels()) == 1
        asyncio.run(_kill(later))
        assert_clean(lab)

    def test_a_kill_after_the_end_is_harmless(self, lab: LocalStudio) -> None:
        path = write(lab, SLOW)
        deferred = defer(deferrable(lab, path), TaskInstance())
        assert fire(rebuilt(deferred))["status"] == "success"
        asyncio.run(_kill(rebuilt(deferred)))
        assert_clean(lab)

    def test_without_a_task_instance_nothing_is_killed(self) -> None:
        trigger = SageMakerStudioNotebookTrigger(studio={}, handover={"spec": {}})
        trigger.trigger_id = 1
        assert asyncio.run(_compat.is_deferred(trigger))

    def test_a_trigger_that_no_triggerer_has_is_not_moved(self, lab: LocalStudio) -> None:
        """``airflow dags test`` runs it in its own process, and Ctrl-C cancels it."""
        path = write(lab, RUNNING)
        trigger = rebuilt(defer(deferrable(lab, path), TaskInstance()))
        assert trigger.trigger_id is None
        self.cancelled(trigger, lab, path)
        assert_clean(lab)


async def _kill(trigger: Any) -> None:
    await trigger.on_kill()
    await trigger.cleanup()


def _delete(local: LocalStudio, session_id: str) -> None:
    hook = operator(local, "x.ipynb").make_hook()
    studio = hook.get_studio()
    studio.server.delete_session(session_id)
    studio.close()


class TestSensor:
    @staticmethod
    def sensor(local: LocalStudio, **arguments: Any) -> SageMakerStudioAppSensor:
        where = {
            "domain_id": local.domain_id,
            "user_profile_name": local.user_profile_name,
            "space_name": local.space_name,
            "region_name": "us-east-1",
        }
        return SageMakerStudioAppSensor(task_id="wait", deferrable=True, **{**where, **arguments})

    def test_a_ready_app_needs_no_trigger(self, lab: LocalStudio) -> None:
        assert self.sensor(lab).execute({}) is None

    def test_an_app_that_starts_is_waited_for(self, lab: LocalStudio, log: pytest.LogCaptureFixture) -> None:
        lab.stop_app()
        sensor = self.sensor(lab, wait_for_start=True, poke_interval=0.5, timeout=60)
        with pytest.raises(TaskDeferred) as deferred:
            sensor.execute({})
        assert deferred.value.timeout == timedelta(seconds=60)
        trigger = rebuilt(deferred.value)

        async def start_once_it_waits() -> None:
            while not any("is Deleted" in record.getMessage() for record in log.records):
                await asyncio.sleep(0.05)
            await asyncio.to_thread(lab.start_app)

        async def scenario() -> dict[str, Any]:
            starts = asyncio.create_task(start_once_it_waits())
            (event,) = [event.payload async for event in trigger.run()]
            await starts
            return dict(event)

        event = asyncio.run(scenario())
        assert event == {"status": "success"}
        assert sensor.execute_complete({}, event) is None  # type: ignore[func-returns-value]  # is tested

    def test_a_stopped_app_fails_at_once(self, lab: LocalStudio) -> None:
        lab.stop_app()
        with pytest.raises(AppNotReadyError, match="the sensor starts no app"):
            self.sensor(lab).execute({})

    def test_an_app_that_is_stopped_meanwhile(self, lab: LocalStudio) -> None:
        lab.stop_app()
        sensor = self.sensor(lab)
        event = fire(SageMakerStudioAppTrigger(studio=sensor.hook_arguments()))
        with pytest.raises(AppNotReadyError, match="the sensor starts no app"):
            sensor.execute_complete({}, event)
        with pytest.raises(AirflowFailException):
            self.sensor(lab, soft_fail=True).execute_complete({}, event)

    def test_wrong_settings_in_the_trigger(self, lab: LocalStudio) -> None:
        sensor = self.sensor(lab, space_name="nowhere")
        event = fire(SageMakerStudioAppTrigger(studio=sensor.hook_arguments()))
        with pytest.raises(ResourceNotFoundError, match="nowhere"):
            sensor.execute_complete({}, event)

    def test_a_failure_keeps_its_reason(self, lab: LocalStudio) -> None:
        event = {
            "status": "error",
            "error": {"type": "AppFailedError", "message": "has failed: EC2", "fields": {}},
        }
        with pytest.raises(AppFailedError, match="EC2"):
            self.sensor(lab).execute_complete({}, event)
        with pytest.raises(StudioError, match="unknown status"):
            self.sensor(lab).execute_complete({}, {"status": "?"})

    def test_throttling_is_waited_out(self, lab: LocalStudio, log: pytest.LogCaptureFixture) -> None:
        sensor = self.sensor(lab)
        trigger = SageMakerStudioAppTrigger(studio=sensor.hook_arguments(), poke_interval=0.05)
        calls: list[int] = []
        made = trigger._make_studio

        async def make() -> Any:
            studio = await made()
            check = studio.check_ready

            def throttled() -> Any:
                calls.append(1)
                if len(calls) < 4:
                    raise ControlPlaneError("slow down", operation="DescribeApp", code="ThrottlingException")
                return check()

            studio.check_ready = throttled  # type: ignore[method-assign]  # patched
            return studio

        trigger._make_studio = make  # type: ignore[method-assign]
        assert fire(trigger) == {"status": "success"}
        assert len(calls) == 4
