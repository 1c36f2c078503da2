"""An Airflow of its own for these tests: its home is a new folder, and it has no database."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

from airflow_provider_smstudio.local import LocalStudio

if "airflow" in sys.modules:
    raise RuntimeError("Airflow was imported before its home could be set; it would write into the user's")

# Airflow reads these once, when it is imported, which the test modules beside this file do.
_HOME = tempfile.mkdtemp(prefix="smstudio-airflow-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
for _name in [name for name in os.environ if name.startswith(("AIRFLOW_", "AWS_"))]:
    del os.environ[_name]
os.environ.update(
    AIRFLOW_HOME=_HOME,
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    # 2.11 warns about the old unit at import.
    AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY="True",
    AWS_EC2_METADATA_DISABLED="true",
)


@pytest.fixture(autouse=True)
def aws_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the amazon provider's default connection, so that no test asks the machine for credentials."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_AWS_DEFAULT",
        '{"conn_type": "aws", "login": "AKIADEFAULT", "password": "very-secret-key",'
        ' "extra": {"region_name": "eu-west-1"}}',
    )


@pytest.fixture(scope="session")
def _lab() -> Iterator[LocalStudio]:
    with LocalStudio() as studio:
        yield studio


@pytest.fixture(scope="session")
def _classic() -> Iterator[LocalStudio]:
    with LocalStudio("classic") as studio:
        yield studio


@pytest.fixture
def lab(_lab: LocalStudio, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalStudio]:
    """Give a running Studio with a space on this machine, to which boto3's own settings lead."""
    _lab.start_app()
    for name, value in _lab.environment.items():
        monkeypatch.setenv(name, value)
    yield _lab
    _lab.switches.auth_mode = "IAM"


@pytest.fixture
def classic(_classic: LocalStudio, monkeypatch: pytest.MonkeyPatch) -> LocalStudio:
    """Give a running Studio Classic on this machine, to which boto3's own settings lead."""
    for name, value in _classic.environment.items():
        monkeypatch.setenv(name, value)
    return _classic


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let triggers fire at once, and not only after some seconds."""
    for name in ("app", "notebook"):
        monkeypatch.setattr(f"airflow_provider_smstudio.triggers.{name}.EARLIEST_EVENT", 0.0)
