"""What a backfill costs beyond its notebooks' own time, beside PapermillOperator with kernels in the worker.

A real Airflow backfills the same notebook over the same days three times: with our operator in a worker, with our
operator deferred, both on the local Studio, and with PapermillOperator. Needs a Postgres on the machine, unless
``--database sqlite``; see README.md beside this file, and ``make bench-backfill``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import nbformat  # noqa: E402  # found as the one above
from nbformat.v4 import new_code_cell, new_notebook  # noqa: E402

from airflow_provider_smstudio.local import LocalStudio  # noqa: E402
from tests.helpers.airflow_stack import AirflowStack  # noqa: E402

KINDS = ("worker", "deferred", "papermill")
FIRST = date(2026, 9, 1)


def write_notebook(path: Path, seconds: float) -> None:
    """A notebook whose own time is known: ten cells that wait and print."""
    parameters = new_code_cell("day = ''", metadata={"tags": ["parameters"]})
    cell = f"import time\ntime.sleep({seconds / 10})\nprint(day)"
    notebook = new_notebook(cells=[parameters, *(new_code_cell(cell) for _ in range(10))])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def moment(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))


def spans(airflow: AirflowStack, sql: str, *values: object) -> list[float]:
    return [(moment(end) - moment(start)).total_seconds() for start, end in airflow.query(sql, *values)]


def measure(airflow: AirflowStack, studio: LocalStudio, kind: str, days: int, active: int) -> dict[str, float]:
    """Backfill one DAG and return seconds: of the whole, of a DAG run, of a task from its start to its end."""
    last = FIRST + timedelta(days=days - 1)
    airflow.until_known(kind)
    (studio.home / "out" / kind).mkdir(parents=True)
    airflow.cli(
        *["backfill", "create", "--dag-id", kind, "--max-active-runs", str(active)],
        *["--from-date", FIRST.isoformat(), "--to-date", last.isoformat()],
    )
    airflow.cli("dags", "unpause", "-y", kind)

    def over() -> bool:
        rows = airflow.query("SELECT state FROM dag_run WHERE dag_id = ?", kind)
        return len(rows) == days and all(row[0] in ("success", "failed") for row in rows)

    airflow.until(over, 3600, f"the backfill of {kind}")
    (failed,) = airflow.query("SELECT count(*) FROM dag_run WHERE dag_id = ? AND state = 'failed'", kind)[0]
    if failed:
        raise SystemExit(f"{kind}: {failed} runs failed\n{airflow.logs(40)}")
    runs = airflow.query("SELECT start_date, end_date FROM dag_run WHERE dag_id = ?", kind)
    whole = max(moment(end) for _, end in runs) - min(moment(start) for start, _ in runs)
    task = "SELECT start_date, end_date FROM task_instance WHERE dag_id = ? AND task_id = 'report'"
    return {
        "whole": whole.total_seconds(),
        "run": statistics.median(
            spans(airflow, "SELECT start_date, end_date FROM dag_run WHERE dag_id = ?", kind)
        ),
        "task": statistics.median(spans(airflow, task, kind)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--active", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10, help="the notebook's own time")
    parser.add_argument("--database", choices=["postgres", "sqlite"], default="postgres")
    parser.add_argument("--logs", type=Path, help="keep Airflow's logs in this folder")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    own = options.seconds
    print(f"{options.days} days, {options.active} at a time, {own:g} s each, load {os.getloadavg()[0]:.1f}\n")
    print("| | whole, s | DAG run, s | beyond the notebook | task, s | beyond the notebook | share |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, LocalStudio(app_status="Stopped") as studio:
        write_notebook(studio.home / "daily.ipynb", own)
        settings = {
            **studio.environment,
            "AIRFLOW__CORE__PARALLELISM": str(2 * options.active),
            "BACKFILL_DAYS": str(options.days),
            "BACKFILL_ACTIVE": str(options.active),
            "OVERHEAD_HOME": str(studio.home),
        }
        with AirflowStack(
            Path(folder), HERE / "dags", settings, triggerer=True, database=options.database
        ) as airflow:
            for kind in options.kinds:
                took = measure(airflow, studio, kind, options.days, options.active)
                run, task = took["run"] - own, took["task"] - own
                print(
                    f"| {kind} | {took['whole']:.0f} | {took['run']:.1f} | {run:.1f} | {took['task']:.1f} "
                    f"| {task:.1f} | {100 * task / took['task']:.0f} % |",
                    flush=True,
                )
            if options.logs:
                shutil.copytree(airflow.home, options.logs)


if __name__ == "__main__":
    main()
