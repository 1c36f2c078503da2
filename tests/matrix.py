"""Runs the provider's tests on each Airflow that is supported, and one real run of a DAG: ``make test-matrix``.

A lane is an Airflow with a Python. Where Amazon MWAA has that version, its constraints and its essential packages pin the environment,
if they are in ``../shared/mwaa``; so the lane has the versions of that image. The coverage of ``_compat.py`` is that of all lanes together.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MWAA = ROOT.parent / "shared" / "mwaa"
ENVIRONMENTS = ROOT / ".venv-airflow"
COVERAGE = ROOT / "build" / "coverage"
UV = ROOT / ".venv" / "bin" / "uv"
PROVIDER = "tests/provider"
LEAST_COVERED = 57
"""Percent of the branches of ``_compat.py`` that the tests without a local Studio run, over all lanes."""
DAG_RUN = "tests/examples/test_example_dags.py::test_notebook_dag[spaces]"


@dataclass(frozen=True)
class Lane:
    """An Airflow on a Python.

    :ivar name: its version; for MWAA the image's.
    :ivar python: the version of Python.
    :ivar requirement: what to install where MWAA has no such image; None for MWAA's own set.
    :ivar studio: whether the provider's tests on a local Studio run too. Else those without one, and one real run of
        a DAG, because another lane has the same Airflow, or ``make test-celery-ci`` runs on it.
    :ivar more: other tests that run in this lane too.
    """

    name: str
    python: str
    requirement: str | None = None
    studio: bool = True
    more: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.name

    @property
    def executable(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def is_of_mwaa(self) -> bool:
        """Whether the image's constraints are there."""
        return self.requirement is None and (MWAA / f"constraints-{self.name}.txt").exists()


LANES = (
    # The oldest libraries that MWAA has: what depends on them most.
    Lane("2.11.0", "3.12", more=("tests/integration/client",)),
    Lane("2.11.2", "3.12", studio=False),
    Lane("3.0.6", "3.12"),
    Lane("3.1", "3.10", "apache-airflow>=3.1,<3.2"),
    Lane("3.2.1", "3.12", studio=False),
    Lane("3.3.1", "3.12", studio=False),
    Lane("3.3", "3.13", "apache-airflow>=3.3,<3.4"),
)
"""Python 3.11 is that of ``make test``."""


def run(*command: str | Path, **environment: str) -> int:
    print("+", *command, flush=True)
    return subprocess.run([str(part) for part in command], cwd=ROOT, env={**os.environ, **environment}).returncode


def require(*command: str | Path) -> None:
    if run(*command):
        raise SystemExit(f"failed: {' '.join(map(str, command))}")


def find_python(version: str) -> str:
    """Find a Python of a version on this machine. The command may be pyenv's, which fails for versions that are not switched on."""
    for candidate in _candidates(version):
        told = subprocess.run(
            [candidate, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True, text=True
        )
        if told.stdout.strip() == version:
            return candidate
    raise SystemExit(f"there is no Python {version} on this machine: install one as python{version}")


def _candidates(version: str) -> Iterator[str]:
    if (found := shutil.which(f"python{version}")) is not None:
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python")))
    told = subprocess.run(
        [UV, "python", "find", "--system", "--no-python-downloads", version], capture_output=True, text=True
    )
    if told.returncode == 0:
        yield told.stdout.strip()


def constraints_of(lane: Lane) -> list[str | Path]:
    """Return the image's constraints as options, without those of pytest, which the tests need newer."""
    options: list[str | Path] = []
    for kind in ("constraints", "essential"):
        lines = (MWAA / f"{kind}-{lane.name}.txt").read_text().splitlines(keepends=True)
        path = ENVIRONMENTS / f"{kind}-{lane.name}.txt"
        path.write_text("".join(line for line in lines if not line.lower().startswith("pytest")))
        options += ["--constraint", path]
    return options


def install(lane: Lane) -> None:
    """Make the lane's environment, if what it depends on has changed."""
    ready = lane.folder / ".ready"
    sources = (ROOT / "pyproject.toml", Path(__file__), *MWAA.glob(f"*-{lane.name}.txt"))
    if ready.exists() and ready.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return
    ENVIRONMENTS.mkdir(exist_ok=True)
    require(UV, "venv", "--quiet", "--clear", "--python", find_python(lane.python), lane.folder)
    pip = (
        UV,
        "pip",
        "install",
        "--quiet",
        "--python",
        lane.executable,
        "--editable",
        ".[local]",
        "--group",
        "test",
        "--group",
        "demo",
    )
    mwaa = constraints_of(lane) if lane.is_of_mwaa else []
    require(*pip, lane.requirement or f"apache-airflow=={lane.name}", *mwaa)
    ready.touch()


def test(lane: Lane, processes: int) -> bool:
    began = time.monotonic()
    install(lane)
    built = time.monotonic() - began
    pytest = (lane.executable, "-m", "pytest", "--dist", "worksteal", "-n", str(processes))
    # Coverage makes the tests on a local Studio twice as slow: it is measured without them.
    cover = ("--cov=airflow_provider_smstudio._compat", "--cov-branch", "--cov-report=")
    # No dots in the name: pytest-cov would take 3.3.1 for a part of 3.3, and remove it.
    data = {"COVERAGE_FILE": str(COVERAGE / f".coverage.{lane.name.replace('.', '-')}")}
    passed = not run(*pytest, *cover, "-m", "not studio", PROVIDER, **data)
    on_studio = (DAG_RUN, *((PROVIDER,) if lane.studio else ()), *lane.more)
    passed = run_twice(*pytest, "-m", "studio and not alone and not stack", *on_studio) and passed
    took = time.monotonic() - began
    result = "passed" if passed else "FAILED"
    print(
        f"=== {lane.name} on Python {lane.python}: {result} in {took:.0f} s ({built:.0f} s to install)", flush=True
    )
    return passed


def run_twice(*pytest: str | Path) -> bool:
    """Run tests, and what failed beside others once more, alone, until five loaded runs in a row have passed."""
    code = run(*pytest)
    if code == 1:
        print("=== Some tests failed beside others: once more, alone", flush=True)
        code = run(*pytest, "-n", "0", "--last-failed", "--last-failed-no-failures", "none")
    return not code


def covered() -> bool:
    """Combine the coverage of all lanes, print it, and see whether it has fallen."""
    python = ROOT / ".venv" / "bin" / "python"
    data = {"COVERAGE_FILE": str(COVERAGE / ".coverage")}
    run(python, "-m", "coverage", "combine", "--quiet", "--keep", *sorted(COVERAGE.glob(".coverage.*")), **data)
    return not run(python, "-m", "coverage", "report", "--show-missing", f"--fail-under={LEAST_COVERED}", **data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lanes", nargs="*", help="such as 3.0.6; default: all")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--install", action="store_true", help="make the environments only")
    arguments = parser.parse_args()
    unknown = set(arguments.lanes) - {lane.name for lane in LANES}
    if unknown:
        parser.error(
            f"no such lane: {', '.join(sorted(unknown))}; there are {', '.join(lane.name for lane in LANES)}"
        )
    chosen = [lane for lane in LANES if lane.name in (arguments.lanes or [lane.name])]
    if arguments.install:
        for lane in chosen:
            install(lane)
        return 0
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
