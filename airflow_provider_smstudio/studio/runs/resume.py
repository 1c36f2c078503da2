"""Find what earlier tries and runs have left of a notebook: a kernel to continue on, or a complete output.

The runner asks for it before it starts a kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import InvalidInputError, StudioError, UnknownOutcomeError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.jupyter.kernel_removal import remove_kernel
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.runs import decisions, saved_run
from airflow_provider_smstudio.studio.runs.identity import Identity
from airflow_provider_smstudio.studio.runs.prepare import Prepared
from airflow_provider_smstudio.studio.runs.remote_kernel import RemoteKernel
from airflow_provider_smstudio.studio.runs.spec import RunSpec

log = logging.getLogger(__name__)


def session_of(server: JupyterServer, spec: RunSpec, who: Identity, prepared: Prepared) -> dict[str, Any] | None:
    """Find the session of an earlier try of this run, and copy the results of that try into the notebook.

    :param server: the Jupyter server.
    :param spec: what is run.
    :param who: the identity of the run.
    :param prepared: the prepared run. Its notebook receives the results of the cells that have run already.
    :return: the Jupyter session to continue on. None to start from the first cell. Then no kernel of the earlier
        try is left.
    """
    if spec.run_key is None:
        return None
    path = decisions.session_path(spec, who)
    sessions = server.sessions()
    for item in sessions:
        if item.get("path") == who.probe_path(path):  # that try was lost while it checked its kernel
            try:
                remove_kernel(server, str(item["id"]), (item.get("kernel") or {}).get("id"))
            except StudioError as error:  # it does not prevent this run
                log.warning("a second kernel of an earlier try may still run: %s", error)
    found = [item for item in sessions if item.get("path") == path]
    saved = _saved(server, prepared) if prepared.output_exists else None
    if not found:
        if saved is not None and saved_run.state_of(saved) in ("running", "lost"):
            log.warning("the kernel of an earlier try is gone with its variables: starting from the first cell")
        return None
    session = found[0]
    reason = "its executed notebook is gone"
    if saved is not None:
        series = spec.retry_series
        reason = saved_run.why_not(saved, prepared.notebook, resume=spec.resume, retry_series=series) or ""
    if not reason and saved is not None:
        saved_run.take_over(prepared.notebook, saved)
        log.info("reattaching to the run that an earlier try has left (kernel %s)", session["kernel"]["id"])
        return session
    log.warning("the run that an earlier try has left is not resumed: %s. Removing its kernel", reason)
    for item in found:
        remove_kernel(server, str(item["id"]), str(item["kernel"]["id"]))
    return None


def cells_that_had_run(notebook: NotebookNode) -> Iterator[ev.Event]:
    """Yield the events for the cells that had run before this process began.

    The process that ran them reported them as well. But if it had lost its supervisor, the report was lost.
    """
    cells = nb.code_cells(notebook)
    for cell in cells:
        seconds = nb.seconds_of(notebook, cell)
        if seconds is not None:
            yield ev.CellHadRun(cell, len(cells), seconds, notebook.cells[cell.index].outputs)
            if nb.has_lost_output(notebook, cell):
                yield ev.OutputLost(cell, "the executed notebook says so")


def remove_session(server: JupyterServer, spec: RunSpec, who: Identity) -> None:
    """Remove the kernel that a try of this run has left, if there is one. In Classic, also delete its app.

    If the removal fails, the failure is logged.

    :raises StudioError: when the server did not list its sessions.
    """
    path = decisions.session_path(spec, who)
    for item in server.sessions():
        if item.get("path") == path:
            log.info("no other try follows: removing the kernel that was left for it")
            kernel = RemoteKernel(
                server, timeout=60, delete_app=spec.delete_kernel_app, stop_reason=lambda: None, owner=None
            )
            kernel.adopt(item)
            kernel.release()


def ended_untold(server: JupyterServer, spec: RunSpec, prepared: Prepared) -> NotebookNode | None:
    """Find the result of an earlier try of the same series that ended the run but could not report it.

    The worker of that try was lost between the removal of the kernel and the task's success. If that try failed
    with :class:`UnknownOutcomeError`, because a cell may have run, the notebook must still not start again.

    :return: the executed notebook; None if the notebook must be run.
    :raises UnknownOutcomeError: when the earlier try ended with it.
    """
    if spec.retry_series is None or spec.try_number < 2 or spec.resume == "never" or not prepared.output_exists:
        return None
    saved = _saved(server, prepared)
    if saved is None or not saved_run.is_of_earlier_try(saved, prepared.notebook, spec):
        return None
    error = saved_run.error_of(saved)
    if isinstance(error, UnknownOutcomeError):
        error.fields["output_path"] = error.output_path = prepared.output_path
        raise error
    if saved_run.state_of(saved) not in ("completed", "stopped"):
        return None
    log.warning(
        "an earlier try has completed %s but could not report it: its result is reported now, and nothing is run. "
        "To run the notebook again, clear the task",
        spec.notebook_path,
    )
    return saved


def ended_meanwhile(server: JupyterServer, who: Identity, path: str) -> NotebookNode | None:
    """Check whether another process has ended a run whose kernel disappeared a moment ago.

    :param path: the executed notebook.
    :return: the executed notebook if the run was completed; else None.
    """
    try:
        saved = server.read_executed(path)
    except StudioError:
        return None
    complete = saved_run.holds(saved, who) and saved_run.state_of(saved) in ("completed", "stopped")
    return saved if complete else None


def complete_output(server: JupyterServer, spec: RunSpec, prepared: Prepared) -> NotebookNode | None:
    """Find the complete output of an earlier run of the same notebook and parameters, if the spec accepts it.

    :return: the executed notebook; None if the notebook must be run.
    """
    if not spec.skip_if_output_complete or not prepared.output_exists:
        return None
    saved = _saved(server, prepared)
    if saved is None:
        return None
    reason = saved_run.why_incomplete(saved, prepared.notebook)
    if reason:
        log.info("%s already exists, but %s: the notebook is run", prepared.output_path, reason)
        return None
    log.info("%s already exists and is complete: nothing is run", prepared.output_path)
    return saved


def _saved(server: JupyterServer, prepared: Prepared) -> NotebookNode | None:
    try:
        return server.read_executed(prepared.output_path)
    except InvalidInputError as error:
        log.warning("%s cannot be read as an executed notebook: %s", prepared.output_path, error)
        return None
