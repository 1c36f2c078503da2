"""Waits until a user's Studio is ready to run notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_smstudio import _values as values
from airflow_provider_smstudio._arguments import STUDIO_TEMPLATE_FIELDS, StudioArguments
from airflow_provider_smstudio._compat import (
    AirflowException,
    AirflowFailException,
    BaseSensorOperator,
    conf,
    first_started,
)
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

    The sensor starts nothing, though Studio Classic itself starts its app at a login. It ends at once, without
    waiting for the timeout, when waiting cannot help:

    * the app is in a state that it does not leave by itself (``Failed``): the task fails with the
      service's reason;
    * the app is stopped or was never started: the task fails, unless ``wait_for_start`` is set;
    * the settings are wrong, or domain, user profile or space do not exist: the task fails.

    Such a failure is retried as ``retries`` says. ``soft_fail`` skips the task in the first two cases and
    at the timeout; wrong settings fail it all the same. ``silent_fail`` goes on after errors that may pass
    (a throttled call, a network fault); where waiting cannot help the task then fails without any retry.

    :param studio_conn_id: the connection of type ``sagemaker_studio`` (templated). None: no connection.
    :param domain_id: the domain's ID (templated). Default: the Studio connection's.
    :param user_profile_name: the user profile to log in as (templated). Default: the connection's.
    :param space_name: the space whose JupyterLab app is awaited (templated). Default: the connection's.
    :param app_type: ``JupyterLab``, or ``JupyterServer`` for Studio Classic (templated). Default: the
        connection's, else ``JupyterLab``.
    :param wait_for_start: wait for a stopped or never started app too, because someone else will start it.
    :param aws_conn_id: the AWS connection (templated); None for boto3's own credential chain. Default, and
        an empty string: that of the Studio connection, else ``aws_default``.
    :param region_name: the domain's AWS region (templated). Default: the Studio connection's, then the AWS
        connection's, then boto3's.
    :param verify: how the AWS API's certificates are checked, as in the amazon provider (templated). A CA
        bundle's path is used for Studio too; False is not.
    :param botocore_config: arguments of :class:`botocore.config.Config` for the AWS clients.
    :param poke_interval: seconds between two looks. Default 30.
    :param timeout: seconds after which the task fails. Default 30 minutes.
    :param mode: ``poke``, or ``reschedule`` to free the worker slot between two looks.
    :param deferrable: wait in the triggerer, which needs no worker slot; ``mode`` then says nothing. Default:
        Airflow's ``[operators] default_deferrable``.
    """

    template_fields: Sequence[str] = STUDIO_TEMPLATE_FIELDS
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
        """Look once whether Studio is ready.

        :param context: the context of the task instance.
        :return: True when a notebook can be run now.
        :raises AppError: if the app does not become ready by waiting.
        :raises StudioError: if the settings are wrong or the look failed.
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
        """Wait; see the class. With ``deferrable`` only the first look is made here.

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
            self.log.warning("%s; waiting goes on", error)
            return False

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> None:
        """Take what the trigger has found.

        :param context: the context of the task instance.
        :param event: the trigger's event.
        :raises AppError: if the app does not become ready by waiting.
        :raises StudioError: if the settings are wrong or looking failed.
        """
        status = (event or {}).get("status")
        if status == "success":
            self.log.info("Studio is ready%s", _elapsed(context, " after %s"))
            return
        if event is None or status != "error":
            raise StudioError(f"the trigger sent an event that means nothing here: {status!r}")
        error = from_plain(event.get("error") or {})
        if isinstance(error, (AppError, InvalidInputError, ResourceNotFoundError)):
            self._give_up(error)
        raise error

    def _give_up(self, error: StudioError) -> NoReturn:
        """End the sensor with an error that no further look would change.

        :param error: why.
        :raises AirflowFailException: if ``soft_fail`` is to skip the task, or ``silent_fail`` would go on
            looking; Airflow's sensors treat every other class as a passing error.
        :raises StudioError: the error itself otherwise, so that the task's retries apply.
        """
        # Under soft_fail an AirflowFailException skips the task, which wrong settings must not do.
        skips = self.soft_fail and isinstance(error, AppError)
        if skips or self.silent_fail:
            raise AirflowFailException(str(error)) from error
        raise error


def _title(settings: StudioSettings) -> str:
    if settings.space_name:
        return f"the {settings.app_type} app of space {settings.space_name!r}"
    return f"the {settings.app_type} app of user profile {settings.user_profile_name!r}"


def _elapsed(context: Context, template: str) -> str:
    """Return how long the sensor has been waiting, put into a template; nothing outside of a task run."""
    started = first_started(context)
    if started is None:
        return ""
    elapsed = datetime.now(timezone.utc) - started
    return template % timedelta(seconds=max(0, round(elapsed.total_seconds())))
