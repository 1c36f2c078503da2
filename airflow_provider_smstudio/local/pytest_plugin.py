"""Pytest fixtures: ``pytest_plugins = ["airflow_provider_smstudio.local.pytest_plugin"]``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_smstudio.local.studio import LocalStudio


@pytest.fixture(scope="session")
def local_studio() -> Iterator[LocalStudio]:
    """Return a local Studio with one space, whose JupyterLab app is InService. All tests share it."""
    with LocalStudio() as studio:
        yield studio


@pytest.fixture(scope="session")
def local_studio_classic() -> Iterator[LocalStudio]:
    """Return a local Studio Classic domain, whose JupyterServer app is InService. All tests share it."""
    with LocalStudio("classic") as studio:
        yield studio
