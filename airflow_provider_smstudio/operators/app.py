"""The operators that start and stop the Studio app, as setup and teardown tasks of a DAG."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_smstudio import _argument_values as values
from airflow_provider_smstudio._compat import AirflowTaskTimeout, conf, other_runs
from airflow_provider_smstudio._studio_arguments import STUDIO_TEMPLATE_FIELDS
from airflow_provider_smstudio.operators.base import SageMakerStudioBaseOperator
from airflow_provider_smstudio.studio.errors import InvalidInputError, StudioError, from_plain

if TYPE_CHECKING:
    from airflow_provider_smstudio._compat import Context
    from airflow_provider_smstudio.studio.sagemaker.app_start import StartRequest, Step
    from airflow_provider_smstudio.studio.sagemaker.app_stop import StopRequest

_TIMEOUT_GRACE = 60.0


class _AppOperator(SageMakerStudioBaseOperator):
    """The common part of the start and the stop operator: both wait in the worker or in the triggerer."""

    ui_color = "#e0ecf5"
    action = ""

    def __init__(
        self,
        *,
        holder: str | None = None,
        timeout: float | str = 1800,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.holder = holder
        self.timeout = timeout
        self.deferrable = deferrable

    def _holder(self, context: Context) -> str:
        ti = context["ti"]
        return values.optional_text("holder", self.holder) or f"{ti.dag_id}.{ti.run_id}"

    def _until(self) -> float:
        return time.time() + (values.seconds("timeout", self.timeout) or 1800.0)

    def _wait(self, step: Callable[[], Step], until: float) -> Step:
        """Take steps until no step is left, and log each new state.

        :return: the last step.
        :raises AirflowTaskTimeout: at the timeout.
        """
        told = ""
        while True:
            found = step()
            if found.text != told:
                self.log.info("%s", found.text)
                told = found.text
            if found.wait is None:
                return found
            left = until - time.time()
            if left <= 0:
                raise AirflowTaskTimeout(f"{found.text}, after {values.number(self.timeout):g} s")
            time.sleep(min(found.wait, left))

    def _defer(self, request: dict[str, Any], until: float, requested_at: float | None = None) -> NoReturn:
        from airflow_provider_smstudio.triggers.app_change import SageMakerStudioAppChangeTrigger

        self.defer(
            trigger=SageMakerStudioAppChangeTrigger(
                studio=self.hook_arguments(),
                action=self.action,
                request=request,
                until=until,
                requested_at=requested_at,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=max(until - time.time(), 0) + _TIMEOUT_GRACE),
        )

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the trigger, or raise its error.

        :param context: the context of the task instance.
        :param event: the trigger's event.
        :return: as ``execute``.
        :raises AirflowTaskTimeout: at the timeout.
        :raises StudioError: as ``execute``.
        """
        status = (event or {}).get("status")
        if event is not None and status == "success":
            self.log.info("%s", event["result"]["text"])
            return dict(event["result"])
        if event is None or status not in ("error", "timeout"):
            raise StudioError(f"the trigger sent an event with the unknown status {status!r}")
        error = from_plain(event.get("error") or {})
        raise AirflowTaskTimeout(str(error)) if status == "timeout" else error


class SageMakerStudioStartAppOperator(_AppOperator):
    """Starts the app of a space, unless it runs, and holds it until the stop operator releases it.

    Use it as a setup task. Any number of DAG runs may run it at the same time. If the app is already running, or
    another user or DAG run is starting it, the operator uses that app. The *hold* is a tag on the app. It shows a
    :class:`SageMakerStudioStopAppOperator`, in this DAG or any other, that the app is in use.

    AWS would start an app on its own default instance type, not on that of the space. So this operator passes the
    space's ``DefaultResourceSpec``. ``resource_spec`` and ``instance_type`` take precedence over it. If there is
    no capacity, it continues with ``fallback_instance_types``. After the last type it waits, and then continues
    with the first one, until the timeout. Each pause is longer than the one before, up to a limit. A quota or a
    wrong specification fails the task at once, with the message from AWS.

    :param instance_type: the instance type (templated). Default: that of the space.
    :param fallback_instance_types: instance types to try, in this order, if there is no capacity (templated).
    :param resource_spec: further fields of SageMaker's ``ResourceSpec``: ``SageMakerImageArn``,
        ``SageMakerImageVersionArn``, ``SageMakerImageVersionAlias``, ``LifecycleConfigArn``, ``TrainingPlanArn``
        (templated). Default: the values of the space.
    :param hold_hours: hours after which the hold expires, even if the DAG run is lost (templated). Default 24.
    :param holder: the name of the hold. Use the same text for start and stop (templated). Default: the DAG ID and
        the run ID.
    :param timeout: how long to wait for the app, in seconds (templated). Default 1800.
    :param deferrable: wait in the triggerer. Default: Airflow's ``[operators] default_deferrable``.
    :param kwargs: which Studio to use, with which AWS credentials: see
        :class:`~airflow_provider_smstudio.operators.base.SageMakerStudioBaseOperator`.
    :return: a dict. ``text`` says what was done, ``started`` whether this task started the app, and
        ``instance_type`` which instance type it runs on.
    :raises AppFailedError: if the app cannot be started.
    :raises StudioError: see :mod:`airflow_provider_smstudio.studio.errors`.
    """

    template_fields: Sequence[str] = (
        "instance_type",
        "fallback_instance_types",
        "resource_spec",
        "hold_hours",
        "holder",
        "timeout",
        *STUDIO_TEMPLATE_FIELDS,
    )
    template_fields_renderers = {"resource_spec": "json", "botocore_config": "json"}
    action = "start"

    def __init__(
        self,
        *,
        instance_type: str | None = None,
        fallback_instance_types: Sequence[str] = (),
        resource_spec: Mapping[str, str] | None = None,
        hold_hours: float | str = 24,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.instance_type = instance_type
        self.fallback_instance_types = fallback_instance_types
        self.resource_spec = resource_spec
        self.hold_hours = hold_hours

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the app; see the class.

        :param context: the context of the task instance.
        """
        from airflow_provider_smstudio.studio.sagemaker.app_start import AppStarter

        request, until = self._request(context), self._until()
        with closing(self.make_hook().get_studio()) as studio:
            starter = AppStarter(studio.control_plane, request)
            if self.deferrable:
                first = starter.step()
                self.log.info("%s", first.text)
                if first.wait is not None:
                    self._defer(_plain(request), until, starter.requested_at)
                return starter.result(first)
            return starter.result(self._wait(starter.step, until))

    def _request(self, context: Context) -> StartRequest:
        from airflow_provider_smstudio.studio.sagemaker.app_start import StartRequest

        spec = self.resource_spec or {}
        fallback = self.fallback_instance_types
        if not isinstance(spec, Mapping):
            raise InvalidInputError(f"resource_spec must be a dict, not {type(spec).__name__}")
        if isinstance(fallback, str) or not all(isinstance(item, str) and item for item in fallback):
            raise InvalidInputError(f"fallback_instance_types must be a list of instance types, not {fallback!r}")
        instance_type = values.optional_text("instance_type", self.instance_type)
        return StartRequest(
            holder=self._holder(context),
            resource_spec={**spec, **({"InstanceType": instance_type} if instance_type else {})},
            fallback_instance_types=list(fallback),
            hold_hours=values.hours("hold_hours", self.hold_hours),
        )


class SageMakerStudioStopAppOperator(_AppOperator):
    """Releases the DAG run's hold on the app, and stops the app if nothing else needs it.

    Use it as a teardown task. The task leaves the app running, and succeeds,

    * if a :class:`SageMakerStudioStartAppOperator` did not start it, unless ``started_by="anyone"``;
    * while another DAG run holds it, of this DAG or another one;
    * while further runs of this DAG are queued, as in a backfill: the last one stops it;
    * while other sessions are busy, including those of users, unless ``if_busy`` is set otherwise.

    To stop an app, SageMaker deletes it. The files of the space stay. If the app is already stopped, the task
    succeeds.

    :param started_by: ``airflow`` (default): stop only an app that this provider started. ``anyone``: stop any app
        (templated).
    :param if_busy: what to do while other sessions are busy: ``leave`` the app running (default), ``wait`` until
        the timeout, ``fail``, or ``stop`` it anyway (templated).
    :param idle_minutes: how long a session counts as busy after its last activity, in minutes (templated).
        Default 15.
    :param linger: how long to wait for other *running* DAG runs of this DAG, in seconds (templated). They may need
        the app, although they do not hold it at the moment. Default 120.
    :param wait_for_completion: wait until the app is deleted (templated). Default True.
    :param holder: the name of the hold. Use the same text for start and stop (templated). Default: the DAG ID and
        the run ID.
    :param timeout: the time limit of the task, in seconds (templated). Default 1800.
    :param deferrable: wait in the triggerer. Default: Airflow's ``[operators] default_deferrable``.
    :param kwargs: which Studio to use, with which AWS credentials: see
        :class:`~airflow_provider_smstudio.operators.base.SageMakerStudioBaseOperator`.
    :return: a dict. ``text`` says what was done and why, ``stopped`` whether the app is stopped.
    :raises AppInUseError: with ``if_busy="fail"``, or if the app's tags cannot be read.
    :raises StudioError: see :mod:`airflow_provider_smstudio.studio.errors`.
    """

    template_fields: Sequence[str] = (
        "started_by",
        "if_busy",
        "idle_minutes",
        "linger",
        "wait_for_completion",
        "holder",
        "timeout",
        *STUDIO_TEMPLATE_FIELDS,
    )
    template_fields_renderers = {"botocore_config": "json"}
    action = "stop"

    def __init__(
        self,
        *,
        started_by: str = "airflow",
        if_busy: str = "leave",
        idle_minutes: float | str = 15,
        linger: float | str = 120,
        wait_for_completion: bool | str = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.started_by = started_by
        self.if_busy = if_busy
        self.idle_minutes = idle_minutes
        self.linger = linger
        self.wait_for_completion = wait_for_completion

    def execute(self, context: Context) -> dict[str, Any]:
        """Stop the app; see the class.

        :param context: the context of the task instance.
        """
        from airflow_provider_smstudio.studio.sagemaker.app_stop import AppStopper

        request, until = self._request(context), self._until()
        dag_id = context["ti"].dag_id
        with closing(self.make_hook().get_studio()) as studio:
            stopper = AppStopper(
                studio.control_plane, studio.server, request, other_runs=partial(other_runs, dag_id)
            )
            if self.deferrable:
                first = stopper.step()
                self.log.info("%s", first.text)
                if first.wait is not None:
                    self._defer({**_plain(request), "dag_id": dag_id}, until)
                return stopper.result(first)
            return stopper.result(self._wait(stopper.step, until))

    def _request(self, context: Context) -> StopRequest:
        from airflow_provider_smstudio.studio.sagemaker.app_stop import IF_BUSY, STARTED_BY, StopRequest

        return StopRequest(
            holder=self._holder(context),
            started_by=values.choice("started_by", self.started_by, STARTED_BY),
            if_busy=values.choice("if_busy", self.if_busy, IF_BUSY),
            idle_minutes=values.duration("idle_minutes", self.idle_minutes),
            linger=values.duration("linger", self.linger),
            wait_for_completion=values.flag("wait_for_completion", self.wait_for_completion),
        )


def _plain(request: StartRequest | StopRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__dataclass_fields__}


def sagemaker_studio_app(
    *,
    group_id: str = "studio_app",
    start: Mapping[str, Any] | None = None,
    stop: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Start the app before the tasks of a ``with`` block, and stop it after them, even if they fail.

    ::

        with sagemaker_studio_app(studio_conn_id="studio", start={"instance_type": "ml.m5.xlarge"}):
            SageMakerStudioNotebookOperator(task_id="report", notebook_path="a.ipynb", studio_conn_id="studio")

    The two tasks are an Airflow setup and teardown. If the app cannot be stopped, the DAG run does not fail. If
    you clear a task between them, Airflow clears them as well. But if you clear only failed tasks, it does not:
    then clear the whole DAG run.

    :param group_id: the end of the task IDs, which are ``start_<group_id>`` and ``stop_<group_id>``.
    :param start: further arguments of :class:`SageMakerStudioStartAppOperator`.
    :param stop: further arguments of :class:`SageMakerStudioStopAppOperator`.
    :param arguments: arguments of both operators.
    :return: the teardown task, as a context manager.
    """
    setup = SageMakerStudioStartAppOperator(task_id=f"start_{group_id}", **{**arguments, **(start or {})})
    teardown = SageMakerStudioStopAppOperator(task_id=f"stop_{group_id}", **{**arguments, **(stop or {})})
    return teardown.as_teardown(setups=setup)
