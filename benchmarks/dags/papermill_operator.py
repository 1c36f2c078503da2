"""The same notebook for each day, by PapermillOperator; in a file of its own, whose import takes seconds."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

from airflow import DAG
from airflow.providers.papermill.operators.papermill import PapermillOperator

DAY = "{{ (dag_run.logical_date or dag_run.run_after) | ds }}"
FIRST = datetime(2026, 9, 1)
COMMON: dict[str, Any] = {
    "schedule": "@daily",
    "start_date": FIRST,
    "end_date": FIRST + timedelta(days=int(os.environ.get("BACKFILL_DAYS", "6")) - 1),
    "catchup": False,
    "is_paused_upon_creation": True,
    "max_active_runs": int(os.environ.get("BACKFILL_ACTIVE", "4")),
}
HOME = os.environ.get("OVERHEAD_HOME", ".")

with DAG(dag_id="papermill", **COMMON) as papermill:
    PapermillOperator(
        task_id="report",
        input_nb=f"{HOME}/daily.ipynb",
        output_nb=f"{HOME}/out/papermill/{DAY}.ipynb",
        parameters={"day": DAY},
        kernel_name="python3",
    )
