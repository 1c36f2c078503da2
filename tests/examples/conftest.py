"""A real Airflow, in processes and a home of its own, against a Studio on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers.dags_test import EXAMPLES, DagRun, plain_environment

# The demo is made for the Airflow that `make demo` installs: it reads the JSON logs of 3.2 and later.
collect_ignore = ["test_demo.py"] if version("apache-airflow").startswith("2.") else []


@pytest.fixture(scope="session")
def migrated_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an Airflow home with an empty database, to be copied."""
    home = tmp_path_factory.mktemp("airflow-template")
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        env=plain_environment(home),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home


@pytest.fixture
def dags_test(migrated_home: Path, tmp_path: Path) -> Callable[..., DagRun]:
    """Give a function that runs ``airflow dags test`` in a fresh Airflow.

    It knows other DAGs if they are written. ``on_line`` is called with the process group and each line.
    """

    def run(
        dag_id: str,
        environment: Mapping[str, str],
        *,
        write_dags: bool = False,
        on_line: Callable[[int, str], None] = lambda group, line: None,
    ) -> DagRun:
        home = tmp_path / "airflow"
        # The config file names the home in which it was made.
        shutil.copytree(migrated_home, home, ignore=shutil.ignore_patterns("airflow.cfg", "logs"))
        env = plain_environment(home, **environment)
        if write_dags:
            subprocess.run(
                [sys.executable, "-m", "airflow", "dags", "reserialize"], env=env, check=True, timeout=120
            )
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "dags", "test", dag_id],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lines: list[tuple[float, str]] = []
        with process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append((time.time(), line.rstrip("\n")))
                    on_line(process.pid, line)
                return DagRun(process.wait(timeout=60), home, lines)
            finally:
                process.kill()

    return run


@pytest.fixture(scope="session")
def _spaces() -> Iterator[LocalStudio]:
    with LocalStudio() as studio:
        yield studio


@pytest.fixture(scope="session")
def _classic() -> Iterator[LocalStudio]:
    with LocalStudio("classic") as studio:
        yield studio


def _with_reports(studio: LocalStudio) -> LocalStudio:
    shutil.rmtree(studio.home / "reports", ignore_errors=True)
    shutil.copytree(EXAMPLES / "demo" / "notebooks", studio.home / "reports")
    return studio


@pytest.fixture
def spaces(_spaces: LocalStudio) -> LocalStudio:
    """Give a running space whose home holds the demo's notebook."""
    return _with_reports(_spaces)


@pytest.fixture
def classic(_classic: LocalStudio) -> LocalStudio:
    """Give a running Studio Classic whose home holds the demo's notebook."""
    return _with_reports(_classic)
