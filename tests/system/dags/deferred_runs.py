"""Many notebook runs at once, which need a worker slot for their first moments only."""

from __future__ import annotations

import os
from datetime import datetime

from airflow import DAG

from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator
from airflow_provider_smstudio.sensors.app import SageMakerStudioAppSensor

RUNS = int(os.environ.get("DEFERRED_RUNS", "3"))

with DAG(
    dag_id="deferred_runs",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={
        "domain_id": os.environ["SMSTUDIO_DOMAIN_ID"],
        "user_profile_name": os.environ["SMSTUDIO_USER_PROFILE_NAME"],
        "space_name": os.environ.get("SMSTUDIO_SPACE_NAME"),
        "app_type": os.environ["SMSTUDIO_APP_TYPE"],
        "aws_conn_id": None,
        "deferrable": True,
    },
):
    wait = SageMakerStudioAppSensor(task_id="wait")
    count = SageMakerStudioNotebookOperator.partial(
        task_id="count", notebook_path="count.ipynb", defer_after=0, max_active_tis_per_dagrun=RUNS
    ).expand(parameters=[{"number": number} for number in range(RUNS)])
    wait >> count
