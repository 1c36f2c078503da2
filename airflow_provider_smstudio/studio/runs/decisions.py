"""Decisions that the runner (in a thread) and the watcher (on an event loop) make in the same way; pure."""

from __future__ import annotations

import logging

from airflow_provider_smstudio.studio.errors import CellError, RunError, RunTakenOverError, StudioError
from airflow_provider_smstudio.studio.execution.events import CheckProcess
from airflow_provider_smstudio.studio.jupyter.kernel_probe import ProbeResult
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.runs.identity import Identity
from airflow_provider_smstudio.studio.runs.spec import RunSpec

log = logging.getLogger(__name__)

KILL_GRACE = 1.0
"""Seconds that an interrupted cell has to end when its task is killed."""


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
