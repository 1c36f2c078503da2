"""Fixtures for all tests: a local Studio of each flavour, started when first asked for."""

pytest_plugins = ["airflow_provider_smstudio.local.pytest_plugin"]
