"""Wait for a Studio app and run a long notebook without holding a worker slot meanwhile.

Both tasks are deferrable: the worker makes the first moves, the triggerer watches until the end, and a worker is
needed again for a second or two. Needs a running triggerer (Amazon MWAA has one). Works on Airflow 2.11 to 3.3.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

from airflow import DAG

from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator
from airflow_provider_smstudio.sensors.app import SageMakerStudioAppSensor

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
    dag_id="example_smstudio_deferrable",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["example", "smstudio"],
    default_args={**STUDIO, "deferrable": True, "retries": 1, "retry_delay": timedelta(minutes=1)},
):
    wait_for_studio = SageMakerStudioAppSensor(task_id="wait_for_studio", timeout=30 * 60, wait_for_start=True)
    train = SageMakerStudioNotebookOperator(
        task_id="train",
        upload_from=str(Path(__file__).parent / "notebooks" / "train.ipynb"),  # or "s3://bucket/train.ipynb"
        notebook_path="models/train.ipynb",
        parameters={"epochs": 4, "seconds_each": 1.5},
        kernel_name=os.environ.get("SMSTUDIO_KERNEL_NAME"),
        defer_after=5,  # seconds; a notebook that is over by then is never deferred
        execution_timeout=timedelta(hours=6),
    )
    wait_for_studio >> train
