"""Events as lines of a log."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from nbformat.v4 import new_output

from airflow_provider_smstudio.studio.errors import CellError, CellTimeoutError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.memory import FIRST as FIRST_READING
from airflow_provider_smstudio.studio.execution.memory import RISE
from airflow_provider_smstudio.studio.notebook.document import CodeCell
from airflow_provider_smstudio.studio.protocol.instance_metrics import Memory, Reading
from airflow_provider_smstudio.studio.runs.log import LineSplitter, RunLog

FIRST = CodeCell(1, 0, "# the first\nprint(1)", False)
SECOND = CodeCell(2, 3, "x" * 200, False)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Recorder:
    """A log with the lines that were written."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.written: list[tuple[int, str]] = []
        write = lambda level, line: self.written.append((level, line))  # noqa: E731
        self.log = RunLog(write, clock=self.clock, **options)

    def lines(self) -> list[str]:
        return [line for _, line in self.written]

    def stream(self, text: str, cell: CodeCell = FIRST, name: str = "stdout") -> None:
        self.log(ev.CellOutput(cell, new_output("stream", name=name, text=text)))


def test_a_cell_from_start_to_end() -> None:
    recorder = Recorder()
    recorder.log(ev.CellStarted(FIRST, 2))
    recorder.stream("one\ntw")
    recorder.stream("o\nthree")
    recorder.log(ev.CellFinished(FIRST, 2, 1.234, None))
    assert recorder.lines() == [
        "cell 1/2: # the first",
        "::group::output of cell 1",
        "one",
        "two",
        "three",
        "::endgroup::",
        "cell 1/2 done in 1.23 s",
    ]
    assert {level for level, _ in recorder.written} == {logging.INFO}


def test_a_cell_that_had_run_before() -> None:
    recorder = Recorder()
    raised = new_output(
        "error", ename="KeyError", evalue="'x'", traceback=["\x1b[31mthe\x1b[0m cause", "KeyError: 'x'"]
    )
    recorder.log(ev.CellHadRun(FIRST, 2, 1.234, [new_output("stream", text="one\ntwo"), raised]))
    recorder.log(ev.CellHadRun(SECOND, 2, 0.0, []))
    assert recorder.lines() == [
        "cell 1/2 had run in 1.23 s: # the first",
        "::group::output of cell 1",
        "one",
        "the cause",
        "KeyError: 'x'",
        "two",
        "::endgroup::",
        f"cell 2/2 had run in 0.00 s: {'x' * 79}…",
    ]
    assert {level for level, _ in recorder.written} == {logging.INFO}


def test_a_cell_without_output_has_no_group_and_long_titles_are_cut() -> None:
    recorder = Recorder()
    recorder.log(ev.CellStarted(SECOND, 2))
    recorder.log(ev.CellFinished(SECOND, 2, 0.0, None))
    assert recorder.lines() == [f"cell 2/2: {'x' * 79}…", "cell 2/2 done in 0.00 s"]


def test_late_output_of_another_cell_says_whose_it_is() -> None:
    recorder = Recorder()
    recorder.log(ev.CellStarted(FIRST, 2))
    recorder.log(ev.CellFinished(FIRST, 2, 0, None))
    recorder.log(ev.CellStarted(SECOND, 2))
    recorder.stream("late\n")
    assert recorder.lines()[-1] == "[cell 1] late"


def test_stdout_and_stderr_do_not_mix_within_a_line() -> None:
    recorder = Recorder()
    recorder.log(ev.CellStarted(FIRST, 1))
    recorder.stream("out")
    recorder.stream("err", name="stderr")
    recorder.stream("put\n")
    recorder.stream("or\n", name="stderr")
    assert recorder.lines()[-2:] == ["output", "error"]


def test_a_progress_bar_is_shown_now_and_then() -> None:
    clock = Clock()
    splitter = LineSplitter(clock)
    shown: list[str] = []
    for step in range(100):
        clock.now = step
        shown += splitter.feed(f"\r{step}%")
    shown += splitter.feed("\rdone\n")
    assert shown == [*(f"{step}%" for step in range(0, 100, 10)), "done"]


def test_lines_beyond_the_limit_are_left_to_the_notebook() -> None:
    recorder = Recorder(max_lines=3)
    recorder.log(ev.CellStarted(FIRST, 1))
    recorder.stream("\n".join("abcdef") + "\n")
    recorder.log(ev.CellFinished(FIRST, 1, 0, None))
    assert recorder.lines()[2:] == [
        "a",
        "b",
        "c",
        "… more than 3 lines; all of them are in the executed notebook",
        "::endgroup::",
        "cell 1/1 done in 0.00 s",
    ]


def test_a_very_long_line_is_cut() -> None:
    recorder = Recorder()
    recorder.log(ev.CellStarted(FIRST, 1))
    recorder.stream("x" * 20_000 + "\n")
    assert recorder.lines()[-1] == "x" * 10_000 + "… (20000 characters)"


def test_rich_output() -> None:
    recorder = Recorder()
    recorder.log(ev.CellStarted(FIRST, 1))
    table = {"text/plain": "  a\n0 1", "text/html": "<table>"}
    plot = {"text/plain": "<Figure>", "image/png": "A" * 2048}
    text = {"text/plain": "<Markdown object>", "text/markdown": "# Title"}
    for data in (table, plot, text):
        recorder.log(ev.CellOutput(FIRST, new_output("display_data", data=data)))
    assert recorder.lines()[2:] == [
        "  a",
        "0 1",
        "<Figure>",
        "[image/png, 2 KiB, in the executed notebook]",
        "# Title",
    ]


def test_an_error_with_source_and_traceback() -> None:
    recorder = Recorder()
    error = CellError(
        "cell 1/1 raised KeyError: 'k'",
        cell_number=1,
        source="a = 1\nb",
        ename="KeyError",
        evalue="'k'",
        traceback="Traceback\nKeyError: 'k'",
    )
    recorder.log(ev.CellStarted(FIRST, 1))
    recorder.stream("before\n")
    recorder.log(ev.CellOutput(FIRST, new_output("error", ename="KeyError", evalue="'k'", traceback=["…"])))
    recorder.log(ev.CellFinished(FIRST, 1, 2.0, error))
    assert recorder.written[3:] == [
        (logging.INFO, "::endgroup::"),
        (logging.ERROR, "cell 1/1 raised KeyError after 2.00 s: 'k'"),
        (logging.ERROR, "---- source of cell 1 ----"),
        (logging.ERROR, "a = 1"),
        (logging.ERROR, "b"),
        (logging.ERROR, "---- traceback ----"),
        (logging.ERROR, "Traceback"),
        (logging.ERROR, "KeyError: 'k'"),
        (logging.ERROR, "-------------------"),
    ]


def test_a_cell_that_was_interrupted_is_not_called_done() -> None:
    recorder = Recorder()
    recorder.log(ev.CellStarted(FIRST, 1))
    recorder.log(ev.CellFinished(FIRST, 1, 2.0, CellTimeoutError("it took longer than 2 s")))
    assert recorder.written[-1] == (logging.ERROR, "cell 1/1 ended after 2.00 s: it took longer than 2 s")


def test_lost_output_is_loud() -> None:
    recorder = Recorder()
    recorder.log(ev.OutputLost(FIRST, "the data rate limit was exceeded"))
    assert recorder.written == [(logging.WARNING, "OUTPUT LOST in cell 1: the data rate limit was exceeded")]


def test_a_warning_about_memory_is_not_folded_away() -> None:
    recorder = Recorder()
    recorder.log(ev.CellStarted(FIRST, 1))
    recorder.stream("one\n")
    recorder.log(ev.InstanceMemory(Reading(Memory(19.0), 0.0), FIRST_READING))
    recorder.log(ev.InstanceMemory(Reading(Memory(91.0), 0.0), RISE))
    recorder.stream("two\n")
    assert [line for line in recorder.lines()[2:] if "91" not in line] == [
        "one",
        "the instance's memory: 19 % in use",
        "::endgroup::",
        "::group::output of cell 1",
        "two",
    ]
    (warning,) = [line for level, line in recorder.written if level == logging.WARNING]
    assert recorder.lines()[5] == warning
    assert "91 % in use" in warning


def test_output_may_be_switched_off() -> None:
    recorder = Recorder(show_output=False)
    recorder.log(ev.CellStarted(FIRST, 1))
    recorder.stream("one\n")
    recorder.log(ev.CellFinished(FIRST, 1, 0, None))
    assert recorder.lines() == ["cell 1/1: # the first", "cell 1/1 done in 0.00 s"]


@pytest.mark.parametrize("info", [{"banner": "Python 3.12\nmore"}, {"implementation": "Python 3.12"}])
def test_the_kernel_is_named(info: dict[str, str]) -> None:
    recorder = Recorder()
    recorder.log(ev.KernelReady(info))
    assert recorder.lines() == ["the kernel is ready: Python 3.12"]


def test_a_group_is_closed_when_the_run_ends_inside_it() -> None:
    recorder = Recorder()
    recorder.log(ev.CellStarted(FIRST, 1))
    recorder.stream("never ended")
    recorder.log(ev.Finished(None))
    assert recorder.lines()[1:] == ["::group::output of cell 1", "never ended", "::endgroup::"]


def test_a_line_that_no_logger_can_encode():
    lines = []
    live = RunLog(lambda level, line: lines.append(line))
    live(ev.CellStarted(FIRST, 1))
    live(ev.CellOutput(FIRST, new_output("stream", name="stdout", text="caf\udce9 é\n")))
    assert lines[-1] == "caf? é"
