"""Fixtures for all tests: a local Studio of each flavour, started when first asked for."""

from __future__ import annotations

import os

import botocore.loaders
import botocore.session
import pytest

from airflow_provider_smstudio.local.server.jupyter import FORK_KERNELS_VARIABLE

pytest_plugins = ["airflow_provider_smstudio.local.pytest_plugin"]

# Thousands of kernels start in these tests. Those of tests/system start as usual.
os.environ[FORK_KERNELS_VARIABLE] = "1"

# Each boto3 session reads the model of SageMaker's API again, for a fifth of a second. These share one reader.
_LOADER = botocore.loaders.create_loader()
botocore.session.create_loader = lambda *_: _LOADER


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on a local Studio; ``matrix.py`` selects by it."""
    for item in items:
        layer, names = item.nodeid.split("/")[1], set(getattr(item, "fixturenames", ()))
        if layer not in ("unit", "provider") or names & {"lab", "classic", "local", "studio"}:
            item.add_marker(pytest.mark.studio)
