"""Upload a notebook and run it once for each set of parameters, then use what the runs return.

The notebook is kept beside the DAG, in version control, and copied to Studio by the task; it could as well be
an ``s3://`` object. Every run has a kernel and an output notebook of its own. Works on Airflow 2.11 to 3.3.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

from airflow import DAG

from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator

try:
    from airflow.sdk import task
except ImportError:  # Airflow 2
    from airflow.decorators import task

# Which Studio; see example_smstudio_notebook.py.
if "SMSTUDIO_DOMAIN_ID" in os.environ:
    STUDIO = {
        "domain_id": os.environ["SMSTUDIO_DOMAIN_ID"],
        "user_profile_name": os.environ["SMSTUDIO_USER_PROFILE_NAME"],
        "space_name": os.environ.get("SMSTUDIO_SPACE_NAME"),
        "app_type": os.environ.get("SMSTUDIO_APP_TYPE"),
        "aws_conn_id": None,
    }
else:
    STUDIO = {"studio_conn_id": "sagemaker_studio_default"}

with DAG(
    dag_id="example_smstudio_mapped",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["example", "smstudio"],
    default_args={"retries": 1, "retry_delay": timedelta(minutes=1)},
):

    @task
    def products() -> list[dict[str, object]]:
        """Tell the parameters of each run; a real DAG would read them from a table."""
        return [
            {"product": "Kettle", "history": [100, 104, 110, 113, 121, 124], "months_ahead": 3},
            {"product": "Grinder", "history": [40.5, 39.0, 41.0, 38.5], "months_ahead": 6},
        ]

    forecast = SageMakerStudioNotebookOperator.partial(
        task_id="forecast",
        upload_from=str(Path(__file__).parent / "notebooks" / "forecast.ipynb"),  # or "s3://bucket/forecast.ipynb"
        notebook_path="forecasts/forecast.ipynb",
        kernel_name=os.environ.get("SMSTUDIO_KERNEL_NAME"),
        max_active_tis_per_dag=2,  # a space has one instance for all its kernels
        **STUDIO,
    ).expand(parameters=products())

    @task
    def summary(results: list[dict[str, object]]) -> None:
        """Show what a run returns."""
        for result in results:
            print(f"{result['status']} in {result['duration']} s: {result['output_path']}")  # noqa: T201

    summary(forecast.output)
