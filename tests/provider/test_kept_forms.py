"""Forms that Airflow's database and people's DAGs keep; see ``tests/unit/test_kept_forms.py``."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from airflow_provider_smstudio.triggers.app import SageMakerStudioAppTrigger
from airflow_provider_smstudio.triggers.app_change import SageMakerStudioAppChangeTrigger
from airflow_provider_smstudio.triggers.notebook import SageMakerStudioNotebookTrigger

TRIGGERS = "airflow_provider_smstudio.triggers"


@pytest.mark.parametrize(
    ("trigger", "path", "arguments"),
    [
        (
            SageMakerStudioNotebookTrigger(studio={}, handover={"spec": {}}),
            f"{TRIGGERS}.notebook.SageMakerStudioNotebookTrigger",
            {"studio", "handover", "log_output", "deadline", "cancel_on_kill"},
        ),
        (
            SageMakerStudioAppTrigger(studio={}),
            f"{TRIGGERS}.app.SageMakerStudioAppTrigger",
            {"studio", "wait_for_start", "poke_interval"},
        ),
        (
            SageMakerStudioAppChangeTrigger(studio={}, action="start", request={}, until=0.0),
            f"{TRIGGERS}.app_change.SageMakerStudioAppChangeTrigger",
            {"studio", "action", "request", "until", "requested_at"},
        ),
    ],
    ids=["notebook", "app", "app_change"],
)
def test_triggers(trigger: Any, path: str, arguments: set[str]) -> None:
    """A triggerer makes them again from the path and the arguments in Airflow's database."""
    found, kwargs = trigger.serialize()
    assert (found, set(kwargs)) == (path, arguments)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("operators.notebook", "SageMakerStudioNotebookOperator"),
        ("operators.app", "SageMakerStudioStartAppOperator"),
        ("operators.app", "SageMakerStudioStopAppOperator"),
        ("operators.app", "sagemaker_studio_app"),
        ("operators.cleanup", "SageMakerStudioCleanupOperator"),
        ("sensors.app", "SageMakerStudioAppSensor"),
        ("hooks.studio", "SageMakerStudioHook"),
        ("links.notebook", "SageMakerStudioNotebookLink"),
        ("assets", "notebook_uri"),
    ],
)
def test_names_that_dags_import(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(f"airflow_provider_smstudio.{module}"), name)
