"""A notebook for each day, in an app that is started before the first and stopped after the last.

Made for backfills::

    airflow backfill create --dag-id example_smstudio_backfill --from-date 2026-10-01 --to-date 2026-10-30

All runs share the app, and nothing else: each has a kernel and an executed notebook of its own. Works on Airflow
2.11 to 3.3; on 2.11 the command is ``airflow dags backfill``.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

from airflow import DAG

from airflow_provider_smstudio.operators.app import sagemaker_studio_app
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator

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

DAY = "{{ (dag_run.logical_date or dag_run.run_after) | ds }}"  # a text, for paths

with DAG(
    dag_id="example_smstudio_backfill",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=8,  # as many kernels as the instance bears
    tags=["example", "smstudio"],
    # Templates keep their types: dates arrive in the notebook as dates.
    render_template_as_native_obj=True,
    default_args={**STUDIO, "retries": 1, "retry_delay": timedelta(minutes=1)},
):
    with sagemaker_studio_app(
        start={"instance_type": "ml.t3.medium", "fallback_instance_types": ["ml.t3.large"]},
        stop={"idle_minutes": 0},  # nobody else works in this space
    ):
        report = SageMakerStudioNotebookOperator(
            task_id="report",
            upload_from=str(Path(__file__).parent / "notebooks" / "daily.ipynb"),  # or "s3://bucket/daily.ipynb"
            notebook_path=f"backfill/{DAY}/daily.ipynb",  # a copy for each day
            output_path=f"backfill/{DAY}/executed.ipynb",
            parameters={
                "day": "{{ (dag_run.logical_date or dag_run.run_after).date() }}",
                # Of the run, not `{{ data_interval_start }}`: that is missing where a run has no interval, and
                # this is None.
                "interval_start": "{{ dag_run.data_interval_start }}",
                "interval_end": "{{ dag_run.data_interval_end }}",
            },
            kernel_name=os.environ.get("SMSTUDIO_KERNEL_NAME"),
        )
