"""Removes what lost workers have left on Studio."""

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
    """Removes the kernels of notebook runs that nobody came back to.

    A worker that is killed without a word leaves its kernel to the task's next try; where none comes, it stays
    and holds memory, and on Studio Classic an instance. Only sessions of this provider are looked at, by their
    paths; a run counts as abandoned when nobody is connected to its kernel, and nothing has happened in it and
    nobody has come to it for so long. Studio Classic does not tell of connections: there the time must be longer
    than the longest run. The app must be running; nothing is removed from one that is not.

    :param older_than_hours: for how long a run must have been left alone, in hours. Default 24.
    :param report_only: remove nothing, only tell. Default False.
    :param studio_conn_id: the connection of type ``sagemaker_studio``. Default: no connection, all by arguments.
    :param domain_id: the domain's ID. Default: the Studio connection's.
    :param user_profile_name: the user profile to log in as. Default: the Studio connection's.
    :param space_name: the space. Default: the Studio connection's.
    :param app_type: ``JupyterLab``, or ``JupyterServer`` for Studio Classic. Default: the Studio connection's,
        else ``JupyterLab``.
    :param aws_conn_id: the AWS connection; None for boto3's own credential chain. Default, and an empty string:
        that of the Studio connection, else ``aws_default``.
    :param region_name: the domain's AWS region. Default: the Studio connection's, then the AWS connection's.
    :param verify: how certificates are checked, as in the amazon provider.
    :param botocore_config: arguments of :class:`botocore.config.Config` for the AWS clients.
    :return: the names of the Jupyter sessions that were removed; they begin with DAG, task and run.
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
        """Remove what is abandoned; see the class.

        :param context: the context of the task instance.
        """
        hours = values.number(self.older_than_hours)
        dry_run = values.flag("report_only", self.report_only)
        with closing(self.make_hook().get_studio()) as studio:
            studio.check_ready()
            runs = studio.remove_abandoned_runs(hours, dry_run=dry_run)
        for run in runs:
            self.log.info("%s %s, left alone for %.1f h", "found" if dry_run else "removed", run.name, run.hours)
        self.log.info("%s abandoned runs", len(runs) or "no")
        return [run.name for run in runs]
