from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

import airflow_provider_smstudio
from airflow_provider_smstudio import _compat
from tests.provider.running import context_with

PACKAGE = Path(airflow_provider_smstudio.__file__).parent
EARLY = datetime(2026, 11, 1, tzinfo=timezone.utc)
LATE = datetime(2026, 11, 2, tzinfo=timezone.utc)


def test_every_exported_name_exists():
    assert [name for name in _compat.__all__ if not hasattr(_compat, name)] == []


def test_compat_imports_without_any_warning():
    # In a process of its own, where nothing of Airflow is imported yet and warnings count from the start.
    subprocess.run([sys.executable, "-W", "error", "-c", "import airflow_provider_smstudio._compat"], check=True)


def test_compat_gives_the_classes_that_airflow_itself_uses():
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
    from airflow.providers.amazon.aws.sensors.base_aws import AwsBaseSensor

    assert issubclass(AwsBaseHook, _compat.BaseHook)
    assert issubclass(AwsBaseSensor, _compat.BaseSensorOperator)
    assert issubclass(_compat.BaseSensorOperator, _compat.BaseOperator)
    assert issubclass(_compat.AirflowFailException, _compat.AirflowException)
    assert isinstance(_compat.NOTSET, _compat.ArgNotSet)


def test_no_other_module_imports_airflow_itself():
    # The amazon provider is no part of Airflow's own interface, and the local Studio's wire has no Airflow.
    others = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "_compat.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.strip().startswith(("from airflow.", "import airflow."))
        and not line.strip().startswith("from airflow.providers.amazon.aws.hooks.base_aws import ")
    ]
    assert others == []


def test_parsing_a_dag_imports_neither_boto_nor_the_studio_client():
    # `import airflow` itself may load boto3 (a secrets backend, a plugin), so count what we add.
    code = (
        "import sys, airflow_provider_smstudio._compat\n"
        "before = set(sys.modules)\n"
        "import airflow_provider_smstudio.sensors.app, airflow_provider_smstudio.hooks.studio\n"
        "import airflow_provider_smstudio.links.notebook\n"
        "print(*sorted(m for m in set(sys.modules) - before if not m.startswith('airflow_provider')))\n"
        "print('airflow_provider_smstudio.studio.client' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    added, client = done.stdout.splitlines()[-2:]
    roots = {name.partition(".")[0] for name in added.split()}
    assert roots & {"boto3", "botocore", "requests", "websocket", "nbformat", "airflow"} == set()
    assert client == "False"


def test_first_started_of_a_rescheduled_task_is_the_first_try_on_airflow_3():
    ti = SimpleNamespace(get_first_reschedule_date=lambda context: EARLY, start_date=LATE)
    assert _compat.first_started(context_with(ti)) == EARLY


def test_first_started_of_a_task_that_was_never_rescheduled_is_its_start():
    ti = SimpleNamespace(get_first_reschedule_date=lambda context: None, start_date=LATE)
    assert _compat.first_started(context_with(ti)) == LATE


def test_first_started_on_airflow_2_is_the_start_date_that_airflow_restored():
    assert _compat.first_started(context_with(SimpleNamespace(start_date=EARLY))) == EARLY


def test_first_started_is_unknown_outside_of_a_task():
    assert _compat.first_started({}) is None


def test_a_task_below_a_supervisor_knows_it(monkeypatch):
    assert _compat.supervisor_pid() is None  # nobody runs us as a task
    try:
        from airflow.sdk.execution_time import task_runner
    except ImportError:
        return  # 2.11: no task depends on its supervisor
    from airflow.sdk.execution_time.comms import CommsDecoder
    from airflow.sdk.execution_time.supervisor import InProcessSupervisorComms

    for kind, known in ((CommsDecoder, os.getppid()), (InProcessSupervisorComms, None)):
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", object.__new__(kind), raising=False)
        assert _compat.supervisor_pid() == known


@pytest.mark.parametrize("told", [False, True])
def test_a_triggerer_asks_once_before_it_has_to_know(monkeypatch, told):
    """Unless Airflow itself tells triggers that their task was killed, as from 3.3 on."""

    class Trigger:
        if told:

            async def on_kill(self) -> None: ...

    asked = []

    async def is_deferred(trigger):
        asked.append(trigger)
        raise LookupError("it is gone")

    monkeypatch.setattr(_compat, "_has_asked", False)
    monkeypatch.setattr(_compat, "BaseTrigger", Trigger)
    monkeypatch.setattr(_compat, "is_deferred", is_deferred)
    for _ in range(2):
        asyncio.run(_compat.get_ready_to_ask("trigger"))  # type: ignore[arg-type]  # it is only passed on
    assert asked == ([] if told else ["trigger"])
