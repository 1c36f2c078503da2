"""A task that gets a second try when its worker is lost."""

from __future__ import annotations

import os
from datetime import datetime, timedelta

from airflow import DAG

from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator

with DAG(
    dag_id="killed_worker",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    params={"count": 60, "pause": 0.5},
    render_template_as_native_obj=True,
):
    SageMakerStudioNotebookOperator(
        task_id="count",
        notebook_path="count.ipynb",
        output_path="counted.ipynb",
        parameters={"count": "{{ params.count }}", "pause": "{{ params.pause }}"},
        domain_id=os.environ["SMSTUDIO_DOMAIN_ID"],
        user_profile_name=os.environ["SMSTUDIO_USER_PROFILE_NAME"],
        space_name=os.environ.get("SMSTUDIO_SPACE_NAME"),
        app_type=os.environ["SMSTUDIO_APP_TYPE"],
        aws_conn_id=None,
        retries=1,
        retry_delay=timedelta(seconds=1),
    )
