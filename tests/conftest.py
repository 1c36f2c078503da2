"""Fixtures for all tests: a local Studio of each flavour, started when first asked for."""

from __future__ import annotations

import os

import botocore.loaders
import botocore.session

from airflow_provider_smstudio.local.server.jupyter import FORK_KERNELS_VARIABLE

pytest_plugins = ["airflow_provider_smstudio.local.pytest_plugin"]

# Thousands of kernels start in these tests. Those of tests/system start as usual.
os.environ[FORK_KERNELS_VARIABLE] = "1"

# Each boto3 session reads the model of SageMaker's API again, for a fifth of a second. These share one reader.
_LOADER = botocore.loaders.create_loader()
botocore.session.create_loader = lambda *_: _LOADER
