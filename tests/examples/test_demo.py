"""``make demo``, without the installation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.dags_test import EXAMPLES, plain_environment


@pytest.mark.airflow
@pytest.mark.alone
def test_demo(tmp_path: Path) -> None:
    demo = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo" / "run_demo.py")],
        cwd=tmp_path,
        env=plain_environment(tmp_path / "not-used"),
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert demo.returncode == 0, demo.stdout + demo.stderr
    lines = demo.stdout.splitlines()
    waiting = [line for line in lines if "Waiting" in line]
    assert "NotFound" in waiting[0]  # no app yet
    assert "Pending" in waiting[-1]  # an app that starts
    assert any("bootstrap 6/6" in line for line in lines)
    assert "[demo] the local Studio reports 0 sessions and 0 kernels" in lines
    report = ".demo/home/reports/executed/sales_report-North-2026-09.ipynb"
    assert lines[-1].endswith(report)
    assert (tmp_path / report).exists()
    assert not (tmp_path / "not-used").exists()


def test_demo_keeps_folders_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    demo = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo" / "run_demo.py"), "--folder", str(tmp_path / "mine")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert demo.returncode == 1
    assert "was not made by this demo" in demo.stdout
    assert (tmp_path / "mine").exists()
