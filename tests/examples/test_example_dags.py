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

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.local.server.classic_images import CLASSIC_IMAGES
from tests.helpers.dags_test import EXAMPLES, DagRun, plain_environment

DagsTest = Callable[[str, Mapping[str, str]], DagRun]
DAY = 24 * 60 * 60
TASKS = ["bill", "forecast", "report", "report", "run_report", "train"]
"""What each example calls a task of its own; two of them the same."""

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
    print(*(name for name in {sorted(set(TASKS))} if name in found))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=plain_environment(tmp_path, **(local_studio if local else {})),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()[-len(files) :]) == TASKS


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
    assert "deferred: the run continues in the triggerer" in run.text
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
        cells = code_cells(output)
        assert re.match(rf"{day}: \d+ orders from [\d-]+ [\d:]+ to ", cells[2].outputs[0].text)
        assert cells[2].outputs[0].text.strip() in run.text
        injected = cells[1].source.splitlines()[1:]
        moment = r"__import__\('datetime'\).datetime.fromisoformat\('[\d:T.+-]+'\)"
        assert injected[0] == f"day = __import__('datetime').date.fromisoformat('{day}')"
        assert re.fullmatch(rf"interval_start = {moment}", injected[1])
        assert re.fullmatch(rf"interval_end = {moment}", injected[2])
        assert run.leaks([*studio.secrets(), "/auth?token="]) == []


def run_cell(path: Path, injected: str) -> list[str]:
    """Run the first cell behind a notebook's parameters; return the lines that it prints."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    code = "\n".join([cells[0].source, injected, cells[1].source])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("interval", "orders"),
    [
        # Airflow 2's interval of a day, Airflow 3's of a moment, no interval, and one of another timetable.
        (
            ["datetime(2026, 9, 1, tzinfo=timezone.utc)", "datetime(2026, 9, 2, tzinfo=timezone.utc)"],
            "2026-09-02 00:00",
        ),
        (["datetime(2026, 9, 1, tzinfo=timezone.utc)"] * 2, "2026-09-02 00:00"),
        (["None", "None"], "2026-09-02 00:00"),
        (
            ["datetime(2026, 9, 1, tzinfo=timezone.utc)", "datetime(2026, 9, 1, 6, tzinfo=timezone.utc)"],
            "2026-09-01 06:00",
        ),
    ],
)
def test_backfill_notebook_takes_every_interval(interval: list[str], orders: str) -> None:
    injected = (
        "from datetime import datetime, timezone\n"
        f"day, interval_start, interval_end = date(2026, 9, 1), {interval[0]}, {interval[1]}"
    )
    (line,) = run_cell(EXAMPLES / "notebooks" / "daily.ipynb", injected)
    assert re.fullmatch(rf"2026-09-01: \d+ orders from 2026-09-01 00:00 to {orders}", line)


def xcom(run: DagRun, task: str, key: str) -> Any:
    found = run.query(f"SELECT value FROM xcom WHERE task_id = '{task}' AND key = '{key}' ORDER BY map_index")
    values = [json.loads(value) if isinstance(value, (str, bytes)) else value for (value,) in found]
    # Airflow 3.0 and later keep JSON in JSON.
    return [json.loads(value) if isinstance(value, str) and value[:1] in '{["' else value for value in values]


def test_chained_dag(dags_test: DagsTest, spaces: LocalStudio) -> None:
    run = dags_test("example_smstudio_chained", spaces.environment)

    assert run.code == 0, run.text
    assert run.states() == {"extract": ["success"], "transform": ["success"], "report": ["success"]}
    assert_left_nothing(spaces, run)
    (folder,) = (spaces.home / "chained").iterdir()
    assert ":" not in folder.name
    names = [f"{name}{kind}.ipynb" for name in ("extract", "report", "transform") for kind in ("", "-executed")]
    assert sorted(path.name for path in folder.glob("[!.]*")) == sorted([*names, "orders.csv"])
    assert len((folder / "orders.csv").read_text().splitlines()) == 201

    assert xcom(run, "extract", "orders") == [200]
    (totals,) = xcom(run, "transform", "totals")
    assert sorted(totals) == ["Italy", "Portugal", "Spain"]
    injected = code_cells(folder / "transform-executed.ipynb")[1].source.splitlines()[1:]
    assert injected == ["file = 'orders.csv'", "smallest = 10"]
    cells = code_cells(folder / "report-executed.ipynb")
    day, *injected = cells[1].source.splitlines()[1:]
    assert day.startswith("day = __import__('datetime').date.fromisoformat(")
    dropped = xcom(run, "transform", "dropped")[0]
    assert injected == ["orders = 200", f"totals = {totals}", f"dropped = {dropped}"]
    assert f"together {sum(totals.values()):,.2f}".split() == cells[2].outputs[0].text.splitlines()[-1].split()


def test_customers_dag(dags_test: DagsTest, spaces: LocalStudio) -> None:
    run = dags_test("example_smstudio_customers", spaces.environment)

    assert run.code == 0, run.text
    assert run.states() == {"customers": ["success"], "bill": ["success"] * 3, "summary": ["success"]}
    assert_left_nothing(spaces, run)
    named = run.query("SELECT rendered_map_index FROM task_instance WHERE task_id = 'bill' ORDER BY map_index")
    assert named == [("Acme",), ("Globex",), ("Initech",)]

    outputs = {path.parent.name: path for path in (spaces.home / "bills").glob("*-runs/*.ipynb")}
    assert sorted(outputs) == ["bill_orders-runs", "bill_subscription-runs", "bills-runs"]
    assert len(list((spaces.home / "bills" / "bill_orders-runs").glob("*.ipynb"))) == 2
    subscription = code_cells(outputs["bill_subscription-runs"])[1].source.splitlines()[1:]
    day = "__import__('datetime').date.fromisoformat('{}')".format
    assert subscription == [
        f"until = {day('2026-10-31')}",
        "customer = 'Globex'",
        f"since = {day('2026-08-01')}",
        "monthly = 120.5",
    ]
    cells = code_cells(outputs["bills-runs"])
    bills = [("Acme", 301.5), ("Globex", 361.5), ("Initech", 60.5)]
    assert cells[1].source.splitlines()[1:] == [
        f"bills = {[{'customer': name, 'amount': amount} for name, amount in bills]}"
    ]
    assert "3 customers owe 723.50" in run.text


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
