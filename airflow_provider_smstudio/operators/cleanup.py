"""The operator that removes the kernels that lost workers have left on Studio."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from airflow_provider_smstudio import _argument_values as values
from airflow_provider_smstudio._studio_arguments import STUDIO_TEMPLATE_FIELDS
from airflow_provider_smstudio.operators.base import SageMakerStudioBaseOperator

if TYPE_CHECKING:
    from airflow_provider_smstudio._compat import Context


class SageMakerStudioCleanupOperator(SageMakerStudioBaseOperator):
    """Removes the kernels of abandoned runs.

    A killed worker leaves its kernel to the task's next try. If no try follows, the kernel stays and uses memory,
    and on Studio Classic an instance. The operator removes only Jupyter sessions of this provider, which it finds
    by their paths. A run is abandoned if no client is connected to its kernel and the run has been inactive for
    ``older_than_hours``: there was no activity in the kernel, and no process took over the run. Studio Classic
    does not report connections: there the time must be longer than the longest run. If the app is not running, the
    task fails and removes nothing.

    :param older_than_hours: the minimum time without activity, in hours. Default 24.
    :param report_only: only report the abandoned runs, remove nothing. Default False.
    :param kwargs: which Studio to use, with which AWS credentials: see
        :class:`~airflow_provider_smstudio.operators.base.SageMakerStudioBaseOperator`.
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.older_than_hours = older_than_hours
        self.report_only = report_only

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
