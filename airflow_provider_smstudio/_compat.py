"""The one module that knows Airflow's versions.

Each name is taken from where it is at home: ``airflow.sdk`` in Airflow 3, the old places in 2.11, and
both in 3.0 and 3.1, which had not moved everything yet. None of these imports warns on any version.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Types are checked against the newest Airflow; the branches below give the same names at run time.
    from airflow.sdk import BaseHook, BaseOperator, BaseOperatorLink, BaseSensorOperator, Context
    from airflow.sdk.definitions._internal.types import NOTSET, ArgNotSet
    from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException
    from airflow.sdk.execution_time.xcom import XCom
    from airflow.sdk.log import mask_secret
else:
    try:  # 3.0+
        from airflow.sdk import BaseOperator, BaseOperatorLink, BaseSensorOperator, Context
        from airflow.sdk.definitions._internal.types import NOTSET, ArgNotSet
        from airflow.sdk.execution_time.xcom import XCom
        from airflow.sdk.log import mask_secret
    except ImportError:  # 2.11
        from airflow.models.baseoperator import BaseOperator
        from airflow.models.baseoperatorlink import BaseOperatorLink
        from airflow.models.xcom import XCom
        from airflow.sensors.base import BaseSensorOperator
        from airflow.utils.context import Context
        from airflow.utils.log.secrets_masker import mask_secret
        from airflow.utils.types import NOTSET, ArgNotSet

    try:  # 3.1+
        from airflow.sdk import BaseHook
    except ImportError:  # 2.11, 3.0
        from airflow.hooks.base import BaseHook

    try:  # 3.2+
        from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException
    except ImportError:  # 2.11, 3.0, 3.1
        from airflow.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException

__all__ = [
    "NOTSET",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "ArgNotSet",
    "BaseHook",
    "BaseOperator",
    "BaseOperatorLink",
    "BaseSensorOperator",
    "Context",
    "XCom",
    "first_started",
    "mask_secret",
]


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
