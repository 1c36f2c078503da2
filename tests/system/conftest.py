"""Whole systems: here kernels start as they do for users."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.local.server.jupyter import FORK_KERNELS_VARIABLE


@pytest.fixture(autouse=True, scope="session")
def kernels_start_as_usual() -> None:
    pytest.MonkeyPatch().delenv(FORK_KERNELS_VARIABLE, raising=False)
