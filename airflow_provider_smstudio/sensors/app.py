"""The sensor that waits until a user's Studio is ready to run notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_smstudio import _argument_values as values
from airflow_provider_smstudio._compat import (
    AirflowException,
    AirflowFailException,
    BaseSensorOperator,
    conf,
    first_started,
)
from airflow_provider_smstudio._studio_arguments import STUDIO_TEMPLATE_FIELDS, StudioArguments
from airflow_provider_smstudio.studio.errors import (
    AppError,
    InvalidInputError,
    ResourceNotFoundError,
    StudioError,
    from_plain,
)

if TYPE_CHECKING:
    from airflow_provider_smstudio._compat import Context
    from airflow_provider_smstudio.hooks.studio import StudioSettings


class SageMakerStudioAppSensor(StudioArguments, BaseSensorOperator):
    """Waits until the Studio app is in service and its Jupyter server answers a logged-in client.

    The sensor does not start the app, although Studio Classic itself starts its app at a login. If waiting cannot
    help, the sensor ends at once and does not wait for the timeout:

    * The app is in a final state (``Failed``): the task fails with the reason that AWS gives.
    * The app is stopped or was never started: the task fails, unless ``wait_for_start`` is set.
    * The settings are wrong, or the domain, user profile or space does not exist: the task fails.

    Airflow retries such a task as ``retries`` says. ``soft_fail`` skips the task in the first two cases and at the
    timeout. Wrong settings always fail the task. With ``silent_fail`` the sensor keeps waiting after temporary
    errors (a throttled call, a network fault). In the three cases above the task then fails without a retry.

    :param studio_conn_id: the connection of type ``sagemaker_studio`` (templated). None: no connection.
    :param domain_id: the domain's ID (templated). Default: the value of the Studio connection.
    :param user_profile_name: the user profile to log in as (templated). Default: the value of the Studio
        connection.
    :param space_name: the space whose JupyterLab app must be ready (templated). Default: the value of the Studio
        connection.
    :param app_type: ``JupyterLab``, or ``JupyterServer`` for Studio Classic (templated). Default: the value of the
        Studio connection, else ``JupyterLab``.
    :param wait_for_start: also wait for an app that is stopped or was never started, because something else will
        start it. Default False.
    :param aws_conn_id: the AWS connection (templated); None for boto3's own credential chain. Default (also for an
        empty string): the value of the Studio connection, else ``aws_default``.
    :param region_name: the domain's AWS region (templated). Default: the region of the Studio connection, else
        that of the AWS connection, else boto3's.
    :param verify: how to check the certificates of the AWS API, as in the amazon provider (templated). The path of
        a CA bundle is also used for Studio, but ``False`` is not.
    :param botocore_config: arguments of :class:`botocore.config.Config` for the AWS clients (templated).
    :param poke_interval: seconds between two checks. Default 30.
    :param timeout: seconds after which the task fails. Default 1800 (30 minutes).
    :param mode: ``poke``, or ``reschedule`` to free the worker slot between two checks.
    :param deferrable: wait in the triggerer, which needs no worker slot. ``mode`` is then ignored. Default:
        Airflow's ``[operators] default_deferrable``.
    """

    template_fields: Sequence[str] = STUDIO_TEMPLATE_FIELDS
    template_fields_renderers = {"botocore_config": "json"}
    ui_color = "#e0ecf5"

    def __init__(
        self,
        *,
        studio_conn_id: str | None = None,
        domain_id: str | None = None,
        user_profile_name: str | None = None,
        space_name: str | None = None,
        app_type: str | None = None,
        wait_for_start: bool = False,
        aws_conn_id: str | None = "",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        poke_interval: timedelta | float = 30,
        timeout: timedelta | float = 30 * 60,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        self.studio_conn_id = studio_conn_id
        self.domain_id = domain_id
        self.user_profile_name = user_profile_name
        self.space_name = space_name
        self.app_type = app_type
        self.wait_for_start = wait_for_start
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config
        self.deferrable = deferrable

    def poke(self, context: Context) -> bool:
        """Check once whether Studio is ready.

        :param context: the context of the task instance.
        :return: True if a notebook can run now.
        :raises AppError: if waiting does not make the app ready.
        :raises StudioError: if the settings are wrong or the check failed.
        """
        from airflow_provider_smstudio.studio.sagemaker.readiness import look

        hook = self.make_hook()
        try:
            with closing(hook.get_studio()) as studio:
                title = _title(hook.settings)
                wait = values.flag("wait_for_start", self.wait_for_start)
                found = look(studio.check_ready, title=title, wait_for_start=wait, patient=False)
        except (AppError, InvalidInputError, ResourceNotFoundError) as err:
            self._give_up(err)
        if found.ready:
            self.log.info("Studio is ready%s", _elapsed(context, " after %s"))
            return True
        self.log.info("Waiting%s: %s", _elapsed(context, " for %s so far"), found.text)
        return False

    def execute(self, context: Context) -> Any:
        """Wait; see the class. With ``deferrable`` this makes only the first check.

        :param context: the context of the task instance.
        """
        if not self.deferrable:
            return super().execute(context)
        if not self._first_look(context):
            self._defer()
        return None

    def _defer(self) -> NoReturn:
        from airflow_provider_smstudio.triggers.app import SageMakerStudioAppTrigger

        trigger = SageMakerStudioAppTrigger(
            studio=self.hook_arguments(),
            wait_for_start=values.flag("wait_for_start", self.wait_for_start),
            poke_interval=float(self.poke_interval),
        )
        timeout = timedelta(seconds=float(self.timeout))
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timeout)

    def _first_look(self, context: Context) -> bool:
        try:
            return self.poke(context)
        except (AirflowException, InvalidInputError, ResourceNotFoundError, AppError):
            raise
        except StudioError as error:
            if not self.silent_fail:
                raise
            self.log.warning("%s; the sensor keeps waiting", error)
            return False

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> None:
        """Log the result of the trigger, or raise its error.

        :param context: the context of the task instance.
        :param event: the trigger's event.
        :raises AppError: if waiting does not make the app ready.
        :raises StudioError: if the settings are wrong or a check failed.
        """
        status = (event or {}).get("status")
        if status == "success":
            self.log.info("Studio is ready%s", _elapsed(context, " after %s"))
            return
        if event is None or status != "error":
            raise StudioError(f"the trigger sent an event with the unknown status {status!r}")
        error = from_plain(event.get("error") or {})
        if isinstance(error, (AppError, InvalidInputError, ResourceNotFoundError)):
            self._give_up(error)
        raise error

    def _give_up(self, error: StudioError) -> NoReturn:
        """End the sensor with an error that further checks cannot change.

        :param error: the error.
        :raises AirflowFailException: if ``soft_fail`` must skip the task, or if ``silent_fail`` is set. With
            ``silent_fail`` Airflow's sensors treat every other error class as temporary and continue.
        :raises StudioError: otherwise the error itself, so that Airflow retries the task.
        """
        # With soft_fail an AirflowFailException skips the task, which must not happen for wrong settings.
        skips = self.soft_fail and isinstance(error, AppError)
        if skips or self.silent_fail:
            raise AirflowFailException(str(error)) from error
        raise error


def _title(settings: StudioSettings) -> str:
    if settings.space_name:
        return f"the {settings.app_type} app of space {settings.space_name!r}"
    return f"the {settings.app_type} app of user profile {settings.user_profile_name!r}"


def _elapsed(context: Context, template: str) -> str:
    """Return the template with the time that the sensor has waited. Return "" outside of a task run."""
    started = first_started(context)
    if started is None:
        return ""
    elapsed = datetime.now(timezone.utc) - started
    return template % timedelta(seconds=max(0, round(elapsed.total_seconds())))
