"""The request of a caller for a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_provider_smstudio.studio.errors import InvalidInputError
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.notebook.paths import clean_path

RESUME = ("auto", "failed_cell", "never")
ON_UNKNOWN_CELL = ("fail", "rerun")


@dataclass(frozen=True)
class RunSpec:
    """A notebook to run. All times are in seconds.

    :ivar notebook_path: the notebook, below the Studio home.
    :ivar output_path: the path of the executed notebook, below the Studio home. Default: beside the source, in a
        folder ``<name>-runs``, which is created.
    :ivar parameters: values for the notebook's parameters.
    :ivar strict_parameters: refuse parameters that the notebook's parameters cell does not assign.
    :ivar upload_from: a local file or an ``s3://`` object that is first copied to ``notebook_path``. It replaces
        an existing file. Missing folders are created.
    :ivar kernel_name: the kernel. Default: the kernel that the notebook names.
    :ivar instance_type: Studio Classic only: the instance under the kernel. Default: the instance type that the
        notebook names, else the one of the kernelspec.
    :ivar allow_errors: continue after cells that raise an error.
    :ivar cell_timeout: limit for each cell; None for no limit.
    :ivar kernel_start_timeout: limit for the kernel's start. In Classic this time includes the start of an
        instance, if one is needed.
    :ivar create_output_folder: create the folder of ``output_path`` if it is missing.
    :ivar delete_kernel_app: Studio Classic only: delete the KernelGateway app afterwards, unless other kernels
        use it.
    :ivar run_name: the name of the run, for the default output path and for the Jupyter session.
    :ivar run_key: the same text for each try of one run. With it, a later try finds the kernel and the notebook
        of an earlier try. None for a run that no later try continues.
    :ivar resume: what a later try does. ``auto``: continue a run whose process was lost, but start from the first
        cell after a cell's error. ``failed_cell``: also continue after a cell's error, from that cell. ``never``:
        always start from the first cell.
    :ivar retry_series: the same text for all tries that follow each other automatically, as Airflow's retries do.
        A user who wants the notebook to run again begins a new series. A try may complete the run and be lost
        before it reports so. Then a later try of the series reports it, and runs nothing. The run of another
        series is not continued, except with ``failed_cell``. None if the series is not known.
    :ivar try_number: counts the tries, from 1.
    :ivar retries: the maximum number of retries, None if it is not known. If it has changed since an earlier try,
        a user may want the notebook to run again.
    :ivar will_retry: whether another try follows if this one fails. Then the kernel is kept if that try could use
        it.
    :ivar on_unknown_cell: what to do about a cell that may have run, if its end is unknown: ``fail`` or ``rerun``.
    :ivar reconnect_timeout: for how long to try to reconnect to the kernel after a lost connection.
    :ivar record_mib: MiB of unsaved output that an IPython kernel may keep. So no output is lost with a connection
        or to the server's rate limit. 0 for none.
    :ivar skip_if_output_complete: run nothing if the executed notebook already exists and is complete. It must
        have the same cells, parameters and kernel.
    """

    notebook_path: str
    output_path: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict_parameters: bool = True
    upload_from: str | None = None
    kernel_name: str | None = None
    instance_type: str | None = None
    allow_errors: bool = False
    cell_timeout: float | None = None
    kernel_start_timeout: float = 600.0
    create_output_folder: bool = False
    delete_kernel_app: bool = True
    run_name: str = "run"
    run_key: str | None = None
    retry_series: str | None = None
    try_number: int = 1
    retries: int | None = None
    resume: str = "auto"
    will_retry: bool = False
    on_unknown_cell: str = "fail"
    reconnect_timeout: float = 600.0
    record_mib: float = 100.0
    skip_if_output_complete: bool = False

    def check(self) -> None:
        """Reject wrong settings before the client sends any request.

        :raises InvalidInputError: with the setting and its value.
        """
        clean_path(self.notebook_path, "notebook_path")
        if self.output_path is not None:
            clean_path(self.output_path, "output_path")
        for name, choices in (("resume", RESUME), ("on_unknown_cell", ON_UNKNOWN_CELL)):
            if getattr(self, name) not in choices:
                wanted = ", ".join(map(repr, choices))
                raise InvalidInputError(f"{name} must be one of {wanted}, not {getattr(self, name)!r}")
        if not _is_number(self.record_mib) or not 0 <= self.record_mib < math.inf:
            raise InvalidInputError(f"record_mib must be a number of MiB, not {self.record_mib!r}")
        for name in ("cell_timeout", "kernel_start_timeout", "reconnect_timeout"):
            value = getattr(self, name)
            # Only cells may run for any time.
            if (value is not None or name != "cell_timeout") and (not _is_number(value) or not value > 0):
                raise InvalidInputError(f"{name} must be a positive number of seconds, not {value!r}")
        if not isinstance(self.parameters, Mapping):
            raise InvalidInputError(f"parameters must be a dict, not {type(self.parameters).__name__}")

    def run_options(self, *, start_timeout: float, classic: bool) -> RunOptions:
        """Return the limits and switches of a run.

        :param start_timeout: how many seconds the kernel has until its first answer.
        """
        options = RunOptions(
            allow_errors=self.allow_errors,
            cell_timeout=self.cell_timeout,
            kernel_start_timeout=start_timeout,
            reconnect_timeout=self.reconnect_timeout,
            record_limit=int(self.record_mib * 2**20),
            on_unknown_cell=self.on_unknown_cell,
            replays=not classic,
        )
        # In Classic, each kernel runs in its own app, so that a second kernel cannot see its process.
        return replace(options, crash_check_after=None) if classic else options


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
