"""The operator that runs a notebook on the user's own Studio."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_smstudio import _argument_values as values
from airflow_provider_smstudio._compat import (
    AirflowFailException,
    AirflowTaskTimeout,
    conf,
    policy_forbids_retry,
)
from airflow_provider_smstudio._run_name import run_name
from airflow_provider_smstudio._studio_arguments import STUDIO_TEMPLATE_FIELDS
from airflow_provider_smstudio._task_process import (
    TaskProcess,
    deadline_of,
    retries,
    retry_series,
    try_number,
    will_retry,
)
from airflow_provider_smstudio.links.notebook import SageMakerStudioNotebookLink
from airflow_provider_smstudio.operators.base import SageMakerStudioBaseOperator
from airflow_provider_smstudio.studio.errors import (
    AppNotReadyError,
    CellError,
    RunTakenOverError,
    StudioError,
    UnknownOutcomeError,
    from_plain,
)

if TYPE_CHECKING:
    from airflow_provider_smstudio._compat import Context, OperatorLineage
    from airflow_provider_smstudio._lineage import RunLineage
    from airflow_provider_smstudio.studio.runs.handover import Handover
    from airflow_provider_smstudio.studio.runs.runner import NotebookRunner
    from airflow_provider_smstudio.studio.runs.spec import RunSpec

_DEADLINE_GRACE = 60.0


class SageMakerStudioNotebookOperator(SageMakerStudioBaseOperator):
    """Runs a notebook cell by cell on a new kernel of the user's own Studio app.

    The app must be running: put a :class:`SageMakerStudioAppSensor` before this task. The output of the cells
    appears live in the task's log. For a failed cell, the log shows its source and traceback. The executed
    notebook is saved in the Studio home during the run, and always before the task ends. At the end the kernel and
    its Jupyter session are removed, unless a retry continues on them. Killing the task interrupts the cell.

    All arguments except ``deferrable`` are templated. The task checks them when it runs, before it starts a
    kernel.

    Assets in ``outlets`` get the facts of the run. An asset alias gets the executed notebook as its asset
    (:mod:`airflow_provider_smstudio.assets`). If OpenLineage is set up, it receives both.

    :param notebook_path: the path of the notebook, relative to the Studio home, such as ``reports/daily.ipynb``.
    :param output_path: the path of the executed notebook, relative to the Studio home. Default: a folder beside
        the source, which is created: ``reports/daily-runs/<dag>.<task>.<run>.ipynb``. A retry of the same run
        writes to the same path.
    :param parameters: values for the notebook's parameters, as in papermill: a new cell sets them, after the cell
        tagged ``parameters``. A value may be None, bool, int, float, str, date, datetime, timedelta, list, tuple,
        dict or set. It is written as a literal of the kernel's language (Python, R or Scala) and never becomes
        code. Airflow's own containers, such as the output of a mapped task, become lists and dicts. To get other
        types than text from a template, set ``render_template_as_native_obj=True`` in the DAG.
    :param strict_parameters: refuse parameters that the notebook's parameters cell does not assign.
        Default True.
    :param upload_from: a file on the worker, or an ``s3://`` URL. The task copies it to ``notebook_path`` before
        the run.
    :param kernel_name: the kernel. Default: the kernel stored in the notebook, or the closest one that the app
        has.
    :param instance_type: Studio Classic only: the instance type for the kernel. Default: the one stored in the
        notebook, else that of the kernelspec.
    :param allow_errors: continue after cells that raise an error. Default False. Cells tagged ``raises-exception``
        may always raise one. Cells tagged ``skip-execution`` are not run.
    :param cell_timeout: the longest time for one cell, in seconds. Then the cell is interrupted and the task
        fails. Default: no limit.
    :param kernel_start_timeout: the longest time for the start of the kernel, in seconds. Default 600.
    :param create_output_folder: create the folder of ``output_path`` if it is missing. Default False.
    :param delete_kernel_app: Studio Classic only: delete the KernelGateway app (the instance) after the run,
        unless other kernels use it. Default True.
    :param resume: how a retry continues the run of an earlier try. ``auto`` (default): if only the worker or the
        connection was lost, continue on the same kernel, and run no cell twice. After an error in a cell, start
        from the first cell on a new kernel. ``failed_cell``: after an error in a cell, also continue, from that
        cell. The kernel is kept until the last try. ``never``: always start from the first cell on a new kernel.
    :param on_unknown_cell: what to do if it is unknown whether a cell ran: ``fail`` (default, without a retry) or
        ``rerun``. This is the case if neither the server nor the kernel knows how the cell ended. It does not
        happen with IPython kernels that keep a record.
    :param reconnect_timeout: how long to try to reconnect to the kernel, in seconds. Default 600.
    :param record_mib: how much unsaved output an IPython kernel keeps in memory, in MiB. The run can then fetch
        output that was lost with a connection or because of the server's rate limits. Default 100; 0 for none.
    :param skip_if_output_complete: run nothing, and start no kernel, if the executed notebook is complete already.
        Complete means: no output is lost, and the cells, the parameters and the kernel are the same. The task
        succeeds. Its XCom reports that earlier run, and ``skipped`` is True. Use it to continue a backfill that
        stopped half-way. Default False.
    :param log_output: write the output of the cells to the task's log. Default True.
    :param kwargs: which Studio to use, with which AWS credentials: see
        :class:`~airflow_provider_smstudio.operators.base.SageMakerStudioBaseOperator`.
    :param deferrable: release the worker slot while the notebook runs, and watch the run in the triggerer.
        Default: Airflow's ``[operators] default_deferrable``.
    :param defer_after: with ``deferrable``: how long the worker watches the run first, in seconds, including the
        start of the kernel. A notebook that ends within this time is never deferred. Default 10.
    :param cancel_on_kill: with ``deferrable``: stop the run when the deferred task is cleared, or marked as
        failed or successful. Default True.
    :return: a small dict, see :class:`airflow_provider_smstudio.studio.RunResult`. It contains the values that the
        notebook publishes (see the README). Each of these values is also an XCom of its own, under its name.
    :raises StudioError: see :mod:`airflow_provider_smstudio.studio.errors`.
    """

    template_fields: Sequence[str] = (
        "notebook_path",
        "output_path",
        "parameters",
        "strict_parameters",
        "upload_from",
        "kernel_name",
        "instance_type",
        "allow_errors",
        "cell_timeout",
        "kernel_start_timeout",
        "create_output_folder",
        "delete_kernel_app",
        "resume",
        "on_unknown_cell",
        "reconnect_timeout",
        "record_mib",
        "skip_if_output_complete",
        "log_output",
        "defer_after",
        "cancel_on_kill",
        *STUDIO_TEMPLATE_FIELDS,
    )
    template_fields_renderers = {"parameters": "json", "botocore_config": "json"}
    operator_extra_links = (SageMakerStudioNotebookLink(),)
    ui_color = "#d4e7f5"

    def __init__(
        self,
        *,
        notebook_path: str,
        output_path: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        strict_parameters: bool | str = True,
        upload_from: str | None = None,
        kernel_name: str | None = None,
        instance_type: str | None = None,
        allow_errors: bool | str = False,
        cell_timeout: float | str | None = None,
        kernel_start_timeout: float | str = 600,
        create_output_folder: bool | str = False,
        delete_kernel_app: bool | str = True,
        resume: str = "auto",
        on_unknown_cell: str = "fail",
        reconnect_timeout: float | str = 600,
        record_mib: float | str = 100,
        skip_if_output_complete: bool | str = False,
        log_output: bool | str = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        defer_after: float | str = 10,
        cancel_on_kill: bool | str = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.notebook_path = notebook_path
        self.output_path = output_path
        self.parameters = parameters
        self.strict_parameters = strict_parameters
        self.upload_from = upload_from
        self.kernel_name = kernel_name
        self.instance_type = instance_type
        self.allow_errors = allow_errors
        self.cell_timeout = cell_timeout
        self.kernel_start_timeout = kernel_start_timeout
        self.create_output_folder = create_output_folder
        self.delete_kernel_app = delete_kernel_app
        self.resume = resume
        self.on_unknown_cell = on_unknown_cell
        self.reconnect_timeout = reconnect_timeout
        self.record_mib = record_mib
        self.skip_if_output_complete = skip_if_output_complete
        self.log_output = log_output
        self.deferrable = deferrable
        self.defer_after = defer_after
        self.cancel_on_kill = cancel_on_kill
        self._runner: NotebookRunner | None = None
        self._killed = False
        self._lineage: RunLineage | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the notebook; see the class.

        :param context: the context of the task instance.
        """
        from airflow_provider_smstudio._lineage import RunLineage
        from airflow_provider_smstudio.studio.runs.handover import Handover
        from airflow_provider_smstudio.studio.runs.log import RunLog

        after = values.duration("defer_after", self.defer_after) if self.deferrable else None
        cancel_on_kill = values.flag("cancel_on_kill", self.cancel_on_kill)
        process = TaskProcess(context)
        spec = replace(
            self._spec(run_name(context)),
            retry_series=retry_series(context),
            try_number=try_number(context),
            retries=retries(context),
            will_retry=will_retry(context),
        )
        listener = RunLog(
            lambda level, line: process.write(self.log, level, line),
            show_output=values.flag("log_output", self.log_output),
        )
        hook = self.make_hook()
        with closing(hook.get_studio()) as studio:
            lineage = self._lineage = RunLineage.of(spec, hook.settings)

            def announce(path: str) -> None:
                lineage.output_path = path
                url = studio.server.output_url(path)
                self.log.info("the executed notebook is at %s (%s)", path, url)
                SageMakerStudioNotebookLink.persist(context, url)

            try:
                runner = self._runner = studio.runner(
                    spec,
                    listener=listener,
                    on_output=announce,
                    leaves_run=process.leaves_run,
                    try_follows=process.try_follows,
                )
            except AppNotReadyError:
                self._name_setups()
                raise
            if self._killed:
                runner.stop("the task was killed", for_good=False)
            try:
                with process.follows(runner):
                    result = runner.run() if after is None else runner.run_or_hand_over(after)
            except UnknownOutcomeError as error:
                raise AirflowFailException(str(error)) from error  # a retry could run a cell twice
        if isinstance(result, Handover):
            self._hand_over(context, result, cancel_on_kill)
        return self._done(context, result.as_dict())

    def _name_setups(self) -> None:
        """Log which setup task the user must clear too: clearing only failed tasks leaves it out."""
        found = self.get_upstreams_only_setups() if self.upstream_task_ids else ()
        setups = sorted(task.task_id for task in found)
        if setups:
            self.log.error(
                "if %s started the app, clear that task as well, or clear the whole DAG run", ", ".join(setups)
            )

    def _hand_over(self, context: Context, handover: Handover, cancel_on_kill: bool) -> NoReturn:
        """Hand the run over to the triggerer, and release the worker slot."""
        from airflow_provider_smstudio.triggers.notebook import SageMakerStudioNotebookTrigger

        deadline = deadline_of(context, self.execution_timeout)
        self.log.info("deferred: the run continues in the triggerer")
        self.defer(
            trigger=SageMakerStudioNotebookTrigger(
                studio=self.hook_arguments(),
                handover=handover.as_dict(),
                log_output=values.flag("log_output", self.log_output),
                deadline=deadline,
                cancel_on_kill=cancel_on_kill,
            ),
            method_name="execute_complete",
            # The trigger itself ends the run at its deadline. This timeout is for a triggerer that does not.
            timeout=timedelta(seconds=deadline - time.time() + _DEADLINE_GRACE) if deadline else None,
        )

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the run that the triggerer has watched, or raise its error.

        :param context: the context of the task instance.
        :param event: the trigger's event.
        :return: as :meth:`execute`.
        :raises AirflowTaskTimeout: if the run took longer than ``execution_timeout``.
        :raises StudioError: as :meth:`execute`.
        """
        self._remember(context)
        status = (event or {}).get("status")
        if event is not None and status == "success":
            return self._done(context, dict(event["result"]))
        if event is None or status not in ("error", "timeout"):
            raise StudioError(f"the trigger sent an event with the unknown status {status!r}")
        error = from_plain(event.get("error") or {})
        if status == "timeout":
            raise AirflowTaskTimeout(str(error))
        if isinstance(error, UnknownOutcomeError):
            raise AirflowFailException(str(error)) from error  # a retry could run a cell twice
        if isinstance(error, CellError):
            error = self._whole(error)
        ours = not isinstance(error, RunTakenOverError)
        if ours and will_retry(context) and policy_forbids_retry(context, error):
            self._remove_run(context)
        raise error

    def _remove_run(self, context: Context) -> None:
        """Remove the kernel that the trigger may have left for the next try: it cannot ask the retry policy."""
        try:
            with closing(self.make_hook().get_studio()) as studio:
                studio.remove_run(self._spec(run_name(context)))
        except Exception as error:  # the task must still report how the run ended
            self.log.warning("the run's kernel may still be running: %s", error)

    def _remember(self, context: Context) -> None:
        """Rebuild the lineage in this process: another process has started the run."""
        from airflow_provider_smstudio._lineage import RunLineage
        from airflow_provider_smstudio.studio.notebook.document import default_output_path

        try:
            spec = self._spec(run_name(context))
            self._lineage = RunLineage.of(spec, self.make_hook().settings)
            self._lineage.output_path = spec.output_path or default_output_path(spec.notebook_path, spec.run_name)
        except Exception as error:  # the run is over, and the task must still report how it ended
            self.log.warning("the run's lineage is not known: %s", error)

    def _whole(self, error: CellError) -> StudioError:
        """Return the full error of a cell from the executed notebook. The event contains only its summary."""
        try:
            with closing(self.make_hook().get_studio()) as studio:
                return studio.full_error(error)
        except Exception as second:  # the summary helps more than a second error
            self.log.info("the executed notebook could not be read again: %s", second)
            return error

    def _done(self, context: Context, result: dict[str, Any]) -> dict[str, Any]:
        for name, value in result["values"].items():
            context["ti"].xcom_push(key=name, value=value)
        if self._lineage is not None:
            self._lineage.ended(result)
            self._lineage.tell_outlets(context, self.outlets)
        self.log.info(
            "%s: %s of %s cells ran in %.1f s; the executed notebook is %s",
            result["status"],
            result["cells_executed"],
            result["cells"],
            result["duration"],
            result["output_path"],
        )
        return result

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return what the run has read and written. OpenLineage's provider calls this at the end of the task.

        :param task_instance: the task instance.
        """
        from airflow_provider_smstudio._lineage import openlineage

        return openlineage(self._lineage, self, task_instance)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the same for a failed run, with the executed notebook if there is one."""
        return self.get_openlineage_facets_on_complete(task_instance)

    def on_kill(self) -> None:
        """Interrupt the cell, save the notebook and remove the kernel, unless a later try continues the run.

        A worker also kills its tasks when it must end, as in a rollout. So does a worker that Airflow has given up
        too early. Then the run is left to the next try; :mod:`airflow_provider_smstudio._task_process` decides.
        Airflow calls this in a signal handler, so it only requests the stop. The run ends within seconds.
        """
        self._killed = True
        if self._runner is not None:
            self._runner.stop("the task was killed", for_good=False)

    def _spec(self, name: str) -> RunSpec:
        from airflow_provider_smstudio.studio.runs.spec import RunSpec

        return RunSpec(
            notebook_path=values.text("notebook_path", self.notebook_path),
            output_path=values.optional_text("output_path", self.output_path),
            parameters=values.parameters(self.parameters),
            strict_parameters=values.flag("strict_parameters", self.strict_parameters),
            upload_from=values.optional_text("upload_from", self.upload_from),
            kernel_name=values.optional_text("kernel_name", self.kernel_name),
            instance_type=values.optional_text("instance_type", self.instance_type),
            allow_errors=values.flag("allow_errors", self.allow_errors),
            cell_timeout=values.seconds("cell_timeout", self.cell_timeout),
            kernel_start_timeout=values.seconds("kernel_start_timeout", self.kernel_start_timeout) or 600.0,
            create_output_folder=values.flag("create_output_folder", self.create_output_folder),
            delete_kernel_app=values.flag("delete_kernel_app", self.delete_kernel_app),
            run_name=name,
            run_key=name,
            resume=values.text("resume", self.resume),
            on_unknown_cell=values.text("on_unknown_cell", self.on_unknown_cell),
            reconnect_timeout=values.seconds("reconnect_timeout", self.reconnect_timeout) or 600.0,
            record_mib=values.mebibytes("record_mib", self.record_mib),
            skip_if_output_complete=values.flag("skip_if_output_complete", self.skip_if_output_complete),
        )
