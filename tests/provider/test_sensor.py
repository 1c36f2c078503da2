from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import sys
import threading
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest

from airflow_provider_smstudio._compat import AirflowException, AirflowFailException, BaseSensorOperator
from airflow_provider_smstudio.hooks.studio import SageMakerStudioHook
from airflow_provider_smstudio.sensors.app import SageMakerStudioAppSensor
from airflow_provider_smstudio.studio import client as studio_client
from airflow_provider_smstudio.studio.errors import (
    AppFailedError,
    AppNotReadyError,
    InvalidInputError,
    LoginLinkExpiredError,
    ResourceNotFoundError,
    ServerError,
    StudioError,
)
from tests.provider.running import context_with

GIVEN: dict[str, Any] = {"domain_id": "d-abc123", "user_profile_name": "jane", "space_name": "lab"}


def not_ready(status):
    return AppNotReadyError(f"the app is {status}", app_type="JupyterLab", status=status)


FAILED = AppFailedError("Failed: EC2InsufficientCapacityError", status="Failed", failure_reason="EC2...")
MISSING = ResourceNotFoundError("no such space", code="ResourceNotFound")


@pytest.fixture
def studio(monkeypatch):
    """Replace the Studio client, which would call AWS, by one of the same shape."""
    replacement = create_autospec(studio_client.Studio)
    monkeypatch.setattr(studio_client, "Studio", replacement)
    return replacement.return_value


def sensor(**kwargs):
    return SageMakerStudioAppSensor(task_id="wait", **{**GIVEN, "poke_interval": 0, **kwargs})


def ends_with(**kwargs):
    """Return the class of what ends the sensor as Airflow runs it, by name, and the message."""
    with pytest.raises((AirflowException, StudioError)) as raised:
        sensor(**kwargs).execute({})
    return type(raised.value).__name__, str(raised.value)


def test_ready_at_once(studio):
    assert sensor().poke({}) is True
    studio.check_ready.assert_called_once_with()
    studio.close.assert_called_once_with()


@pytest.mark.parametrize(
    "error",
    [not_ready("Pending"), not_ready("Deleting"), not_ready(None), LoginLinkExpiredError("not accepted")],
)
def test_an_app_that_may_become_ready_is_waited_for(studio, error):
    studio.check_ready.side_effect = [error, error, None]
    sensor().execute({})
    assert studio.check_ready.call_count == 3
    assert studio.close.call_count == 3


@pytest.mark.parametrize("status", ["Deleted", "NotFound"])
def test_a_stopped_app_fails_at_once(studio, status):
    studio.check_ready.side_effect = not_ready(status)
    kind, text = ends_with()
    assert kind == "AppNotReadyError"
    assert text.startswith(f"the JupyterLab app of space 'lab' is {status}, and the sensor starts no app")
    assert "wait_for_start=True" in text
    assert studio.check_ready.call_count == 1
    assert studio.close.call_count == 1


@pytest.mark.parametrize("status", ["Deleted", "NotFound"])
def test_a_stopped_app_is_waited_for_when_asked_to(studio, status):
    studio.check_ready.side_effect = [not_ready(status), not_ready("Pending"), None]
    sensor(wait_for_start=True).execute({})
    assert studio.check_ready.call_count == 3


@pytest.mark.parametrize("wait_for_start", [False, True])
def test_a_failed_app_fails_at_once_with_the_services_reason(studio, wait_for_start):
    studio.check_ready.side_effect = FAILED
    kind, text = ends_with(wait_for_start=wait_for_start)
    assert (kind, text) == ("AppFailedError", "Failed: EC2InsufficientCapacityError")
    assert studio.check_ready.call_count == 1


def test_wrong_settings_fail_at_once(studio):
    kind, text = ends_with(domain_id="oops")
    assert kind == "InvalidInputError"
    assert "domain_id 'oops' is not valid" in text
    studio.check_ready.assert_not_called()


def test_an_error_that_may_pass_fails_the_try(studio):
    studio.check_ready.side_effect = ServerError("502", status=502)
    assert ends_with()[0] == "ServerError"


@pytest.mark.parametrize("error", [not_ready("Deleted"), FAILED])
def test_soft_fail_skips_when_the_app_will_not_become_ready(studio, error):
    studio.check_ready.side_effect = error
    assert ends_with(soft_fail=True)[0] == "AirflowSkipException"
    assert studio.check_ready.call_count == 1


@pytest.mark.parametrize("error", [MISSING, InvalidInputError("no")])
def test_soft_fail_does_not_hide_wrong_settings(studio, error):
    studio.check_ready.side_effect = error
    assert ends_with(soft_fail=True)[0] == type(error).__name__


def test_soft_fail_skips_at_the_timeout(studio):
    studio.check_ready.side_effect = not_ready("Pending")
    assert ends_with(soft_fail=True, timeout=0)[0] == "AirflowSkipException"


def test_timeout_fails(studio):
    studio.check_ready.side_effect = not_ready("Pending")
    assert ends_with(timeout=0)[0] == "AirflowSensorTimeout"


def test_silent_fail_goes_on_after_an_error_that_may_pass(studio):
    studio.check_ready.side_effect = [ServerError("502", status=502), None]
    sensor(silent_fail=True).execute({})
    assert studio.check_ready.call_count == 2


@pytest.mark.parametrize("error", [not_ready("Deleted"), FAILED, MISSING, InvalidInputError("no")])
def test_silent_fail_does_not_poke_on_when_that_is_no_use(studio, error):
    studio.check_ready.side_effect = error
    with pytest.raises(AirflowFailException) as raised:
        sensor(silent_fail=True).execute({})
    assert type(raised.value.__cause__) is type(error)
    assert str(raised.value) == str(raised.value.__cause__)
    assert studio.check_ready.call_count == 1


def test_never_fail_skips(studio):
    studio.check_ready.side_effect = FAILED
    assert ends_with(never_fail=True)[0] == "AirflowSkipException"


def test_log_tells_what_is_awaited_and_for_how_long(studio, monkeypatch, caplog):
    # Airflow 3's own logger does not pass through the standard library, where pytest listens.
    monkeypatch.setattr(SageMakerStudioAppSensor, "log", logging.getLogger("sensor-under-test"))
    studio.check_ready.side_effect = [not_ready("Pending"), None]
    started = datetime.now(timezone.utc) - timedelta(minutes=2)
    with caplog.at_level(logging.INFO, logger="sensor-under-test"):
        sensor().execute(context_with(SimpleNamespace(start_date=started)))
    waiting, ready = [text for text in caplog.messages if text.startswith(("Waiting", "Studio"))]
    assert re.fullmatch(r"Waiting for 0:02:0\d so far: the JupyterLab app of space 'lab' is Pending", waiting)
    assert re.fullmatch(r"Studio is ready after 0:02:0\d", ready)


def test_arguments_reach_the_hook():
    arguments: dict[str, Any] = {
        "studio_conn_id": "c",
        "domain_id": "d",
        "user_profile_name": "u",
        "space_name": "s",
        "app_type": "a",
        "aws_conn_id": "w",
        "region_name": "r",
        "verify": "v",
        "botocore_config": {"read_timeout": 1},
    }
    hook = SageMakerStudioAppSensor(task_id="wait", **arguments).make_hook()
    assert {name: getattr(hook, name) for name in arguments} == arguments


def test_aws_connection_defaults_as_the_hook_does(monkeypatch):
    monkeypatch.setenv(
        "AIRFLOW_CONN_STUDIO", json.dumps({"conn_type": "sagemaker_studio", "extra": {"aws_conn_id": "other"}})
    )
    assert sensor().make_hook().settings.aws_conn_id == "aws_default"
    assert sensor(studio_conn_id="studio").make_hook().settings.aws_conn_id == "other"
    assert sensor(studio_conn_id="studio", aws_conn_id=None).make_hook().settings.aws_conn_id is None


def test_defaults():
    task = SageMakerStudioAppSensor(task_id="wait", **GIVEN)
    assert (task.poke_interval, task.timeout, task.mode) == (30, 1800, "poke")


def test_template_fields_are_rendered_and_not_validated_before():
    task = sensor(**dict.fromkeys(SageMakerStudioAppSensor.template_fields, "{{ value }}"))
    task.render_template_fields({"value": "rendered"})
    assert {getattr(task, name) for name in SageMakerStudioAppSensor.template_fields} == {"rendered"}


def test_template_fields_are_plain_values_at_parse_time():
    # Anything else is serialized by its repr, memory address and all: a new DAG version at each parse.
    task = SageMakerStudioAppSensor(task_id="wait")
    json.dumps({name: getattr(task, name) for name in task.template_fields})


def test_every_argument_of_the_hook_is_templated():
    hook = vars(SageMakerStudioHook())
    own = {name for name in vars(sensor()) if name in hook and not name.startswith("_")}
    assert own == set(SageMakerStudioAppSensor.template_fields)


def test_the_sensor_copies_and_pickles(studio):
    task = sensor()
    task.poke({})
    assert pickle.loads(pickle.dumps(copy.deepcopy(task))).domain_id == "d-abc123"


def test_reschedule_mode_frees_the_worker(studio, monkeypatch):
    # Airflow 2.11 asks its database for the first try; Airflow 3 asks the task instance.
    module = sys.modules[BaseSensorOperator.__module__]
    monkeypatch.setattr(module, "_orig_start_date", lambda **ids: None, raising=False)
    studio.check_ready.side_effect = not_ready("Pending")
    now = datetime.now(timezone.utc)
    ti = SimpleNamespace(
        dag_id="d",
        task_id="wait",
        run_id="r",
        map_index=-1,
        max_tries=0,
        start_date=now,
        get_first_reschedule_date=lambda context: now,
    )
    with pytest.raises(AirflowException) as raised:
        sensor(mode="reschedule", poke_interval=60).execute(context_with(ti))
    error: Any = raised.value  # whose class is elsewhere in each Airflow
    assert type(error).__name__ == "AirflowRescheduleException"
    assert timedelta(0) < error.reschedule_date - now < timedelta(seconds=90)
    assert studio.close.call_count == 1


# --- with real parts: a control plane, a front door and a Jupyter server on this machine


def real(**kwargs):
    """Return a sensor for the local Studio, which the environment points boto3 to."""
    arguments = {"domain_id": "d-localstudio", "user_profile_name": "demo-user", "space_name": "demo-space"}
    return SageMakerStudioAppSensor(
        **{"task_id": "wait", "poke_interval": 0.2, "timeout": 60, "aws_conn_id": None, **arguments, **kwargs}
    )


def test_real_studio_is_ready(lab):
    logins = lab.presigned_urls_issued
    assert real().poke({}) is True
    assert lab.presigned_urls_issued == logins + 1


def test_real_studio_that_is_stopped_fails_at_once_and_no_login_is_made(lab):
    lab.stop_app()
    logins = lab.presigned_urls_issued
    with pytest.raises(AppNotReadyError, match="app of space 'demo-space' is Deleted, and the sensor starts no"):
        real().execute({})
    assert lab.presigned_urls_issued == logins


def test_real_studio_that_something_else_starts_is_waited_for(lab):
    lab.stop_app()
    task = real(wait_for_start=True)
    assert task.poke({}) is False
    start = threading.Timer(0.5, lab.start_app)
    start.start()
    task.execute({})
    start.join()
    assert lab.app_status == "InService"


def test_real_studio_that_failed_fails_at_once_with_the_reason(lab):
    lab.fail_app("EC2InsufficientCapacityError: try again")
    with pytest.raises(AppFailedError, match="EC2InsufficientCapacityError: try again"):
        real(wait_for_start=True).execute({})


def test_real_studio_without_such_a_space_fails_at_once(lab):
    with pytest.raises(ResourceNotFoundError, match="no space 'typo'"):
        real(space_name="typo", wait_for_start=True).execute({})


def test_real_classic_studio_is_ready(classic):
    assert real(space_name=None, app_type="JupyterServer").poke({}) is True


def test_real_login_leaves_no_secret_in_what_is_printed(lab, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        real().execute({})
    out, err = capfd.readouterr()
    printed = out + err + caplog.text
    assert "Studio is ready" in printed
    assert [secret for secret in lab.secrets() if secret in printed] == []
