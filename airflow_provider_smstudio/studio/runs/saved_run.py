"""What an executed notebook says about its run: its identity, its state, whether a retry can continue it; pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import RunError, RunKilledError, StudioError, from_plain
from airflow_provider_smstudio.studio.execution import outcomes
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.notebook.document import METADATA_KEY
from airflow_provider_smstudio.studio.runs.identity import Identity
from airflow_provider_smstudio.studio.runs.spec import RunSpec


def fingerprint(notebook: NotebookNode, kernel_name: str, parameters: Mapping[str, Any]) -> str:
    """Return a digest of the input of a run: the cells with their tags, the kernel, the parameters."""
    what = {
        "kernel": kernel_name,
        "parameters": nb.plain(parameters),
        "cells": [[cell.cell_type, cell.source, cell.metadata.get("tags", [])] for cell in notebook.cells],
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def begin(notebook: NotebookNode, who: Identity, digest: str) -> None:
    """Write the identity of the run into its notebook.

    :param digest: the :func:`fingerprint` of the run.
    """
    record = {"key": who.key, "name": who.name, "fingerprint": digest, "state": "starting", "kernel_record": None}
    notebook.metadata[METADATA_KEY] = NotebookNode(run=NotebookNode(record))


def state_of(saved: NotebookNode) -> str:
    """Return the state of the run in a saved notebook; empty if the notebook holds no run."""
    return str(_record(saved).get("state") or "")


def holds(saved: NotebookNode, who: Identity) -> bool:
    """Return whether a saved notebook holds this run."""
    return bool(_record(saved).get("key") == who.key)


def own(notebook: NotebookNode, owner: str, spec: RunSpec) -> None:
    """Write into a notebook which process watches its run, and in which try.

    :param owner: the name of the process, as in the Jupyter session's name.
    :param spec: what is run.
    """
    tries = {"retry_series": spec.retry_series, "try_number": spec.try_number, "retries": spec.retries}
    notebook.metadata[METADATA_KEY]["run"].update(owner=owner, **tries)


def is_of_earlier_try(saved: NotebookNode, prepared: NotebookNode, spec: RunSpec) -> bool:
    """Return whether a saved notebook holds the same run, as an earlier try of the same series has left it.

    :param saved: the executed notebook.
    :param prepared: the notebook as it would be run now, with :func:`begin` applied.
    :param spec: what is run now.
    """
    record, now = _record(saved), _record(prepared)
    number = record.get("try_number")
    same = all(record.get(key) == now.get(key) for key in ("key", "fingerprint"))
    series = record.get("retry_series") == spec.retry_series and record.get("retries") == spec.retries
    return (
        same and series and isinstance(number, int) and number < spec.try_number and _same_cells(saved, prepared)
    )


def writer_of(saved: NotebookNode) -> str | None:
    """Return which process has written a saved notebook; None if the notebook does not say so."""
    found = _record(saved).get("owner")
    return found if isinstance(found, str) else None


def values_of(saved: NotebookNode) -> dict[str, Any]:
    """Return the values that a notebook's run has published."""
    found = _record(saved).get("values")
    return nb.plain(found) if isinstance(found, Mapping) else {}


def error_of(saved: NotebookNode) -> StudioError | None:
    """Return the error that ended the run of a saved notebook, as far as it says; None if no error did."""
    state = state_of(saved)
    if state == "cell-failed":
        cells = nb.code_cells(saved)
        for cell in cells:
            found = saved.cells[cell.index]
            if (found.metadata.get("papermill") or {}).get("status") == "failed":
                shown: Mapping[str, Any] = next(
                    (item for item in found.outputs if item.get("output_type") == "error"), {}
                )
                name = f"cell {cell.number}/{len(cells)}"
                return outcomes.cell_error(cell, name, *outcomes.raised(shown))
    if state == "killed":
        return RunKilledError("the run was stopped")
    if state in ("failed", "cell-failed"):
        told = _record(saved).get("error")
        if isinstance(told, Mapping):
            return from_plain({"type": told.get("type"), "message": told.get("message")})
        return RunError("the run has failed; its log says why")
    return None


def why_not(
    saved: NotebookNode, prepared: NotebookNode, *, resume: str, retry_series: str | None = None
) -> str | None:
    """Return why the run of a saved notebook cannot be resumed; None if it can.

    :param saved: the executed notebook as an earlier try left it.
    :param prepared: the notebook as it would be run now, with :func:`begin` applied.
    :param resume: ``auto``, ``failed_cell`` or ``never``.
    :param retry_series: see :class:`RunSpec`.
    """
    earlier, now = _record(saved), _record(prepared)
    if resume == "never":
        return "resume is 'never'"
    if earlier.get("key") != now.get("key"):
        return "its executed notebook holds another run"
    if earlier.get("fingerprint") != now.get("fingerprint") or not _same_cells(saved, prepared):
        return "the notebook, its parameters or its kernel have changed since"
    known = (earlier.get("retry_series"), retry_series)
    if None not in known and len(set(known)) > 1 and resume != "failed_cell":
        return "the task, or its DAG run, was cleared since"
    state = state_of(saved)
    if state == "cell-failed" and resume != "failed_cell":
        return "it ended with the error of a cell (resume='failed_cell' would continue from that cell)"
    if state in ("killed", "failed"):
        return "it was killed" if state == "killed" else "it had failed"
    if state not in ("running", "lost", "cell-failed", "completed", "stopped"):
        return "its first cell had not been reached"
    return None


def why_incomplete(saved: NotebookNode, prepared: NotebookNode) -> str | None:
    """Return why a saved notebook cannot replace a run, no matter which run made it; None if it can.

    :param saved: the executed notebook that exists.
    :param prepared: the notebook as it would be run now, with :func:`begin` applied.
    """
    if state_of(saved) not in ("completed", "stopped"):
        return "its run did not end successfully"
    same = _record(saved).get("fingerprint") == _record(prepared).get("fingerprint")
    if not same or not _same_cells(saved, prepared):
        return "the notebook, its parameters or its kernel have changed since"
    if any(nb.has_lost_output(saved, cell) for cell in nb.code_cells(saved)):
        return "some of its output was lost"
    return None


def take_over(prepared: NotebookNode, saved: NotebookNode) -> None:
    """Copy the results that an earlier process has saved into the prepared notebook.

    If the error of a cell ended the run, that cell counts as not run yet. Its attempt number is increased.
    """
    for cell, earlier in zip(prepared.cells, saved.cells, strict=True):
        for key in ("papermill", "execution", METADATA_KEY):
            if key in earlier.metadata:
                cell.metadata[key] = earlier.metadata[key]
        if cell.cell_type != "code":
            continue
        cell["outputs"] = earlier.get("outputs", [])
        cell["execution_count"] = earlier.get("execution_count")
        record = cell.metadata.get("papermill") or {}
        if record.get("status") == "failed":
            record["status"], record["exception"] = "pending", None
            own = cell.metadata.setdefault(METADATA_KEY, NotebookNode())
            attempt = own.get("attempt")
            own["attempt"] = attempt + 1 if isinstance(attempt, int) else 2
            own.pop("output_lost", None)
            cell["outputs"], cell["execution_count"] = [], None
    for key in ("start_time", "end_time", "duration", "exception"):
        prepared.metadata["papermill"][key] = saved.metadata["papermill"].get(key)
    prepared.metadata[METADATA_KEY]["run"] = saved.metadata[METADATA_KEY]["run"]
    for key in ("language_info", "widgets"):
        if key in saved.metadata:
            prepared.metadata[key] = saved.metadata[key]


def _record(notebook: NotebookNode) -> Mapping[str, Any]:
    own = notebook.metadata.get(METADATA_KEY)
    record = own.get("run") if isinstance(own, Mapping) else None
    return record if isinstance(record, Mapping) else {}


def _same_cells(saved: NotebookNode, prepared: NotebookNode) -> bool:
    pairs = [(cell.cell_type, cell.source) for cell in saved.cells]
    records = all(isinstance(cell.metadata.get("papermill"), Mapping) for cell in saved.cells)
    head = isinstance(saved.metadata.get("papermill"), Mapping)
    return head and records and pairs == [(cell.cell_type, cell.source) for cell in prepared.cells]
