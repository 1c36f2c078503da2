"""A worker that is lost in the middle of a notebook: the next try goes on with the kernel that still runs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from airflow_stack import AirflowStack
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio.local import LocalStudio

DAG, RUN, TASK = "killed_worker", "run-1", "count"
COUNT, PAUSE = 60, 0.5
CELLS = [
    "import os, time\nwith open('pids.txt', 'a') as file:\n    print(os.getpid(), file=file)\nx = 1",
    """\
for number in range(1, count + 1):
    x += 1
    with open('numbers.txt', 'a') as file:
        print(number, file=file)
    print(number)
    time.sleep(pause)""",
    "x",
]


def write_notebook(path: Path) -> None:
    parameters = new_code_cell("count, pause = 3, 0.1", metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[parameters, *map(new_code_cell, CELLS)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def has_ended(airflow: AirflowStack) -> bool:
    """See whether a try is over, well or badly."""
    return any(ti.state in ("success", "up_for_retry", "failed") for ti in airflow.task_instances(DAG, RUN))


@pytest.mark.airflow
@pytest.mark.stack
def test_next_try_goes_on_where_the_killed_worker_left(tmp_path: Path) -> None:
    with (
        LocalStudio() as studio,
        AirflowStack(tmp_path, Path(__file__).parent / "dags", studio.environment) as airflow,
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
