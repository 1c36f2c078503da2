"""The files for contributors name what is there: versions, lanes, folders and targets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.matrix import LANES

ROOT = Path(__file__).parents[2]


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_pre_commit_has_the_version_of_ruff_that_the_project_has() -> None:
    (pinned,) = re.findall(r'"ruff==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    revisions = {repo["repo"].rpartition("/")[2]: repo["rev"] for repo in load(".pre-commit-config.yaml")["repos"]}
    assert revisions["ruff-pre-commit"] == f"v{pinned}"


def test_the_workflow_runs_all_lanes_of_the_matrix() -> None:
    jobs = load(".github/workflows/ci.yml")["jobs"]
    assert jobs["airflow"]["strategy"]["matrix"]["lane"] == [lane.name for lane in LANES]
    (setup,) = (step["with"] for step in jobs["airflow"]["steps"] if "setup-python" in step.get("uses", ""))
    assert set(setup["python-version"].split()) == {lane.python for lane in LANES}


def test_the_matrix_has_each_version_that_is_supported() -> None:
    assert {lane.name[:4].rstrip(".") for lane in LANES} == {"2.11", "3.0", "3.1", "3.2", "3.3"}
    # Python 3.11 is that of `make test`.
    assert {lane.python for lane in LANES} | {"3.11"} == {"3.10", "3.11", "3.12", "3.13"}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", ".github/workflows/ci.yml", ".github/workflows/release.yml"])
def test_targets_of_make(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    (lines,) = [re.findall(r"\bmake ((?:[a-z-]+ ?)+)", (ROOT / page).read_text())]
    named = {
        name for line in lines for name in line.split() if "-" in name or name in {"test", "lint", "build", "demo"}
    }
    assert named <= targets


def test_folders_and_files_that_contributing_names() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    package = ROOT / "airflow_provider_smstudio"
    named = {
        name.rstrip("/") for name in re.findall(r"`((?:studio|local|operators|tests|benchmarks)/[\w/.]*)`", text)
    }
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists() and not (package / name).exists()] == []


def test_the_registry_names_all_operators() -> None:
    folder = ROOT / "airflow_provider_smstudio" / "operators"
    classes = {
        f"airflow_provider_smstudio.operators.{path.stem}.{name}"
        for path in folder.glob("*.py")
        for name in re.findall(r"^class (SageMakerStudio\w+Operator)\(", path.read_text(), re.M)
    }
    public = {name for name in classes if ".base." not in name and not name.rpartition(".")[2].startswith("_")}
    assert {entry["module"] for entry in load(".airflow-registry.yaml")["operators"]} == public
