"""The operator that removes the kernels that lost workers have left on Studio."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from airflow_provider_smstudio import _values as values
from airflow_provider_smstudio._arguments import STUDIO_TEMPLATE_FIELDS, StudioArguments
from airflow_provider_smstudio._compat import BaseOperator

if TYPE_CHECKING:
    from airflow_provider_smstudio._compat import Context


class SageMakerStudioCleanupOperator(StudioArguments, BaseOperator):
    """Removes the kernels of abandoned runs.

    A killed worker leaves its kernel to the task's next try. If no try follows, the kernel stays and uses memory,
    and on Studio Classic an instance. The operator removes only Jupyter sessions of this provider, which it finds
    by their paths. A run is abandoned if no client is connected to its kernel and the run has been inactive for
    ``older_than_hours``: there was no activity in the kernel, and no process took over the run. Studio Classic
    does not report connections: there the time must be longer than the longest run. If the app is not running, the
    task fails and removes nothing.

    :param older_than_hours: the minimum time without activity, in hours. Default 24.
    :param report_only: only report the abandoned runs, remove nothing. Default False.
    :param studio_conn_id: the connection of type ``sagemaker_studio``. Default: none. Then give all
        settings as arguments.
    :param domain_id: the domain's ID. Default: the value of the Studio connection.
    :param user_profile_name: the user profile to log in as. Default: the value of the Studio connection.
    :param space_name: the space. Default: the value of the Studio connection.
    :param app_type: ``JupyterLab``, or ``JupyterServer`` for Studio Classic. Default: the value of the Studio
        connection, else ``JupyterLab``.
    :param aws_conn_id: the AWS connection; None for boto3's own credential chain. Default (also for an empty
        string): the value of the Studio connection, else ``aws_default``.
    :param region_name: the domain's AWS region. Default: the region of the Studio connection, else that of the AWS
        connection.
    :param verify: how to check the certificates of the AWS API, as in the amazon provider. The path of a CA bundle
        is also used for Studio, but ``False`` is not.
    :param botocore_config: arguments of :class:`botocore.config.Config` for the AWS clients.
    :return: the names of the Jupyter sessions that were removed, or only found with ``report_only``. They begin
        with DAG, task and run.
    :raises StudioError: see :mod:`airflow_provider_smstudio.studio.errors`.
    """

    template_fields: Sequence[str] = ("older_than_hours", "report_only", *STUDIO_TEMPLATE_FIELDS)
    template_fields_renderers = {"botocore_config": "json"}
    ui_color = "#e0ecf5"

    def __init__(
        self,
        *,
        older_than_hours: float | str = 24,
        report_only: bool | str = False,
        studio_conn_id: str | None = None,
        domain_id: str | None = None,
        user_profile_name: str | None = None,
        space_name: str | None = None,
        app_type: str | None = None,
        aws_conn_id: str | None = "",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.older_than_hours = older_than_hours
        self.report_only = report_only
        self.studio_conn_id = studio_conn_id
        self.domain_id = domain_id
        self.user_profile_name = user_profile_name
        self.space_name = space_name
        self.app_type = app_type
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config

    def execute(self, context: Context) -> list[str]:
        """Remove the abandoned runs; see the class.

        :param context: the context of the task instance.
        """
        hours = values.number(self.older_than_hours)
        dry_run = values.flag("report_only", self.report_only)
        with closing(self.make_hook().get_studio()) as studio:
            studio.check_ready()
            runs = studio.remove_abandoned_runs(hours, dry_run=dry_run)
        for run in runs:
            self.log.info("%s %s, inactive for %.1f h", "found" if dry_run else "removed", run.name, run.hours)
        self.log.info("%s abandoned runs", len(runs) or "no")
        return [run.name for run in runs]
