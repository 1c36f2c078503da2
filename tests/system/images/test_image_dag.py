"""A real DAG run, by a real Airflow, on an image's own server."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import SYSTEM_DAGS
from tests.helpers import killed_worker as dag
from tests.helpers.airflow_stack import AirflowStack
from tests.helpers.bench import Bench
from tests.helpers.killed_worker import lines, write_notebook


class TestDag:
    def test_a_task_runs_a_notebook(self, bench: Bench, tmp_path: Path) -> None:
        home = bench.local.home
        write_notebook(home / "count.ipynb")
        with AirflowStack(tmp_path, SYSTEM_DAGS, bench.local.environment) as airflow:
            airflow.trigger(dag.DAG, dag.RUN, {"count": 5, "pause": 0.1})
            state = airflow.wait_for(dag.DAG, dag.RUN, ("success", "failed"), 120)
            assert state == "success", airflow.task_log(dag.DAG, dag.RUN, dag.TASK, 1)
        assert airflow.pids() == []
        assert lines(home / "numbers.txt") == ["1", "2", "3", "4", "5"]
        cells = bench.executed("counted.ipynb").cells
        assert cells[-1].outputs[0].data["text/plain"] == "6"
