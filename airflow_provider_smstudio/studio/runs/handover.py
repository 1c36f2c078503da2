"""What every driver of a run decides alike, whether it waits in a thread or on an event loop; pure."""

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
    """All that another process needs to go on with a run; as plain JSON, and without a secret or a parameter.

    :ivar spec: what is run; its output path is set, its parameters are left out, since they are in the notebook.
    :ivar session_id: the Jupyter session's id.
    :ivar owner: what names the process that hands over, in the Jupyter session's name; those that go on with the
        run on its behalf begin with it, so that they can be told from those of a later try.
    :ivar kernel_name: the kernel.
    :ivar instance_type: what it runs on, where that is known.
    :ivar startup_seconds: see :class:`RunResult`.
    :ivar unbroken: nothing was lost on the way so far.
    :ivar resumed: whether an earlier try had begun the run.
    :ivar shown: how many outputs of the running cell are in the task's log already.
    :ivar memory_level: what the log says already of the instance's memory: :attr:`MemoryGauge.level`.
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
        """Return it as a dict of plain values."""
        return asdict(replace(self, spec=replace(self.spec, parameters={}, upload_from=None)))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Handover:
        """Make it from what :meth:`as_dict` returned, perhaps in another version: unknown keys are left out."""
        own, spec = ({field.name for field in dataclass_fields(kind)} for kind in (cls, RunSpec))
        known = {name: value for name, value in fields.items() if name in own}
        return cls(**{**known, "spec": RunSpec(**{k: v for k, v in fields["spec"].items() if k in spec})})


def run_options(spec: RunSpec, *, start_timeout: float, classic: bool) -> RunOptions:
    """Return a run's limits and switches.

    :param start_timeout: how long the kernel may take to its first answer, in seconds.
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
    # Classic's kernels run on machines of their own, where no other kernel can look.
    return replace(options, crash_check_after=None) if classic else options


def session_path(spec: RunSpec, who: Identity) -> str:
    """Return the path of the run's Jupyter session."""
    return who.session_path(nb.clean_path(spec.notebook_path, "notebook_path"))


def keeps_kernel(spec: RunSpec, error: StudioError | None, *, stopped: bool, reached: bool) -> bool:
    """Tell whether the kernel is left for whoever goes on with the run.

    :param error: what the run, or the last save of its notebook, ended by.
    :param stopped: whether somebody stopped it.
    :param reached: whether the kernel has ever been reached.
    """
    if isinstance(error, RunTakenOverError):
        return True
    if error is None or stopped or not spec.will_retry or spec.run_key is None:
        return False
    if isinstance(error, CellError):
        return spec.resume == "failed_cell"
    # The way to it failed, not the run: it may well go on.
    return not isinstance(error, RunError) and reached


def tell_silence(asked: CheckProcess) -> None:
    """Log that a kernel has been silent for long, and what is done about it."""
    log.info(
        "the kernel has given no sign of life for %.0f s: looking whether its process is there", asked.silence
    )


def tell_finding(found: ProbeResult) -> None:
    """Log what a look at a kernel's process has shown."""
    if found.there is None:
        log.warning("whether the kernel's process is there could not be seen: %s; the run goes on", found.reason)
    elif found.there:
        log.info("the kernel's process is there: it is busy, and the run goes on")
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
    """Tell how a run went that did not fail.

    :param notebook: the executed notebook; its outputs need not be there.
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
