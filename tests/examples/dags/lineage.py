"""A notebook whose executed notebook is an asset, and two DAGs that wait for it; for test_lineage_dags.py."""

import os
from datetime import datetime
from typing import TYPE_CHECKING

from airflow import DAG

from airflow_provider_smstudio.assets import notebook_uri
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator

if TYPE_CHECKING:
    from airflow.sdk import Asset, AssetAlias
else:
    try:
        from airflow.sdk import Asset, AssetAlias
    except ImportError:  # 2.11
        from airflow.datasets import Dataset as Asset
        from airflow.datasets import DatasetAlias as AssetAlias

STUDIO = {
    name: os.environ[f"SMSTUDIO_{name.upper()}"] for name in ("domain_id", "user_profile_name", "space_name")
}
REPORT = Asset(
    notebook_uri(
        "lineage/räumlich 1/report.ipynb",
        domain_id=STUDIO["domain_id"],
        space_name=STUDIO["space_name"],
    )
)
ANY = AssetAlias("executed-notebooks")

with DAG("lineage_producer", schedule=None, start_date=datetime(2026, 1, 1), default_args=STUDIO):
    SageMakerStudioNotebookOperator(
        task_id="report",
        notebook_path="lineage/source.ipynb",
        output_path="lineage/räumlich 1/report.ipynb",
        create_output_folder=True,
        parameters={"word": "tell-nobody"},
        outlets=[REPORT],
    )
    SageMakerStudioNotebookOperator(
        task_id="alias",
        notebook_path="lineage/source.ipynb",
        inlets=[Asset("s3://bucket/rows.parquet")],
        outlets=[ANY],
    )

with DAG("lineage_of_report", schedule=[REPORT], start_date=datetime(2026, 1, 1)):
    pass

with DAG("lineage_of_any", schedule=[ANY], start_date=datetime(2026, 1, 1)):
    pass
