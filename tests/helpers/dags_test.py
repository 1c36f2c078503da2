"""What the tests beside this file share: the environment of an Airflow of its own, and what a run left behind."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers import ROOT

EXAMPLES = ROOT / "example_dags"


def plain_environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment with nothing of the tester's own Airflow, AWS or Studio in it."""
    ours = ("AIRFLOW_", "AWS_", "SMSTUDIO_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # Python writes no .pyc files where this is set, and each Airflow process then starts seconds later.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return {
        **environment,
        "PYTHONUNBUFFERED": "1",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
        "AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY": "True",  # 2.11 warns about the old unit
        "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }


@dataclass
class DagRun:
    """What an ``airflow dags test`` left behind.

    :ivar lines: what it printed, each line with the time of its arrival.
    """

    code: int
    home: Path
    lines: list[tuple[float, str]] = field(repr=False)

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.home / "airflow.db")) as database:
            return database.execute(sql).fetchall()

    def states(self) -> dict[str, list[str]]:
        """Return the states of the task instances by task."""
        states: dict[str, list[str]] = {}
        for task, state in self.query("SELECT task_id, state FROM task_instance ORDER BY map_index"):
            states.setdefault(str(task), []).append(str(state))
        return states

    def leaks(self, secrets: list[str]) -> list[str]:
        """Return where one of the secrets is found: in the output or in a file of Airflow's home."""
        found = [f"output: {line}" for _, line in self.lines if any(secret in line for secret in secrets)]
        for path in self.home.rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            found += [str(path) for secret in secrets if secret.encode() in content]
        return found
