"""A triggerer that a test can kill: watches over one run in a process of its own, and prints what happens.

Its argument is JSON with ``options`` for the client and ``run``, what the worker has handed over.
"""

from __future__ import annotations

import asyncio
import json
import sys

import boto3

from airflow_provider_smstudio.studio import Studio
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.runs.handover import Handover
from airflow_provider_smstudio.studio.runs.shared_resources import SharedResources
from airflow_provider_smstudio.studio.runs.watcher import NotebookWatcher


def say(event: ev.Event) -> None:
    number = getattr(getattr(event, "cell", None), "number", "")
    sys.stdout.write(f"event {type(event).__name__} {number}\n")
    sys.stdout.flush()


async def main() -> None:
    asked = json.loads(sys.argv[1])

    async def make() -> Studio:
        return Studio(boto3.client("sagemaker"), **asked["options"])

    async with SharedResources.use() as resources, resources.studio("one", make) as shared:
        watcher = NotebookWatcher(resources, shared, Handover.from_dict(asked["run"]), listener=say)
        await watcher.watch()
        await watcher.leave()


asyncio.run(main())
