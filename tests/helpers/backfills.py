"""Backfills of ``dags/backfilled.py`` on a real Airflow, and what they leave behind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers import SYSTEM_DAGS
from tests.helpers.airflow_stack import AIRFLOW_2, AirflowStack

ONE, OTHER = "backfilled", "backfilled_too"
FIRST = date(2026, 9, 1)
DATABASE = os.environ.get("BACKFILL_DATABASE", "sqlite")
# With SQLite, Airflow 2 runs one task at a time.
SLOW = AIRFLOW_2 and DATABASE == "sqlite"
CELLS = [
    """\
import time

def write(*words):
    with open('ran.txt', 'a') as file:
        file.write(' '.join((dag, day, *words)) + '\\n')

write('begun')""",
    """\
import os

time.sleep(float(seconds))
while os.path.exists('hold.txt'):
    time.sleep(0.2)
if day in open('bad_days.txt').read():
    raise ValueError(f'no data for {day}')""",
    "write('done')\nprint('report of', day)",
]


def number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def days(count: int) -> list[str]:
    return [(FIRST + timedelta(days=number)).isoformat() for number in range(count)]


def _airflow(folder: Path, dags: Path, environment: Mapping[str, str]) -> AirflowStack:
    return AirflowStack(folder, dags, environment, triggerer=True, database=DATABASE)


class Backfills:
    """A local Studio whose app is stopped, and an Airflow that backfills on it."""

    def __init__(self, studio: LocalStudio, airflow: AirflowStack, count: int) -> None:
        self.studio, self.airflow, self.days = studio, airflow, days(count)
        self.kernels_started = 0
        studio.on_request(self._count)
        parameters = new_code_cell("dag = day = ''; seconds = '1'", metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[parameters, *map(new_code_cell, CELLS)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, studio.home / "daily.ipynb")
        self.bad_days([])

    @classmethod
    @contextmanager
    def on(
        cls,
        folder: Path,
        count: int,
        active: int,
        make_airflow: Callable[[Path, Path, Mapping[str, str]], AirflowStack] = _airflow,
        /,
        **environment: str,
    ) -> Iterator[Backfills]:
        """Give it for a ``with`` block; afterwards nothing of it is left.

        :param active: how many DAG runs of a DAG may run at once.
        :param make_airflow: which Airflow, of a folder, the DAGs and the environment.
        """
        with (
            LocalStudio(app_status="Stopped") as studio,
            make_airflow(
                folder,
                SYSTEM_DAGS,
                {
                    **studio.environment,
                    "AIRFLOW__CORE__PARALLELISM": str(max(active, 4)),
                    "BACKFILL_DAYS": str(count),
                    "BACKFILL_ACTIVE": str(active),
                    **environment,
                },
            ) as airflow,
        ):
            for dag in (ONE, OTHER):
                airflow.until_known(dag)
            yield cls(studio, airflow, count)
        assert airflow.pids() == []

    def _count(self, method: str, path: str) -> None:
        self.kernels_started += method == "POST" and path.partition("?")[0].endswith(("/sessions", "/kernels"))

    def bad_days(self, found: Iterable[str]) -> None:
        """Set the days whose notebook fails."""
        (self.studio.home / "bad_days.txt").write_text(" ".join(found))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no notebook come to its end within the ``with`` block."""
        held = self.studio.home / "hold.txt"
        held.touch()
        try:
            yield
        finally:
            held.unlink()

    def begin(self, *dags: str, active: int, again: bool = False) -> None:
        """Have all days run; on Airflow 2 this returns when they have, on Airflow 3 when they are queued.

        :param active: how many at once, on Airflow 3.
        :param again: runs that are over as well.
        """
        first, last = self.days[0], self.days[-1]
        if AIRFLOW_2:
            options = ["--reset-dagruns", "--yes"] if again else ["--continue-on-failures"]
            with ThreadPoolExecutor() as threads:
                begun = [
                    # It exits with 1 when days have failed.
                    threads.submit(
                        self.airflow.cli, "dags", "backfill", dag, "-s", first, "-e", last, *options, check=False
                    )
                    for dag in dags
                ]
            (self.airflow.home / "backfill.log").write_text("\n".join(future.result() for future in begun))
            return
        dates = ["--from-date", first, "--to-date", last, "--max-active-runs", str(active)]
        options = ["--reprocess-behavior", "completed"] if again else []
        for dag in dags:
            self.airflow.cli_alone("dags", "pause", "-y", dag)
        for dag in dags:
            self.airflow.cli_alone("backfill", "create", "--dag-id", dag, *dates, *options)
        for dag in dags:
            self.airflow.unpause(dag)

    def until_over(self, dag: str) -> None:
        """Wait until all DAG runs of it are over, and Airflow knows that the backfill is."""
        self.airflow.until(lambda: self.over(dag), 300 + 30 * len(self.days), f"the backfill of {dag}")
        if not AIRFLOW_2:
            pending = "SELECT 1 FROM backfill WHERE completed_at IS NULL"
            self.airflow.until(
                lambda: not self.airflow.query(pending), 120, "the end of the backfill to be noticed"
            )

    def over(self, dag: str) -> bool:
        states = self.states(dag)
        return sum(states.values()) == len(self.days) and set(states) <= {"success", "failed"}

    def states(self, dag: str) -> Counter[str]:
        return Counter(
            str(row[0]) for row in self.airflow.query("SELECT state FROM dag_run WHERE dag_id = ?", dag)
        )

    def failed_days(self, dag: str) -> list[str]:
        sql = "SELECT run_id FROM dag_run WHERE dag_id = ? AND state = 'failed'"
        return sorted(str(row[0]).partition("__")[2][:10] for row in self.airflow.query(sql, dag))

    def clear(self, dag: str, found: Iterable[str]) -> None:
        """Clear the DAG runs of some days, as a person does in the UI."""
        for day in found:
            self.airflow.cli_alone("tasks", "clear", "-y", "-s", day, "-e", day, dag)

    def ran(self, dag: str) -> Counter[tuple[str, str]]:
        """Return how often each day's notebook has begun, and got to its end."""
        path = self.studio.home / "ran.txt"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return Counter((day, what) for found, day, what in lines if found == dag)

    def outputs(self, dag: str) -> dict[str, str]:
        """Return what the last cell of each day's executed notebook has printed."""
        found = {}
        for path in sorted((self.studio.home / "out" / dag).glob("*.ipynb")):
            outputs = nbformat.read(path, 4).cells[-1].outputs
            found[path.stem] = outputs[0].text if outputs else ""
        return found

    def app_life(self) -> tuple[int, int]:
        """Return how often the app was started, and how often it was deleted."""
        return self.studio.app_starts, self.studio.api_calls.get("DeleteApp", 0)

    def assert_nothing_left(self) -> None:
        assert self.studio.app_status == "Deleted", self.airflow.logs(40)  # and with it each kernel
        assert not [tag for tag in self.studio.app_tags if ":hold:" in tag]
