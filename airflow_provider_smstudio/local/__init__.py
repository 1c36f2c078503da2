"""A Studio on this machine: control plane, front door and real Jupyter servers, for tests and demos.

Needs the ``local`` extra: ``pip install 'airflow-provider-smstudio[local]'``.
"""

from __future__ import annotations

from airflow_provider_smstudio.local.server.jupyter import JupyterMissingError
from airflow_provider_smstudio.local.studio import LocalStudio
from airflow_provider_smstudio.local.switches import Switches

__all__ = ["JupyterMissingError", "LocalStudio", "Switches"]
