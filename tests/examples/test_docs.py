"""The README's and the docs' code, run as it stands there."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio.runs.result import RunResult
from tests.helpers import ROOT
from tests.helpers.dags_test import EXAMPLES, plain_environment

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BIN = Path(sys.executable).parent
BLOCKS = [
    (page.name, match[1], match[2])
    for page in PAGES
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
]


def block(first_line: str) -> str:
    """Return the one block of code that begins with this line."""
    (found,) = (text for _, _, text in BLOCKS if text.startswith(f"{first_line}\n"))
    return found


def run(code: str, cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_code_is_python_or_json() -> None:
    kinds = [kind for _, kind, _ in BLOCKS]
    assert kinds.count("python") >= 5
    for page, kind, text in BLOCKS:
        if kind == "python":
            ast.parse(text, page)
        elif kind == "json":
            json.loads(text)


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its titles."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
            if not target.startswith("http"):
                path, _, anchor = target.partition("#")
                other = (page.parent / path).resolve() if path else page
                assert other.exists(), (page, target)
                assert not anchor or anchor in headings(other), (page, target)


def test_returned_dict_is_complete() -> None:
    shown = next(json.loads(text) for _, kind, text in BLOCKS if kind == "json" and '"cells_executed"' in text)
    assert list(shown) == [field.name for field in dataclasses.fields(RunResult)]


@pytest.mark.airflow
def test_dag_to_copy(tmp_path: Path) -> None:
    (tmp_path / "daily_report.py").write_text(block("# dags/daily_report.py"))
    code = (
        "import warnings, airflow; from airflow.models import DagModel;"
        "warnings.filterwarnings('error', module=r'airflow_provider_smstudio|daily_report');"
        "import daily_report as d;"
        "print(d.wait_for_studio.downstream_task_ids, d.run_report.studio_conn_id, d.wait_for_studio.studio_conn_id)"
    )
    expected = "{'run_report'} sagemaker_studio_default sagemaker_studio_default"
    assert run(code, tmp_path, plain_environment(tmp_path / "home")).splitlines()[-1] == expected


@pytest.mark.airflow
def test_connection_as_json_and_as_uri(tmp_path: Path) -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    as_json = re.search(r"AIRFLOW_CONN_SAGEMAKER_STUDIO_DEFAULT='(.*?)'", readme, re.S)
    as_uri = re.search(r"`(sagemaker-studio://[^`]*)`", readme)
    assert as_json is not None
    assert as_uri is not None
    code = (
        "from airflow_provider_smstudio.hooks.studio import SageMakerStudioHook as Hook;"
        "a, b = Hook('a').settings, Hook('b').settings; assert a == b, (a, b);"
        "print(a.domain_id, a.user_profile_name, a.space_name, a.app_type, a.region_name, a.aws_conn_id)"
    )
    environment = plain_environment(tmp_path, AIRFLOW_CONN_A=as_json[1], AIRFLOW_CONN_B=as_uri[1])
    settings = run(code, tmp_path, environment).splitlines()[-1]
    assert settings == "d-abc123xyz ana reports JupyterLab eu-west-1 aws_default"


def test_lambda_without_airflow(spaces: LocalStudio, tmp_path: Path) -> None:
    (tmp_path / "lambda_function.py").write_text(block("# lambda_function.py"))
    code = (
        "import sys, types; sys.modules['airflow'] = None;"
        "from lambda_function import handler;"
        "print(handler({'region': 'West'}, types.SimpleNamespace(aws_request_id='request-1')))"
    )
    returned = ast.literal_eval(run(code, tmp_path, {**os.environ, **spaces.environment}).splitlines()[-1])
    assert returned["status"] == "success"
    assert returned["output_path"] == "reports/sales_report-runs/request-1.ipynb"
    assert (spaces.home / returned["output_path"]).exists()
    assert spaces.kernels() == []


def test_pytest_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_my_dag.py").write_text(block("# test_my_dag.py"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_local_studio_in_python(tmp_path: Path) -> None:
    output = run(block("# one_run.py"), tmp_path, dict(os.environ))
    assert '"42\\n"' in output
    run(block("# impatient.py"), tmp_path, dict(os.environ))


def test_local_studio_as_a_command(tmp_path: Path) -> None:
    (command,) = (
        line
        for _, _, text in BLOCKS
        for line in text.splitlines()
        if line.startswith("smstudio-local run") and "boto3" in line
    )
    environment = {**plain_environment(tmp_path), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "'AppType': 'JupyterLab'" in done.stdout
    assert "reports 0 sessions and 0 kernels" in done.stderr


def test_names_in_the_docs_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    from airflow_provider_smstudio.studio import errors

    for name in set(re.findall(r"`(\w+Error)`", text)):
        assert hasattr(errors, name), name
    assert EXAMPLES.joinpath("example_smstudio_notebook.py").exists()
