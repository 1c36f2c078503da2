"""What a run leaves in the metadata of its notebook, and what a later process reads there."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from airflow_provider_smstudio.studio import errors
from airflow_provider_smstudio.studio.notebook.document import begin_metadata, code_cells
from airflow_provider_smstudio.studio.notebook.run_metadata import RunMetadata

NOW = datetime(2026, 11, 6, 7, tzinfo=timezone.utc)
START = NOW.isoformat()
FAILURE = errors.RunError("failed")


def new_ledger():
    notebook = new_notebook(cells=[new_code_cell("a"), new_markdown_cell("text"), new_code_cell("b")])
    begin_metadata(notebook, parameters={}, input_path="a", output_path="b", version="1")
    return notebook, code_cells(notebook), RunMetadata(notebook, 500.0, NOW)


def later(notebook, *, seconds=60.0, now=9000.0):
    """The ledger of another process, whose monotonic clock shows something else."""
    return RunMetadata(notebook, now, NOW + timedelta(seconds=seconds), resumed=True)


def test_the_record_of_a_cell_from_start_to_end():
    notebook, (cell, _), ledger = new_ledger()
    record = notebook.cells[0].metadata["papermill"]
    ledger.cell_started(cell, 501.0, "id-1")
    running = {"start_time": "2026-11-06T07:00:01+00:00", "end_time": None, "duration": None, "exception": False}
    assert record == {**running, "status": "running"}
    assert notebook.cells[0].metadata["smstudio"] == {"msg_id": "id-1", "attempt": 1}
    ledger.cell_ended(cell, 503.0, 1.23456789, failed=False)
    ended = {"end_time": "2026-11-06T07:00:03+00:00", "duration": 1.234568}
    assert record == {**running, **ended, "status": "completed"}
    ledger.cell_ended(cell, 503.0, 1.23456789, failed=True)
    assert record == {**running, **ended, "exception": True, "status": "failed"}


def test_the_record_of_the_notebook():
    notebook, _, ledger = new_ledger()
    record = notebook.metadata["papermill"]
    assert (record["start_time"], record["end_time"], record["exception"]) == (START, None, False)
    ledger.ended(510.5, FAILURE, early=False)
    assert (record["end_time"], record["duration"]) == ("2026-11-06T07:00:10.500000+00:00", 10.5)
    assert record["exception"] is True
    assert "status" not in record


@pytest.mark.parametrize(
    ("error", "early", "status"),
    [(None, False, "completed"), (FAILURE, False, "pending"), (None, True, "pending")],
)
def test_cells_without_anything_to_run_are_completed_only_by_a_whole_success(error, early, status):
    notebook, _, ledger = new_ledger()
    ledger.ended(501.0, error, early=early)
    assert {cell.metadata["papermill"]["status"] for cell in notebook.cells} == {status}


@pytest.mark.parametrize(
    ("error", "early", "state"),
    [
        (None, False, "completed"),
        (None, True, "stopped"),
        (errors.CellError("x"), False, "cell-failed"),
        (errors.CellTimeoutError("x"), False, "failed"),
        (errors.KernelDiedError("x"), False, "failed"),
        (errors.UnknownOutcomeError("x"), False, "failed"),
        (errors.RunKilledError("x"), False, "killed"),
        (errors.ConnectionLostError("x"), False, "lost"),
        (errors.ServerError("x"), False, "lost"),
    ],
)
def test_how_a_run_stands(error, early, state):
    notebook, _, ledger = new_ledger()
    assert notebook.metadata["smstudio"]["run"]["state"] == "running"
    ledger.ended(501.0, error, early=early)
    assert notebook.metadata["smstudio"]["run"]["state"] == state


def test_counts_times_and_losses_of_a_cell():
    notebook, (_, cell), ledger = new_ledger()
    ledger.cell_count(cell, 7)
    ledger.cell_count(cell, None)  # some replies tell none
    ledger.cell_message(cell, "iopub.execute_input", {"header": {"date": "2026-11-06T07:00:00Z"}})
    ledger.cell_message(cell, "shell.execute_reply", {"header": {}})
    ledger.cell_lost_output(cell, ["too much"])
    written = notebook.cells[2]
    assert written.execution_count == 7
    assert written.metadata["execution"] == {"iopub.execute_input": "2026-11-06T07:00:00Z"}
    assert written.metadata["smstudio"] == {"output_lost": ["too much"]}
    ledger.forget_count(cell)
    assert written.execution_count is None


def test_the_kernels_language_and_kind():
    notebook, _, ledger = new_ledger()
    assert ledger.records is False
    ledger.kernel_ready({"language_info": "odd"}, records=False)
    assert "language_info" not in notebook.metadata
    ledger.kernel_ready({"language_info": {"name": "python"}}, records=True)
    assert notebook.metadata["language_info"] == {"name": "python"}
    assert ledger.records is True


def test_whether_the_kernel_keeps_a_record():
    notebook, _, ledger = new_ledger()
    recorded = ledger.recorded
    assert recorded is None
    assert (later(notebook).recorded, later(notebook).records) == (None, False)
    ledger.kernel_ready({}, records=True)
    for on in (True, False):
        ledger.recording(on)
        assert ledger.recorded is on
        assert (later(notebook).recorded, later(notebook).records) == (on, True)
    ledger.kernel_ready({}, records=False)
    assert (later(notebook).recorded, later(notebook).records) == (False, False)


def test_the_number_of_a_cells_request():
    notebook, (cell, other), ledger = new_ledger()
    assert ledger.attempt(cell) == 1
    ledger.set_attempt(cell, 3)
    ledger.cell_started(cell, 501.0, "id-3")
    assert notebook.cells[0].metadata["smstudio"] == {"msg_id": "id-3", "attempt": 3}
    assert (ledger.attempt(cell), ledger.attempt(other)) == (3, 1)
    for odd in ("2", None, 0, -1):
        notebook.cells[0].metadata["smstudio"]["attempt"] = odd
        assert ledger.attempt(cell) == 1


def test_what_has_run_and_what_runs():
    _, (cell, other), ledger = new_ledger()
    assert (ledger.has_run(cell), ledger.is_running(cell)) == (False, False)
    ledger.cell_started(cell, 501.0, "id")
    assert (ledger.has_run(cell), ledger.is_running(cell)) == (False, True)
    ledger.cell_ended(cell, 502.0, 1.0, failed=True)
    assert (ledger.has_run(cell), ledger.is_running(cell)) == (False, False)
    ledger.cell_ended(cell, 502.0, 1.0, failed=False)
    assert (ledger.has_run(cell), ledger.is_running(cell)) == (True, False)
    assert (ledger.has_run(other), ledger.is_running(other)) == (False, False)


def test_the_last_count_is_that_of_cells_that_have_run():
    _, (cell, other), ledger = new_ledger()
    assert ledger.last_count([cell, other]) == 0
    ledger.cell_count(cell, 5)
    ledger.cell_count(other, 6)
    assert ledger.last_count([cell, other]) == 0
    ledger.cell_ended(cell, 502.0, 1.0, failed=False)
    assert ledger.last_count([cell, other]) == 5
    ledger.cell_ended(other, 502.0, 1.0, failed=False)
    assert ledger.last_count([cell, other]) == 6


# --- A later process


def test_a_later_process_goes_on_with_the_runs_times():
    notebook, (cell, other), ledger = new_ledger()
    ledger.cell_started(cell, 510.0, "id")
    resumed = later(notebook, seconds=60)
    assert notebook.metadata["papermill"]["start_time"] == START
    resumed.cell_started(other, 9005.0, "id-2")
    assert notebook.cells[2].metadata["papermill"]["start_time"] == "2026-11-06T07:01:05+00:00"
    resumed.ended(9010.0, None, early=False)
    record = notebook.metadata["papermill"]
    assert (record["end_time"], record["duration"]) == ("2026-11-06T07:01:10+00:00", 70.0)


def test_when_a_running_cell_was_started_by_the_later_processs_clock():
    notebook, (cell, other), ledger = new_ledger()
    ledger.cell_started(cell, 510.0, "id")
    resumed = later(notebook, seconds=60, now=9000)
    assert resumed.started(cell, 9000.0) == 8950.0
    assert resumed.started(other, 9000.0) == 9000.0  # it does not run
    assert later(notebook, seconds=-60, now=9000).started(cell, 9000.0) == 9000.0  # a clock that goes behind
    for odd in ("yesterday", None, 5, "2026-11-06T07:00:10"):
        notebook.cells[0].metadata["papermill"]["start_time"] = odd
        assert resumed.started(cell, 9000.0) == 9000.0


def test_a_later_process_takes_back_that_the_run_has_ended():
    notebook, _, ledger = new_ledger()
    ledger.ended(510.0, errors.ConnectionLostError("x"), early=False)
    later(notebook)
    record = notebook.metadata["papermill"]
    assert (record["end_time"], record["duration"], record["exception"]) == (None, None, False)
    assert notebook.metadata["smstudio"]["run"]["state"] == "running"


@pytest.mark.parametrize("start", [None, "odd", "2026-11-06T07:00:00"])
def test_a_run_whose_start_is_not_known_starts_now(start):
    notebook, _, _ = new_ledger()
    notebook.metadata["papermill"]["start_time"] = start
    later(notebook, seconds=60)
    assert notebook.metadata["papermill"]["start_time"] == "2026-11-06T07:01:00+00:00"
