"""A kernel that gives no sign of life: it is looked for, and only a process that is gone ends the run."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.errors import KernelDiedError, KernelStartError
from airflow_provider_smstudio.studio.execution import events as ev
from tests.helpers import messages as m
from tests.helpers.run_driver import Driver, only


def silent(**options):
    """A run in whose first cell the kernel falls silent."""
    return Driver("a", "b", heartbeat_interval=60, crash_check_after=240, **options)


def looks(driver, seconds, step=5):
    """Let time pass; return when it was asked to look, in seconds from now, and for how long it had been silent."""
    found = []
    for second in range(step, seconds + 1, step):
        found += [(second, event.silence) for event in only(driver.after(step), ev.CheckProcess)]
    return found


def test_it_is_looked_for_after_four_minutes_and_then_as_often():
    driver = silent().ready()
    assert looks(driver, 1000) == [(240, 240.0), (480, 480.0), (720, 720.0), (960, 960.0)]


def test_a_heartbeats_answer_is_a_sign_of_life():
    driver = silent().ready()
    for _ in range(40):
        assert looks(driver, 60) == []
        beat = driver.beats[-1]
        driver.feed(m.busy(beat), m.kernel_info_reply(beat), m.idle(beat))


def test_so_is_output():
    driver = silent().ready()
    for _ in range(10):
        assert looks(driver, 200) == []
        driver.feed(m.stream(driver.request, "on\n"))


def test_what_the_server_says_by_itself_is_none():
    """jupyter_server_documents tells a kernel's state to each websocket that opens; the kernel says nothing then."""
    driver = silent().ready()
    by_itself = m.status(m.foreign_request("status"), "busy")
    found = []
    for _ in range(10):
        found += looks(driver, 50)
        driver.feed(by_itself)
    assert [silence for _, silence in found] == [240.0, 480.0]


@pytest.mark.parametrize("there", [True, None], ids=["there", "nobody knows"])
def test_a_busy_kernel_is_never_ended(there):
    driver = silent().ready()
    for _ in range(15):
        assert len(looks(driver, 240)) == 1
        assert driver.run.process_found(there, driver.now, driver.now) == []
    driver.succeed()
    driver.succeed(count=2)
    assert driver.error is None


def test_a_process_that_is_gone_ends_the_run():
    driver = silent().ready()
    looks(driver, 240)
    driver.take(driver.run.process_found(False, driver.now - 1, driver.now))
    assert type(driver.error) is KernelDiedError
    assert "while cell 1/2 ran (a): it crashed, which the Jupyter server did not notice" in str(driver.error)
    assert "memory ran out on ml.t3.medium" in str(driver.error)
    assert driver.events[-2:] == [ev.Save(required=True), ev.Finished(driver.error)]
    assert driver.run.process_found(False, driver.now, driver.now) == []


def test_what_it_has_said_since_counts_for_more():
    driver = silent().ready()
    looks(driver, 240)
    began = driver.now
    driver.now += 2
    driver.feed(m.stream(driver.request, "here\n"))
    assert driver.run.process_found(False, began, driver.now + 1) == []
    assert not driver.run.finished


def test_a_kernel_that_is_gone_before_it_has_answered_a_question():
    driver = silent(record=True)
    driver.start()
    driver.answer(m.kernel_info_reply)
    assert driver.asked[-1] == "install"
    assert looks(driver, 240)
    driver.take(driver.run.process_found(False, driver.now, driver.now))
    assert type(driver.error) is KernelDiedError


def test_a_kernel_that_starts_is_not_looked_for():
    """It may not listen yet; its start has a limit of its own."""
    driver = silent(kernel_start_timeout=600)
    driver.start()
    assert looks(driver, 595) == []
    driver.after(5)
    assert type(driver.error) is KernelStartError


def test_it_is_looked_for_while_the_websocket_cannot_be_opened():
    """A stock server opens none to a kernel that is gone."""
    driver = silent(reconnect_timeout=10**6).ready()
    driver.cut()
    for _ in range(100):
        if only(driver.after(5), ev.Reconnect):
            driver.cut()
    assert [look.silence for look in only(driver.events, ev.CheckProcess)] == [240.0, 480.0]
    driver.take(driver.run.process_found(False, driver.now, driver.now))
    assert type(driver.error) is KernelDiedError


def test_nobody_looks_for_a_kernel_that_is_being_stopped():
    driver = silent(interrupt_grace=10**6).ready()
    driver.take(driver.run.stop("enough", driver.now))
    assert looks(driver, 500) == []


def test_nobody_looks_where_that_is_off():
    driver = Driver("a", heartbeat_interval=60, crash_check_after=None).ready()
    assert looks(driver, 2000) == []


def test_the_look_is_told_which_process_it_is():
    driver = Driver("a", heartbeat_interval=60, crash_check_after=240, record=True).recording()
    driver.after(240)
    (look,) = only(driver.events, ev.CheckProcess)
    assert look.process == "boot pid:[1] 17 4711"
    assert driver.notebook.metadata.smstudio.run.process == "boot pid:[1] 17 4711"


def test_a_later_process_knows_which_it_is():
    first = Driver("a", "b", record=True).recording()
    first.take(first.run.tick(first.now))
    later = Driver(
        notebook=first.saved[-1], resumed=True, heartbeat_interval=60, crash_check_after=240, record=True
    )
    later.start()
    for _ in range(48):
        later.after(5)
    assert [look.process for look in only(later.events, ev.CheckProcess)] == ["boot pid:[1] 17 4711"]
