"""A later process goes on with a run: what it takes from the saved notebook, the kernel's record, the session."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta

from airflow_provider_smstudio.studio.errors import (
    CellError,
    CellTimeoutError,
    KernelDiedError,
    RunKilledError,
    UnknownOutcomeError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.runs import identity, saved_run
from tests.helpers import messages as m
from tests.helpers.run_driver import STARTED_AT, Driver, kinds, only, prepared

IDS = [f"my-session-cell-{index}-1" for index in range(9)]
FAILED = {"status": "error", "ename": "E", "evalue": "v", "traceback": ["t"], "execution_count": 1}


def earlier(*cells, record=True, done=1, shown="so far\n", **options):
    """A run whose process dies under a cell, after its notebook was saved: the cells, and that notebook."""
    driver = Driver(*cells, record=record, autosave_interval=0, **options)
    driver.recording() if record else driver.ready()
    for number in range(done):
        driver.succeed(lambda request: m.stream(request, "done\n"), count=number + 1)
    if shown:
        driver.feed(m.busy(driver.request), m.execute_input(driver.request, done + 1))
        driver.feed(m.stream(driver.request, shown))
    driver.now += 1
    driver.take(driver.run.tick(driver.now))
    return list(cells), deepcopy(driver.saved[-1])


def later(cells, saved, *, record=True, seconds=60, announced=None, **options):
    """Another process, on a machine with another clock."""
    notebook = prepared(*cells)
    saved_run.begin(notebook, identity.identity_of("key", "name"), "digest")
    saved_run.take_over(notebook, saved)
    return Driver(
        notebook=notebook,
        resumed=True,
        record=record,
        announced=announced,
        now=50.0,
        started_at=STARTED_AT + timedelta(seconds=seconds),
        **options,
    )


def resumed(*cells, done=1, shown="so far\n", **options):
    driver = later(*earlier(*(cells or ("a", "b", "c")), done=done, shown=shown), **options)
    driver.start()
    return driver


# --- With a record


def test_a_run_all_of_whose_cells_have_run_ends_at_once():
    cells, saved = earlier("a", "b", done=2, shown=None)
    assert saved.metadata["smstudio"]["run"]["state"] == "completed"
    driver = later(cells, saved)
    events = driver.start()
    assert events[0] == ev.Reattached(2, 2)
    if not driver.run.finished:
        driver.answer(m.state, m.entry(IDS[0]), m.entry(IDS[1]))
    assert (driver.error, driver.ids, driver.run.executed) == (None, [], 2)
    assert driver.texts(1) == ["done\n"]


def test_the_cell_that_was_running_is_asked_about_and_shown():
    driver = resumed()
    assert driver.events[0] == ev.Reattached(1, 3)
    assert driver.asked == ["state 0"]
    assert len(driver.beats) == 1
    assert driver.cell(1).outputs[0].text == "so far\n"


def test_a_cell_that_still_runs_is_followed_and_what_was_missed_fetched():
    driver = resumed()
    request = m.request_of("my-session-cell-1-1", "b")
    assert kinds(driver.feed(m.stream(request, "live\n"))) == ["CellOutput"]
    assert driver.feed(m.reply_ok(request, 2), m.idle(request)) == []
    assert kinds(driver.answer(m.state, m.entry(IDS[0]), m.entry(IDS[1], kept=4))) == ["Send"]
    assert driver.asked[-1] == f"fetch {IDS[1]} 0"
    texts = [m.stream(request, text) for text in ("so far\n", "missed\n", "live\n")]
    events = driver.answer(m.fetched, m.execute_input(request, 2), *texts)
    assert kinds(events)[-3:] == ["CellFinished", "CellStarted", "Send"]
    driver.succeed()
    assert driver.texts(1) == ["so far\nmissed\nlive\n"]
    assert driver.cell(1).execution_count == 2
    assert "output_lost" not in driver.own(1)
    assert driver.ids == ["cell-2-1"]


def test_a_cell_that_ended_unseen():
    driver = resumed()
    events = driver.answer(m.state, m.entry(IDS[0]), m.entry(IDS[1], kept=0))
    assert kinds(events) == ["CellFinished", "CellStarted", "Send"]
    assert driver.ids == ["cell-2-1"]


def test_a_cell_that_failed_unseen():
    driver = resumed()
    driver.answer(m.state, m.entry(IDS[0]), m.entry(IDS[1], reply=FAILED))
    assert type(driver.error) is CellError
    assert (driver.error.cell_number, driver.error.ename, driver.ids) == (2, "E", [])


def test_several_cells_that_ended_unseen_each_get_their_output():
    driver = resumed("a", "b", "c", "d")
    entries = [m.entry(IDS[0]), m.entry(IDS[1], kept=1), m.entry(IDS[2], kept=1)]
    assert kinds(driver.answer(m.state, *entries)) == ["Send"]
    events = driver.answer(m.fetched, m.stream(m.request_of(IDS[1], "b"), "of b"))
    assert kinds(events) == ["CellOutput", "OutputRecovered", "CellFinished", "CellStarted", "Send"]
    assert driver.asked[-1] == f"fetch {IDS[2]} 0"
    driver.answer(m.fetched, m.stream(m.request_of(IDS[2], "c"), "of c"))
    assert driver.ids == ["cell-3-1"]
    driver.succeed()
    assert [driver.texts(index) for index in (0, 1, 2)] == [["done\n"], ["of b"], ["of c"]]
    assert driver.statuses() == ["completed"] * 4
    assert driver.error is None


def test_a_cell_that_was_never_sent_is_sent():
    cells, saved = earlier("a", "b", done=1, shown=None)
    saved.cells[1].metadata["papermill"]["status"] = "pending"  # the save came before it
    saved.cells[1].metadata.pop("smstudio", None)
    driver = later(cells, saved)
    driver.start()
    assert kinds(driver.answer(m.state, m.entry(IDS[0]))) == ["Send"]
    assert driver.asked[-1] == f"refuse {IDS[1]}"  # for the process may have sent it, and died at once
    assert driver.ids == []
    assert kinds(driver.answer(m.refused)) == ["CellStarted", "Send"]
    assert driver.ids == ["cell-1-2"]


def test_a_request_that_was_lost_with_its_process_is_refused_and_sent_under_the_next_number():
    driver = resumed()
    assert kinds(driver.answer(m.state, m.entry(IDS[0]))) == ["Send"]
    assert driver.asked[-1] == f"refuse {IDS[1]}"
    assert kinds(driver.answer(m.refused)) == ["CellStarted", "Send"]  # this process had not sent it
    assert driver.ids == ["cell-1-2"]
    driver.succeed()
    driver.succeed()
    assert driver.texts(1) == []  # what was saved of it was another request's


def test_a_request_of_a_lost_process_that_arrives_before_it_is_refused_is_adopted():
    driver = resumed()
    driver.answer(m.state, m.entry(IDS[0]))
    request = m.request_of(IDS[1], "b")
    assert kinds(driver.feed(m.stream(request, "live\n"))) == ["CellOutput"]
    assert kinds(driver.answer(m.refused, came=True)) == ["Send"]
    assert driver.asked[-1] == "state 0"
    driver.answer(m.state, m.entry(IDS[0]), m.entry(IDS[1], kept=1))
    assert driver.ids == ["cell-2-1"]
    driver.succeed()
    assert driver.texts(1) == ["so far\nlive\n"]


def test_a_refusal_of_a_lost_processs_request_is_asked_for_anew_after_a_cut():
    driver = resumed()
    driver.answer(m.state, m.entry(IDS[0]))
    driver.reconnect()
    driver.answer(m.state, m.entry(IDS[0]))
    assert driver.asked == ["state 0", f"refuse {IDS[1]}", "state 0", f"refuse {IDS[1]}"]
    driver.answer(m.refused)
    assert driver.ids == ["cell-1-2"]


def test_a_record_that_is_gone_when_a_lost_processs_request_is_to_be_refused_decides_nothing():
    driver = resumed()
    driver.answer(m.state, m.entry(IDS[0]))
    assert kinds(driver.answer(m.no_record)) == ["RecordEnded", "Send", "Send"]
    assert driver.asked[-1] == "count"
    assert driver.ids == []


def test_the_first_cell_behind_those_in_the_record_is_sent_under_the_id_that_a_lost_process_would_have_used():
    """If that process has sent it as well, the kernel runs the first that comes and puts the other aside."""
    driver = resumed("a", "b", "c", "d")
    events = driver.answer(m.state, m.entry(IDS[0]), m.entry(IDS[1]))
    assert kinds(events)[-1] == "Send"
    assert driver.ids == ["cell-2-1"]
    driver.succeed()
    assert driver.ids == ["cell-2-1", "cell-3-1"]


def test_a_later_cell_that_runs_already_is_overheard():
    driver = resumed("a", "b", "c")
    third = m.request_of(IDS[2], "c")
    events = driver.feed(m.busy(third), m.execute_input(third, 3), m.stream(third, "of c"))
    assert [event.cell.index for event in only(events, ev.CellOutput)] == [2]
    assert driver.feed(m.reply_ok(third, 3), m.idle(third)) == []
    events = driver.answer(m.state, m.entry(IDS[0]), m.entry(IDS[1]), m.entry(IDS[2], kept=2))
    assert kinds(events) == ["CellFinished", "CellStarted", "CellFinished", "Save", "Finished"]
    assert driver.texts(2) == ["of c"]
    assert driver.ids == []


def test_an_overheard_cells_output_is_not_counted_as_saved_before_its_turn():
    driver = resumed("a", "b", "c", "d", autosave_interval=5)
    third = m.request_of(IDS[2], "c")
    driver.feed(m.stream(third, "half of it"), m.reply_ok(third, 3), m.idle(third))
    driver.after(100)
    driver.answer(m.state, m.entry(IDS[0]), m.entry(IDS[1]), m.entry(IDS[2], kept=1))
    assert driver.ids == ["cell-3-1"]
    assert driver.request["metadata"] == {}


def test_a_dropped_output_of_an_overheard_cell_is_fetched():
    driver = resumed("a", "b", "c")
    third = m.request_of(IDS[2], "c")
    assert driver.feed(m.rate_notice(third)) == []
    driver.answer(m.state, m.entry(IDS[0]), m.entry(IDS[1]), m.entry(IDS[2], kept=1))
    driver.answer(m.fetched, m.stream(third, "x"))
    assert driver.texts(2) == ["x"]
    assert "output_lost" not in driver.own(2)


def test_a_higher_number_in_the_record_is_the_cells_request():
    driver = resumed("a", "b", "c")
    again = m.request_of("my-session-cell-1-3", "b")
    driver.feed(m.stream(again, "x"))
    events = driver.answer(m.state, m.entry(IDS[0]), m.entry("my-session-cell-1-3", kept=1))
    assert kinds(events) == ["CellFinished", "CellStarted", "Send"]
    assert driver.own(1)["attempt"] == 3
    driver.succeed()
    assert driver.error is None


def test_a_failed_cell_is_sent_again_under_a_new_number_once_the_next_is_refused():
    driver = Driver("a", "1/0", "c", record=True).recording()
    driver.succeed()
    driver.fail()
    new = later(("a", "1/0", "c"), deepcopy(driver.saved[-1]))
    new.start()
    assert new.cell(1).outputs == []
    failed = m.entry(IDS[1], kept=1, reply=FAILED)
    assert kinds(new.answer(m.state, m.entry(IDS[0]), failed)) == ["Send"]
    assert new.asked[-1] == "refuse my-session-cell-1-2"
    assert new.ids == []
    assert kinds(new.answer(m.refused))[-2:] == ["CellStarted", "Send"]
    assert new.ids == ["cell-1-3"]  # another process may have sent the second
    new.succeed()
    new.succeed()
    assert new.error is None
    assert new.statuses() == ["completed"] * 3


def test_a_cells_time_limit_counts_from_its_start_in_the_earlier_process():
    cells, saved = earlier("a", "b", done=0)
    driver = later(cells, saved, seconds=100, cell_timeout=130)
    driver.start()
    assert not only(driver.after(29), ev.Interrupt)
    assert only(driver.after(1), ev.Interrupt) == [ev.Interrupt()]
    assert driver.run.error is None
    interrupted = {**FAILED, "ename": "KeyboardInterrupt"}
    driver.answer(m.state, m.entry(IDS[0], reply=interrupted))
    assert type(driver.error) is CellTimeoutError
    assert driver.papermill(0)["duration"] == 130


def test_a_run_whose_time_limit_passed_while_nobody_watched_is_asked_first():
    cells, saved = earlier("a", "b", done=0)
    driver = later(cells, saved, seconds=1000, cell_timeout=130)
    assert "Send" in kinds(driver.start())


def test_a_record_that_is_gone_means_another_kernel():
    driver = resumed()
    driver.answer(m.no_record)
    assert type(driver.error) is KernelDiedError
    assert driver.ids == []


def test_a_stop_before_the_answer_sends_nothing():
    cells, saved = earlier("a", "b", done=1, shown=None)
    saved.cells[1].metadata["papermill"]["status"] = "pending"
    driver = later(cells, saved)
    driver.start()
    driver.take(driver.run.stop("cleared", driver.now))
    driver.answer(m.state, m.entry(IDS[0]))
    driver.answer(m.refused)
    assert type(driver.error) is RunKilledError
    assert driver.ids == []


def test_widgets_of_the_earlier_process_are_kept():
    driver = Driver("a", "b", record=True, autosave_interval=0).recording()
    driver.succeed(lambda request: m.comm_open(request, "old", {"_model_name": "M"}))
    driver.now += 1
    driver.after(0)
    new = later(("a", "b"), deepcopy(driver.saved[-1]))
    new.start()
    request = m.request_of(IDS[1], "b")
    new.feed(m.comm_open(request, "new", {"_model_name": "M"}))
    new.answer(m.state, m.entry(IDS[0]), m.entry(IDS[1], kept=1))
    widgets = new.saved[-1].metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert set(widgets) == {"old", "new"}


# --- Before it was known whether there is a record


def unknown(**options):
    """The earlier process died before it saved anything but the prepared notebook."""
    driver = Driver("a", "b", record=True)
    driver.start()
    driver.take([ev.Save(required=False)])
    new = later(("a", "b"), deepcopy(driver.saved[-1]), **options)
    new.start()
    return new


def test_a_kernel_of_which_nothing_is_known_is_asked_all_from_the_start():
    driver = unknown()
    assert driver.asked == ["info"]
    assert kinds(driver.answer(m.kernel_info_reply)) == ["KernelReady", "Send"]
    assert driver.asked[-1] == "install"
    assert kinds(driver.answer(m.installed)) == ["CellStarted", "Send"]
    assert driver.ids == ["cell-0-1"]


def test_a_record_that_was_there_already_is_asked():
    driver = unknown()
    driver.answer(m.kernel_info_reply)
    driver.answer(m.installed, resumed=True)
    assert driver.asked[-1] == "state 0"
    events = driver.answer(m.state, m.entry(IDS[0]))
    assert kinds(events) == ["CellFinished", "CellStarted", "Send", "Save"]
    assert driver.ids == ["cell-1-1"]


def test_a_cell_that_ends_before_that_is_known_waits_for_it():
    driver = unknown()
    request = m.request_of(IDS[0], "a")
    assert driver.feed(m.reply_ok(request), m.idle(request)) == []
    driver.answer(m.kernel_info_reply)
    driver.answer(m.installed, resumed=True)
    driver.answer(m.state, m.entry(IDS[0], kept=1))
    driver.answer(m.fetched, m.stream(request, "x"))
    assert driver.ids == ["cell-1-1"]
    driver.succeed()
    assert driver.texts(0) == ["x"]


def test_a_dropped_output_before_the_record_is_known_is_fetched():
    driver = unknown()
    request = m.request_of(IDS[0], "a")
    assert driver.feed(m.rate_notice(request)) == []
    driver.answer(m.kernel_info_reply)
    driver.answer(m.installed, resumed=True)
    driver.feed(m.reply_ok(request), m.idle(request))
    driver.answer(m.state, m.entry(IDS[0], kept=1))
    driver.answer(m.fetched, m.stream(request, "x"))
    driver.succeed()
    assert driver.texts(0) == ["x"]
    assert "output_lost" not in driver.own(0)


def test_an_installation_that_is_lost_is_asked_for_again():
    driver = unknown()
    driver.answer(m.kernel_info_reply)
    driver.reconnect()
    assert driver.asked[-1] == "install"


# --- Without a record


def unrecorded(announced, *, done=1, **options):
    cells, saved = earlier("a", "b", "c", "d", record=False, done=done, shown=None)
    driver = later(cells, saved, record=False, announced=announced, **options)
    driver.start()
    return driver


def test_a_cell_before_the_announced_one_has_run_and_the_announced_one_may_have():
    driver = unrecorded(2)
    assert driver.asked == ["count"]
    events = driver.answer(m.counted, 3)
    assert kinds(events) == ["OutputLost", "CellFinished", "Save", "Finished"]
    assert type(driver.error) is UnknownOutcomeError
    assert driver.error.cell_number == 3
    assert driver.ids == []
    assert driver.cell(1).execution_count is None


def test_the_announced_cell_may_have_run():
    driver = unrecorded(1)
    driver.answer(m.counted, 2)
    assert type(driver.error) is UnknownOutcomeError
    assert (driver.error.cell_number, driver.ids) == (2, [])


def test_the_announced_cell_that_the_kernel_has_not_counted_is_sent_again():
    driver = unrecorded(1)
    events = driver.answer(m.counted, 1)
    assert kinds(events) == ["CellStarted", "Send"]  # it did not run, and this process had not sent it
    assert driver.ids == ["cell-1-2"]


def test_a_cell_behind_the_announced_one_was_never_sent():
    driver = unrecorded(0)
    events = driver.answer(m.counted, 1)
    assert kinds(events) == ["CellStarted", "Send"]
    assert only(events, ev.Announce) == [ev.Announce(driver.run.cells[1])]
    assert driver.ids == ["cell-1-1"]


def test_a_cell_that_this_process_has_announced_is_not_sent_twice():
    driver = unrecorded(0)
    driver.answer(m.counted, 1)
    driver.feed(m.busy(driver.request))
    driver.reconnect()
    driver.answer(m.counted, 2)
    assert driver.ids == ["cell-1-1"]
    assert type(driver.error) is UnknownOutcomeError


def test_an_announced_cell_that_still_runs_is_heard_to_its_end():
    driver = unrecorded(1)
    request = m.request_of(IDS[1], "b")
    driver.feed(m.stream(request, "x"), m.reply_ok(request, 2))
    assert driver.feed(m.idle(request)) == []
    events = driver.answer(m.counted, 2)
    assert kinds(events)[:4] == ["OutputLost", "CellFinished", "CellStarted", "Send"]
    assert driver.ids == ["cell-2-1"]


def test_an_unknown_cell_is_rerun_where_that_is_allowed():
    driver = unrecorded(1, on_unknown_cell="rerun")
    assert kinds(driver.answer(m.counted, 2))[0] == "CellSentAgain"
    assert driver.ids == ["cell-1-2"]
