"""The benchmark still runs against the client as it is, and sees no output lost; its times are not judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

SCRIPT = ROOT / "benchmarks" / "cells.py"


@pytest.mark.alone
def test_one_repetition(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--core-only", "--repetitions", "1", "--workload", "assign"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Output lost: none" in done.stdout
