"""The same notebook for each day: by our operator in a worker, and by the same deferred."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

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
COMMON: dict[str, Any] = {
    "schedule": "@daily",
    "start_date": FIRST,
    "end_date": FIRST + timedelta(days=int(os.environ.get("BACKFILL_DAYS", "6")) - 1),
    "catchup": False,
    "is_paused_upon_creation": True,
    "max_active_runs": int(os.environ.get("BACKFILL_ACTIVE", "4")),
}
for kind in ("worker", "deferred"):
    with (
        DAG(dag_id=kind, default_args=STUDIO, **COMMON) as dag,
        sagemaker_studio_app(stop={"idle_minutes": 0, "linger": 60, "deferrable": True}),
    ):
        SageMakerStudioNotebookOperator(
            task_id="report",
            notebook_path="daily.ipynb",
            output_path=f"out/{kind}/{DAY}.ipynb",
            create_output_folder=True,
            parameters={"day": DAY},
            deferrable=kind == "deferred",
            defer_after=2,
        )
    globals()[kind] = dag
