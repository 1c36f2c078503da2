"""A backfill on a real Airflow: one start of the app, one stop, and a run of its own for each day."""

from __future__ import annotations

import os
from datetime import date, timedelta
from pathlib import Path

import nbformat
import pytest
from airflow_stack import AIRFLOW_2, AirflowStack
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio.local import LocalStudio

DAG = "backfilled"
DAYS = int(os.environ.get("BACKFILL_DAYS", "6"))
FIRST = date(2026, 9, 1)
REPORT = """\
with open('ran.txt', 'a') as file:
    print(day, file=file)
print('report of', day)"""


def write_notebook(path: Path) -> None:
    parameters = new_code_cell("day = ''", metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[parameters, new_code_cell(REPORT)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def backfill(airflow: AirflowStack) -> None:
    """Have all days run."""
    first, last = FIRST.isoformat(), (FIRST + timedelta(days=DAYS - 1)).isoformat()
    if AIRFLOW_2:
        airflow.cli("dags", "backfill", DAG, "-s", first, "-e", last)
        return
    # The DAG is paused so far: on an unpaused one SQLite may find itself locked.
    dates = ["--from-date", first, "--to-date", last, "--max-active-runs", "4"]
    airflow.cli("backfill", "create", "--dag-id", DAG, *dates)
    airflow.cli("dags", "unpause", "-y", DAG)


def ended(airflow: AirflowStack) -> bool:
    rows = airflow._query("SELECT state FROM dag_run WHERE dag_id = ?", DAG)
    return len(rows) == DAYS and all(row[0] in ("success", "failed") for row in rows)


@pytest.mark.airflow
@pytest.mark.alone
def test_a_backfill_shares_the_app_and_nothing_else(tmp_path: Path) -> None:
    days = [(FIRST + timedelta(days=number)).isoformat() for number in range(DAYS)]
    with (
        LocalStudio(app_status="Stopped") as studio,
        AirflowStack(
            tmp_path,
            Path(__file__).parent / "dags",
            # Airflow 2.11 backfills in waves, and the app is stopped after each (documented): here in one.
            {
                **studio.environment,
                "AIRFLOW__CORE__PARALLELISM": "4",
                "BACKFILL_ACTIVE": str(DAYS if AIRFLOW_2 else 4),
            },
            triggerer=True,
        ) as airflow,
    ):
        write_notebook(studio.home / "daily.ipynb")
        airflow.until(lambda: airflow._is_known(DAG), 120, "the DAG to be read")
        backfill(airflow)
        airflow.until(lambda: ended(airflow), 120 + 30 * DAYS, "the backfill")
        assert sorted((studio.home / "ran.txt").read_text().split()) == days, airflow.logs(40)
        for day in days:
            cells = nbformat.read(studio.home / "out" / f"{day}.ipynb", 4).cells
            assert cells[-1].outputs[0].text == f"report of {day}\n"
        # Of starters that come at once, the service refuses all but one.
        assert (studio.app_starts, studio.api_calls["DeleteApp"]) == (1, 1), airflow.logs(40)
        assert studio.app_status == "Deleted"
    assert airflow.pids() == []
