"""A notebook for each customer, and one more for what they all have handed out.

The first task lists the customers, each with its notebook and its parameters; the operator is expanded over that
list, and the grid view names each run after its customer. Works on Airflow 2.11 to 3.3.
"""

from __future__ import annotations

import os
from datetime import date, datetime, timedelta
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

NOTEBOOKS = Path(__file__).parent / "notebooks"

with DAG(
    dag_id="example_smstudio_customers",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["example", "smstudio"],
    default_args={
        **STUDIO,
        "kernel_name": os.environ.get("SMSTUDIO_KERNEL_NAME"),
        "retries": 1,
        "retry_delay": timedelta(minutes=1),
    },
):

    @task
    def customers() -> list[dict[str, object]]:
        """Tell notebook and parameters of each run; a real DAG would read them from a table."""

        def run(notebook: str, **parameters: object) -> dict[str, object]:
            return {
                "upload_from": str(NOTEBOOKS / notebook),
                "notebook_path": f"bills/{notebook}",
                "parameters": {"until": date(2026, 10, 31), **parameters},
            }

        return [
            run("bill_orders.ipynb", customer="Acme", orders={"anvil": 3, "rocket": 1}),
            run("bill_subscription.ipynb", customer="Globex", since=date(2026, 8, 1), monthly=120.5),
            run("bill_orders.ipynb", customer="Initech", orders={"anvil": 1}),
        ]

    # Without an output_path each run has an executed notebook of its own, beside its source.
    bill = SageMakerStudioNotebookOperator.partial(
        task_id="bill",
        map_index_template="{{ task.parameters['customer'] }}",
        max_active_tis_per_dagrun=2,  # a space has one instance for all its kernels
    ).expand_kwargs(customers())

    # A list of all that the runs have handed out under this name, in the order of the customers.
    summary = SageMakerStudioNotebookOperator(
        task_id="summary",
        upload_from=str(NOTEBOOKS / "bills.ipynb"),
        notebook_path="bills/bills.ipynb",
        parameters={"bills": bill.output["bill"]},
    )
