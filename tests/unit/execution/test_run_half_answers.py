"""A server that hands over the kernel's outputs and never its replies, as jupyter_server_documents 0.2 may."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.errors import ConnectionLostError, KernelStartError
from airflow_provider_smstudio.studio.execution import events as ev
from tests.helpers import messages as m
from tests.helpers.run_driver import Driver, only

QUIET = {"crash_check_after": None, "check_interval": 10**9, "unheard_limit": 30, "reconnect_timeout": 600}


def wait(driver, seconds):
    """Let time pass; whatever connection is asked for, it is made at once."""
    for _ in range(seconds):
        if driver.run.finished:
            return
        if only(driver.after(1), ev.Reconnect):
            driver.restore(orderly=True)


@pytest.mark.parametrize("question", ["info", "install"])
def test_before_the_first_cell_another_kernel_can_be_taken(question):
    driver = Driver("a", record=True, **QUIET)
    driver.start()
    if question == "install":
        driver.answer(m.kernel_info_reply)
    assert driver.asked[-1] == question
    driver.feed(m.busy(driver.probe), m.idle(driver.probe))
    wait(driver, 14)
    assert not driver.run.finished
    wait(driver, 2)
    assert type(driver.error) is KernelStartError
    assert driver.run.never_answered


def test_an_answer_that_is_only_late_ends_nothing():
    driver = Driver("a", record=True, **QUIET)
    driver.start()
    driver.feed(m.busy(driver.probe), m.idle(driver.probe))
    wait(driver, 10)
    driver.feed(m.kernel_info_reply(driver.probe))
    driver.answer(m.installed)
    wait(driver, 10)
    driver.succeed()
    assert driver.run.finished
    assert driver.error is None


def test_later_on_the_run_ends_in_the_end_and_does_not_wait_for_ever():
    driver = Driver("a", "b", record=True, **QUIET).recording()
    driver.feed(m.busy(driver.request), m.idle(driver.request))  # its reply never comes
    wait(driver, 20)
    assert driver.asked[-1] == "state 0"
    for _ in range(400):
        if driver.run.finished:
            break
        driver.feed(m.busy(driver.probe), m.idle(driver.probe))
        wait(driver, 5)
    assert type(driver.error) is ConnectionLostError
    assert "delivered no answer of the kernel for 600 s while cell 1/2 ran" in str(driver.error)
    assert driver.codes == ["a"]


def test_a_cell_that_another_process_has_sent_meanwhile_is_looked_up_and_not_sent():
    """A process that was given up hears the cell's end as well, and may be quicker with the next one."""
    first = Driver("a", "b", record=True).recording()
    driver = Driver(notebook=first.saved[-1], resumed=True, record=True)
    driver.start()
    cell = first.request
    theirs = m.request_of("my-session-cell-1-1", "b")
    driver.feed(m.busy(theirs), m.execute_input(theirs, 2), m.stream(theirs, "two\n"))
    driver.feed(m.execute_input(cell), m.reply_ok(cell), m.idle(cell))
    driver.answer(m.state, m.entry("my-session-cell-0-1", kept=1))
    driver.feed(m.reply_ok(theirs, 2), m.idle(theirs))
    driver.answer(m.state, m.entry("my-session-cell-0-1", kept=1), m.entry("my-session-cell-1-1", kept=2))
    assert driver.run.finished, driver.asked
    assert driver.error is None
    assert driver.codes == []
    assert driver.texts(1) == ["two\n"]


def test_half_an_answer_that_went_with_its_connection_ends_nothing_later():
    """Between two cells nothing is asked again of a kernel without a record."""
    driver = Driver("a", "b", record=False, **QUIET).ready()
    driver.reconnect()
    driver.feed(m.busy(driver.probe), m.idle(driver.probe))
    driver.after(1)
    driver.cut()
    driver.after(1)
    driver.restore()
    driver.feed(m.reply_ok(driver.request), m.idle(driver.request))
    driver.answer(m.counted, 2)
    assert driver.codes == ["a", "b"]
    wait(driver, 2000)
    assert not driver.run.finished


def test_an_answer_behind_much_output_is_waited_for():
    driver = Driver("a", record=False, **QUIET).ready()
    driver.reconnect()
    question = driver.probe
    driver.feed(m.reply_ok(driver.request), m.counted(question, 2))  # they overtake the output
    for number in range(200):
        wait(driver, 10)
        driver.feed(m.stream(driver.request, f"{number}\n"))
    assert not driver.run.finished
    driver.feed(m.idle(driver.request))
    driver.answer(m.counted, 2)
    assert driver.run.finished
    assert driver.error is None
