"""A notebook as a plain task, deferred, and in the worker for a while before it is handed over to the triggerer."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

from airflow import DAG

from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator

# By the name of the task. In the hand-over, four of six cells run before it.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"deferrable": False},
    "deferred": {"deferrable": True, "defer_after": 3},
    "handover": {"deferrable": True, "defer_after": "{{ 4 * params.seconds }}"},
    "timed": {"deferrable": False, "retries": 1, "execution_timeout": timedelta(seconds=25)},
    "timed_deferred": {
        "deferrable": True,
        "defer_after": 3,
        "retries": 1,
        "execution_timeout": timedelta(seconds=25),
    },
}

for kind, settings in KINDS.items():
    with DAG(
        dag_id=f"celery_{kind}",
        schedule=None,
        start_date=datetime(2026, 1, 1),
        catchup=False,
        params={"seconds": 10},
        render_template_as_native_obj=True,
    ) as dag:
        SageMakerStudioNotebookOperator(
            task_id=kind,
            notebook_path="six-cells.ipynb",
            output_path="out/{{ run_id }}.ipynb",
            create_output_folder=True,
            parameters={"run": "{{ run_id }}", "seconds": "{{ params.seconds }}"},
            domain_id=os.environ.get("SMSTUDIO_DOMAIN_ID", "d-none"),
            user_profile_name=os.environ.get("SMSTUDIO_USER_PROFILE_NAME", "nobody"),
            space_name=os.environ.get("SMSTUDIO_SPACE_NAME"),
            app_type=os.environ.get("SMSTUDIO_APP_TYPE", "JupyterLab"),
            aws_conn_id=None,
            retry_delay=timedelta(seconds=3),
            # While the API server is away, Airflow spends one try after the other.
            **{"retries": 12, **settings},
        )
    globals()[f"celery_{kind}"] = dag
