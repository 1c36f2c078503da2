"""A worker that is lost in the middle of a notebook: the next try goes on with the kernel that still runs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers import SYSTEM_DAGS
from tests.helpers.airflow_stack import AirflowStack
from tests.helpers.killed_worker import COUNT, DAG, PAUSE, RUN, TASK, lines, write_notebook


def has_ended(airflow: AirflowStack) -> bool:
    """See whether a try is over, well or badly."""
    return any(ti.state in ("success", "up_for_retry", "failed") for ti in airflow.task_instances(DAG, RUN))


@pytest.mark.airflow
@pytest.mark.stack
def test_next_try_goes_on_where_the_killed_worker_left(tmp_path: Path) -> None:
    with (
        LocalStudio() as studio,
        AirflowStack(tmp_path, SYSTEM_DAGS, studio.environment) as airflow,
    ):
        write_notebook(studio.home / "count.ipynb")
        numbers = studio.home / "numbers.txt"
        airflow.trigger(DAG, RUN, {"count": COUNT, "pause": PAUSE})
        airflow.until(lambda: len(lines(numbers)) >= 5 or has_ended(airflow), 60, "five numbers")
        assert not has_ended(airflow), airflow.logs()
        airflow.kill_task(DAG, TASK)
        counted_by_then = len(lines(numbers))
        airflow.until(lambda: airflow.task_log(DAG, RUN, TASK, 2), 60, "the second try")
        assert counted_by_then < len(lines(numbers)) < COUNT  # the kernel went on, and has not finished yet

        state = airflow.wait_for(DAG, RUN, ("success", "failed"), 120)
        log = airflow.task_log(DAG, RUN, TASK, 2)
        assert state == "success", log
        assert [(ti.state, ti.try_number) for ti in airflow.task_instances(DAG, RUN)] == [("success", 2)]
        wanted = [str(number) for number in range(1, COUNT + 1)]
        assert len(lines(studio.home / "pids.txt")) == 1, log
        assert lines(numbers) == wanted
        cells = [
            cell for cell in nbformat.read(studio.home / "counted.ipynb", 4).cells if cell.cell_type == "code"
        ]
        printed = [output.text for output in cells[-2].outputs if output.get("name") == "stdout"]
        assert "".join(printed).splitlines() == wanted
        assert cells[-1].outputs[0].data["text/plain"] == str(1 + COUNT)
        assert "reattach" in log.lower()
        assert studio.sessions() == []
        assert studio.kernels() == []
    assert airflow.pids() == []
