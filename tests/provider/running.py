"""Operators, their task instances, and what a run leaves."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio._compat import Context
from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator

CLASSIC_KERNEL = "python3__SAGEMAKER_INTERNAL__arn:aws:sagemaker:us-east-1:081325390199:image/datascience-1.0"


class TaskInstance(SimpleNamespace):
    """What the operator uses of a task instance."""

    def __init__(self, **values: Any) -> None:
        defaults = {"dag_id": "reports", "task_id": "daily", "run_id": f"manual__{uuid.uuid4()}", "map_index": -1}
        super().__init__(**{**defaults, **values}, xcoms={})

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


def context_with(ti: object, **more: object) -> Context:
    """Return a task's context with what stands for its task instance."""
    return cast("Context", {"ti": ti, **more})


def write(local: LocalStudio, *sources: str | nbformat.NotebookNode, kernel: str = "python3") -> str:
    cells = [new_code_cell(source) if isinstance(source, str) else source for source in sources]
    kernelspec = {"name": kernel, "display_name": "Python 3", "language": "python"}
    folder = local.home / uuid.uuid4().hex[:8]
    folder.mkdir()
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), folder / "work.ipynb")
    return f"{folder.name}/work.ipynb"


def operator(local: LocalStudio, notebook_path: str, **arguments: Any) -> SageMakerStudioNotebookOperator:
    where = {
        "domain_id": local.domain_id,
        "user_profile_name": local.user_profile_name,
        **({"app_type": "JupyterServer"} if local.flavour == "classic" else {"space_name": local.space_name}),
    }
    return SageMakerStudioNotebookOperator(
        task_id="daily", notebook_path=notebook_path, **{**where, "region_name": "us-east-1", **arguments}
    )


def when_the_cell_runs(local: LocalStudio, notebook_path: str, act: Callable[[], None]) -> None:
    """Act, from another thread, once a cell with ``RUNNING`` in its source runs."""
    flag = (local.home / notebook_path).with_name("running")

    def wait() -> None:
        while not flag.exists():
            time.sleep(0.05)
        time.sleep(0.3)
        act()

    threading.Thread(target=wait, daemon=True).start()


RUNNING = "import time\nprint('on', flush=True)\nopen('running', 'w').close()\ntime.sleep(60)"


def executed(local: LocalStudio, path: str | None) -> nbformat.NotebookNode:
    assert path is not None
    return nbformat.read(local.home / path, as_version=4)


def assert_clean(local: LocalStudio) -> None:
    assert local.sessions() == []
    assert local.kernels() == []
    running = [app for app in local.apps() if app["Status"] not in ("Deleted", "Deleting")]
    assert [app for app in running if app["AppType"] == "KernelGateway"] == []
