"""A connection that is lost and made again: how often, what is asked then, and what a kernel's record answers."""

from __future__ import annotations

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
from tests.helpers import messages as m
from tests.helpers.run_driver import Driver, code, kinds, only

FIRST, SECOND = "my-session-cell-0-1", "my-session-cell-1-1"


def recording(*cells, **options):
    return Driver(*(cells or ("a", "b")), record=True, **options).recording()


# --- The way back


def test_a_lost_connection_is_made_again_at_once_and_then_at_growing_intervals():
    driver = recording()
    assert driver.cut() == [ev.Disconnected("the kernel's websocket broke", 0.0)]
    assert driver.run.next_deadline() == driver.now
    for pause in (0, 0.5, 1, 2, 4, 8, 15, 15):
        assert only(driver.after(pause), ev.Reconnect) == [ev.Reconnect(orderly=False)]
        assert driver.run.tick(driver.now) == []  # while the try is under way
        again = driver.cut()
        assert kinds(again) == ["Disconnected"]
    assert again[0].retry_in == 15
    driver.after(15)
    events = driver.restore()
    assert events[0] == ev.Reconnected(60.5)
    assert kinds(events) == ["Reconnected", "Send", "Send"]


def test_the_interval_starts_anew_with_each_loss():
    driver = recording()
    driver.cut()
    for _ in range(5):
        driver.after(driver.run.next_deadline() - driver.now)
        driver.cut()
    driver.after(driver.run.next_deadline() - driver.now)
    driver.restore()
    assert driver.cut()[0].retry_in == 0


def test_the_last_try_is_made_at_the_limit():
    driver = recording(reconnect_timeout=10)
    driver.cut()
    for moment in (0, 0.5, 1.5, 3.5, 7.5, 10):
        driver.after(1000 + moment - driver.now)
        assert not driver.run.finished
        assert isinstance(driver.events[-1], ev.Reconnect)
        driver.cut()
    assert type(driver.error) is ConnectionLostError
    assert "for 10 s while cell 1/2 ran (a)" in str(driver.error)


def test_nothing_is_sent_and_nobody_asked_while_the_connection_is_down():
    driver = recording(heartbeat_interval=5, check_interval=5, settle_time=5, unheard_limit=5)
    driver.feed(m.reply_ok(driver.request))
    driver.cut()
    sent = len(driver.sent)
    driver.now += 100
    events = driver.take(driver.run.tick(driver.now))
    assert events == [ev.Reconnect(orderly=False)]
    assert driver.take(driver.run.kernel_state("idle", driver.now)) == []
    assert len(driver.sent) == sent


def test_what_is_asked_before_the_kernel_has_answered():
    driver = Driver("a", record=True)
    driver.start()
    assert kinds(driver.reconnect()) == ["Disconnected", "Reconnect", "Reconnected", "Send"]
    assert driver.asked == ["info", "info"]
    first, second = driver.questions
    assert driver.feed(m.kernel_info_reply(first), m.idle(first)) == []
    assert kinds(driver.feed(m.kernel_info_reply(second), m.idle(second))) == ["KernelReady", "Send"]


def test_what_is_asked_while_the_record_is_being_installed():
    driver = Driver("a", record=True)
    driver.start()
    driver.answer(m.kernel_info_reply)
    driver.reconnect()
    assert driver.asked == ["info", "install", "install"]
    assert kinds(driver.answer(m.installed, resumed=True)) == ["CellStarted", "Send"]
    assert driver.ids == ["cell-0-1"]


def test_what_is_asked_while_a_cell_runs():
    driver = recording()
    driver.reconnect()
    assert driver.asked == ["info", "install", "state 0"]
    assert len(driver.beats) == 1  # it may run for hours: this tells whether the kernel is there
    assert driver.probe["channel"] == "shell"


def test_what_is_asked_after_some_cells_begins_with_the_current_one():
    driver = recording("a", "b", "c")
    driver.succeed()
    driver.succeed()
    driver.reconnect()
    assert driver.asked[-1] == "state 2"


def test_what_is_asked_without_a_record():
    driver = Driver("a").ready()
    driver.reconnect()
    assert driver.asked == ["info", "count"]
    assert driver.probe["content"] == {
        "code": "",
        "silent": True,
        "store_history": False,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": False,
    }


def test_a_question_under_way_is_given_up_with_its_connection():
    driver = recording()
    driver.reconnect()
    old = driver.probe
    driver.reconnect()
    assert driver.feed(m.state(old), m.idle(old)) == []
    assert driver.ids == ["cell-0-1"]


def test_an_orderly_reopening_loses_nothing_and_asks_all_the_same():
    driver = recording(unheard_limit=5, autosave_interval=10**6)
    assert driver.after(5) == [ev.Reconnect(orderly=True)]
    assert kinds(driver.restore(orderly=True)) == ["Send", "Send"]
    assert kinds(driver.succeed()) == []  # the answer to the question comes right behind
    events = driver.answer(m.state, m.entry(FIRST, kept=1))
    assert kinds(events) == ["CellFinished", "CellStarted", "Send"]


def test_an_orderly_reopening_that_fails_is_a_loss():
    driver = recording(unheard_limit=5)
    driver.after(5)
    assert driver.cut() == [ev.Disconnected("the kernel's websocket broke", 0.0)]
    assert kinds(driver.after(0)) == ["Reconnect"]
    assert kinds(driver.restore()) == ["Reconnected", "Send", "Send"]


def test_the_patience_with_an_unheard_request_grows_and_starts_anew_when_one_is_heard():
    driver = recording(unheard_limit=5, autosave_interval=10**6)
    for pause in (5, 10, 20, 40, 60, 60):
        assert not only(driver.after(pause - 0.5), ev.Reconnect)
        # Where one has not helped, the next comes as a stranger.
        assert only(driver.after(0.5), ev.Reconnect) == [ev.Reconnect(orderly=True, fresh=pause > 5)]
        driver.restore(orderly=pause == 5)
    driver.succeed()
    driver.answer(m.state, m.entry(FIRST, kept=1))
    assert driver.ids == ["cell-0-1", "cell-1-1"]
    assert only(driver.after(5), ev.Reconnect) == [ev.Reconnect(orderly=True)]


@pytest.mark.parametrize("answered", [0, 1], ids=["is it there", "keep a record"])
def test_before_the_first_cell_a_stranger_may_ask_as_well(answered):
    driver = Driver("a", record=True, unheard_limit=5)
    driver.start()
    for _ in range(answered):
        driver.answer(m.kernel_info_reply)
    assert driver.asked == ["info", "install"][: answered + 1]
    assert only(driver.after(5), ev.Reconnect) == [ev.Reconnect(orderly=True)]
    driver.restore(orderly=True)
    assert only(driver.after(10), ev.Reconnect) == [ev.Reconnect(orderly=True, fresh=True)]


def test_a_cell_that_has_been_heard_may_be_silent_for_ever():
    driver = recording(unheard_limit=5)
    driver.feed(m.busy(driver.request))
    driver.after(10_000)
    assert only(driver.events, ev.Reconnect) == []


def test_a_kernel_that_the_server_calls_busy_has_got_its_request():
    driver = recording(unheard_limit=5)
    driver.take(driver.run.kernel_state("busy", driver.now))
    driver.after(10_000)
    assert only(driver.events, ev.Reconnect) == []


# --- Stops, limits and deaths meanwhile


def test_a_run_that_is_stopped_while_the_connection_is_down_interrupts_and_waits_for_the_grace():
    driver = recording(interrupt_grace=5)
    driver.cut()
    assert driver.take(driver.run.stop("cleared", driver.now)) == [ev.Interrupt()]
    driver.after(0)
    driver.after(4.9)
    assert not driver.run.finished
    driver.after(0.1)
    assert type(driver.error) is RunKilledError


def test_a_connection_that_cannot_be_made_while_stopping_ends_the_run():
    driver = recording()
    driver.cut()
    driver.take(driver.run.stop("cleared", driver.now))
    driver.after(0)
    driver.cut()
    assert type(driver.error) is RunKilledError


def test_a_run_that_is_stopped_while_the_connection_is_down_hears_the_cell_out():
    driver = recording()
    driver.cut()
    driver.take(driver.run.stop("cleared", driver.now))
    driver.after(0)
    driver.restore()
    interrupted = {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": []}
    driver.answer(m.state, m.entry(FIRST, kept=1, reply=interrupted))
    request = driver.request
    driver.answer(m.fetched, m.error(request, "KeyboardInterrupt", ""))
    assert type(driver.error) is RunKilledError
    assert driver.saved[-1].cells[0].outputs[0].ename == "KeyboardInterrupt"
    assert driver.ids == ["cell-0-1"]


def test_a_cell_that_never_arrived_is_not_sent_again_after_a_stop():
    driver = recording()
    driver.cut()
    driver.take(driver.run.stop("cleared", driver.now))
    driver.after(0)
    driver.restore()
    assert kinds(driver.answer(m.state)) == ["Send"]
    assert driver.asked[-1] == f"refuse {FIRST}"  # or it might run after all, with nobody to watch it
    driver.answer(m.refused)
    assert type(driver.error) is RunKilledError
    assert driver.ids == ["cell-0-1"]


def test_a_stopped_cell_that_arrives_before_it_is_refused_is_heard_out():
    driver = recording()
    driver.cut()
    driver.take(driver.run.stop("cleared", driver.now))
    driver.after(0)
    driver.restore()
    driver.answer(m.state)
    assert kinds(driver.answer(m.refused, came=True)) == ["Send"]
    assert driver.asked[-1] == "state 0"
    interrupted = {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": []}
    driver.answer(m.state, m.entry(FIRST, reply=interrupted))
    assert type(driver.error) is RunKilledError
    assert driver.ids == ["cell-0-1"]


def test_a_cells_time_limit_goes_on_while_the_connection_is_down():
    driver = recording(cell_timeout=30, interrupt_grace=5, reconnect_timeout=600)
    driver.feed(m.busy(driver.request))
    driver.cut()
    driver.after(0)
    assert only(driver.after(30), ev.Interrupt) == [ev.Interrupt()]
    driver.after(5)
    assert type(driver.error) is CellTimeoutError


def test_the_kernels_start_limit_goes_on_while_the_connection_is_down():
    driver = Driver("a", kernel_start_timeout=60)
    driver.start()
    driver.cut()
    driver.after(0)
    driver.after(60)
    assert type(driver.error) is KernelStartError


@pytest.mark.parametrize("state", [None, "dead"])
def test_a_kernel_that_is_gone_when_the_connection_would_be_made_again_ends_the_run(state):
    driver = recording()
    driver.cut()
    driver.after(0)
    driver.take(driver.run.kernel_state(state, driver.now))
    assert type(driver.error) is KernelDiedError
    assert driver.ids == ["cell-0-1"]


# --- Aborted questions


def test_a_question_that_the_cells_error_put_aside_is_asked_again():
    driver = recording(code("a"), "b")
    driver.reconnect()
    request, question = driver.request, driver.probe
    assert driver.feed(m.busy(request), m.execute_input(request), m.error(request))[0].output.ename
    assert driver.feed(m.reply_error(request), m.idle(request)) == []
    assert kinds(driver.feed(m.busy(question), m.reply_aborted(question), m.idle(question))) == ["Send", "Send"]
    assert driver.asked[-2:] == ["state 0", "state 0"]
    failed = {"status": "error", "ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": []}
    driver.answer(m.state, m.entry(FIRST, kept=2, reply=failed))
    assert type(driver.error) is CellError
    assert driver.ids == ["cell-0-1"]


def test_an_aborted_question_about_the_count_is_asked_again():
    driver = Driver("a", "b").ready()
    driver.reconnect()
    driver.fail()
    assert not driver.run.finished
    driver.answer(m.reply_aborted)
    assert driver.asked == ["info", "count", "count"]
    driver.answer(m.counted, 1)
    assert type(driver.error) is CellError


# --- What the record answers


def asked(*cells, **options):
    """A run whose connection broke under its first cell and was made again."""
    driver = recording(*cells, **options)
    driver.reconnect()
    return driver


def never_came(driver):
    """Let the kernel say that it knows nothing of the request, and that it will put it aside."""
    (refusal,) = driver.answer(m.state)
    assert m.question(refusal.message) == f"refuse {driver.request['header']['msg_id']}"
    return driver.answer(m.refused)


def test_a_request_that_the_kernel_never_got_is_refused_and_sent_again_under_the_next_number():
    driver = asked()
    assert kinds(driver.answer(m.state)) == ["Send"]
    assert driver.asked[-1] == f"refuse {FIRST}"
    assert driver.ids == ["cell-0-1"]
    question = driver.probe
    assert driver.feed(m.busy(question), m.refused(question)) == []
    events = driver.feed(m.idle(question))
    assert kinds(events) == ["CellSentAgain", "CellStarted", "Send"]
    assert events[0].reason == "the kernel never received it"
    assert driver.ids == ["cell-0-1", "cell-0-2"]
    assert driver.own(0) == {"msg_id": "my-session-cell-0-2", "attempt": 2}
    old, new = driver.requests
    assert driver.feed(m.stream(old, "x")) == []
    assert kinds(driver.feed(m.stream(new, "y"))) == ["CellOutput"]


def test_a_request_that_was_sent_again_is_found_in_the_record():
    driver = asked()
    never_came(driver)
    driver.reconnect()
    assert driver.asked[-1] == "state 0"  # the kernel counts one request, not two
    events = driver.answer(m.state, m.entry("my-session-cell-0-2"))
    assert kinds(events) == ["CellFinished", "CellStarted", "Send"]
    assert driver.ids == ["cell-0-1", "cell-0-2", "cell-1-1"]


def test_a_request_is_sent_as_often_as_it_is_lost_and_never_twice_under_one_number():
    driver = asked()
    for _ in range(4):
        never_came(driver)
        driver.reconnect()
    assert driver.ids == [f"cell-0-{number}" for number in range(1, 6)]


def test_a_request_that_arrives_before_it_is_refused_is_waited_for():
    driver = asked()
    driver.answer(m.state)
    request = driver.request
    assert driver.feed(m.busy(request), m.execute_input(request), m.reply_ok(request)) == []
    assert driver.feed(m.idle(request)) == []  # the answer comes right behind
    assert kinds(driver.answer(m.refused, came=True)) == ["Send"]
    assert driver.asked[-1] == "state 0"
    events = driver.answer(m.state, m.entry(FIRST, kept=1))
    assert kinds(events) == ["CellFinished", "CellStarted", "Send"]
    assert driver.ids == ["cell-0-1", "cell-1-1"]


def test_a_request_that_arrived_unheard_before_it_is_refused_is_taken_from_the_record():
    driver = asked()
    driver.answer(m.state)
    driver.answer(m.refused, came=True)
    driver.answer(m.state, m.entry(FIRST, kept=1))
    events = driver.answer(m.fetched, m.stream(driver.request, "x"))
    assert kinds(events) == ["CellOutput", "OutputRecovered", "CellFinished", "CellStarted", "Send"]
    assert driver.ids == ["cell-0-1", "cell-1-1"]


def test_a_refused_request_that_arrives_after_all_is_not_the_cells():
    driver = asked()
    never_came(driver)
    old, _ = driver.requests
    assert driver.feed(m.busy(old), m.idle(old)) == []
    events = driver.succeed(lambda request: m.stream(request, "x"))
    assert kinds(events)[:2] == ["CellOutput", "CellFinished"]
    assert driver.ids == ["cell-0-1", "cell-0-2", "cell-1-1"]


def test_a_refusal_that_the_cell_before_put_aside_is_asked_for_anew_from_the_state_on():
    driver = asked()
    driver.answer(m.state)
    assert kinds(driver.answer(m.reply_aborted)) == ["Send", "Send"]
    assert driver.asked[-1] == "state 0"
    never_came(driver)
    assert driver.ids == ["cell-0-1", "cell-0-2"]


def test_a_refusal_under_way_is_given_up_with_its_connection_and_asked_for_anew():
    driver = asked()
    driver.answer(m.state)
    old = driver.probe
    driver.reconnect()
    assert driver.asked[-2:] == [f"refuse {FIRST}", "state 0"]
    assert driver.feed(m.refused(old), m.idle(old)) == []
    assert driver.ids == ["cell-0-1"]
    never_came(driver)
    assert driver.ids == ["cell-0-1", "cell-0-2"]


def test_a_request_that_came_while_the_connection_was_cut_under_its_refusal_is_not_sent_again():
    driver = asked()
    driver.answer(m.state)
    driver.reconnect()
    events = driver.answer(m.state, m.entry(FIRST))
    assert kinds(events) == ["CellFinished", "CellStarted", "Send"]
    assert driver.ids == ["cell-0-1", "cell-1-1"]


def test_a_refusal_that_stays_unanswered_has_the_connection_made_anew():
    driver = recording(unheard_limit=5, autosave_interval=10**6)
    driver.reconnect()
    driver.answer(m.state)
    assert only(driver.after(5), ev.Reconnect) == [ev.Reconnect(orderly=True)]
    driver.restore(orderly=True)
    never_came(driver)
    assert driver.ids == ["cell-0-1", "cell-0-2"]


@pytest.mark.parametrize(
    "make",
    [
        m.no_record,
        m.record_raised,
        m.reply_ok,
        lambda question: m.recorded(question, {"refused": 1}),
        lambda question: m.recorded(question, {"failed": "AttributeError: refuse"}),
    ],
)
def test_a_request_that_cannot_be_refused_is_sent_again_only_where_the_count_allows(make):
    driver = asked()
    driver.answer(m.state)
    assert kinds(driver.answer(make)) == ["RecordEnded", "Send", "Send"]
    assert driver.asked[-1] == "count"
    assert driver.ids == ["cell-0-1"]
    driver.answer(m.counted, 1)
    assert type(driver.error) is UnknownOutcomeError
    assert driver.ids == ["cell-0-1"]


def test_a_kernel_that_dies_under_a_refusal_ends_the_run():
    driver = asked()
    driver.answer(m.state)
    driver.take(driver.run.kernel_state(None, driver.now))
    assert type(driver.error) is KernelDiedError
    assert driver.ids == ["cell-0-1"]


def test_a_cell_that_ended_well_meanwhile():
    driver = asked()
    events = driver.answer(m.state, m.entry(FIRST))
    assert kinds(events) == ["CellFinished", "CellStarted", "Send"]
    assert events[0].error is None
    assert driver.cell(0).execution_count == 1
    assert "output_lost" not in driver.own(0)


def test_a_cell_that_failed_meanwhile():
    driver = asked()
    failed = {"status": "error", "ename": "E", "evalue": "v", "traceback": ["t"], "execution_count": 1}
    driver.answer(m.state, m.entry(FIRST, reply=failed))
    assert (driver.error.ename, driver.error.evalue, driver.error.traceback) == ("E", "v", "t")
    assert driver.ids == ["cell-0-1"]


def test_a_cell_that_ended_itself_and_the_notebook_meanwhile():
    driver = asked()
    driver.answer(m.state, m.entry(FIRST, reply={"status": "ok", "execution_count": 1, "payload": [m.ASK_EXIT]}))
    assert (driver.error, driver.run.stopped_by_notebook, driver.ids) == (None, True, ["cell-0-1"])


def test_missing_output_is_fetched_in_parts_and_put_where_it_belongs():
    driver = recording()
    request = driver.request
    messages = [m.execute_input(request, 1), *(m.stream(request, f"{number}\n") for number in range(5))]
    driver.feed(m.busy(request), messages[0], messages[1], messages[2])
    driver.reconnect()
    driver.feed(messages[5])  # and three and four are lost
    assert kinds(driver.answer(m.state, m.entry(FIRST, kept=6))) == ["Send"]
    assert driver.asked[-1] == f"fetch {FIRST} 0"
    assert kinds(driver.answer(m.fetched, *messages[:4], following=4)) == ["Send"]
    assert driver.asked[-1] == f"fetch {FIRST} 4"
    events = driver.answer(m.fetched, *messages[4:])
    assert kinds(events) == [
        "CellOutput",
        "CellOutput",
        "OutputRecovered",
        "CellFinished",
        "CellStarted",
        "Send",
    ]
    assert [event.output.text for event in events[:2]] == ["2\n", "3\n"]
    assert events[2].messages == 2
    driver.succeed()
    assert driver.texts(0) == ["0\n1\n2\n3\n4\n"]
    assert "output_lost" not in driver.own(0)


def test_displays_and_widgets_are_fetched_as_well():
    driver = asked()
    request = driver.request
    driver.answer(m.state, m.entry(FIRST, kept=4))
    driver.answer(
        m.fetched,
        m.display_data(request, "0 %", "bar"),
        m.update_display_data(request, "100 %", "bar"),
        m.comm_open(request, "c", {"_model_name": "M"}, buffer_paths=[["v"]], buffers=[b"\x00\xff"]),
        m.execute_result(request, "7"),
    )
    driver.succeed()
    shown = [output.data["text/plain"] for output in driver.saved[-1].cells[0].outputs]
    assert shown == ["100 %", "7"]
    widgets = driver.saved[-1].metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert widgets["c"]["buffers"][0]["data"] == "AP8="


def test_output_that_a_cell_cleared_stays_cleared():
    driver = asked()
    request = driver.request
    driver.feed(m.stream(request, "0"))
    driver.answer(m.state, m.entry(FIRST, kept=4))
    kept = [m.stream(request, "0"), m.stream(request, "1"), m.clear_output(request), m.stream(request, "2")]
    driver.answer(m.fetched, *kept)
    driver.succeed()
    assert driver.texts(0) == ["2"]


def test_nothing_is_fetched_when_all_has_arrived():
    driver = recording()
    request = driver.request
    driver.feed(m.execute_input(request), m.stream(request, "x"))
    driver.reconnect()
    events = driver.answer(m.state, m.entry(FIRST, kept=2))
    assert kinds(events) == ["CellFinished", "CellStarted", "Send"]


def test_output_that_the_kernel_did_not_keep_either_is_told_as_lost():
    driver = asked()
    request = driver.request
    driver.answer(m.state, m.entry(FIRST, kept=1, dropped=2))
    events = driver.answer(m.fetched, m.stream(request, "kept"), dropped=2)
    assert kinds(events) == [
        "CellOutput",
        "OutputRecovered",
        "OutputLost",
        "CellFinished",
        "CellStarted",
        "Send",
    ]
    assert driver.own(0)["output_lost"] == [events[2].reason]


def test_a_record_of_limit_nought_tells_how_a_cell_ended_and_no_more():
    driver = asked(record_limit=0)
    events = driver.answer(m.state, m.entry(FIRST, dropped=2))
    assert kinds(events) == ["OutputLost", "CellFinished", "CellStarted", "Send"]


def test_what_a_record_dropped_but_arrived_is_no_loss():
    driver = recording(record_limit=0)
    request = driver.request
    driver.feed(m.execute_input(request), m.stream(request, "x"))
    driver.reconnect()
    events = driver.answer(m.state, m.entry(FIRST, dropped=2))
    assert kinds(events) == ["CellFinished", "CellStarted", "Send"]


def test_a_kernel_whose_record_is_gone_was_restarted():
    driver = asked()
    driver.answer(m.no_record)
    assert type(driver.error) is KernelDiedError
    assert "it was started again" in str(driver.error)


def test_a_kernel_that_keeps_the_record_of_another_run_was_restarted():
    driver = asked()
    driver.answer(m.state, run="another")
    assert type(driver.error) is KernelDiedError


def test_a_long_record_comes_in_parts():
    driver = recording("a", "b", "c")
    driver.succeed()
    driver.reconnect()
    assert driver.asked[-1] == "state 1"
    first = driver.answer(m.state, m.entry("my-session-other"), since=1, total=3, following=2)
    assert kinds(first) == ["Send"]
    assert driver.asked[-1] == "state 2"
    events = driver.answer(m.state, m.entry(SECOND), since=2, total=3)
    assert kinds(events) == ["CellFinished", "CellStarted", "Send"]


@pytest.mark.parametrize(
    "make",
    [
        m.record_raised,
        lambda question: m.recorded(question, "no JSON"),
        lambda question: m.recorded(question, {"failed": "x"}),
        lambda question: m.reply_ok(question, 2),
        lambda question: m.state(question, broken="it raised"),
    ],
)
def test_a_record_that_fails_is_not_asked_again_and_the_count_decides(make):
    driver = asked()
    events = driver.answer(make)
    assert kinds(events)[0] == "RecordEnded"
    assert driver.asked[-1] == "count"
    assert driver.notebook.metadata["smstudio"]["run"]["kernel_record"] is False
    events = driver.answer(m.counted, 0)
    assert kinds(events) == ["CellSentAgain", "CellStarted", "Send"]
    assert only(events, ev.Announce) == [ev.Announce(driver.run.cells[0])]
    driver.succeed()
    assert driver.asked.count("install") == 1


def test_a_broken_record_does_not_prove_that_a_request_never_came():
    driver = asked()
    driver.answer(m.state, broken="on_wire: KeyError: 'x'")
    assert driver.ids == ["cell-0-1"]


@pytest.mark.parametrize("make", [m.record_raised, m.reply_ok, m.no_record])
def test_a_kernel_that_cannot_install_a_record_runs_without_and_is_asked_once(make):
    driver = Driver("a", record=True)
    driver.start()
    driver.answer(m.kernel_info_reply)
    events = driver.answer(make)
    assert kinds(events) == ["RecordEnded", "CellStarted", "Send"]
    assert only(events, ev.Announce) == [ev.Announce(driver.run.cells[0])]
    assert driver.asked == ["info", "install"]


def test_a_kernel_that_refuses_a_record_runs_without_and_says_why():
    driver = Driver("a", record=True)
    driver.start()
    driver.answer(m.kernel_info_reply)
    events = driver.answer(m.installed, ok=False, reason="the kernel has no pack")
    assert events[0] == ev.RecordEnded("the kernel has no pack")
    assert kinds(events) == ["RecordEnded", "CellStarted", "Send"]
    assert len(only(events, ev.Announce)) == 1


def test_fetching_what_the_record_has_forgotten_meanwhile_ends_the_record_not_the_run():
    driver = asked()
    driver.feed(m.reply_ok(driver.request), m.idle(driver.request))
    driver.answer(m.state, m.entry(FIRST, kept=3))
    assert kinds(driver.answer(m.no_record)) == ["RecordEnded", "Send", "Send"]
    events = driver.answer(m.counted, 1)
    assert kinds(events) == ["OutputLost", "CellFinished", "CellStarted", "Send", "Save"]


# --- Rate limits


@pytest.mark.parametrize("what", ["data", "message"])
def test_output_that_the_server_dropped_is_fetched_and_its_notice_kept_out(what):
    driver = recording()
    request = driver.request
    messages = [m.execute_input(request), *(m.stream(request, f"{number}\n") for number in range(3))]
    driver.feed(m.busy(request), messages[0], messages[1])
    assert driver.feed(m.rate_notice(request, what)) == []
    driver.feed(messages[3])
    assert driver.feed(m.reply_ok(request)) == []
    assert kinds(driver.feed(m.idle(request))) == ["Send"]
    assert driver.asked[-1] == "state 0"
    assert kinds(driver.answer(m.state, m.entry(FIRST, kept=4))) == ["Send"]
    events = driver.answer(m.fetched, *messages)
    assert [event.output.text for event in only(events, ev.CellOutput)] == ["1\n"]
    driver.succeed()
    assert driver.texts(0) == ["0\n1\n2\n"]
    assert "output_lost" not in driver.own(0)


def test_dropped_output_of_a_cell_that_has_ended_is_told():
    driver = recording()
    first = driver.request
    driver.succeed()
    events = driver.feed(m.rate_notice(first))
    assert kinds(events) == ["CellOutput", "OutputLost"]
    assert events[1].cell.number == 1


# --- What is saved is forgotten


def test_the_kernel_is_told_with_the_next_request_what_is_saved():
    driver = recording("a", "b", "c", "d", autosave_interval=5)
    assert driver.request["metadata"] == {}
    driver.succeed(lambda request: m.stream(request, "x"))
    assert driver.request["metadata"] == {}
    driver.after(5)
    driver.succeed()
    assert driver.request["metadata"] == {"smstudio": {"saved": [FIRST]}}
    driver.now += 5
    driver.succeed()
    assert driver.request["metadata"] == {}  # the save comes behind it


def test_a_cell_that_says_nothing_more_after_a_save_is_told_as_well():
    driver = recording("a", "b", "c", autosave_interval=5)
    driver.feed(m.stream(driver.request, "x"))
    driver.after(5)
    driver.feed(m.reply_ok(driver.request), m.idle(driver.request))
    driver.after(5)
    driver.succeed()
    assert driver.request["metadata"] == {"smstudio": {"saved": [FIRST]}}


def test_output_of_a_thread_that_comes_while_the_record_is_fetched_is_kept():
    driver = asked()
    request = driver.request
    kept = [m.stream(request, "one\n"), m.stream(request, "two\n")]
    driver.answer(m.state, m.entry(FIRST, kept=2))
    question = driver.probe
    driver.feed(m.busy(question), m.fetched(question, *kept))
    driver.feed(m.stream(request, "three\n"))  # sent after the record was read, before the kernel is idle
    driver.feed(m.idle(question))
    driver.succeed()
    assert driver.texts(0) == ["one\ntwo\nthree\n"]


def test_a_question_behind_a_long_cell_is_due_from_the_cells_end_on():
    """Else the connection was made anew the moment the cell had ended, which loses what a server does not keep."""
    driver = Driver("a", "b", check_interval=10**9, unheard_limit=5).ready()
    driver.feed(m.busy(driver.request))
    driver.reconnect()
    assert driver.asked[-1] == "count"
    assert only(driver.after(600), ev.Reconnect) == []
    driver.feed(m.reply_ok(driver.request), m.idle(driver.request))
    assert only(driver.after(4), ev.Reconnect) == []
    assert only(driver.after(1), ev.Reconnect) == [ev.Reconnect(orderly=True)]
