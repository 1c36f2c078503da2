"""Kernels that keep no record: what their execution count proves, and what is done about what nobody knows."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.errors import CellError, UnknownOutcomeError
from airflow_provider_smstudio.studio.execution import events as ev
from tests.helpers import messages as m
from tests.helpers.run_driver import Driver, code, kinds, only


def lost(*cells, done=1, counts=True, record=False, **options):
    """A kernel of which nothing came for the last cell, before the connection broke; it is asked behind it."""
    driver = Driver(*(cells or ("a", "b", "c")), record=record, **options)
    driver.start()
    info = m.kernel_info_reply(driver.probe)
    info["content"]["implementation"] = "ir"
    driver.feed(info, m.idle(driver.probe))
    for number in range(1, done + 1):
        driver.succeed(count=number if counts else 0)
    driver.reconnect()
    return driver


def test_each_request_is_announced_before_it_is_made():
    driver = Driver("a", "b").ready()
    driver.succeed()
    order = [type(event).__name__ for event in driver.events if isinstance(event, (ev.Announce, ev.Send))]
    assert order == ["Send", "Announce", "Send", "Announce", "Send"]
    assert [event.cell.index for event in only(driver.events, ev.Announce)] == [0, 1]


def test_a_kernel_that_keeps_a_record_needs_no_announcement():
    driver = Driver("a", "b", record=True).recording()
    driver.succeed()
    assert only(driver.events, ev.Announce) == []


def test_another_kernel_is_not_asked_for_a_record():
    assert lost(record=True).asked == ["info", "count"]


def test_a_count_that_has_not_grown_proves_that_the_cell_did_not_run():
    driver = lost()
    events = driver.answer(m.counted, 1)
    assert kinds(events) == ["CellSentAgain", "CellStarted", "Send"]
    assert events[0].reason == "the kernel's execution count has not changed since the previous cell"
    assert driver.ids == ["cell-0-1", "cell-1-1", "cell-1-2"]


def test_a_count_that_has_grown_proves_that_the_cell_ran_and_no_more():
    driver = lost()
    driver.answer(m.counted, 2)
    assert type(driver.error) is UnknownOutcomeError
    assert (driver.error.cell_number, driver.error.cell_index) == (2, 1)
    assert driver.statuses() == ["completed", "failed", "pending"]
    assert driver.notebook.metadata["smstudio"]["run"]["state"] == "failed"


@pytest.mark.parametrize("count", [0, None, "1"])
def test_a_kernel_that_does_not_count_proves_nothing(count):
    driver = lost(counts=False)
    driver.answer(m.counted, count)
    assert type(driver.error) is UnknownOutcomeError


def test_before_the_first_cell_has_run_a_count_proves_nothing_of_an_unknown_kernel():
    driver = lost(done=0)
    driver.answer(m.counted, 0)
    assert type(driver.error) is UnknownOutcomeError


def test_ipython_is_known_to_count():
    driver = Driver("a", "b").ready()
    driver.reconnect()
    driver.answer(m.counted, 0)
    assert driver.ids == ["cell-0-1", "cell-0-2"]


def test_a_count_proves_nothing_against_a_cell_that_was_heard():
    driver = Driver("a", "b").ready()
    driver.feed(m.busy(driver.request))
    driver.reconnect()
    driver.answer(m.counted, 0)
    assert type(driver.error) is UnknownOutcomeError


def test_a_cell_whose_error_was_seen_has_failed():
    driver = Driver("a", "b").ready()
    driver.feed(m.error(driver.request, "E", "v"))
    driver.reconnect()
    driver.answer(m.counted, 1)
    assert type(driver.error) is CellError
    assert (driver.error.ename, driver.error.evalue) == ("E", "v")


def test_a_tolerated_error_that_was_seen_lets_the_run_go_on():
    driver = Driver(code("a", "raises-exception"), "b").ready()
    driver.feed(m.error(driver.request, "E", "v"))
    driver.reconnect()
    driver.answer(m.counted, 1)
    assert driver.ids == ["cell-0-1", "cell-1-1"]


def test_a_cell_that_is_heard_to_its_end_after_a_gap_may_lack_output():
    driver = Driver("a", "b").ready()
    driver.reconnect()
    request = driver.request
    assert driver.feed(m.reply_ok(request), m.idle(request)) == []
    events = driver.answer(m.counted, 1)
    assert kinds(events)[:4] == ["OutputLost", "CellFinished", "CellStarted", "Send"]
    assert driver.own(0)["output_lost"] == [events[0].reason]


def test_an_orderly_reopening_makes_no_output_suspect():
    driver = Driver("a", "b").ready()
    driver.restore(orderly=True)
    request = driver.request
    assert driver.feed(m.reply_ok(request), m.idle(request)) == []
    assert kinds(driver.answer(m.counted, 1))[:3] == ["CellFinished", "CellStarted", "Send"]
    assert "output_lost" not in driver.own(0)


def test_an_unknown_cell_is_run_again_where_that_is_allowed():
    driver = lost(on_unknown_cell="rerun")
    events = driver.answer(m.counted, 2)
    assert kinds(events)[:3] == ["CellSentAgain", "CellStarted", "Send"]
    assert "on_unknown_cell is 'rerun'" in events[0].reason
    assert driver.own(1)["attempt"] == 2
    driver.succeed(lambda request: m.stream(request, "second"), count=3)
    driver.succeed(count=4)
    assert driver.error is None
    assert driver.texts(1) == ["second"]


def test_what_comes_late_of_a_request_that_was_given_up_changes_nothing():
    driver = Driver("a", "b", on_unknown_cell="rerun").ready()
    first = driver.request
    driver.feed(m.stream(first, "first"))
    driver.reconnect()
    driver.answer(m.counted, 1)
    driver.succeed(lambda request: m.stream(request, "second"))
    driver.feed(m.stream(first, "late"))
    driver.succeed()
    assert driver.texts(0) == ["second"]
