"""The metrics that AWS's extension reports about a space's instance. Here they describe this machine."""

from __future__ import annotations

import json
import shutil
from typing import Any

import psutil

from airflow_provider_smstudio.local.transport.http import response

PATH = "/aws/sagemaker/api/instance/metrics"
"""The path of the metrics, below the server's base path."""


def metrics(memory_percent: float | None) -> dict[str, Any]:
    """Return the metrics of this machine.

    :param memory_percent: the memory in use to report, 0 to 100 percent; None: the real value.
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
    """Return the response to a GET request."""
    return response(200, json.dumps(metrics(memory_percent)), "application/json")
