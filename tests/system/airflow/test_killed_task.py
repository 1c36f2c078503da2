"""What becomes of the kernel when a running task is killed: by a person, or because its worker has to end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers import SYSTEM_DAGS
from tests.helpers.airflow_stack import AirflowStack
from tests.helpers.killed_worker import COUNT, DAG, PAUSE, RUN, TASK, lines, write_notebook


@pytest.mark.airflow
@pytest.mark.stack
def test_a_person_kills_the_kernel_and_a_worker_that_ends_does_not(tmp_path: Path) -> None:
    with (
        LocalStudio() as studio,
        AirflowStack(tmp_path, SYSTEM_DAGS, studio.environment) as airflow,
    ):
        write_notebook(studio.home / "count.ipynb")
        numbers, pids = studio.home / "numbers.txt", studio.home / "pids.txt"

        def counting(run: str, count: int) -> None:
            airflow.trigger(DAG, run, {"count": count, "pause": PAUSE})
            airflow.until(lambda: len(lines(numbers)) >= 3, 60, f"three numbers of {run}")

        counting("marked", 1000)
        airflow.mark_failed(DAG, "marked", TASK, "running")
        airflow.until(lambda: studio.kernels() == [], 60, "the kernel to be removed")
        assert airflow.wait_for(DAG, "marked", ("success", "failed"), 60) == "failed"
        numbers.unlink()
        pids.unlink()

        # As when workers are replaced: SIGTERM to the task, which has a try left.
        counting(RUN, COUNT)
        os.kill(airflow.task_pids(DAG, TASK)[1], signal.SIGTERM)
        state = airflow.wait_for(DAG, RUN, ("success", "failed"), 180)
        log = airflow.task_log(DAG, RUN, TASK, 1) + airflow.task_log(DAG, RUN, TASK, 2)
        assert state == "success", log
        assert [(ti.state, ti.try_number) for ti in airflow.task_instances(DAG, RUN)] == [("success", 2)], log
        assert lines(numbers) == [str(number) for number in range(1, COUNT + 1)], log
        assert len(lines(pids)) == 1, log
        assert studio.kernels() == []
    assert airflow.pids() == []
