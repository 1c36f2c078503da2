"""DAGs for backfills: an app that all runs share, and a notebook for each day that writes down how often it ran."""

from __future__ import annotations

import os
from datetime import datetime, timedelta

from airflow import DAG

from airflow_provider_smstudio.operators.app import sagemaker_studio_app
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator

DAY = "{{ (dag_run.logical_date or dag_run.run_after) | ds }}"
STUDIO = {
    "domain_id": os.environ.get("SMSTUDIO_DOMAIN_ID", "d-none"),
    "user_profile_name": os.environ.get("SMSTUDIO_USER_PROFILE_NAME", "nobody"),
    "space_name": os.environ.get("SMSTUDIO_SPACE_NAME"),
    "aws_conn_id": None,
}
FIRST = datetime(2026, 9, 1)

for dag_id in ("backfilled", "backfilled_too"):
    with DAG(
        dag_id=dag_id,
        schedule="@daily",
        start_date=FIRST,
        end_date=FIRST + timedelta(days=int(os.environ.get("BACKFILL_DAYS", "6")) - 1),
        catchup=bool(os.environ.get("BACKFILL_CATCHUP")),
        is_paused_upon_creation=True,
        max_active_runs=int(os.environ.get("BACKFILL_ACTIVE", "4")),
        default_args={
            **STUDIO,
            "retries": int(os.environ.get("BACKFILL_RETRIES", "0")),
            "retry_delay": timedelta(seconds=float(os.environ.get("BACKFILL_RETRY_DELAY", "1"))),
        },
    ) as dag:
        with sagemaker_studio_app(stop={"idle_minutes": 0, "linger": 60, "deferrable": True}):
            SageMakerStudioNotebookOperator(
                task_id="report",
                notebook_path="daily.ipynb",
                output_path=f"out/{dag_id}/{DAY}.ipynb",
                create_output_folder=True,
                parameters={"dag": dag_id, "day": DAY, "seconds": os.environ.get("BACKFILL_SECONDS", "1")},
                skip_if_output_complete=True,
                resume=os.environ.get("BACKFILL_RESUME", "auto"),
                pool=os.environ.get("BACKFILL_POOL", "default_pool"),
                deferrable=bool(os.environ.get("BACKFILL_DEFERRABLE")),
                defer_after=2,
            )
    globals()[dag_id] = dag
