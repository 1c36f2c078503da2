"""A run that rests so that another process can go on with it, and that process."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.execution import events as ev
from tests.helpers import messages as m
from tests.helpers.run_driver import Driver, kinds, only

FIRST = "my-session-cell-0-1"


def recording(*cells, **options):
    return Driver(*(cells or ("a", "b")), record=True, **options).recording()


def successor(driver, **about):
    """The process that goes on from what was saved last."""
    driver.take(driver.run.rest() or [])
    notebook = driver.run.snapshot(driver.now)
    return Driver(notebook=notebook, resumed=True, shown=driver.run.shown, record=True, **about)


def may_rest(driver):
    return driver.run.may_rest


def test_a_run_may_rest_when_its_kernel_is_known():
    driver = Driver("a", record=True)
    assert not may_rest(driver)
    driver.start()
    driver.answer(m.kernel_info_reply)
    assert not may_rest(driver)  # whether it keeps a record will be known next
    driver.answer(m.installed)
    assert may_rest(driver)
    driver.cut()
    assert not may_rest(driver)


@pytest.mark.parametrize("half", [m.reply_ok, m.idle])
def test_it_may_not_rest_while_half_of_an_end_is_known(half):
    driver = recording()
    driver.feed(half(driver.request))
    assert driver.run.half_over
    assert not driver.run.may_rest


def test_it_may_not_rest_while_an_end_waits_for_the_answer_behind_it():
    """Seen: the process that went on waited for a reply that the one before had taken."""
    driver = recording()
    driver.reconnect()
    driver.feed(m.reply_ok(driver.request), m.idle(driver.request))
    assert driver.asked[-1] == "state 0"
    assert driver.run.half_over
    assert not driver.run.may_rest
    driver.answer(m.state, m.entry(FIRST))
    assert driver.ids == ["cell-0-1", "cell-1-1"]
    assert driver.run.may_rest


def test_a_resting_run_makes_no_further_request():
    driver = recording()
    driver.run.rest()
    driver.succeed()
    assert driver.ids == ["cell-0-1"]
    assert driver.run.may_rest
    assert driver.run.unbroken
    assert driver.statuses() == ["completed", "pending"]


def test_where_all_that_comes_is_kept_the_end_of_the_cell_is_waited_for():
    driver = recording()
    driver.feed(m.busy(driver.request), m.stream(driver.request, "one\n"))
    assert driver.run.unbroken
    after = successor(driver, unbroken=True)
    assert kinds(after.start()) == ["Reattached", "CellStarted", "Send"]
    assert (after.asked, len(after.beats)) == ([], 1)
    after.feed(m.stream(driver.request, "two\n"), m.reply_ok(driver.request), m.idle(driver.request))
    assert after.statuses()[0] == "completed"
    assert [event.output["text"] for event in only(after.events, ev.CellOutput)] == ["two\n"]


class TestWithoutReplay:
    """A server that keeps nothing for whoever comes next, as Studio Classic probably is."""

    def test_a_kernel_with_a_record_is_asked_what_has_come_meanwhile(self):
        driver = recording(replays=False)
        driver.feed(m.busy(driver.request), m.stream(driver.request, "one\n"))
        assert driver.run.may_rest
        assert not driver.run.unbroken
        after = successor(driver, replays=False)
        after.start()
        assert after.asked == ["state 0"]
        after.answer(m.state, m.entry(FIRST, kept=2))
        one, two = m.stream(driver.request, "one\n"), m.stream(driver.request, "two\n")
        after.answer(m.fetched, one, two)
        # The first line stands in the task's log already.
        assert [event.output["text"] for event in only(after.events, ev.CellOutput)] == ["two\n"]
        assert only(after.events, ev.OutputRecovered)[0].messages == 1
        assert after.run.snapshot(after.now).cells[0].outputs[0]["text"] == "one\ntwo\n"

    def test_one_without_a_record_rests_between_two_cells(self):
        driver = Driver("a", "b", replays=False).ready()
        assert driver.run.rests_between_cells
        assert not driver.run.may_rest
        driver.run.rest()
        driver.succeed()
        assert driver.ids == ["cell-0-1"]
        assert driver.run.may_rest
        assert driver.run.unbroken

    def test_the_last_cell_ends_the_run(self):
        driver = Driver("a", replays=False).ready()
        driver.run.rest()
        driver.succeed()
        assert driver.run.finished
        assert driver.error is None

    def test_an_orderly_reopening_is_no_proof_either(self):
        driver = recording(replays=False)
        driver.take(driver.run.reconnected(driver.now, orderly=True))
        driver.feed(m.reply_ok(driver.request), m.idle(driver.request))
        driver.answer(m.state, m.entry(FIRST, kept=1))
        assert driver.asked[-1].startswith("fetch")
