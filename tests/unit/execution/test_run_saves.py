"""When a run saves: soon, seldom enough, and never for nothing."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.execution import events as ev
from tests.helpers import messages as m
from tests.helpers.run_driver import Driver, kinds, only


def saves(driver):
    return only(driver.events, ev.Save)


def test_quick_cells_are_not_saved_one_by_one():
    driver = Driver(*["x"] * 100, autosave_interval=10).ready()
    for _ in range(99):
        driver.succeed()
        driver.now += 0.01
    assert saves(driver) == [ev.Save(required=False)]  # the first of them, at once
    driver.succeed()
    assert saves(driver) == [ev.Save(required=False), ev.Save(required=True)]


def test_the_first_request_is_saved_at_once():
    driver = Driver("a", "b", autosave_interval=10)
    driver.start()
    driver.feed(m.kernel_info_reply(driver.probe), m.idle(driver.probe))
    assert driver.run.next_deadline() <= driver.now
    assert kinds(driver.after(0)) == ["Save"]
    assert driver.saved[0].cells[0].metadata["papermill"]["status"] == "running"
    assert driver.saved[0].cells[0].metadata["smstudio"] == {"msg_id": "my-session-cell-0-1", "attempt": 1}
    driver.now += 9.9
    assert kinds(driver.succeed()) == ["CellFinished", "CellStarted", "Send"]
    assert driver.after(0) == []
    assert kinds(driver.after(0.1)) == ["Save"]


def test_a_cells_end_saves_when_it_is_time_and_after_the_next_request():
    driver = Driver("a", "b", autosave_interval=10, check_interval=10_000).ready()
    driver.now += 10
    events = driver.succeed()
    assert kinds(events) == ["CellFinished", "CellStarted", "Send", "Save"]
    assert events[-1] == ev.Save(required=False)


def test_a_long_cell_that_shows_something_is_saved_while_it_runs():
    driver = Driver("a", autosave_interval=10, check_interval=10_000).ready()
    assert driver.after(10) == []
    for round_ in range(3):
        driver.feed(m.stream(driver.request, f"{round_}\n"))
        assert kinds(driver.after(0 if round_ == 0 else 1)) == ["Save"]
        assert driver.after(9) == []
    assert driver.texts(0) == ["0\n1\n2\n"]


def test_nothing_is_saved_while_nothing_changes():
    driver = Driver("a", autosave_interval=10, check_interval=10_000, crash_check_after=None).ready()
    driver.after(10)
    for _ in range(50):
        assert driver.after(100) == []
    driver.feed(m.busy(driver.request), m.message("iopub_welcome", {}), m.stream(m.foreign_request(), "x"))
    assert driver.after(100) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda request: m.stream(request, "x"),
        lambda request: m.update_display_data(request, "x", "d"),
        lambda request: m.clear_output(request),
        lambda request: m.comm_open(request, "c", {"_model_name": "M"}),
        lambda request: m.execute_input(request, 2),
    ],
)
@pytest.mark.parametrize("when", ["current", "ended"])
def test_each_change_is_saved_also_of_a_cell_that_has_ended(make, when):
    driver = Driver("a", "b", autosave_interval=10, check_interval=10_000).ready()
    request = driver.request
    if when == "ended":
        driver.succeed()
    driver.after(10)
    assert driver.after(100) == []
    driver.feed(make(request))
    assert kinds(driver.after(10)) == ["Save"]


def test_slow_saves_become_rare_so_that_they_take_a_twentieth_of_the_time_at_most():
    driver = Driver("a", autosave_interval=10, check_interval=10**6, save_seconds=3).ready()
    began = driver.now
    for _ in range(1000):
        driver.feed(m.stream(driver.request, "x"))
        driver.after(1)
    spent = 3 * len(saves(driver))
    assert 0 < spent <= (driver.now - began) / 20
    assert len(saves(driver)) >= 10


def test_fast_saves_keep_the_interval():
    driver = Driver("a", autosave_interval=10, check_interval=10**6, save_seconds=0.01).ready()
    for _ in range(100):
        driver.feed(m.stream(driver.request, "x"))
        driver.after(1)
    assert 10 <= len(saves(driver)) <= 11  # with the one at the start


def test_a_save_that_fails_is_tried_again_when_its_time_comes_and_something_has_changed():
    driver = Driver("a", autosave_interval=10, check_interval=10_000, record=True).recording()
    driver.now += 10
    driver.feed(m.stream(driver.request, "x"))
    assert driver.run.tick(driver.now) == [ev.Save(required=False)]
    driver.run.snapshot(driver.now)  # and no saved(): the server refused it
    assert driver.after(9) == []
    driver.feed(m.stream(driver.request, "x"))
    assert driver.after(0.5) == []
    assert kinds(driver.after(0.5)) == ["Save"]


def test_a_save_collects_the_outputs_of_changed_cells_only(monkeypatch):
    driver = Driver(*["x"] * 200, autosave_interval=0, check_interval=10**6).ready()
    collected = []
    kind = type(driver.run._current.outputs)
    original = kind.collect

    def collect(self):
        collected.append(self)
        return original(self)

    monkeypatch.setattr(kind, "collect", collect)
    for _ in range(200):
        driver.now += 1
        driver.succeed(lambda request: m.stream(request, "x"))
    assert len(saves(driver)) == 201
    assert len(collected) <= 2 * 200  # not 200 * 200 / 2


def test_nothing_is_saved_before_the_kernel_answers():
    driver = Driver("a", autosave_interval=1)
    driver.start()
    driver.after(100)
    assert saves(driver) == []


def test_a_snapshot_can_be_taken_at_any_time_and_is_complete():
    driver = Driver("a", "b")
    assert driver.run.snapshot(driver.now) is driver.notebook
    driver.ready()
    driver.feed(m.stream(driver.request, "1"))
    assert driver.run.snapshot(driver.now).cells[0].outputs[0].text == "1"
    driver.feed(m.stream(driver.request, "\r2"))
    assert driver.run.snapshot(driver.now).cells[0].outputs[0].text == "2"
    driver.succeed()
    driver.succeed()
    assert driver.run.snapshot(driver.now).cells[0].outputs[0].text == "2"


def test_a_save_that_cannot_be_made_now_is_asked_for_again_later():
    driver = Driver("a", autosave_interval=10, check_interval=10**6, record=True).recording()
    driver.feed(m.stream(driver.request, "x"))
    driver.now += 11
    assert only(driver.run.tick(driver.now), ev.Save) == [ev.Save(required=False)]
    driver.run.postpone_save(driver.now)
    assert driver.run.next_deadline() == driver.now + 10  # a driver would spin else
    driver.now += 10
    assert only(driver.run.tick(driver.now), ev.Save) == [ev.Save(required=False)]


@pytest.mark.parametrize("record", [True, False], ids=["with a record", "without a record"])
@pytest.mark.parametrize("how", ["under way", "failed"])
def test_a_save_under_way_or_failed_is_not_asked_for_again_and_again(how, record):
    driver = Driver("a", autosave_interval=10, check_interval=10**6, record=record)
    driver.start()
    driver.answer(m.kernel_info_reply)
    if record:
        driver.answer(m.installed)
    assert driver.run.tick(driver.now) == [ev.Save(required=False)]
    driver.run.snapshot(driver.now)  # and no saved()
    driver.feed(m.stream(driver.request, "x"))
    if how == "under way":
        driver.run.postpone_save(driver.now)
    assert driver.run.next_deadline() == driver.now + 10


def test_the_sending_of_the_first_cell_to_a_record_is_saved_at_once_and_then_at_the_interval():
    driver = Driver("a", "b", "c", autosave_interval=10, check_interval=10**6, record=True).recording()
    assert driver.saved[0].metadata["smstudio"]["run"]["kernel_record"] is True
    driver.now += 1
    assert kinds(driver.succeed()) == ["CellFinished", "CellStarted", "Send"]
    driver.now += 9
    assert kinds(driver.succeed()) == ["CellFinished", "CellStarted", "Send", "Save"]
