"""A person ends ``airflow dags test``, or the ``execution_timeout`` ends its task: the run ends with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers.dags_test import DagRun

pytestmark = pytest.mark.airflow

DAGS = Path(__file__).parent / "dags"
WITHIN = 5.0
"""Seconds from what ends the task until the kernel's removal is asked for."""
TIMEOUT = 20.0
OnLine = Callable[[int, str], None]
CELL = "import time\nfor tick in range(120):\n    print('tick', tick, flush=True)\n    time.sleep(0.5)"


@pytest.fixture
def removals(spaces: LocalStudio) -> list[float]:
    """Return when requests to remove a session came, in a Studio that has the notebook."""
    (spaces.home / "ended").mkdir(exist_ok=True)
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=[new_code_cell(CELL)], metadata={"kernelspec": kernelspec})
    nbformat.write(notebook, spaces.home / "ended/long.ipynb")
    times: list[float] = []
    spaces.on_request(
        lambda method, path: times.append(time.time()) if method == "DELETE" and "/sessions/" in path else None
    )
    return times


def end_before_the_retry(group: int, line: str) -> None:
    """Airflow waits for the task's next try, after Ctrl-C as well."""
    if "up_for_retry" in line.lower():
        os.killpg(group, signal.SIGKILL)


def run_of(dags_test: Callable[..., DagRun], spaces: LocalStudio, dag_id: str, on_line: OnLine) -> DagRun:
    environment = {**spaces.environment, "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS)}
    return dags_test(dag_id, environment, on_line=on_line)


@pytest.mark.parametrize("dag_id", ["interrupted", "interrupted_deferred"])
def test_ctrl_c(dags_test: Callable[..., DagRun], spaces: LocalStudio, removals: list[float], dag_id: str) -> None:
    """The terminal sends SIGINT to the whole process group."""
    pressed: list[float] = []

    def press(group: int, line: str) -> None:
        end_before_the_retry(group, line)
        if "tick 5" in line and not pressed:
            pressed.append(time.time())
            os.killpg(group, signal.SIGINT)

    run = run_of(dags_test, spaces, dag_id, press)
    assert pressed, run.text
    assert removals, run.text
    assert removals[0] - pressed[0] <= WITHIN, run.text
    assert spaces.kernels() == spaces.sessions() == []


def test_execution_timeout(dags_test: Callable[..., DagRun], spaces: LocalStudio, removals: list[float]) -> None:
    run = run_of(dags_test, spaces, "timed_out", end_before_the_retry)
    first = next(when for when, line in run.lines if "tick 0" in line)
    assert removals, run.text
    # It counts from a moment before the first cell.
    assert TIMEOUT / 2 <= removals[0] - first <= TIMEOUT + WITHIN, run.text
    assert spaces.kernels() == spaces.sessions() == []
