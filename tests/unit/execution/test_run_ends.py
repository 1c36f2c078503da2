"""A run's ends before its time: dead kernels, time limits, stops, lost messages, broken connections."""

from __future__ import annotations

import pickle

import pytest

from airflow_provider_smstudio.studio.errors import (
    CellError,
    CellTimeoutError,
    ConnectionLostError,
    KernelDiedError,
    KernelStartError,
    RunKilledError,
    UnknownOutcomeError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.protocol.instance_metrics import Memory, Reading
from airflow_provider_smstudio.studio.runs.saved_run import error_of
from tests.helpers import messages as m
from tests.helpers.run_driver import BROKEN, Driver, kinds, only


def everything_after(driver):
    """Feed a run that is over with all that a driver could tell it; it must stay silent and as it was."""
    sent, error, saved = len(driver.sent), driver.error, len(driver.saved)
    requests = driver.sent or [m.foreign_request()]
    for request in requests:
        driver.feed(m.busy(request), m.kernel_info_reply(request), m.reply_ok(request), m.error(request))
        driver.feed(m.idle(request), m.input_request(request))
    driver.feed(m.restarting(), m.starting(), m.dead(), m.shutdown_reply(restart=True))
    assert driver.run.tick(driver.now + 10_000) == []
    assert driver.run.kernel_state(None, driver.now) == []
    assert driver.run.kernel_state("idle", driver.now) == []
    assert driver.run.disconnected(BROKEN, driver.now) == []
    assert driver.run.reconnected(driver.now) == []
    assert driver.run.stop("again", driver.now) == []
    assert driver.run.abandon(BROKEN, driver.now) == []
    assert driver.run.next_deadline() is None
    assert (len(driver.sent), driver.error, len(driver.saved)) == (sent, error, saved)


def ended(driver, kind):
    """Check that a run has ended with such an error, saved before it told so, and stays ended."""
    assert driver.run.finished
    assert type(driver.error) is kind
    assert driver.events[-2:] == [ev.Save(required=True), ev.Finished(driver.error)]
    assert driver.saved[-1].metadata.papermill.exception is True
    assert driver.saved[-1].metadata.papermill.end_time is not None
    everything_after(driver)
    return driver.error


def test_a_run_that_ended_well_ignores_everything():
    driver = Driver("a").ready()
    driver.succeed()
    assert driver.error is None
    everything_after(driver)


# --- A dead kernel

DEATHS = {
    "restarting": lambda driver: driver.feed(m.restarting()),
    "dead": lambda driver: driver.feed(m.dead()),
    "restarted": lambda driver: driver.feed(m.shutdown_reply(restart=True)),
    "shut down": lambda driver: driver.feed(m.shutdown_reply(restart=False)),
    "busy with a shutdown": lambda driver: driver.feed(m.busy(m.foreign_request("shutdown_request"))),
    "gone": lambda driver: driver.take(driver.run.kernel_state(None, driver.now)),
    "dead by REST": lambda driver: driver.take(driver.run.kernel_state("dead", driver.now)),
}
LATE_DEATHS = {**DEATHS, "started again": lambda driver: driver.feed(m.starting())}
each_death = pytest.mark.parametrize("die", DEATHS.values(), ids=DEATHS.keys())
each_late_death = pytest.mark.parametrize("die", LATE_DEATHS.values(), ids=LATE_DEATHS.keys())


@each_death
def test_a_kernel_that_dies_while_starting_runs_nothing(die):
    driver = Driver("a")
    driver.start()
    die(driver)
    assert "died while starting" in str(ended(driver, KernelStartError))
    assert driver.codes == []
    assert driver.statuses() == ["pending"]


@each_late_death
def test_a_kernel_that_dies_under_a_cell_ends_the_run(die):
    driver = Driver("a", "import x\nmore", "never").ready()
    driver.succeed()
    driver.feed(m.busy(driver.request), m.stream(driver.request, "so far"))
    die(driver)
    error = ended(driver, KernelDiedError)
    assert (error.cell_number, error.cell_index) == (2, 1)
    assert "while cell 2/3 ran (import x)" in str(error)
    assert "nothing more was run" in str(error)
    assert driver.codes == ["a", "import x\nmore"]
    assert driver.texts(1) == ["so far"]
    assert driver.statuses() == ["completed", "failed", "pending"]


@each_late_death
def test_a_kernel_that_dies_between_reply_and_idle_gets_no_further_cell(die):
    driver = Driver("a", "never").ready()
    driver.feed(m.reply_ok(driver.request))
    die(driver)
    driver.feed(m.idle(driver.request))
    ended(driver, KernelDiedError)
    assert driver.codes == ["a"]


def test_a_crash_names_the_usual_reason_and_the_machine():
    for die, told in ((m.restarting(), True), (m.dead(), True), (m.shutdown_reply(restart=True), False)):
        driver = Driver("a", where="ml.g4dn.xlarge").ready()
        driver.feed(die)
        assert ("memory ran out on ml.g4dn.xlarge" in str(driver.error)) is told
    driver = Driver("a", where=None).ready()
    driver.feed(m.restarting())
    assert "memory ran out." in str(driver.error)


@each_late_death
def test_a_dead_kernels_error_tells_how_full_the_memory_was(die):
    driver = Driver("a").ready()
    driver.run.memory.take(Reading(Memory(97.2), driver.now - 12), driver.now - 12)
    die(driver)
    error = ended(driver, KernelDiedError)
    assert "; the instance's memory was 97 % full 12 s before. Its variables are gone" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    saved = driver.saved[-1].metadata.smstudio.run
    assert saved.error == {"type": "KernelDiedError", "message": str(error)}
    assert (type(error_of(driver.saved[-1])), str(error_of(driver.saved[-1]))) == (KernelDiedError, str(error))


@pytest.mark.parametrize("state", ["busy", "unknown", ""])
def test_what_rest_says_of_a_known_kernel_means_nothing(state):
    driver = Driver("a").ready()
    assert driver.run.kernel_state(state, driver.now) == []
    driver.succeed()
    assert driver.error is None


@pytest.mark.parametrize("state", ["idle", "starting"])
def test_rest_calls_a_kernel_idle_whose_answer_was_lost(state):
    driver = Driver("a", "b").ready()
    driver.take(driver.run.kernel_state(state, driver.now))
    assert driver.asked == ["info", "count"]
    driver.answer(m.counted, 1)
    ended(driver, UnknownOutcomeError)
    assert "the answer to cell 1/2 was lost" in str(driver.error)
    assert driver.codes == ["a"]


@pytest.mark.parametrize("state", ["idle", "starting"])
def test_rest_calls_a_kernel_idle_whose_answer_is_under_way(state):
    driver = Driver("a").ready()
    cell = driver.request
    driver.take(driver.run.kernel_state(state, driver.now))
    assert driver.feed(m.reply_ok(cell), m.idle(cell)) == []  # the question's answer comes right behind
    driver.answer(m.counted, 1)
    assert driver.run.finished
    assert driver.error is None


def test_a_request_that_nobody_answers_at_all_is_asked_about():
    driver = Driver("a", "b", check_interval=10, unheard_limit=5).ready()
    assert driver.after(5) == [ev.Reconnect(orderly=True)]
    assert kinds(driver.restore(orderly=True)) == ["Send", "Send"]
    assert driver.asked == ["info", "count"]
    driver.answer(m.counted, 1)
    ended(driver, UnknownOutcomeError)
    assert "the answer to cell 1/2 was lost" in str(driver.error)


def test_rest_calls_a_kernel_idle_between_two_cells():
    driver = Driver()
    driver.start()
    assert driver.run.kernel_state("idle", driver.now) == []


def test_a_running_cell_is_shown_to_the_idle_shutdown_about_once_a_minute():
    driver = Driver("a", heartbeat_interval=60).ready()
    for _ in range(600):
        driver.after(1)
    beats = driver.beats
    assert len(beats) == 10
    assert {message["header"]["msg_type"] for message in beats} == {"kernel_info_request"}
    for beat in beats:  # its answers are nobody's output and no proof of anything
        driver.feed(m.busy(beat), m.kernel_info_reply(beat), m.idle(beat))
    driver.succeed()
    assert driver.error is None


def test_a_finished_run_has_no_heartbeat():
    driver = Driver("a", heartbeat_interval=60).ready()
    driver.succeed()
    driver.after(600)
    assert driver.beats == []


@pytest.mark.parametrize("state", ["restarting", "dead", "starting"])
def test_a_state_with_a_parent_or_on_another_channel_is_no_death(state):
    driver = Driver("a").ready()
    shell = m.message("status", {"execution_state": state}, channel="shell")
    assert driver.feed(m.status(driver.request, state), m.status(m.foreign_request(), state), shell) == []
    assert not driver.run.finished


# --- The kernel's start


def test_a_kernel_that_does_not_answer_is_given_up():
    driver = Driver("a", kernel_start_timeout=60)
    driver.start()
    driver.after(59)
    assert not driver.run.finished
    driver.after(1)
    assert "did not answer within 60 s" in str(ended(driver, KernelStartError))


def test_a_silent_kernel_is_asked_again_over_another_connection():
    driver = Driver("a", unheard_limit=5, check_interval=1000)
    driver.start()
    first = driver.probe
    assert driver.after(4) == []
    assert driver.after(1) == [ev.Reconnect(orderly=True)]
    assert kinds(driver.restore(orderly=True)) == ["Send"]
    assert driver.probe is not first
    assert driver.asked == ["info", "info"]
    assert driver.feed(m.kernel_info_reply(driver.probe), m.idle(first)) == []  # halves of two answers
    assert driver.feed(m.kernel_info_reply(first)) == []
    assert kinds(driver.feed(m.idle(driver.probe))) == ["KernelReady", "CellStarted", "Send"]
    assert driver.codes == ["a"]


def test_the_start_limit_ends_with_the_start():
    driver = Driver("a", kernel_start_timeout=60).ready()
    driver.after(1000)
    assert not driver.run.finished


def test_silence_makes_the_server_be_asked():
    driver = Driver("a", check_interval=10, settle_time=1000, autosave_interval=1000).ready()
    driver.feed(m.busy(driver.request))
    assert driver.after(9) == []
    assert kinds(driver.after(1)) == ["CheckKernel"]
    driver.after(5)
    driver.feed(m.stream(driver.request, "x"))
    assert driver.after(9) == []
    assert kinds(driver.after(1)) == ["CheckKernel"]


# --- A cell's time limit


def timed_out(*cells, **options):
    driver = Driver(*(cells or ("slow", "never")), cell_timeout=30, interrupt_grace=5, **options).ready()
    driver.feed(m.busy(driver.request))
    driver.after(29)
    assert only(driver.events, ev.Interrupt) == []
    assert only(driver.after(1), ev.Interrupt) == [ev.Interrupt()]
    return driver


def test_a_cell_that_takes_too_long_is_interrupted_and_its_traceback_kept():
    driver = timed_out()
    driver.after(2)
    assert not driver.run.finished
    driver.fail(ename="KeyboardInterrupt", evalue="", traceback=["where it hung"])
    error = ended(driver, CellTimeoutError)
    assert (error.cell_number, error.cell_index, error.timeout) == (1, 0, 30)
    assert "cell 1/2 took longer than 30 s" in str(error)
    assert driver.saved[-1].cells[0].outputs[0].traceback == ["where it hung"]
    assert driver.codes == ["slow"]
    assert driver.statuses() == ["failed", "pending"]
    assert len(only(driver.events, ev.Interrupt)) == 1


def test_a_cell_that_survives_the_interrupt_ends_the_run_after_the_grace():
    driver = timed_out()
    driver.after(4)
    assert not driver.run.finished
    driver.after(1)
    ended(driver, CellTimeoutError)
    assert driver.papermill(0)["duration"] == 35


@pytest.mark.parametrize("ending", ["ok", "error"])
@pytest.mark.parametrize("options", [{"allow_errors": True}, {}])
def test_a_time_limit_is_not_tolerated_however_the_cell_ends(ending, options):
    driver = timed_out(**options)
    driver.succeed() if ending == "ok" else driver.fail()
    ended(driver, CellTimeoutError)


def test_a_kernel_that_dies_of_the_interrupt_leaves_the_time_limit_as_the_reason():
    driver = timed_out()
    driver.feed(m.restarting())
    ended(driver, CellTimeoutError)


def test_each_cell_has_the_whole_limit():
    driver = Driver("a", "b", cell_timeout=30).ready()
    driver.after(29)
    driver.succeed()
    driver.after(29)
    assert only(driver.events, ev.Interrupt) == []
    driver.after(1)
    assert only(driver.events, ev.Interrupt) == [ev.Interrupt()]


@pytest.mark.parametrize("limit", [None, 0])
def test_without_a_limit_a_cell_may_take_for_ever(limit):
    driver = Driver("a", cell_timeout=limit).ready()
    for _ in range(1000):
        driver.after(3600)
    assert only(driver.events, ev.Interrupt) == []
    driver.succeed()
    assert driver.error is None


def test_a_talking_cell_has_its_limit_too():
    driver = Driver("a", cell_timeout=30).ready()
    for _ in range(29):
        driver.feed(m.stream(driver.request, "."))
        driver.after(1)
    assert only(driver.events, ev.Interrupt) == []
    driver.after(1)
    assert only(driver.events, ev.Interrupt) == [ev.Interrupt()]


# --- Stopping


def test_stopping_before_the_kernel_answers_ends_at_once():
    driver = Driver("a")
    driver.start()
    driver.take(driver.run.stop("the task was cleared", driver.now))
    assert str(ended(driver, RunKilledError)) == "the run was stopped: the task was cleared"
    assert driver.codes == []


def test_stopping_before_the_start_ends_at_once():
    driver = Driver("a")
    driver.take(driver.run.stop("cleared", driver.now))
    ended(driver, RunKilledError)


def test_stopping_interrupts_the_cell_and_hears_it_out():
    driver = Driver("a", "slow", "never", interrupt_grace=5).ready()
    driver.succeed()
    driver.now += 1
    assert driver.take(driver.run.stop("cleared", driver.now)) == [ev.Interrupt()]
    assert driver.take(driver.run.stop("cleared", driver.now)) == []
    driver.feed(m.stream(driver.request, "last words"))
    driver.fail(ename="KeyboardInterrupt", evalue="")
    assert str(ended(driver, RunKilledError)) == "the run was stopped while cell 2/3 ran (slow): cleared"
    assert driver.codes == ["a", "slow"]
    assert driver.texts(1) == ["last words", None]


@pytest.mark.parametrize(("grace", "seconds"), [(None, 5), (1.5, 1.5)])
def test_stopping_waits_for_the_grace_at_most(grace, seconds):
    driver = Driver("a", interrupt_grace=5).ready()
    driver.take(driver.run.stop("cleared", driver.now, grace=grace))
    driver.after(seconds - 0.5)
    assert not driver.run.finished
    driver.after(0.5)
    ended(driver, RunKilledError)


def test_stopping_a_cell_that_timed_out_shortens_its_grace():
    driver = timed_out()
    for _ in range(3):  # a driver may say it again and again
        driver.take(driver.run.stop("cleared", driver.now, grace=1.5))
        driver.after(0.5)
    ended(driver, CellTimeoutError)
    assert len(only(driver.events, ev.Interrupt)) == 1


def test_stopping_never_lengthens_the_grace():
    driver = timed_out()
    driver.take(driver.run.stop("cleared", driver.now, grace=100))
    driver.after(5)
    ended(driver, CellTimeoutError)


def test_stopping_is_not_lost_where_an_error_would_be_tolerated():
    driver = Driver("input()", "never", allow_errors=True).ready()
    driver.feed(m.input_request(driver.request))
    driver.take(driver.run.stop("cleared", driver.now))
    driver.fail(ename="KeyboardInterrupt", evalue="")
    ended(driver, RunKilledError)
    assert driver.codes == ["input()"]


@each_late_death
def test_a_kernel_that_dies_while_stopping_leaves_the_stop_as_the_reason(die):
    driver = Driver("a").ready()
    driver.take(driver.run.stop("cleared", driver.now))
    die(driver)
    ended(driver, RunKilledError)


# --- Connections


def in_phase(phase, **options):
    driver = Driver("a", "never", **options)
    if phase == "starting":
        driver.start()
    elif phase == "cell":
        driver.ready()
        driver.feed(m.stream(driver.request, "so far"))
    return driver


each_phase = pytest.mark.parametrize("phase", ["before", "starting", "cell"])


@each_phase
def test_a_run_is_abandoned_in_every_phase(phase):
    driver = in_phase(phase)
    driver.take(driver.run.abandon(BROKEN, driver.now))
    assert ended(driver, ConnectionLostError) is BROKEN
    assert driver.texts(0) == (["so far"] if phase == "cell" else [])


@each_phase
def test_a_broken_connection_ends_no_run_by_itself(phase):
    driver = in_phase(phase)
    assert driver.cut() == [ev.Disconnected("the kernel's websocket broke", 0.0)]
    assert not driver.run.finished


@pytest.mark.parametrize("phase", ["starting", "cell"])
def test_a_connection_that_cannot_be_made_again_ends_the_run(phase):
    driver = in_phase(phase, reconnect_timeout=60)
    driver.cut()
    while not driver.run.finished:
        assert driver.now <= 1060
        if only(driver.after(driver.run.next_deadline() - driver.now), ev.Reconnect):
            driver.cut()
    assert driver.now == 1060
    error = ended(driver, ConnectionLostError)
    during = " while cell 1/2 ran (a)" if phase == "cell" else ""
    assert str(error) == f"the kernel could not be reached for 60 s{during}: the kernel's websocket broke"
    assert driver.texts(0) == (["so far"] if phase == "cell" else [])
    assert driver.statuses() == ["running" if phase == "cell" else "pending", "pending"]  # it may well go on
    assert driver.notebook.metadata["smstudio"]["run"]["state"] == "lost"


def test_a_connection_that_breaks_while_stopping_leaves_the_stop_as_the_reason():
    driver = Driver("a").ready()
    driver.take(driver.run.stop("cleared", driver.now))
    driver.cut()
    ended(driver, RunKilledError)


# --- Lost messages


def half_done(*messages, cells=("a", "b"), **options):
    """A cell of which these messages came and then nothing, up to the question that follows."""
    driver = Driver(*cells, settle_time=10, check_interval=10_000, autosave_interval=10_000, **options).ready()
    driver.feed(*[make(driver.request) for make in messages])
    asked = len(driver.sent)
    assert driver.after(9) == []
    assert kinds(driver.after(1)) == ["Send"]
    assert len(driver.sent) == asked + 1
    assert driver.probe is driver.sent[-1]
    assert m.question(driver.probe) == "count"
    return driver


@pytest.mark.parametrize("first", ["reply", "idle"])
def test_a_lost_idle_is_settled_and_told(first):
    driver = half_done(lambda request: m.stream(request, "seen"), m.reply_ok)
    answers = [m.counted(driver.probe, 1), m.idle(driver.probe)]
    if first == "idle":
        answers.reverse()
    assert driver.feed(m.busy(driver.probe), answers[0]) == []
    events = driver.feed(answers[1])
    assert kinds(events) == ["OutputLost", "CellFinished", "CellStarted", "Send"]
    assert events[0].reason in driver.cell(0).metadata["smstudio"]["output_lost"]
    assert driver.codes == ["a", "b"]


def test_a_lost_idle_of_a_failed_cell_is_still_a_failure():
    driver = half_done(m.reply_error)
    driver.answer(m.counted, 1)
    ended(driver, CellError)


def test_a_lost_reply_ends_the_run_because_the_cell_may_have_failed():
    driver = half_done(m.idle)
    driver.answer(m.counted, 1)
    error = ended(driver, UnknownOutcomeError)
    assert (error.cell_number, error.cell_index) == (1, 0)
    assert str(error) == (
        "the answer to cell 1/2 was lost. It is unknown whether the cell ran and how it ended, so nothing more "
        "was run. Set on_unknown_cell='rerun' if this cell may run twice"
    )
    assert driver.codes == ["a"]
    assert driver.statuses() == ["failed", "pending"]


@pytest.mark.parametrize(("seen", "missing"), [(m.reply_ok, m.idle), (m.idle, m.reply_ok)])
def test_what_comes_late_but_comes_is_no_loss_and_the_question_ends_the_cell(seen, missing):
    driver = half_done(seen, cells=("a", "b", "c"))
    probe = driver.probe
    halves = [m.counted(probe, 1), m.idle(probe)]
    assert driver.feed(halves.pop(0 if seen is m.idle else 1)) == []
    assert driver.feed(missing(driver.request)) == []  # the question's answer comes right behind
    assert kinds(driver.feed(*halves)) == ["CellFinished", "CellStarted", "Send"]
    # The second cell is half done when the answer to the question about the first one is repeated.
    driver.feed(seen(driver.request))
    assert driver.feed(m.counted(probe, 1), m.idle(probe), m.idle(probe)) == []
    assert only(driver.events, ev.OutputLost) == []
    driver.feed(missing(driver.request))
    assert driver.codes == ["a", "b", "c"]


def test_output_that_still_comes_puts_the_question_off():
    driver = Driver("a", settle_time=10, check_interval=10_000, autosave_interval=10_000).ready()
    driver.feed(m.reply_ok(driver.request))
    for _ in range(5):
        assert driver.after(9) == []
        driver.feed(m.stream(driver.request, "x"))
    assert kinds(driver.after(10)) == ["Send"]


def test_a_question_that_stays_unheard_is_asked_again_over_another_connection():
    driver = half_done(m.reply_ok, unheard_limit=5)
    driver.feed(m.idle(driver.request))
    for pause in (5, 10, 20, 40, 60, 60):
        assert driver.after(pause - 1) == []
        events = driver.after(1)
        assert events[-1] == ev.Reconnect(orderly=True)
        # Where another connection did not help, a look from beside wakes the kernel.
        assert kinds(events[:-1]) == ([] if pause == 5 else ["CheckProcess"])
        driver.restore(orderly=True)
    assert driver.asked == ["info"] + ["count"] * 7
    driver.answer(m.counted, 1)
    assert driver.codes == ["a", "b"]


def test_a_question_behind_a_cell_under_way_may_stay_unheard_until_the_server_calls_the_kernel_idle():
    driver = half_done(m.reply_ok, unheard_limit=5)
    assert driver.take(driver.run.kernel_state("idle", driver.now + 4)) == []
    assert driver.after(100) == []
    assert driver.take(driver.run.kernel_state("busy", driver.now)) == []
    assert driver.take(driver.run.kernel_state("idle", driver.now)) == [ev.Reconnect(orderly=True)]
    driver.restore(orderly=True)
    assert driver.asked == ["info", "count", "count"]
    driver.answer(m.counted, 1)
    assert driver.codes == ["a", "b"]


def test_a_running_cell_is_never_asked_about():
    driver = Driver("a", settle_time=10).ready()
    sent = len(driver.sent)
    driver.feed(m.busy(driver.request), m.stream(driver.request, "x"))
    for _ in range(100):
        driver.after(10)
    assert len(driver.sent) == sent


def test_a_question_left_over_from_the_last_cell_is_not_asked_about_the_next():
    driver = Driver("a", "b", settle_time=10, check_interval=10_000, autosave_interval=10_000).ready()
    driver.feed(m.reply_ok(driver.request))
    driver.after(9)
    driver.feed(m.idle(driver.request))
    assert driver.after(100) == []


def test_a_lost_reply_while_stopping_leaves_the_stop_as_the_reason():
    driver = half_done(m.idle, interrupt_grace=60)
    driver.take(driver.run.stop("cleared", driver.now))
    driver.answer(m.counted, 1)
    ended(driver, RunKilledError)


# --- The clock


@pytest.mark.parametrize(
    "options", [{}, {"cell_timeout": 7}, {"cell_timeout": 10, "check_interval": 10, "settle_time": 10}]
)
@pytest.mark.parametrize("seen", [[], [m.reply_ok], [m.idle]])
def test_a_silent_run_needs_few_ticks(options, seen):
    driver = Driver("a", **options).ready()
    driver.feed(*[make(driver.request) for make in seen])
    began, ticks = driver.now, 0
    while not driver.run.finished and driver.now < began + 600:
        driver.after(driver.run.next_deadline() - driver.now)  # checks that the next one lies ahead
        ticks += 1
    assert ticks <= 150


def test_a_kernel_that_never_answers_ends_by_ticking_alone():
    driver = Driver("a")
    driver.start()
    driver.until_finished(limit=150)
    ended(driver, KernelStartError)


def test_a_hung_cell_ends_by_ticking_alone():
    driver = Driver("a", cell_timeout=120).ready()
    driver.until_finished()
    ended(driver, CellTimeoutError)


def test_before_its_start_a_run_has_no_deadline():
    assert Driver("a").run.next_deadline() is None
