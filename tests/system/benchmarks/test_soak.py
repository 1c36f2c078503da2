"""Runs survive a few seconds of random faults and killed workers, on both Studios; for hours: benchmarks/soak.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

SCRIPT = ROOT / "benchmarks" / "soak.py"


# Seeds whose first run has half a dozen faults within its first ten seconds, and a worker that is killed.
@pytest.mark.alone
@pytest.mark.parametrize(("flavour", "seed"), [("jupyterlab", "1668"), ("classic", "315")])
def test_some_seconds(flavour: str, seed: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--seconds", "10", "--seed", seed, "--flavour", flavour, "--quick"]
    done = subprocess.run(
        [*command, "--keep", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=400
    )
    logs = "\n".join(path.read_text()[-20_000:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, logs + done.stdout + done.stderr
    assert "\nfailures: 0\n" in done.stdout
    assert "\nworker deaths: 0\n" not in done.stdout
