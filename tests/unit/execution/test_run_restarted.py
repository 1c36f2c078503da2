"""A kernel that was started again while nobody was told: its heartbeat's answer comes from another process."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.errors import KernelDiedError, UnknownOutcomeError
from airflow_provider_smstudio.studio.execution import events as ev
from tests.helpers import messages as m
from tests.helpers.run_driver import Driver, only


def from_another_process(message):
    message["header"]["session"] = "a-process-that-was-started-later"
    return message


def beating(*, record, **options):
    driver = Driver("a", "b", record=record, heartbeat_interval=60, **options)
    driver.recording() if record else driver.ready()
    driver.feed(m.busy(driver.request), m.stream(driver.request, "one\n"))
    driver.after(60)
    return driver


def test_the_same_process_is_no_news():
    driver = beating(record=True)
    asked = driver.asked
    driver.feed(m.kernel_info_reply(driver.beats[-1]), m.idle(driver.beats[-1]))
    assert driver.asked == asked


def test_another_process_is_asked_and_has_no_record():
    driver = beating(record=True)
    driver.feed(from_another_process(m.kernel_info_reply(driver.beats[-1])))
    assert driver.asked[-1] == "state 0"
    driver.answer(m.no_record)
    assert type(driver.error) is KernelDiedError
    assert "started again" in str(driver.error)
    assert driver.error.cell_number == 1


def test_a_false_alarm_ends_nothing():
    driver = beating(record=True)
    driver.feed(from_another_process(m.kernel_info_reply(driver.beats[-1])))
    driver.feed(m.reply_ok(driver.request), m.idle(driver.request))
    driver.answer(m.state, m.entry("my-session-cell-0-1", kept=1))
    assert driver.statuses() == ["completed", "running"]


def test_without_a_record_nobody_can_tell_what_became_of_the_cell():
    driver = beating(record=False)
    driver.feed(from_another_process(m.kernel_info_reply(driver.beats[-1])))
    assert driver.asked[-1] == "count"
    driver.answer(m.counted, 0)
    assert type(driver.error) is UnknownOutcomeError


def test_a_question_that_another_process_leaves_unread_is_asked_anew():
    """Seen with ipykernel 7.3: a kernel that was started again answers its heartbeats and nothing else."""
    driver = beating(record=True, unheard_limit=5)
    driver.reconnect()
    assert driver.asked[-1] == "state 0"
    driver.feed(from_another_process(m.kernel_info_reply(driver.beats[-1])))
    assert only(driver.after(5), ev.Reconnect) == [ev.Reconnect(orderly=True)]
    driver.restore(orderly=True)
    driver.feed(from_another_process(m.kernel_info_reply(driver.beats[-1])))
    assert only(driver.after(10), ev.Reconnect) == [ev.Reconnect(orderly=True, fresh=True)]
    driver.restore(orderly=True)
    driver.answer(m.no_record)
    assert type(driver.error) is KernelDiedError


def test_a_question_behind_a_cell_may_take_as_long_as_the_cell():
    driver = beating(record=True, unheard_limit=5)
    driver.reconnect()
    driver.feed(m.kernel_info_reply(driver.beats[-1]))
    assert only(driver.after(30), ev.Reconnect) == []


def test_the_server_calls_a_kernel_starting_that_leaves_the_question_unread():
    """A later process knows no process of the kernel from before."""
    driver = beating(record=True, unheard_limit=5)
    driver.reconnect()
    assert driver.run.kernel_state("starting", driver.now) == []  # the question's answer may be under way
    driver.now += 5
    assert driver.take(driver.run.kernel_state("starting", driver.now)) == [ev.Reconnect(orderly=True)]
    driver.restore(orderly=True)
    driver.now += 5
    assert driver.run.kernel_state("starting", driver.now) == []  # less and less often
    driver.now += 5
    look, reconnect = driver.take(driver.run.kernel_state("starting", driver.now))
    assert isinstance(look, ev.CheckProcess)  # which wakes a kernel where no websocket does
    assert reconnect == ev.Reconnect(orderly=True, fresh=True)


@pytest.mark.parametrize("half", [m.no_record, m.idle])
def test_an_answer_that_came_by_half_is_asked_for_anew(half):
    """Seen with jupyter_server 2.21: it hears the outputs of a kernel that was started again a moment too late."""
    driver = beating(record=True, unheard_limit=5)
    driver.reconnect()
    driver.feed(from_another_process(half(driver.probe)))
    driver.feed(from_another_process(m.kernel_info_reply(driver.beats[-1])))
    assert driver.run.kernel_state("busy", driver.now) == []  # as the server goes on to say
    assert only(driver.after(5), ev.Reconnect) == [ev.Reconnect(orderly=True)]
    driver.restore(orderly=True)
    driver.answer(m.no_record)
    assert type(driver.error) is KernelDiedError


def test_outputs_before_the_other_half_may_take_long():
    driver = beating(record=True, unheard_limit=5)
    driver.reconnect()
    driver.feed(m.state(driver.probe))  # on the shell channel, while outputs queue up on theirs
    for number in range(5):
        assert only(driver.after(4), ev.Reconnect) == []
        driver.feed(m.stream(driver.request, f"{number}\n"))
    assert only(driver.after(5), ev.Reconnect) == [ev.Reconnect(orderly=True)]


def test_without_a_record_a_starting_kernel_is_only_asked():
    driver = beating(record=False, unheard_limit=5)
    driver.take(driver.run.kernel_state("starting", driver.now))
    assert driver.asked[-1] == "count"
    driver.now += 60
    assert driver.run.kernel_state("starting", driver.now) == []


@pytest.mark.parametrize("make", [m.busy, m.idle])
def test_only_a_reply_tells(make):
    driver = beating(record=True)
    asked = driver.asked
    driver.feed(from_another_process(make(driver.beats[-1])))
    assert driver.asked == asked


def test_a_notice_of_the_server_is_no_other_process():
    driver = beating(record=True)
    asked = driver.asked
    driver.feed(from_another_process(m.rate_notice(driver.request)))
    driver.feed(m.kernel_info_reply(driver.beats[-1]))
    assert driver.asked == asked


def test_other_kernels_may_name_what_they_like():
    driver = Driver("a", heartbeat_interval=60)
    driver.start()
    info = m.kernel_info_reply(driver.probe)
    info["content"]["implementation"] = "ir"
    driver.feed(info, m.idle(driver.probe))
    driver.after(60)
    asked = driver.asked
    driver.feed(from_another_process(m.kernel_info_reply(driver.beats[-1])))
    assert driver.asked == asked
