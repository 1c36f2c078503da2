"""Runs the provider's tests on each Airflow that is supported, and one real run of a DAG: ``make test-matrix``.

A lane is an Airflow with a Python. Where Amazon MWAA has that version, its constraints and its essential packages make the environment,
if they are in ``../shared/mwaa``; so the lane has the versions of that image. All lanes together must run each branch of ``_compat.py``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MWAA = ROOT.parent / "shared" / "mwaa"
ENVIRONMENTS = ROOT / ".venv-airflow"
COVERAGE = ROOT / "build" / "coverage"
UV = ROOT / ".venv" / "bin" / "uv"
TESTS = ("tests/provider", "tests/examples/test_example_dags.py::test_notebook_dag[spaces]")


@dataclass(frozen=True)
class Lane:
    """An Airflow on a Python.

    :ivar name: its version; for MWAA the image's.
    :ivar python: the version of Python.
    :ivar requirement: what to install where MWAA has no such image; None for MWAA's own set.
    """

    name: str
    python: str
    requirement: str | None = None

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / f"{self.name}-py{self.python}"

    @property
    def is_of_mwaa(self) -> bool:
        """Whether the image's constraints are there."""
        return self.requirement is None and (MWAA / f"constraints-{self.name}.txt").exists()


LANES = (
    Lane("2.11.0", "3.12"),
    Lane("2.11.2", "3.12"),
    Lane("3.0.6", "3.12"),
    Lane("3.1", "3.10", "apache-airflow>=3.1,<3.2"),
    Lane("3.2.1", "3.12"),
    Lane("3.3.1", "3.12"),
    Lane("3.3", "3.13", "apache-airflow>=3.3,<3.4"),
)
"""Python 3.11 is that of ``make test``."""


def run(*command: str | Path, **environment: str) -> int:
    print("+", *command, flush=True)
    return subprocess.run([str(part) for part in command], cwd=ROOT, env={**os.environ, **environment}).returncode


def require(*command: str | Path) -> None:
    if run(*command):
        raise SystemExit(f"failed: {' '.join(map(str, command))}")


def constraints_of(lane: Lane) -> Path:
    """Write the image's constraints without those of pytest, which the tests need newer, and return the file."""
    lines = (MWAA / f"constraints-{lane.name}.txt").read_text().splitlines(keepends=True)
    path = lane.folder.with_suffix(".constraints.txt")
    path.write_text("".join(line for line in lines if not line.lower().startswith("pytest")))
    return path


def build(lane: Lane) -> Path:
    """Make the lane's environment; return its Python."""
    ENVIRONMENTS.mkdir(exist_ok=True)
    require(UV, "venv", "--quiet", "--allow-existing", "--python", lane.python, lane.folder)
    python = lane.folder / "bin" / "python"
    install = (
        UV,
        "pip",
        "install",
        "--quiet",
        "--python",
        python,
        "--editable",
        ".[local]",
        "--group",
        "test",
        "--group",
        "demo",
    )
    if not lane.is_of_mwaa:
        require(*install, lane.requirement or f"apache-airflow=={lane.name}")
    else:
        require(*install, "-r", MWAA / f"essential-{lane.name}.txt", "--constraint", constraints_of(lane))
    return python


def test(lane: Lane, processes: int) -> bool:
    began = time.monotonic()
    python = build(lane)
    built = time.monotonic() - began
    passed = not run(
        *(python, "-m", "pytest", "-m", "not alone and not stack", "-n", str(processes), "--dist", "worksteal"),
        *("--cov=airflow_provider_smstudio._compat", "--cov-branch", "--cov-report="),
        *TESTS,
        COVERAGE_FILE=str(COVERAGE / f".coverage.{lane.name}-py{lane.python}"),
    )
    took = time.monotonic() - began
    print(
        f"=== {lane.name} on Python {lane.python}: {'passed' if passed else 'FAILED'} in {took:.0f} s ({built:.0f} s to install)",
        flush=True,
    )
    return passed


def covered() -> bool:
    """Combine the coverage of all lanes, print it, and see whether it is whole."""
    python = ROOT / ".venv" / "bin" / "python"
    data = {"COVERAGE_FILE": str(COVERAGE / ".coverage")}
    run(python, "-m", "coverage", "combine", "--quiet", "--keep", *sorted(COVERAGE.glob(".coverage.*")), **data)
    return not run(python, "-m", "coverage", "report", "--show-missing", "--fail-under=100", **data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lanes", nargs="*", help="such as 3.0.6; default: all")
    parser.add_argument("--processes", type=int, default=3)
    arguments = parser.parse_args()
    unknown = set(arguments.lanes) - {lane.name for lane in LANES}
    if unknown:
        parser.error(
            f"no such lane: {', '.join(sorted(unknown))}; there are {', '.join(lane.name for lane in LANES)}"
        )
    chosen = [lane for lane in LANES if lane.name in (arguments.lanes or [lane.name])]
    if not arguments.lanes:
        shutil.rmtree(COVERAGE, ignore_errors=True)
    COVERAGE.mkdir(parents=True, exist_ok=True)
    failed = [lane.name for lane in chosen if not test(lane, arguments.processes)]
    # Some lanes alone do not run each branch.
    whole = bool(arguments.lanes) or covered()
    if failed:
        print("=== failed:", *failed, flush=True)
    return int(bool(failed) or not whole)


if __name__ == "__main__":
    sys.exit(main())
