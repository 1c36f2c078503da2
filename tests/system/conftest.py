"""Whole systems: here kernels start as they do for users."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_smstudio.local.server.jupyter import FORK_KERNELS_VARIABLE


@pytest.fixture(autouse=True, scope="package")
def kernels_start_as_usual() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(FORK_KERNELS_VARIABLE, raising=False)
        yield
