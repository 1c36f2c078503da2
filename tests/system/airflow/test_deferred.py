"""Deferred runs on a real Airflow: side by side with few worker slots, and through a triggerer that is killed."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers import SYSTEM_DAGS
from tests.helpers.airflow_stack import AirflowStack

DAG, RUN, TASK = "deferred_runs", "run-1", "count"
RUNS = int(os.environ.get("DEFERRED_RUNS", "3"))
LINES = int(os.environ.get("DEFERRED_LINES", "60"))
COUNT = f"""\
import os, time
with open(f'pids-{{number}}.txt', 'a') as file:
    print(os.getpid(), file=file)
for line in range({LINES}):
    with open(f'lines-{{number}}.txt', 'a') as file:
        print(line, file=file)
    print(line, flush=True)
    time.sleep(0.5)"""


def write_notebook(path: Path) -> None:
    parameters = new_code_cell("number = 0", metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[parameters, new_code_cell(COUNT), new_code_cell("print('through', number)")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def marked_as_failed(airflow: AirflowStack, studio: LocalStudio) -> None:
    """Somebody marks the deferred tasks as failed: cells are interrupted and kernels removed."""
    airflow.trigger(DAG, "run-2")

    def all_deferred() -> bool:
        states = [ti.state for ti in airflow.task_instances(DAG, "run-2") if ti.task_id == TASK]
        return states == ["deferred"] * RUNS

    airflow.until(all_deferred, 120, "all runs to be deferred")

    def all_watched() -> bool:
        return [bool(kernel["connections"]) for kernel in studio.kernels()] == [True] * RUNS

    # One that is marked before its trigger has begun leaves its kernel to the clean-up (documented).
    airflow.until(all_watched, 60, "the triggers to watch")
    airflow.mark_failed(DAG, "run-2", TASK)
    airflow.until(lambda: studio.kernels() == [], 60, "the kernels to be removed")
    assert airflow.wait_for(DAG, "run-2", ("success", "failed"), 60) == "failed"

    def states() -> list[str]:
        paths = studio.home.glob("count-runs/*run-2*.ipynb")
        return [nbformat.read(path, 4).metadata.smstudio.run.state for path in paths]

    airflow.until(lambda: states() == ["killed"] * RUNS, 30, "the notebooks to be saved")


@pytest.mark.airflow
@pytest.mark.stack
def test_many_runs_and_a_killed_triggerer(tmp_path: Path) -> None:
    with (
        LocalStudio() as studio,
        AirflowStack(
            tmp_path,
            SYSTEM_DAGS,
            {**studio.environment, "AIRFLOW__CORE__PARALLELISM": "2"},
            triggerer=True,
        ) as airflow,
    ):
        write_notebook(studio.home / "count.ipynb")
        airflow.trigger(DAG, RUN)

        def all_count() -> bool:
            return len(list(studio.home.glob("lines-*.txt"))) == RUNS

        airflow.until(all_count, 60 + 10 * RUNS, "all runs to be under way")
        # More runs than the two slots (one on 2.11), none of which is taken by them any more.
        deferred = airflow.until(
            lambda: [ti for ti in airflow.task_instances(DAG, RUN) if ti.state == "deferred"], 60, "deferral"
        )
        assert deferred
        airflow.kill("triggerer")
        airflow.start("triggerer")
        state = airflow.wait_for(DAG, RUN, ("success", "failed"), 180 + 10 * RUNS)
        assert state == "success", airflow.logs(60)
        for number in range(RUNS):
            wanted = [str(line) for line in range(LINES)]
            assert (studio.home / f"lines-{number}.txt").read_text().splitlines() == wanted
            assert len((studio.home / f"pids-{number}.txt").read_text().splitlines()) == 1
        for path in studio.home.glob("count-runs/*.ipynb"):
            cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
            printed = "".join(output.text for output in cells[-2].outputs)
            assert printed == "".join(f"{line}\n" for line in range(LINES))
        assert len(list(studio.home.glob("count-runs/*.ipynb"))) == RUNS
        assert studio.sessions() == []
        assert studio.kernels() == []
        if RUNS < 10:
            marked_as_failed(airflow, studio)
    assert airflow.pids() == []
