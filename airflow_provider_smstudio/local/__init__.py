"""The local Studio, for tests and demos: a control plane, a gateway and real Jupyter servers on this machine.

It needs the extra ``local``: ``pip install 'airflow-provider-smstudio[local]'``.
"""

from __future__ import annotations

from airflow_provider_smstudio.local.faults.switches import Switches
from airflow_provider_smstudio.local.server.jupyter import JupyterMissingError
from airflow_provider_smstudio.local.studio import LocalStudio

__all__ = ["JupyterMissingError", "LocalStudio", "Switches"]
