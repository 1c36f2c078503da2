"""The DAGs that users copy, parsed and run by a real Airflow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import nbformat
import pytest
from example_runs import EXAMPLES, DagRun, plain_environment

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.local.images import CLASSIC_IMAGES

DagsTest = Callable[[str, Mapping[str, str]], DagRun]
DAY = 24 * 60 * 60

pytestmark = pytest.mark.airflow


def code_cells(path: Path) -> list[Any]:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def mimes(cells: list[Any]) -> set[str]:
    return {mime for cell in cells for output in cell.outputs for mime in output.get("data", {})}


def assert_streamed(run: DagRun) -> None:
    """See that each line of progress arrived while its cell still worked on the later ones."""
    arrived: dict[int, float] = {}
    printed: dict[int, float] = {}
    for clock, line in run.lines:
        match = re.search(r"\[(\d\d:\d\d:\d\d\.\d+)\] bootstrap (\d)/6", line)
        if match and int(match[2]) not in arrived:
            at = datetime.strptime(match[1], "%H:%M:%S.%f").replace(year=2000, tzinfo=timezone.utc)
            arrived[int(match[2])] = clock % DAY
            printed[int(match[2])] = at.timestamp() % DAY
    assert sorted(arrived) == [1, 2, 3, 4, 5, 6]
    for number in range(1, 5):
        ahead = (printed[number + 2] - arrived[number]) % DAY
        assert ahead < 10, f"line {number} came {DAY - ahead:.1f} s after the cell had printed line {number + 2}"


def assert_left_nothing(studio: LocalStudio, run: DagRun) -> None:
    assert studio.sessions() == []
    assert studio.kernels() == []
    assert [app for app in studio.apps() if app["AppType"] == "KernelGateway" and app["Status"] != "Deleted"] == []
    assert studio.secrets()
    assert run.leaks([*studio.secrets(), "/auth?token="]) == []


@pytest.mark.parametrize("local", [False, True], ids=["connection", "local"])
def test_parses_without_a_warning(local: bool, tmp_path: Path) -> None:
    local_studio = {
        "SMSTUDIO_DOMAIN_ID": "d-abc",
        "SMSTUDIO_USER_PROFILE_NAME": "ana",
        "SMSTUDIO_APP_TYPE": "JupyterServer",
    }
    files = [str(path) for path in EXAMPLES.glob("*.py")]
    # An error for every module's warnings would fail on those of Airflow and its dependencies.
    code = f"""
import runpy, warnings
import airflow
from airflow.models import DagModel
warnings.filterwarnings("error", module="airflow_provider_smstudio|__main__")
for file in {files}:
    found = runpy.run_path(file, run_name="__main__")
    print(*(name for name in ("forecast", "report", "run_report", "train") if name in found))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=plain_environment(tmp_path, **(local_studio if local else {})),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()[-4:]) == ["forecast", "report", "run_report", "train"]


@pytest.mark.parametrize("flavour", ["spaces", "classic"])
def test_notebook_dag(flavour: str, dags_test: DagsTest, request: pytest.FixtureRequest) -> None:
    studio: LocalStudio = request.getfixturevalue(flavour)
    environment = dict(studio.environment)
    if flavour == "classic":
        environment["SMSTUDIO_KERNEL_NAME"] = CLASSIC_IMAGES[0].kernel_name(studio.region)

    run = dags_test("example_smstudio_notebook", environment)

    assert run.code == 0, run.text
    assert run.states() == {"run_report": ["success"], "wait_for_studio": ["success"]}
    assert_streamed(run)
    assert_left_nothing(studio, run)

    output = studio.home / "reports" / "executed" / "sales_report-North-2026-09.ipynb"
    cells = code_cells(output)
    assert all(cell.execution_count for cell in cells)
    assert {"image/png", "text/html", "text/markdown"} <= mimes(cells)
    assert cells[1].metadata.tags == ["injected-parameters"]
    injected = dict(line.split(" = ") for line in cells[1].source.splitlines()[1:])
    today = injected.pop("prepared_on").strip("\"'")
    assert datetime.fromisoformat(today)
    assert {name: value.strip("\"'") for name, value in injected.items()} == {
        "region": "North",
        "month": "2026-09",
        "top": "3",
    }
    assert "top = 3" in cells[1].source.splitlines()
    metadata = nbformat.read(output, as_version=4).metadata.papermill
    assert metadata.exception is False
    assert metadata.duration > 0
    assert metadata.parameters["top"] == 3
    assert {cell.metadata.papermill.status for cell in cells} == {"completed"}

    xcoms = dict(run.query("SELECT key, value FROM xcom WHERE task_id = 'run_report'"))
    returned = json.loads(xcoms["return_value"])
    returned = json.loads(returned) if isinstance(returned, str) else returned
    assert returned["output_path"] == "reports/executed/sales_report-North-2026-09.ipynb"
    assert returned["output_url"] in str(xcoms["_link_SageMakerStudioNotebookLink"])


@pytest.mark.parametrize("flavour", ["spaces", "classic"])
def test_deferrable_dag(flavour: str, dags_test: DagsTest, request: pytest.FixtureRequest) -> None:
    studio: LocalStudio = request.getfixturevalue(flavour)
    environment = dict(studio.environment)
    if flavour == "classic":
        environment["SMSTUDIO_KERNEL_NAME"] = CLASSIC_IMAGES[0].kernel_name(studio.region)

    run = dags_test("example_smstudio_deferrable", environment)

    assert run.code == 0, run.text
    assert run.states() == {"train": ["success"], "wait_for_studio": ["success"]}
    assert "the triggerer watches over the run from here on" in run.text
    assert "reattached: " in run.text
    assert_left_nothing(studio, run)
    (output,) = (studio.home / "models" / "train-runs").glob("*.ipynb")
    cells = code_cells(output)
    assert [line.split(":")[0] for line in cells[2].outputs[0].text.splitlines()] == [
        f"epoch {epoch}/4" for epoch in (1, 2, 3, 4)
    ]
    assert "'epochs': 4" in cells[3].outputs[0].data["text/plain"]


def test_backfill_dag(dags_test: DagsTest) -> None:
    with LocalStudio(app_status="Stopped") as studio:
        run = dags_test("example_smstudio_backfill", studio.environment)

        assert run.code == 0, run.text
        states = {"start_studio_app": ["success"], "report": ["success"], "stop_studio_app": ["success"]}
        assert run.states() == states
        assert studio.app_status == "Deleted"
        assert (studio.api_calls["CreateApp"], studio.api_calls["DeleteApp"]) == (1, 1)
        (output,) = (studio.home / "backfill").glob("*/executed.ipynb")
        day = output.parent.name
        assert f"{day}: " in code_cells(output)[2].outputs[0].text
        assert code_cells(output)[2].outputs[0].text.strip() in run.text
        assert run.leaks([*studio.secrets(), "/auth?token="]) == []


def test_mapped_dag_with_connections(dags_test: DagsTest, spaces: LocalStudio) -> None:
    environment = {
        # Of all the local Studio's variables only the endpoint, as the service's own needs no variable.
        "AWS_ENDPOINT_URL_SAGEMAKER": spaces.endpoint_url,
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(
            {
                "conn_type": "aws",
                "login": "a-key",
                "password": "a-password",
                "extra": {"region_name": spaces.region},
            }
        ),
        "AIRFLOW_CONN_SAGEMAKER_STUDIO_DEFAULT": json.dumps(
            {
                "conn_type": "sagemaker_studio",
                "host": spaces.domain_id,
                "login": spaces.user_profile_name,
                "extra": {"space_name": spaces.space_name},
            }
        ),
    }

    run = dags_test("example_smstudio_mapped", environment)

    assert run.code == 0, run.text
    assert run.states() == {
        "products": ["success"],
        "forecast": ["success", "success"],
        "summary": ["success"],
    }
    assert_left_nothing(spaces, run)
    assert len(re.findall(r"^success in [\d.]+ s: forecasts/forecast-runs/\S+\.ipynb$", run.text, re.M)) == 2
    assert "Kettle: +5.0 a month" in run.text
    assert "Grinder: -0.4 a month" in run.text

    outputs = sorted((spaces.home / "forecasts" / "forecast-runs").glob("*.ipynb"))
    assert len(outputs) == 2
    sources = [code_cells(path)[1].source for path in outputs]
    assert ["product" in source and "history = [" in source for source in sources] == [True, True]
