"""The arguments that say which Studio to use: the same in all operators and in the sensor."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_smstudio._studio_arguments import STUDIO_TEMPLATE_FIELDS
from airflow_provider_smstudio.operators.app import SageMakerStudioStartAppOperator, SageMakerStudioStopAppOperator
from airflow_provider_smstudio.operators.cleanup import SageMakerStudioCleanupOperator
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator
from airflow_provider_smstudio.sensors.app import SageMakerStudioAppSensor

GIVEN: dict[str, Any] = {
    "studio_conn_id": "team",
    "domain_id": "d-1",
    "user_profile_name": "ana",
    "space_name": "lab",
    "app_type": "JupyterLab",
    "aws_conn_id": None,
    "region_name": "eu-west-1",
    "verify": "/etc/ca.pem",
    "botocore_config": {"connect_timeout": 5},
}


@pytest.fixture(
    params=[
        (SageMakerStudioNotebookOperator, {"notebook_path": "daily.ipynb"}),
        (SageMakerStudioStartAppOperator, {}),
        (SageMakerStudioStopAppOperator, {}),
        (SageMakerStudioCleanupOperator, {"older_than_hours": 3}),
        (SageMakerStudioAppSensor, {}),
    ],
    ids=lambda param: param[0].__name__,
)
def task_class(request: pytest.FixtureRequest) -> Any:
    cls, needed = request.param
    return lambda **arguments: cls(task_id="one", **needed, **arguments)


def test_all_reach_the_hook(task_class: Any) -> None:
    assert task_class(**GIVEN).hook_arguments() == GIVEN


def test_defaults(task_class: Any) -> None:
    assert task_class().hook_arguments() == {**dict.fromkeys(GIVEN), "aws_conn_id": ""}


def test_all_are_templated(task_class: Any) -> None:
    task = task_class()
    assert set(STUDIO_TEMPLATE_FIELDS) == set(GIVEN) <= set(task.template_fields)
    assert task.template_fields_renderers["botocore_config"] == "json"


def test_names_that_a_native_template_has_made_numbers(task_class: Any) -> None:
    task = task_class(space_name=12345)
    assert task.hook_arguments()["space_name"] == "12345"
