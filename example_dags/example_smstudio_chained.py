"""Notebooks one after the other, each with what the earlier ones have handed out.

The notebooks of a run share a folder for their files; small values go from one to the next as XComs, with their
types. A pool limits how many kernels run at once, over all DAGs that use it::

    airflow pools set smstudio 4 "kernels at once" --include-deferred

Without ``--include-deferred`` a pool does not count tasks that wait in the triggerer, and so does not limit
notebooks with ``deferrable=True``. Works on Airflow 2.11 to 3.3.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

from airflow import DAG

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

NOTEBOOKS = Path(__file__).parent / "notebooks"
FOLDER = "chained/{{ run_id | replace(':', '.') }}"  # JupyterLab takes what is before a colon for a drive

with DAG(
    dag_id="example_smstudio_chained",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["example", "smstudio"],
    params={"countries": ["Portugal", "Spain", "Italy"], "smallest": 10},
    # Templates keep their types: the day arrives in the notebook as a date, the countries as a list.
    render_template_as_native_obj=True,
    default_args={
        **STUDIO,
        "kernel_name": os.environ.get("SMSTUDIO_KERNEL_NAME"),
        "pool": os.environ.get("SMSTUDIO_POOL", "default_pool"),  # in your copy: "smstudio"
        "retries": 1,
        "retry_delay": timedelta(minutes=1),
    },
):
    day = "{{ (dag_run.logical_date or dag_run.run_after).date() }}"

    extract = SageMakerStudioNotebookOperator(
        task_id="extract",
        upload_from=str(NOTEBOOKS / "extract.ipynb"),
        notebook_path=f"{FOLDER}/extract.ipynb",
        output_path=f"{FOLDER}/extract-executed.ipynb",
        parameters={"day": day, "countries": "{{ params.countries }}"},
    )
    # What a task hands out is at its output, by name. Whoever uses it comes after that task.
    transform = SageMakerStudioNotebookOperator(
        task_id="transform",
        upload_from=str(NOTEBOOKS / "transform.ipynb"),
        notebook_path=f"{FOLDER}/transform.ipynb",
        output_path=f"{FOLDER}/transform-executed.ipynb",
        parameters={"file": extract.output["file"], "smallest": "{{ params.smallest }}"},
    )
    report = SageMakerStudioNotebookOperator(
        task_id="report",
        upload_from=str(NOTEBOOKS / "report.ipynb"),
        notebook_path=f"{FOLDER}/report.ipynb",
        output_path=f"{FOLDER}/report-executed.ipynb",
        parameters={
            "day": day,
            "orders": extract.output["orders"],
            "totals": transform.output["totals"],
            "dropped": transform.output["dropped"],
        },
    )
