"""Deferred tasks: the hand-over, the trigger and its event."""

from __future__ import annotations

import asyncio
import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_smstudio._compat import BaseTrigger
from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator
from tests.provider.running import TaskInstance, context_with, operator

if TYPE_CHECKING:
    from airflow.sdk.exceptions import TaskDeferred as TaskDeferred
else:
    try:
        from airflow.sdk.exceptions import TaskDeferred
    except ImportError:
        from airflow.exceptions import TaskDeferred

CLASSIC = "python3__SAGEMAKER_INTERNAL__arn:aws:sagemaker:us-east-1:081325390199:image/datascience-1.0"
SLOW = "import time\ntime.sleep(2)"


def deferrable(local: LocalStudio, path: str, **arguments: Any) -> SageMakerStudioNotebookOperator:
    kernel = {} if local.flavour != "classic" else {"kernel_name": CLASSIC}
    return operator(local, path, **{"deferrable": True, "defer_after": 0, **kernel, **arguments})


def defer(task: Any, ti: TaskInstance) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context_with(ti))
    assert deferred.value.method_name == "execute_complete"
    return deferred.value


def rebuilt(deferred: TaskDeferred) -> BaseTrigger:
    """Make the trigger as a triggerer does, from what Airflow keeps in its database."""
    path, arguments = deferred.trigger.serialize()
    module, _, name = path.rpartition(".")
    trigger: BaseTrigger = getattr(import_module(module), name)(**json.loads(json.dumps(arguments)))
    return trigger


def fire(trigger: BaseTrigger) -> dict[str, Any]:
    async def first() -> dict[str, Any]:
        events = [json.loads(json.dumps(event.payload)) async for event in trigger.run()]
        await trigger.cleanup()
        (event,) = events
        return dict(event)

    return asyncio.run(first())
