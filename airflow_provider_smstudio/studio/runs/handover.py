"""Decisions that the runner (in a thread) and the watcher (on an event loop) make in the same way; pure."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import CellError, RunError, RunTakenOverError, StudioError
from airflow_provider_smstudio.studio.execution.events import CheckProcess
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.jupyter.kernel_probe import ProbeResult
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.runs import saved_run
from airflow_provider_smstudio.studio.runs.identity import Identity
from airflow_provider_smstudio.studio.runs.spec import RunResult, RunSpec

log = logging.getLogger(__name__)

KILL_GRACE = 1.0
"""Seconds that an interrupted cell has to end when its task is killed."""


@dataclass(frozen=True)
class Handover:
    """All that another process needs to continue a run. It is plain JSON, without secrets and parameters.

    :ivar spec: the run. Its output path is set. Its parameters are left out, since the notebook contains them.
    :ivar session_id: the ID of the Jupyter session.
    :ivar owner: the name of the process that hands over, as in the name of the Jupyter session. A process that
        continues the run on its behalf has a name that begins with this text. Processes of a later try do not.
    :ivar kernel_name: the name of the kernel.
    :ivar instance_type: the instance type under the kernel, if it is known.
    :ivar startup_seconds: see :class:`RunResult`.
    :ivar unbroken: whether nothing was lost so far: the process received every message and saved the notebook.
    :ivar resumed: whether an earlier try began the run.
    :ivar shown: how many outputs of the running cell the task's log already contains.
    :ivar memory_level: the memory level that the log already reports: :attr:`MemoryGauge.level`.
    """

    spec: RunSpec
    session_id: str
    owner: str
    kernel_name: str
    instance_type: str | None
    startup_seconds: float
    unbroken: bool
    resumed: bool
    shown: int = 0
    memory_level: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the hand-over as a dict of plain values."""
        return asdict(replace(self, spec=replace(self.spec, parameters={}, upload_from=None)))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Handover:
        """Build a hand-over from the dict of :meth:`as_dict`, perhaps of another version. Ignore unknown keys."""
        own, spec = ({field.name for field in dataclass_fields(kind)} for kind in (cls, RunSpec))
        known = {name: value for name, value in fields.items() if name in own}
        return cls(**{**known, "spec": RunSpec(**{k: v for k, v in fields["spec"].items() if k in spec})})


def run_options(spec: RunSpec, *, start_timeout: float, classic: bool) -> RunOptions:
    """Return the limits and switches of a run.

    :param start_timeout: how many seconds the kernel has until its first answer.
    """
    options = RunOptions(
        allow_errors=spec.allow_errors,
        cell_timeout=spec.cell_timeout,
        kernel_start_timeout=start_timeout,
        reconnect_timeout=spec.reconnect_timeout,
        record_limit=int(spec.record_mib * 2**20),
        on_unknown_cell=spec.on_unknown_cell,
        replays=not classic,
    )
    # In Classic, each kernel runs in its own app, so that a second kernel cannot see its process.
    return replace(options, crash_check_after=None) if classic else options


def session_path(spec: RunSpec, who: Identity) -> str:
    """Return the path of the run's Jupyter session."""
    return who.session_path(nb.clean_path(spec.notebook_path, "notebook_path"))


def keeps_kernel(spec: RunSpec, error: StudioError | None, *, stopped: bool, reached: bool) -> bool:
    """Return whether to keep the kernel for a process that continues the run.

    :param error: the error of the run, or of the last save of its notebook; None if there was none.
    :param stopped: whether the run was stopped on request.
    :param reached: whether a process of the run has ever reached the kernel.
    """
    if isinstance(error, RunTakenOverError):
        return True
    if error is None or stopped or not spec.will_retry or spec.run_key is None:
        return False
    if isinstance(error, CellError):
        return spec.resume == "failed_cell"
    # Only the connection to the kernel failed. The run itself may still continue.
    return not isinstance(error, RunError) and reached


def tell_silence(asked: CheckProcess) -> None:
    """Log for how long a kernel has been silent, and that its process is checked."""
    log.info(
        "no sign of life from the kernel for %.0f s: checking whether its process still exists", asked.silence
    )


def tell_finding(found: ProbeResult) -> None:
    """Log the result of the check of a kernel's process."""
    if found.there is None:
        log.warning("could not check whether the kernel's process exists: %s; the run continues", found.reason)
    elif found.there:
        log.info("the kernel's process still exists: it is busy, and the run continues")
    else:
        log.warning("the kernel's process is gone")


def result(
    notebook: NotebookNode,
    spec: RunSpec,
    *,
    output_path: str,
    output_url: str,
    kernel_name: str,
    instance_type: str | None,
    cells_executed: int,
    startup_seconds: float,
    resumed: bool,
) -> RunResult:
    """Return the result of a run that did not fail.

    :param notebook: the executed notebook, with or without its outputs.
    :param cells_executed: how many of its cells ran.
    """
    cells = nb.code_cells(notebook)
    return RunResult(
        status="stopped" if saved_run.state_of(notebook) == "stopped" else "success",
        notebook_path=spec.notebook_path,
        output_path=output_path,
        output_url=output_url,
        kernel_name=kernel_name,
        instance_type=instance_type,
        cells=len(cells),
        cells_executed=cells_executed,
        started_at=notebook.metadata["papermill"]["start_time"],
        duration=notebook.metadata["papermill"]["duration"],
        startup_seconds=round(startup_seconds, 3),
        failed_cells=[cell.number for cell in cells if nb.has_raised(notebook, cell)],
        incomplete_cells=[cell.number for cell in cells if nb.has_lost_output(notebook, cell)],
        resumed=resumed,
        values=saved_run.values_of(notebook),
    )
