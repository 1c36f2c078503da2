"""Airflow's masker of secrets must bear a triggerer that logs in a thousand times."""

from __future__ import annotations

import subprocess
import sys

import pytest

from airflow_provider_smstudio import _compat, _secrets


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(_compat, "mask_secret", told.append)
    return told


def test_a_login_is_masked_once(told: list[str]) -> None:
    mask = _secrets._Bounded(lambda secret: _compat.mask_secret(secret))
    for _ in range(3):
        mask("a-token")
    assert told == ["a-token"]


A_THOUSAND = """
import secrets
from airflow_provider_smstudio import _compat, _secrets

mask = _secrets._Bounded(_compat.mask_secret_here)
for _ in range(1000):
    mask(secrets.token_urlsafe(3750))
_compat.mask_secret_here("the-password-of-a-connection")
"""


def test_a_thousand_logins_leave_the_masker_able_to_work() -> None:
    """The real one of this Airflow, whose pattern grows with each secret; in a process of its own, which it makes slow."""
    subprocess.run([sys.executable, "-c", A_THOUSAND], check=True)


def test_a_masker_that_is_full_ends_no_run(told: list[str], caplog: pytest.LogCaptureFixture) -> None:
    def full(secret: str) -> None:
        told.append(secret)
        raise RuntimeError(f"pattern too large: {secret}")

    mask = _secrets._Bounded(full)
    mask("one")
    mask("two")
    assert told == ["one"]
    assert "no longer works: RuntimeError" in caplog.text
    assert "too large" not in caplog.text
