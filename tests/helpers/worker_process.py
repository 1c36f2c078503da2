"""A worker that a test can kill: runs one notebook in a process of its own.

Its argument is JSON with ``options`` for the client and ``spec`` for the notebook, and where these shall be others
than usual ``run_options`` and ``channel``: the limits by which it notices what is broken. It prints each event's
name, and at the end the result or the error; on SIGUSR1 it shows where its threads are.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
import sys
from dataclasses import replace
from typing import Any

import boto3

from airflow_provider_smstudio.studio import RunSpec, Studio
from airflow_provider_smstudio.studio.errors import StudioError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.jupyter import websocket
from airflow_provider_smstudio.studio.runs import spec
from airflow_provider_smstudio.studio.runs.log import RunLog


def main() -> None:
    logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
    faulthandler.register(signal.SIGUSR1)
    asked = json.loads(sys.argv[1])
    for name, value in asked.get("channel", {}).items():
        setattr(websocket, name, value)
    quick = RunOptions(**asked.get("run_options", {}))

    def options(**given: Any) -> RunOptions:
        return replace(quick, **given)

    spec.RunOptions = options  # type: ignore[attr-defined, assignment]  # patched
    studio = Studio(boto3.client("sagemaker"), **asked["options"])
    live = RunLog(lambda level, line: say(line))

    def listener(event: ev.Event) -> None:
        live(event)
        say(f"event {type(event).__name__}")

    try:
        result = studio.runner(RunSpec(**asked["spec"]), listener=listener).run()
    except StudioError as error:
        say(f"error {type(error).__name__}: {error}")
    else:
        say(f"result {json.dumps(result.as_dict())}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


main()
