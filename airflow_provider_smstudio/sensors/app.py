"""Waits until a user's Studio is ready to run notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_smstudio._arguments import STUDIO_TEMPLATE_FIELDS, StudioArguments
from airflow_provider_smstudio._compat import AirflowFailException, BaseSensorOperator, first_started
from airflow_provider_smstudio.studio.errors import (
    AppError,
    AppFailedError,
    AppNotReadyError,
    InvalidInputError,
    LoginLinkExpiredError,
    ResourceNotFoundError,
    StudioError,
)

if TYPE_CHECKING:
    from airflow_provider_smstudio._compat import Context
    from airflow_provider_smstudio.hooks.studio import StudioSettings

_STOPPED = ("Deleted", "NotFound")


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

    def poke(self, context: Context) -> bool:
        """Look once whether Studio is ready.

        :param context: the context of the task instance.
        :return: True when a notebook can be run now.
        :raises AppError: if the app does not become ready by waiting.
        :raises StudioError: if the settings are wrong or the look failed.
        """
        hook = self.make_hook()
        try:
            with closing(hook.get_studio()) as studio:
                studio.check_ready()
        except AppNotReadyError as err:
            finding = f"{_title(hook.settings)} is {err.status}" if err.status else str(err)
            if err.status in _STOPPED and not self.wait_for_start:
                self._give_up(_not_waiting(finding, err))
        except LoginLinkExpiredError as err:
            # The link was made a moment ago, so this is an app that does not run yet, seen by a role that
            # may not describe apps.
            finding = str(err)
        except (AppFailedError, InvalidInputError, ResourceNotFoundError) as err:
            self._give_up(err)
        else:
            self.log.info("Studio is ready%s", _elapsed(context, " after %s"))
            return True
        self.log.info("Waiting%s: %s", _elapsed(context, " for %s so far"), finding)
        return False

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


def _not_waiting(finding: str, error: AppNotReadyError) -> AppNotReadyError:
    return AppNotReadyError(
        f"{finding}, and the sensor starts no app: start it before this task, or set wait_for_start=True if "
        "something else starts it meanwhile",
        **error.fields,
    )


def _elapsed(context: Context, template: str) -> str:
    """Return how long the sensor has been waiting, put into a template; nothing outside of a task run."""
    started = first_started(context)
    if started is None:
        return ""
    elapsed = datetime.now(timezone.utc) - started
    return template % timedelta(seconds=max(0, round(elapsed.total_seconds())))
