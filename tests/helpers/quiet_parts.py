"""Parts of Airflow that warn when they are first used, which these tests do not want to hear of.

On Airflow 2.11 what reads the providers' asset URIs imports Flask, and OpenLineage's provider a module that it has
given up; with warnings as errors, both would fail.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from airflow.providers.openlineage.extractors import ExtractorManager, OperatorLineage
    from openlineage.client.event_v2 import Dataset as OLDataset
    from openlineage.client.serde import Serde

    from airflow_provider_smstudio._compat import Asset, AssetAlias, AssetRef

    try:  # 3.0+
        from airflow.sdk.execution_time.context import OutletEventAccessors
    except ImportError:  # 2.11
        from airflow.utils.context import OutletEventAccessors

    ExtractorManager()
    Asset("sagemaker-studio://d-abc/space/first/use.ipynb")

__all__ = [
    "Asset",
    "AssetAlias",
    "AssetRef",
    "ExtractorManager",
    "OLDataset",
    "OperatorLineage",
    "OutletEventAccessors",
    "Serde",
]
