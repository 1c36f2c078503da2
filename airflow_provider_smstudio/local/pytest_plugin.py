"""Pytest fixtures: ``pytest_plugins = ["airflow_provider_smstudio.local.pytest_plugin"]``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_smstudio.local.studio import LocalStudio


@pytest.fixture(scope="session")
def local_studio() -> Iterator[LocalStudio]:
    """A Studio with one space, its JupyterLab app InService; one for the whole test run."""
    with LocalStudio() as studio:
        yield studio


@pytest.fixture(scope="session")
def local_studio_classic() -> Iterator[LocalStudio]:
    """A Studio Classic domain, its JupyterServer app InService; one for the whole test run."""
    with LocalStudio("classic") as studio:
        yield studio
