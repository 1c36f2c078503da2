"""The one module that knows Airflow's versions.

Each name is taken from where it is at home: ``airflow.sdk`` in Airflow 3, the old places in 2.11, and
both in 3.0 and 3.1, which had not moved everything yet. None of these imports warns on any version.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

if TYPE_CHECKING:
    # Of a provider that need not be there: for annotations only.
    from airflow.providers.openlineage.extractors import OperatorLineage as OperatorLineage

    # Types are checked against the newest Airflow; the branches below give the same names at run time.
    from airflow.sdk import (
        Asset,
        AssetAlias,
        BaseHook,
        BaseOperator,
        BaseOperatorLink,
        BaseSensorOperator,
        Context,
    )
    from airflow.sdk._shared.secrets_masker import mask_secret as mask_secret_here
    from airflow.sdk.configuration import conf
    from airflow.sdk.definitions._internal.types import NOTSET, ArgNotSet
    from airflow.sdk.definitions.asset import AssetRef
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowTaskTimeout,
    )
    from airflow.sdk.execution_time.xcom import XCom
    from airflow.sdk.log import mask_secret
    from airflow.triggers.base import BaseTrigger, TriggerEvent
else:
    from airflow.triggers.base import BaseTrigger, TriggerEvent

    try:  # 3.0+
        from airflow.sdk import Asset, AssetAlias, BaseOperator, BaseOperatorLink, BaseSensorOperator, Context
        from airflow.sdk.definitions._internal.types import NOTSET, ArgNotSet
        from airflow.sdk.definitions.asset import AssetRef
        from airflow.sdk.execution_time.xcom import XCom
        from airflow.sdk.log import mask_secret
    except ImportError:  # 2.11
        from airflow.datasets import Dataset as Asset
        from airflow.datasets import DatasetAlias as AssetAlias
        from airflow.models.baseoperator import BaseOperator
        from airflow.models.baseoperatorlink import BaseOperatorLink
        from airflow.models.xcom import XCom
        from airflow.sensors.base import BaseSensorOperator
        from airflow.utils.context import Context
        from airflow.utils.log.secrets_masker import mask_secret
        from airflow.utils.types import NOTSET, ArgNotSet

        AssetRef = Asset  # has none

    # Masks in this process only, from any thread. In a triggerer mask_secret would also tell the supervisor, which
    # Airflow 3.0 to 3.2 can do from the event loop's own thread only.
    try:  # 3.1+
        from airflow.sdk._shared.secrets_masker import mask_secret as mask_secret_here
    except ImportError:
        try:  # 3.0
            from airflow.sdk.execution_time.secrets_masker import _secrets_masker
        except ImportError:  # 2.11
            mask_secret_here = mask_secret
        else:
            _tell_all = mask_secret

            def mask_secret_here(secret: Any, name: str | None = None) -> None:
                """Mask a secret in this process only."""
                _secrets_masker().add_mask(secret, name)

            def mask_secret(secret: Any, name: str | None = None) -> None:
                """Mask a secret. ``dags test`` has no supervisor, and would print here what it tells it."""
                from airflow.sdk.execution_time import task_runner

                mask_secret_here(secret, name)
                if type(getattr(task_runner, "SUPERVISOR_COMMS", None)).__name__ != "InProcessSupervisorComms":
                    _tell_all(secret, name)

    try:  # 3.1+
        from airflow.sdk import BaseHook
    except ImportError:  # 2.11, 3.0
        from airflow.hooks.base import BaseHook

    try:  # 3.2+
        from airflow.sdk.configuration import conf
        from airflow.sdk.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowNotFoundException,
            AirflowTaskTimeout,
        )
    except ImportError:  # 2.11, 3.0, 3.1
        from airflow.configuration import conf
        from airflow.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowNotFoundException,
            AirflowTaskTimeout,
        )

__all__ = [
    "NOTSET",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowTaskTimeout",
    "ArgNotSet",
    "Asset",
    "AssetAlias",
    "AssetRef",
    "BaseHook",
    "BaseOperator",
    "BaseOperatorLink",
    "BaseSensorOperator",
    "BaseTrigger",
    "Context",
    "TriggerEvent",
    "XCom",
    "conf",
    "first_started",
    "get_ready_to_ask",
    "is_deferred",
    "mask_secret",
    "mask_secret_here",
    "other_runs",
    "outlet_extras",
    "own_lineage",
    "policy_forbids_retry",
    "state_of",
    "supervisor_pid",
    "was_killed",
]

_KILLED = "__airflow_user_action__"


def first_started(context: Context) -> datetime | None:
    """Return when the task began, before any reschedule of a sensor; None outside of a task run.

    :param context: the context of the task instance.
    """
    ti: Any = context.get("ti")
    if ti is None:
        return None
    # 3.x gives a rescheduled sensor's run a new start date and keeps the first one on the server;
    # 2.11 restores the first one itself.
    ask_server = getattr(ti, "get_first_reschedule_date", None)
    first = ask_server(context) if ask_server is not None else None
    started: datetime | None = first or ti.start_date
    return started


def other_runs(dag_id: str) -> tuple[int, int]:
    """Count the other runs of a DAG that is running, from a task or a trigger of one of them.

    :param dag_id: the DAG.
    :return: how many are queued, and how many are running beside this one.
    """
    try:  # 3.0+
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
    except ImportError:  # 2.11
        from airflow.models.dagrun import DagRun
        from airflow.utils.state import DagRunState

        queued, running = (
            len(DagRun.find(dag_id=dag_id, state=state)) for state in (DagRunState.QUEUED, DagRunState.RUNNING)
        )
    else:
        queued, running = (
            RuntimeTaskInstance.get_dr_count(dag_id=dag_id, states=[state]) for state in ("queued", "running")
        )
    return queued, max(running - 1, 0)


def was_killed(error: asyncio.CancelledError) -> bool:
    """Tell whether a trigger was cancelled because somebody acted on its task; from 3.3 on the error says so."""
    return bool(error.args) and error.args[0] == _KILLED


async def is_deferred(trigger: BaseTrigger) -> bool:
    """Tell whether a trigger's task still waits for it; then the trigger is only being moved.

    A trigger that ``airflow dags test`` runs in its own process is never moved. It has no ID, which a triggerer
    gives to each of its triggers.

    :param trigger: a trigger that was cancelled.
    """
    if trigger.trigger_id is None:
        return False
    ti: Any = trigger.task_instance
    if ti is None:
        return True
    try:
        return await sync_to_async(state_of)(ti) == "deferred"
    except LookupError:
        return False


_has_asked = False


async def get_ready_to_ask(trigger: BaseTrigger) -> None:
    """Ask once in this process how a trigger's task stands, so that a later question is answered at once.

    The first one takes a triggerer's supervisor of Airflow 3.0 to 3.2 some seconds, in which it builds the whole
    Execution API (measured with 3.2.1); a person who kills a deferred task would have to wait for that. From 3.3
    on nothing is asked, because Airflow itself says that a person has killed the task.

    :param trigger: the trigger, which has begun.
    """
    global _has_asked
    if _has_asked or hasattr(BaseTrigger, "on_kill"):
        return
    _has_asked = True
    with suppress(Exception):  # whoever needs the answer asks again
        await is_deferred(trigger)


def state_of(ti: Any) -> str | None:
    """Ask Airflow for the state of a task instance; None before it is scheduled.

    :param ti: the task instance as a task or a trigger has it.
    :raises LookupError: when there is no such task instance any more.
    """
    try:  # 3.0+
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
    except ImportError:  # 2.11
        return _state_in_database(ti)
    index = ti.map_index
    states = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=index
    )
    found: dict[str, Any] = states.get(ti.run_id) or {}
    state = found[ti.task_id if index is None or index < 0 else f"{ti.task_id}_{index}"]
    return None if state is None else str(state)


def _state_in_database(ti: Any) -> str | None:
    """Read the state of a task instance, as 2.11 lets tasks do, and change nothing of what this process knows.

    ``refresh_from_db`` would also take over the try number, which may be a later try's by then.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    key = {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id, "map_index": ti.map_index}
    with create_session() as session:
        row = session.query(TaskInstance.state).filter_by(**key).one_or_none()
    if row is None:
        raise LookupError(f"there is no task instance {key}")
    return None if row[0] is None else str(row[0])


def supervisor_pid() -> int | None:
    """Return the process through which this task logs and asks: its parent; None where there is none.

    2.11 has none that a task depends on, and ``dags test`` runs the task within its own process.
    """
    try:  # 3.0+
        from airflow.sdk.execution_time import task_runner
    except ImportError:  # 2.11
        return None
    comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
    return os.getppid() if type(comms).__name__ == "CommsDecoder" else None


def policy_forbids_retry(context: Context, error: Exception) -> bool:
    """Tell whether the task's retry policy (3.3 and later) lets no try follow an error, though tries are left.

    :param context: the context of the task instance.
    :param error: what the task fails by.
    """
    ti: Any = context["ti"]
    policy = getattr(getattr(ti, "task", None), "retry_policy", None)
    if policy is None:
        return False
    try:
        decision = policy.evaluate(
            exception=error, try_number=ti.try_number, max_tries=ti.max_tries, context=context
        )
        return str(getattr(decision.action, "value", decision.action)) == "fail"
    except Exception:  # Airflow then goes by the number of tries, too
        return False


def outlet_extras(context: Context, outlet: Any, uri: str | None) -> Iterator[dict[str, Any]]:
    """Give what a task may tell with the event of an outlet, to be filled in.

    :param context: the context of the running task instance.
    :param outlet: one of the task's outlets.
    :param uri: what an asset alias stands for: an asset that is added to it, unless somebody has done so already;
        None for none.
    :return: the extra of each event; nothing for an outlet that is neither an asset nor an alias.
    """
    if isinstance(outlet, (Asset, AssetRef)):
        yield context["outlet_events"][outlet].extra
    elif isinstance(outlet, AssetAlias) and uri is not None:
        yield _alias_extra(context["outlet_events"][outlet], Asset(uri))


def _alias_extra(accessor: Any, asset: Any) -> dict[str, Any]:
    """Return the extra of an asset's event that comes through an alias; the event is added where there is none."""
    name = "asset_alias_events" if hasattr(accessor, "asset_alias_events") else "dataset_alias_events"  # 2.11

    def extras() -> list[dict[str, Any]]:
        events = getattr(accessor, name)
        if name == "dataset_alias_events":
            return [event["extra"] for event in events if event["dest_dataset_uri"] == asset.uri]
        return [event.extra for event in events if event.dest_asset_key.uri == asset.uri]

    if not extras():
        accessor.add(asset)
    return extras()[-1]


def own_lineage(task: Any, task_instance: Any) -> OperatorLineage[Any, Any]:
    """Return what OpenLineage's provider tells of a task's own inlets and outlets.

    The provider does so only for tasks that tell nothing themselves, and an old one leaves assets out.

    :param task: the operator.
    :param task_instance: its task instance.
    """
    from airflow.providers.openlineage.extractors import ExtractorManager, OperatorLineage
    from airflow.providers.openlineage.utils import utils

    lineage: OperatorLineage[Any, Any] = OperatorLineage()
    manager = ExtractorManager()
    extract = manager.extract_inlets_and_outlets
    # Newer ones look for what was added to aliases, too.
    more = {"task_instance": task_instance} if "task_instance" in inspect.signature(extract).parameters else {}
    extract(lineage, task, **more)
    for declared, found in ((task.inlets, lineage.inputs), (task.outlets, lineage.outputs)):
        left_out = [
            one for one in declared if isinstance(one, Asset) and manager.convert_to_ol_dataset(one) is None
        ]
        found += [named for one in left_out if (named := utils.translate_airflow_asset(one, None)) is not None]
    return lineage
