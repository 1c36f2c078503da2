"""The name of a run, made from its task instance."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_smstudio._compat import Context

_LIKE_A_TASK = re.compile(r"[\w.-]*\.")
_LIKE_AN_INDEX = re.compile(r"(?:^|\.)[0-9]+$")


def run_name(context: Context) -> str:
    """Return a name of a task instance: the same for all its tries, and different from every other one."""
    ti = context["ti"]
    index = getattr(ti, "map_index", -1)
    mapped = index is not None and index >= 0
    if "." in ti.dag_id or _LIKE_A_TASK.match(ti.run_id) or (not mapped and _LIKE_AN_INDEX.search(ti.run_id)):
        # With dots, these IDs would be ambiguous: task "b.c" of DAG "a" is not task "c" of DAG "a.b".
        return f"/{ti.dag_id}/{ti.task_id}{f'[{index}]' if mapped else ''}/{ti.run_id}"
    return ".".join([ti.dag_id, ti.task_id, ti.run_id, *([str(index)] if mapped else [])])
