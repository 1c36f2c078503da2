"""Forms that outlive a process, or that users write down: kept by Airflow's database, by Studio, or by people's code.

Change one only together with this test and with a line in the changelog. A reader ignores keys that it does not know, and a new key
has a default: other versions of the package read them, too, while an environment is being updated.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import MISSING, fields

import pytest

from airflow_provider_smstudio import local, studio
from airflow_provider_smstudio.studio.protocol import kernel_record_source
from airflow_provider_smstudio.studio.runs import saved_run
from airflow_provider_smstudio.studio.runs.handover import Handover
from airflow_provider_smstudio.studio.runs.identity import Identity, owner_of, watched_since
from airflow_provider_smstudio.studio.runs.result import RunResult
from airflow_provider_smstudio.studio.runs.spec import RunSpec
from airflow_provider_smstudio.studio.sagemaker import app_tags
from tests.helpers.run_driver import Driver

HANDOVER = {
    "spec": {
        "notebook_path", "output_path", "parameters", "strict_parameters", "upload_from", "kernel_name", "instance_type",
        "allow_errors", "cell_timeout", "kernel_start_timeout", "create_output_folder", "delete_kernel_app", "run_name",
        "run_key", "resume", "on_unknown_cell", "reconnect_timeout", "record_mib", "skip_if_output_complete", "will_retry",
        "retry_series", "try_number", "retries",
    },
    "session_id": str, "owner": str, "kernel_name": str, "instance_type": None, "startup_seconds": float, "unbroken": bool,
    "resumed": bool, "shown": int, "memory_level": None,
}  # fmt: skip
RESULT = {
    "status", "notebook_path", "output_path", "output_url", "kernel_name", "instance_type", "cells", "cells_executed",
    "started_at", "duration", "startup_seconds", "failed_cells", "incomplete_cells", "resumed", "skipped", "values",
}  # fmt: skip


def test_the_hand_over() -> None:
    """In Airflow's database, as an argument of the trigger."""
    assert {field.name for field in fields(Handover)} == set(HANDOVER)
    assert {field.name for field in fields(RunSpec)} == HANDOVER["spec"]
    needed = [field.name for field in fields(RunSpec) if field.default is field.default_factory is MISSING]
    assert needed == ["notebook_path"]


def test_the_result() -> None:
    """The task's XCom."""
    assert {field.name for field in fields(RunResult)} == RESULT


def test_the_executed_notebook() -> None:
    driver = Driver("1").ready()
    driver.succeed()
    notebook = driver.notebook
    ran = set(notebook.metadata["smstudio"]["run"])
    assert ran <= {"state", "kernel_record", "can_record", "process", "values", "error"}
    assert set(notebook.cells[0].metadata["smstudio"]) == {"msg_id", "attempt"}
    saved_run.begin(notebook, Identity("0" * 32, "dag.task.run"), "digest")
    saved_run.own(notebook, "abc", RunSpec("a.ipynb"))
    begun = {"key", "name", "fingerprint", "state", "kernel_record"}
    assert set(notebook.metadata["smstudio"]) == {"run"}
    assert set(notebook.metadata["smstudio"]["run"]) == begun | {"owner", "retry_series", "try_number", "retries"}


def test_the_jupyter_session() -> None:
    who = Identity("0" * 32, "dag.task.run")
    assert who.session_path("a/b.ipynb") == f"a/smstudio-{'0' * 32}-b.ipynb"
    assert who.probe_path("a/b.ipynb") == f"a/smstudio-{'0' * 32}-probe"
    assert who.session_name("abc", 3, since=7) == "dag.task.run [smstudio abc since 7 cell 3]"
    assert owner_of("dag.task.run [smstudio abc since 7 cell 3]") == ("abc", 3)
    assert watched_since("dag.task.run [smstudio abc since 7 cell 3]") == 7
    assert who.client_session == hashlib.sha256(f"{who.key}/websocket".encode()).hexdigest()[:32]


def test_the_kernel_record() -> None:
    """In the kernel, for the next process."""
    assert (kernel_record_source.MODULE, kernel_record_source.VERSION) == ("_smstudio_record", 1)


def test_the_apps_tags() -> None:
    assert app_tags.STARTED == "smstudio:started"
    assert (app_tags._HOLD, app_tags._WAITING, app_tags._CLOSING) == (
        "smstudio:hold:",
        "smstudio:waiting:",
        "smstudio:closing:",
    )


def test_names_that_users_import() -> None:
    assert studio.__all__ == ["AppState", "NotebookRunner", "RunResult", "RunSpec", "Studio"]
    assert local.__all__ == ["JupyterMissingError", "LocalStudio", "Switches"]


@pytest.mark.parametrize("name", ["studio.errors", "local.pytest_plugin", "local.cli"])
def test_modules_that_users_name(name: str) -> None:
    assert importlib.import_module(f"airflow_provider_smstudio.{name}")
