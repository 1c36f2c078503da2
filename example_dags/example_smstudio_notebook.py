"""Wait for a Studio app, then run a parameterised notebook on it, cell by cell.

Copy this file into your DAGs folder and create a connection ``sagemaker_studio_default`` of type "Amazon
SageMaker Studio". The notebook and its data are in ``demo/notebooks`` beside this file: copy that folder's
content into ``reports/`` in the home of your space. Works on Airflow 2.11 to 3.3.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta

from airflow import DAG

from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator
from airflow_provider_smstudio.sensors.app import SageMakerStudioAppSensor

# Which Studio. In your copy keep the second half: the connection holds domain, user profile and space.
# The first half is for the local Studio (`smstudio-local`), which tells its own in environment variables. It
# shows that no connection is needed: everything can be an argument.
if "SMSTUDIO_DOMAIN_ID" in os.environ:
    STUDIO = {
        "domain_id": os.environ["SMSTUDIO_DOMAIN_ID"],
        "user_profile_name": os.environ["SMSTUDIO_USER_PROFILE_NAME"],
        "space_name": os.environ.get("SMSTUDIO_SPACE_NAME"),  # Studio Classic has no spaces
        "app_type": os.environ.get("SMSTUDIO_APP_TYPE"),
        "aws_conn_id": None,  # credentials from boto3's own chain
    }
else:
    STUDIO = {"studio_conn_id": "sagemaker_studio_default"}

with DAG(
    dag_id="example_smstudio_notebook",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["example", "smstudio"],
    params={"region": "North", "month": "2026-09", "top": 3},
    # Templates keep their types: `top` arrives in the notebook as a number.
    render_template_as_native_obj=True,
    default_args={**STUDIO, "retries": 1, "retry_delay": timedelta(minutes=1)},
):
    wait_for_studio = SageMakerStudioAppSensor(
        task_id="wait_for_studio",
        # In production: every 30 s and mode="reschedule", which frees the worker slot in between.
        poke_interval=2 if "SMSTUDIO_DOMAIN_ID" in os.environ else 30,
        timeout=30 * 60,
        # Something else starts the app: wait for it even if it does not exist yet.
        wait_for_start=True,
    )

    run_report = SageMakerStudioNotebookOperator(
        task_id="run_report",
        notebook_path="reports/sales_report.ipynb",
        output_path="reports/executed/sales_report-{{ params.region }}-{{ params.month }}.ipynb",
        create_output_folder=True,
        parameters={
            "region": "{{ params.region }}",
            "month": "{{ params.month }}",
            "top": "{{ params.top }}",
            # `{{ ds }}` and `{{ data_interval_start }}` do not exist in Airflow 3 where a run has no logical
            # date, as those that assets or the API start may; this works for every run.
            "prepared_on": "{{ (dag_run.logical_date or dag_run.run_after) | ds }}",
        },
        # None: the kernel that the notebook names. Studio Classic has one for each image, so there it must be
        # named in full if the notebook was made elsewhere.
        kernel_name=os.environ.get("SMSTUDIO_KERNEL_NAME"),
        cell_timeout=600,
    )

    wait_for_studio >> run_report
