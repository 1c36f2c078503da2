"""A client for the Jupyter servers of SageMaker Studio. It needs no Airflow.

You can use it in a task, in a Lambda function or in a script.
It needs boto3, requests, websocket-client and nbformat.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_smstudio.studio.client import Studio
    from airflow_provider_smstudio.studio.runs.result import RunResult
    from airflow_provider_smstudio.studio.runs.runner import NotebookRunner
    from airflow_provider_smstudio.studio.runs.spec import RunSpec
    from airflow_provider_smstudio.studio.sagemaker.control_plane import AppState

__all__ = ["AppState", "NotebookRunner", "RunResult", "RunSpec", "Studio"]

_HOMES = {
    "AppState": "sagemaker.control_plane",
    "RunSpec": "runs.spec",
    "NotebookRunner": "runs.runner",
    "RunResult": "runs.result",
    "Studio": "client",
}


def __getattr__(name: str) -> Any:
    # A DAG file needs only the errors. The other modules and their libraries are imported at first use.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
