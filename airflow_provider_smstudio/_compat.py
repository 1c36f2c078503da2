"""The only module that depends on the version of Airflow.

Each name is imported from its own place in that version: ``airflow.sdk`` in Airflow 3, the older modules in
2.11. Airflow 3.0 and 3.1 need both, because they had not moved every name yet. None of these imports raises a
warning on any version.
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
    # For annotations only: the OpenLineage provider may not be installed.
    from airflow.providers.openlineage.extractors import OperatorLineage as OperatorLineage

    # mypy checks the types against the newest Airflow. The branches below provide the same names at run time.
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

        AssetRef = Asset  # 2.11 has no AssetRef

    # Masks in this process only, and works from any thread. In a triggerer, mask_secret also sends the secret to
    # the supervisor. In Airflow 3.0 to 3.2 only the event loop's own thread can do that.
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
                """Mask a secret. ``dags test`` has no supervisor and would print it, so nothing is sent there."""
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
    """Return when the task started, before any reschedule of a sensor. Return None outside of a task run.

    :param context: the context of the task instance.
    """
    ti: Any = context.get("ti")
    if ti is None:
        return None
    # In 3.x a rescheduled sensor gets a new start date, and the API server keeps the first one. 2.11 restores the
    # first one itself.
    ask_server = getattr(ti, "get_first_reschedule_date", None)
    first = ask_server(context) if ask_server is not None else None
    started: datetime | None = first or ti.start_date
    return started


def other_runs(dag_id: str) -> tuple[int, int]:
    """Count the other runs of a DAG. The caller is a task or a trigger of a running DAG run.

    :param dag_id: the DAG.
    :return: how many are queued, and how many are running besides the caller's DAG run.
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
    """Return whether a trigger was cancelled because a user killed its task. Only 3.3 and later report this."""
    return bool(error.args) and error.args[0] == _KILLED


async def is_deferred(trigger: BaseTrigger) -> bool:
    """Return whether a trigger's task still waits for the trigger. If so, Airflow only moves the trigger.

    ``airflow dags test`` runs a trigger in its own process and never moves it. Such a trigger has no ID, because
    only a triggerer gives IDs to its triggers.

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
    """Ask once per process for the state of a trigger's task, so that a later request gets its reply at once.

    In Airflow 3.0 to 3.2 the first reply takes some seconds. The triggerer's supervisor builds the whole Execution
    API for it (measured with 3.2.1). A user who kills a deferred task would have to wait for that. In 3.3 and
    later nothing is asked, because Airflow itself reports that a user has killed the task.

    :param trigger: the trigger, which has started.
    """
    global _has_asked
    if _has_asked or hasattr(BaseTrigger, "on_kill"):
        return
    _has_asked = True
    with suppress(Exception):  # a later request asks again
        await is_deferred(trigger)


def state_of(ti: Any) -> str | None:
    """Return the state of a task instance, as Airflow reports it. Return None before it is scheduled.

    :param ti: the task instance, as a task or a trigger has it.
    :raises LookupError: if the task instance no longer exists.
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
    """Read the state of a task instance from the database, which 2.11 allows. Do not change the task instance.

    ``refresh_from_db`` would also change the try number, which may be that of a later try by then.
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
    """Return the process ID of this task's supervisor, which is its parent. Return None if there is no supervisor.

    The task sends its log lines and its requests to the supervisor. In 2.11 a task does not depend on one, and
    ``dags test`` runs the task in its own process.
    """
    try:  # 3.0+
        from airflow.sdk.execution_time import task_runner
    except ImportError:  # 2.11
        return None
    comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
    return os.getppid() if type(comms).__name__ == "CommsDecoder" else None


def policy_forbids_retry(context: Context, error: Exception) -> bool:
    """Return whether the retry policy (3.3 and later) forbids a retry after an error, even if tries are left.

    :param context: the context of the task instance.
    :param error: the error that the task fails with.
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
    except Exception:  # in this case Airflow also uses only the number of tries
        return False


def outlet_extras(context: Context, outlet: Any, uri: str | None) -> Iterator[dict[str, Any]]:
    """Yield the extra of each event of an outlet. The caller fills it in.

    :param context: the context of the running task instance.
    :param outlet: one of the task's outlets.
    :param uri: the URI of the asset that is added to an asset alias, unless the alias has it already. None: add no
        asset.
    :return: the extra of each event. Nothing for an outlet that is neither an asset nor an alias.
    """
    if isinstance(outlet, (Asset, AssetRef)):
        yield context["outlet_events"][outlet].extra
    elif isinstance(outlet, AssetAlias) and uri is not None:
        yield _alias_extra(context["outlet_events"][outlet], Asset(uri))


def _alias_extra(accessor: Any, asset: Any) -> dict[str, Any]:
    """Return the extra of the event of an asset in an alias. Add the event if there is none."""
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
    """Return what OpenLineage's provider reports about a task's own inlets and outlets.

    The provider does this only for tasks that report nothing themselves. Old versions of it leave assets out.

    :param task: the operator.
    :param task_instance: its task instance.
    """
    from airflow.providers.openlineage.extractors import ExtractorManager, OperatorLineage
    from airflow.providers.openlineage.utils import utils

    lineage: OperatorLineage[Any, Any] = OperatorLineage()
    manager = ExtractorManager()
    extract = manager.extract_inlets_and_outlets
    # Newer versions also look for the assets that were added to aliases.
    more = {"task_instance": task_instance} if "task_instance" in inspect.signature(extract).parameters else {}
    extract(lineage, task, **more)
    for declared, found in ((task.inlets, lineage.inputs), (task.outlets, lineage.outputs)):
        left_out = [
            one for one in declared if isinstance(one, Asset) and manager.convert_to_ol_dataset(one) is None
        ]
        found += [named for one in left_out if (named := utils.translate_airflow_asset(one, None)) is not None]
    return lineage
