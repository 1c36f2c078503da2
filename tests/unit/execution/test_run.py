"""The cells of a run: when one ends, what its messages mean, what the notebook then holds."""

from __future__ import annotations

import nbformat
import pytest

from airflow_provider_smstudio.studio.errors import CellError, RunError
from airflow_provider_smstudio.studio.execution import events as ev
from tests.helpers import messages as m
from tests.helpers.run_driver import STARTED_AT, Driver, code, kinds, markdown, only

# --- Ready


def test_the_first_request_asks_whether_the_kernel_answers():
    driver = Driver("a")
    assert kinds(driver.start()) == ["Send"]
    assert driver.probe["header"]["session"] == "my-session"
    assert driver.probe["channel"] == "shell"
    assert driver.codes == []


@pytest.mark.parametrize("first", ["reply", "idle"])
def test_a_kernel_is_ready_when_it_has_answered_on_both_channels(first):
    driver = Driver("a")
    driver.start()
    answers = [m.kernel_info_reply(driver.probe), m.idle(driver.probe)]
    if first == "idle":
        answers.reverse()
    assert driver.feed(m.busy(driver.probe), answers[0], answers[0]) == []
    assert kinds(driver.feed(answers[1])) == ["KernelReady", "CellStarted", "Send"]
    assert only(driver.events, ev.KernelReady)[0].info["implementation"] == "ipython"
    assert driver.notebook.metadata["language_info"] == m.LANGUAGE_INFO
    assert driver.codes == ["a"]


def test_what_the_server_asks_by_itself_proves_nothing():
    driver = Driver("a")
    driver.start()
    nudge = m.foreign_request()
    driver.feed(m.busy(nudge), m.idle(nudge), m.kernel_info_reply(nudge), m.idle(None), m.busy(None), m.starting())
    assert driver.codes == []
    driver.feed(m.kernel_info_reply(driver.probe), m.idle(driver.probe))
    assert driver.codes == ["a"]


# --- A good run


def test_cells_run_one_after_another():
    driver = Driver("a = 1", markdown("text"), "a")
    driver.ready()
    assert driver.codes == ["a = 1"]
    between = driver.succeed()
    assert kinds(between) == ["CellFinished", "CellStarted", "Send"]
    last = driver.succeed(lambda request: m.execute_result(request, "1", 2), count=2)
    assert kinds(last) == ["CellOutput", "CellFinished", "Save", "Finished"]
    assert last[-2:] == [ev.Save(required=True), ev.Finished(None)]
    assert driver.codes == ["a = 1", "a"]
    assert [event.cell.number for event in only(driver.events, ev.CellStarted)] == [1, 2]
    assert [event.cell.index for event in only(driver.events, ev.CellFinished)] == [0, 2]
    assert {event.total for event in only(driver.events, (ev.CellStarted, ev.CellFinished))} == {2}
    assert (driver.run.finished, driver.error, driver.run.executed) == (True, None, 2)
    assert [cell.get("execution_count") for cell in driver.saved[-1].cells] == [1, None, 2]
    assert driver.saved[-1].cells[2].outputs[0].data == {"text/plain": "1"}
    nbformat.validate(driver.saved[-1])


def test_a_request_asks_for_what_a_run_without_people_needs():
    driver = Driver("a").ready()
    assert driver.request["header"]["session"] == "my-session"
    assert driver.request["content"] == {
        "code": "a",
        "silent": False,
        "store_history": True,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": True,
    }


@pytest.mark.parametrize(
    ("cell", "options"), [(code("a", "raises-exception"), {}), (code("a"), {"allow_errors": True})]
)
def test_a_cell_that_may_raise_must_not_abort_what_follows(cell, options):
    assert Driver(cell, **options).ready().request["content"]["stop_on_error"] is False


@pytest.mark.parametrize("first", ["reply", "idle"])
def test_a_cell_ends_with_reply_and_idle_in_either_order(first):
    driver = Driver("a", "b").ready()
    ends = [m.reply_ok(driver.request), m.idle(driver.request)]
    if first == "idle":
        ends.reverse()
    late = m.stream(driver.request, "late")
    assert driver.feed(m.busy(driver.request), ends[0], ends[0]) == []
    assert kinds(driver.feed(late)) == ["CellOutput"]
    assert kinds(driver.feed(ends[1])) == ["CellFinished", "CellStarted", "Send"]
    driver.succeed()
    assert driver.texts(0) == ["late"]


def test_messages_of_other_parents_change_nothing():
    driver = Driver("a").ready()
    other = m.foreign_request("execute_request")
    other["content"]["code"] = "x"
    before = driver.request
    foreign = [
        m.busy(other),
        m.execute_input(other, 9),
        m.stream(other, "x"),
        m.error(other),
        m.reply_error(other),
    ]
    assert driver.feed(*foreign, m.reply_ok(other), m.idle(other), m.input_request(other), m.idle(None)) == []
    assert driver.feed(m.message("iopub_welcome", {"subscription": ""})) == []
    assert driver.request is before
    assert driver.cell(0).outputs == []
    assert driver.cell(0).execution_count is None


def test_output_of_a_thread_goes_to_the_cell_that_started_it():
    driver = Driver("thread", "b").ready()
    first = driver.request
    driver.succeed()
    event = driver.feed(m.stream(first, "from the thread"))[0]
    assert event == ev.CellOutput(driver.run.cells[0], event.output)
    assert driver.feed(m.reply_ok(first), m.idle(first)) == []  # a replay ends nothing twice
    driver.succeed(lambda request: m.stream(request, "of b"), count=2)
    assert driver.texts(0) == ["from the thread"]
    assert driver.texts(1) == ["of b"]


def test_a_display_of_an_earlier_cell_is_updated_by_a_later_one():
    driver = Driver("a", "b").ready()
    driver.succeed(lambda request: m.display_data(request, "0 %", "bar"))
    driver.succeed(lambda request: m.update_display_data(request, "100 %", "bar"))
    assert driver.saved[-1].cells[0].outputs[0].data == {"text/plain": "100 %"}
    assert driver.saved[-1].cells[1].outputs == []


def test_widgets_are_saved_with_the_notebook():
    driver = Driver("a").ready()
    driver.succeed(lambda request: m.comm_open(request, "c", {"_model_name": "M", "value": 1}))
    assert driver.saved[-1].metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]["c"]


def test_the_cells_number_in_the_reply_is_enough():
    driver = Driver("a").ready()
    driver.feed(m.reply_ok(driver.request, 7), m.idle(driver.request))
    assert driver.saved[-1].cells[0].execution_count == 7


def test_cells_without_code_and_skipped_ones_are_not_sent():
    old = nbformat.v4.new_output("stream", text="old")
    driver = Driver("", " \n\t", code("skip", "skip-execution", outputs=[old], execution_count=7), "run")
    driver.ready()
    driver.succeed()
    assert driver.codes == ["run"]
    assert driver.saved[-1].cells[2].outputs == [old]
    assert driver.saved[-1].cells[2].execution_count == 7
    assert driver.run.cells[0].number == 1
    assert driver.statuses() == ["completed"] * 4


@pytest.mark.parametrize("cells", [[], [markdown("x")], [""], [code("x", "skip-execution")]])
def test_a_notebook_with_nothing_to_run_succeeds(cells):
    driver = Driver(*cells).ready()
    assert kinds(driver.events[-3:]) == ["KernelReady", "Save", "Finished"]
    assert (driver.error, driver.run.executed, driver.codes) == (None, 0, [])


# --- Errors


def test_a_cell_that_raises_ends_the_run_with_what_it_raised():
    driver = Driver(markdown("x"), "ok", "1/0\n", "never").ready()
    driver.succeed()
    events = driver.fail()
    assert kinds(events) == ["CellOutput", "CellFinished", "Save", "Finished"]
    error = driver.error
    assert type(error) is CellError
    assert (error.cell_number, error.cell_index, error.source) == (2, 2, "1/0\n")
    assert (error.ename, error.evalue) == ("ZeroDivisionError", "division by zero")
    assert error.traceback == "-" * 75 + "\n1ZeroDivisionError: division by zero"
    assert str(error) == "cell 2/3 raised ZeroDivisionError: division by zero"
    assert events[1].error is events[3].error is error
    assert driver.codes == ["ok", "1/0\n"]
    assert driver.saved[-1].cells[2].outputs[0].traceback == m.TRACEBACK  # in the notebook with its colours
    assert driver.statuses() == ["pending", "completed", "failed", "pending"]


def test_the_notebook_is_saved_complete_before_the_error_is_told():
    driver = Driver("1/0").ready()
    driver.feed(m.stream(driver.request, "shown"))
    driver.fail()
    assert kinds(driver.events[-2:]) == ["Save", "Finished"]
    assert driver.texts(0) == ["shown", None]
    assert driver.saved[-1].cells[0].metadata.papermill.exception is True
    assert driver.saved[-1].metadata.papermill.exception is True
    assert driver.saved[-1].metadata.papermill.duration is not None


def test_an_error_whose_output_was_lost_is_taken_from_the_reply():
    driver = Driver("x").ready()
    driver.feed(m.reply_error(driver.request, "E", "v", ["\x1b[1mline\x1b[0m", "two"]), m.idle(driver.request))
    assert (driver.error.ename, driver.error.evalue, driver.error.traceback) == ("E", "v", "line\ntwo")


def test_a_shown_error_without_an_error_reply_is_no_failure():
    driver = Driver("showtraceback()", "b").ready()
    driver.succeed(m.error)
    assert not driver.run.finished
    assert driver.codes[-1] == "b"


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("\x1b[0;31mred\x1b[0m", "red"),
        ("\x1b[38:2::255:0:0mred\x1b[K", "red"),
        ("\x1b]8;;file:///a.py\x1b\\link\x1b]8;;\x07 [31m kept", "link [31m kept"),
    ],
)
def test_tracebacks_in_errors_have_no_terminal_codes(raw, plain):
    driver = Driver("x").ready()
    driver.fail(traceback=[raw])
    assert driver.error.traceback == plain


@pytest.mark.parametrize(
    ("cell", "options"), [(code("a", "raises-exception"), {}), (code("a"), {"allow_errors": True})]
)
def test_a_tolerated_error_is_told_and_the_run_goes_on(cell, options):
    driver = Driver(cell, "b", **options).ready()
    events = driver.fail()
    assert kinds(events) == ["CellOutput", "CellFinished", "CellStarted", "Send"]
    assert events[1].error.ename == "ZeroDivisionError"
    driver.succeed()
    assert driver.error is None
    assert driver.statuses() == ["completed", "completed"]
    assert driver.papermill(0)["exception"] is False
    assert driver.saved[-1].cells[0].outputs[0].ename == "ZeroDivisionError"


@pytest.mark.parametrize("options", [{}, {"allow_errors": True}])
@pytest.mark.parametrize("make", [m.reply_aborted, lambda request: m.reply_ok(request, None)])
def test_a_reply_without_a_run_is_an_error_that_nothing_tolerates(make, options):
    driver = Driver(code("a", "raises-exception"), "b", **options).ready()
    driver.feed(make(driver.request), m.idle(driver.request))
    assert type(driver.error) is RunError
    assert "cell 1/2 was not run" in str(driver.error)
    assert driver.codes == ["a"]
    assert driver.statuses() == ["failed", "pending"]


# --- Leaving early


@pytest.mark.parametrize("evalue", ["", "0", "None"])
def test_sys_exit_with_success_ends_the_notebook_well(evalue):
    driver = Driver("sys.exit()", "never").ready()
    events = driver.fail(ename="SystemExit", evalue=evalue)
    assert kinds(events) == ["CellOutput", "CellFinished", "Save", "Finished"]
    assert events[1].error is None
    assert (driver.error, driver.run.stopped_by_notebook, driver.codes) == (None, True, ["sys.exit()"])
    assert driver.statuses() == ["completed", "pending"]
    assert driver.papermill()["exception"] is False


@pytest.mark.parametrize("evalue", ["1", "3", "00", "no data", "False"])
def test_sys_exit_with_a_failure_is_an_error(evalue):
    driver = Driver("sys.exit()", "never").ready()
    driver.fail(ename="SystemExit", evalue=evalue)
    assert isinstance(driver.error, CellError)
    assert driver.error.evalue == evalue
    assert driver.run.stopped_by_notebook is False


def test_quit_ends_the_notebook_well_and_sends_nothing_to_the_leaving_kernel():
    driver = Driver("quit()", "never").ready()
    driver.feed(m.reply_ok(driver.request, 1, [m.ASK_EXIT]), m.idle(driver.request))
    assert (driver.run.finished, driver.error, driver.run.stopped_by_notebook) == (True, None, True)
    assert driver.codes == ["quit()"]


def test_other_payloads_do_not_end_the_notebook():
    driver = Driver("x?", "b").ready()
    page = {"source": "page", "data": {}, "start": 0}
    driver.feed(m.reply_ok(driver.request, 1, [page, "odd"]), m.idle(driver.request))
    assert driver.codes[-1] == "b"


# --- input()


def test_input_is_refused_with_the_remedy():
    driver = Driver("input()").ready()
    driver.fail(ename="StdinNotImplementedError", evalue="raw_input was called, but ...")
    assert isinstance(driver.error, CellError)
    assert "as a parameter instead" in str(driver.error)


def test_a_kernel_that_asks_all_the_same_is_interrupted():
    driver = Driver("input()", "never").ready()
    assert driver.feed(m.input_request(driver.request)) == [ev.Interrupt()]
    assert driver.feed(m.input_request(driver.request)) == []
    driver.fail(ename="KeyboardInterrupt", evalue="")
    assert driver.error.ename == "StdinNotImplementedError"
    assert driver.codes == ["input()"]
    assert driver.statuses() == ["failed", "pending"]


def test_asking_for_input_is_tolerated_where_errors_are():
    driver = Driver(code("input()", "raises-exception"), "b", cell_timeout=100).ready()
    driver.feed(m.input_request(driver.request))
    events = driver.fail(ename="KeyboardInterrupt", evalue="")
    assert only(events, ev.CellFinished)[0].error.ename == "StdinNotImplementedError"
    assert driver.codes == ["input()", "b"]
    driver.after(99)
    assert not driver.run.finished  # the first cell's grace does not count for the second
    driver.succeed()
    assert driver.error is None


# --- Rate limits


@pytest.mark.parametrize("what", ["data", "message"])
def test_output_that_the_server_dropped_is_told_and_noted(what):
    driver = Driver("print(big)").ready()
    notice = m.rate_notice(driver.request, what)
    events = driver.feed(notice, m.stream(driver.request, "x"), m.rate_notice(driver.request, what))
    assert kinds(events) == ["CellOutput", "OutputLost", "CellOutput", "CellOutput"]
    assert events[1].cell.number == 1
    assert f"its {what} rate limit was exceeded" in events[1].reason
    driver.succeed()
    assert driver.saved[-1].cells[0].metadata["smstudio"] == {
        "msg_id": "my-session-cell-0-1",
        "attempt": 1,
        "output_lost": [events[1].reason],
    }
    assert driver.saved[-1].cells[0].outputs[0].text == notice["content"]["text"]
    assert driver.error is None


def test_both_limits_are_told():
    driver = Driver("print(big)").ready()
    driver.feed(m.rate_notice(driver.request, "data"), m.rate_notice(driver.request, "message"))
    assert len(driver.cell(0).metadata["smstudio"]["output_lost"]) == 2


# --- Metadata


def test_papermills_times_are_those_of_the_clock():
    driver = Driver("a", "b").ready()
    driver.now += 1.5
    driver.succeed()
    driver.now += 2
    driver.succeed()
    start = STARTED_AT.isoformat()
    middle, end = "2026-11-06T07:00:01.500000+00:00", "2026-11-06T07:00:03.500000+00:00"
    times = {"exception": False, "status": "completed"}
    assert driver.papermill(0) == {"start_time": start, "end_time": middle, "duration": 1.5, **times}
    assert driver.papermill(1) == {"start_time": middle, "end_time": end, "duration": 2.0, **times}
    whole = driver.papermill()
    assert (whole["start_time"], whole["end_time"], whole["duration"]) == (start, end, 3.5)
    assert whole["exception"] is False
    assert [event.seconds for event in only(driver.events, ev.CellFinished)] == [1.5, 2.0]


def test_a_running_cell_is_marked_so_in_what_is_saved_meanwhile():
    driver = Driver("a", "b").ready()
    driver.feed(m.execute_input(driver.request, 5))
    driver.after(20)
    assert [cell.metadata.papermill.status for cell in driver.saved[-1].cells] == ["running", "pending"]
    assert driver.saved[-1].cells[0].execution_count == 5
    assert driver.saved[-1].metadata.papermill.end_time is None


def test_message_times_are_kept_as_jupyterlab_keeps_them():
    driver = Driver("a").ready()
    driver.succeed()
    keys = ("iopub.status.busy", "iopub.execute_input", "shell.execute_reply", "iopub.status.idle")
    assert driver.cell(0).metadata["execution"] == dict.fromkeys(keys, m.DATE)
