"""Leaves out the tests that need Celery where it is not installed; ``make live-celery`` has an environment for them."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version


def _has_celery() -> bool:
    try:
        version("apache-airflow-providers-celery")
    except PackageNotFoundError:
        return False
    return shutil.which("redis-server") is not None


collect_ignore = [] if _has_celery() else ["test_celery.py", "test_celery_backfill.py"]
