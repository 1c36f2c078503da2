"""A notebook that a person ends while it runs, though tries are left; for test_ended_by_hand.py."""

import os
from datetime import datetime, timedelta
from typing import Any

from airflow import DAG

from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator

STUDIO = {
    name: os.environ[f"SMSTUDIO_{name.upper()}"] for name in ("domain_id", "user_profile_name", "space_name")
}

KINDS: dict[str, dict[str, Any]] = {
    "interrupted": {},
    "interrupted_deferred": {"deferrable": True, "defer_after": 0},
    "timed_out": {"execution_timeout": timedelta(seconds=20)},
}
for name, settings in KINDS.items():
    with DAG(name, schedule=None, start_date=datetime(2026, 1, 1), default_args=STUDIO) as dag:
        SageMakerStudioNotebookOperator(
            task_id="notebook",
            notebook_path="ended/long.ipynb",
            retries=1,
            retry_delay=timedelta(minutes=5),
            **settings,
        )
    globals()[name] = dag
