"""A run before a world that breaks at any moment: each cell runs once, and nothing of its output is missing."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.errors import CellError, UnknownOutcomeError
from tests.helpers.run_world import World

SEEDS = 300


def check_recorded(seed, **about):
    """Play a seed with a kernel that keeps a record: nothing may be lost."""
    world = World(seed, **about)
    run = world.play()
    check_that_each_cell_ran_once(world, run)
    for index in range(len(world.cells)):
        assert world.written(index) == (world.expected(index) if index <= world.last else "")
    assert not any("output_lost" in cell.metadata.get("smstudio", {}) for cell in run.notebook.cells)


def check_limited(seed, **about):
    """Play a seed with a kernel that keeps little or none of the output: what is missing is told."""
    world = World(seed, limit=seed % 5 * 700, **about)
    run = world.play()
    check_that_each_cell_ran_once(world, run)
    check_that_missing_output_is_told(world, run)


def check_unrecorded(seed, **about):
    """Play a seed with another kernel: nothing may run twice, and what is not known is told."""
    world = World(seed, keeps=False, **about)
    run = world.play()
    if isinstance(run.error, UnknownOutcomeError):
        assert all(times == 1 for times in world.kernel.ran.values())
        assert run.notebook.metadata["smstudio"]["run"]["state"] == "failed"
    else:
        check_that_each_cell_ran_once(world, run)
    check_that_missing_output_is_told(world, run)


def check_that_each_cell_ran_once(world, run):
    fails = world.cells[world.last]["fails"] == "ends"
    assert isinstance(run.error, CellError) if fails else run.error is None
    names = [cell["name"] for cell in world.cells[: world.last + 1]]
    assert dict(world.kernel.ran) == dict.fromkeys(names, 1)
    statuses = [cell.metadata["papermill"]["status"] for cell in run.notebook.cells]
    ended = ["completed"] * world.last + ["failed" if fails else "completed"]
    assert statuses == ended + ["pending"] * (len(statuses) - len(ended))
    assert len(world.shown) == len(set(world.shown))  # no line twice on one worker
    assert run.notebook.metadata["smstudio"]["run"]["state"] == ("cell-failed" if fails else "completed")


def check_that_missing_output_is_told(world, run):
    for index, cell in enumerate(run.notebook.cells):
        written, expected = world.written(index), world.expected(index)
        rest = iter(expected.splitlines())
        # What is there is some of the lines, in order; the server's own notice is none of them.
        assert all(line in rest for line in written.splitlines() if line.startswith(world.cells[index]["name"]))
        if cell.metadata["papermill"]["status"] in ("completed", "failed") and written != expected:
            told = "output_lost" in cell.metadata.get("smstudio", {})
            assert told or isinstance(run.error, UnknownOutcomeError)


@pytest.mark.parametrize("part", range(4))
def test_with_a_record_each_cell_runs_once_and_shows_all(part):
    for seed in range(part, SEEDS, 4):
        check_recorded(seed)


@pytest.mark.parametrize("counts", [True, False])
def test_without_a_record_no_cell_runs_twice(counts):
    for seed in range(SEEDS):
        check_unrecorded(seed, counts=counts)


def test_with_a_record_that_keeps_little_each_cell_runs_once_and_what_is_missing_is_told():
    for seed in range(SEEDS):
        check_limited(seed)
