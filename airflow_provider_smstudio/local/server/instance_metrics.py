"""What the extension by AWS tells of a space's instance: here, of this machine."""

from __future__ import annotations

import json
import shutil
from typing import Any

import psutil

from airflow_provider_smstudio.local.transport.http import response

PATH = "/aws/sagemaker/api/instance/metrics"
"""Where it is served, below the server's base."""


def metrics(memory_percent: float | None) -> dict[str, Any]:
    """Return the numbers of this machine.

    :param memory_percent: how much of the memory shall be in use, 0 to 100; None: as much as is.
    """
    memory, disk = psutil.virtual_memory(), shutil.disk_usage("/")
    used, percent = memory.used, memory.percent
    if memory_percent is not None:
        used, percent = int(memory.total * memory_percent / 100), float(memory_percent)
    return {
        "metrics": {
            "memory": {"rss_in_bytes": used, "total_in_bytes": memory.total, "memory_percentage": percent},
            "cpu": {"cpu_count": psutil.cpu_count(), "cpu_percentage": psutil.cpu_percent()},
            "storage": {
                "free_space_in_bytes": disk.free,
                "used_space_in_bytes": disk.used,
                "total_space_in_bytes": disk.total,
            },
        }
    }


def metrics_answer(memory_percent: float | None) -> bytes:
    """Return the answer to a GET."""
    return response(200, json.dumps(metrics(memory_percent)), "application/json")
