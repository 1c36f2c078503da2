"""Write a run as log lines: what the run waits for, how far it is, and the output of the cells as it arrives.

Groups are marked so that Airflow's log view folds them (``::group::``). A line of a cell's output is written as
soon as it is complete. A progress bar rewrites one line forever. It is written at most every ten seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import CellError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution import outcomes
from airflow_provider_smstudio.studio.execution.memory import RISE, describe
from airflow_provider_smstudio.studio.notebook.document import CodeCell

Write = Callable[[int, str], None]
"""A function that receives a level of :mod:`logging` and a line."""

_LONGEST_LINE = 10_000
_LONGEST_REPORT = 400
_REWRITE_INTERVAL = 10.0


class LineSplitter:
    """Splits the pieces of a stream into lines.

    A line that is rewritten with carriage returns is shown at most every ten seconds.

    :param clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: list[str] = []
        self._length = 0
        self._rewritten_at: float | None = None

    def feed(self, text: str) -> Iterator[str]:
        """Add the next piece of text, and yield the lines that it completes."""
        *complete, rest = text.split("\n")
        for line in complete:
            yield _last_writing("".join([*self._open, line]))
            self._open, self._length = [], 0
        if self._length <= _LONGEST_LINE or "\r" in rest:  # longer lines are cut anyway
            self._open.append(rest)
            self._length += len(rest)
        if "\r" in rest.rstrip("\r"):
            line = _last_writing("".join(self._open))
            self._open, self._length = [line], len(line)
            now = self._clock()
            if self._rewritten_at is None or now >= self._rewritten_at + _REWRITE_INTERVAL:
                self._rewritten_at = now
                yield line

    def rest(self) -> Iterator[str]:
        """Yield the last line if it has no line break."""
        line = _last_writing("".join(self._open))
        self._open, self._length = [], 0
        if line:
            yield line


def _last_writing(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2]


class RunLog:
    """A listener for :class:`NotebookRunner` that writes log lines.

    :param write: receives level and line.
    :param show_output: whether to write the output of the cells, besides their progress.
    :param max_lines: how many lines of output to write for each cell. The notebook keeps all lines.
    :param clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        write: Write,
        *,
        show_output: bool = True,
        max_lines: int = 2000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write: Write = lambda level, line: write(level, _writable(line))
        self._show_output = show_output
        self._max_lines = max_lines
        self._clock = clock
        self._streams: dict[tuple[int, str], LineSplitter] = {}
        self._written: dict[int, int] = {}
        self._current: CodeCell | None = None
        self._group_open = False

    def __call__(self, event: ev.Event) -> None:
        """Write the log lines for an event of the run."""
        if isinstance(event, ev.KernelReady):
            banner = str(event.info.get("banner") or event.info.get("implementation") or "").strip()
            self._info(f"the kernel is ready: {banner.splitlines()[0] if banner else 'no banner'}")
        elif isinstance(event, ev.CellStarted):
            self._current = event.cell
            self._info(f"cell {event.cell.number}/{event.total}: {event.cell.title}")
        elif isinstance(event, ev.CellOutput):
            self._output(event.cell, event.output)
        elif isinstance(event, ev.CellHadRun):
            self._had_run(event)
        elif isinstance(event, ev.OutputLost):
            self._write(logging.WARNING, f"OUTPUT LOST in cell {event.cell.number}: {event.reason}")
        elif isinstance(event, _CONNECTION):
            self._write(*_about_the_connection(event))
        elif isinstance(event, ev.InstanceMemory):
            self._memory(event)
        elif isinstance(event, ev.CellFinished):
            self._finished(event)
        elif isinstance(event, ev.Finished):
            self._rest()

    def _finished(self, event: ev.CellFinished) -> None:
        self._rest()
        name, error = f"cell {event.cell.number}/{event.total}", event.error
        if error is None:
            self._info(f"{name} done in {event.seconds:.2f} s")
            return
        if not isinstance(error, CellError):
            self._write(logging.ERROR, _clip(f"{name} ended after {event.seconds:.2f} s: {error}"))
            return
        self._write(
            logging.ERROR, _clip(f"{name} raised {error.ename} after {event.seconds:.2f} s: {error.evalue}")
        )
        for line in error_report(error):
            self._write(logging.ERROR, _clip(line))

    def _had_run(self, event: ev.CellHadRun) -> None:
        self._current = event.cell
        self._info(f"cell {event.cell.number}/{event.total} had run in {event.seconds:.2f} s: {event.cell.title}")
        for output in event.outputs:
            self._output(event.cell, output)
            if output["output_type"] == "error":  # an error that the cell may raise, since the run continued
                for line in _some(outcomes.raised(output)[2].splitlines()):
                    self._line(event.cell, line)
        self._rest()

    def _output(self, cell: CodeCell, output: NotebookNode) -> None:
        kind = output["output_type"]
        if not self._show_output or kind == "error":
            return
        if kind == "stream":
            splitter = self._streams.setdefault((cell.number, output["name"]), LineSplitter(self._clock))
            lines = splitter.feed(output["text"])
        else:
            lines = _describe(output)
        for line in lines:
            self._line(cell, line)

    def _line(self, cell: CodeCell, line: str) -> None:
        count = self._written[cell.number] = self._written.get(cell.number, 0) + 1
        if count > self._max_lines + 1:
            return
        if count > self._max_lines:
            line = f"… more than {self._max_lines} lines; all of them are in the executed notebook"
        if cell is not self._current:
            line = f"[cell {cell.number}] {line}"
        elif not self._group_open:
            self._info(f"::group::output of cell {cell.number}")
            self._group_open = True
        self._info(_clip(line))

    def _rest(self) -> None:
        """Write the rest of the cell's streams, and close its group."""
        cell = self._current
        if cell is not None:
            for key in [key for key in self._streams if key[0] == cell.number]:
                for line in self._streams.pop(key).rest():
                    self._line(cell, line)
        self._close_group()
        self._current = None

    def _memory(self, event: ev.InstanceMemory) -> None:
        if event.change == RISE:
            self._close_group()  # a warning must not be folded away
        level = logging.WARNING if event.change == RISE else logging.INFO
        self._write(level, describe(event.reading, event.change))

    def _close_group(self) -> None:
        if self._group_open:
            self._info("::endgroup::")
            self._group_open = False

    def _info(self, line: str) -> None:
        self._write(logging.INFO, line)


_CONNECTION = (
    ev.Reattached,
    ev.Disconnected,
    ev.Reconnected,
    ev.Reconnect,
    ev.OutputRecovered,
    ev.RecordEnded,
    ev.CellSentAgain,
)


def _about_the_connection(event: ev.Event) -> tuple[int, str]:
    """Return the level and the line for an event of the connection to the kernel."""
    if isinstance(event, ev.Reattached):
        return logging.INFO, f"reattached: {event.done} of {event.total} cells had run"
    if isinstance(event, ev.Disconnected):
        following = f"reconnecting in {event.retry_in:.1f} s" if event.retry_in else "reconnecting"
        return logging.WARNING, f"{event.reason}; the run continues on Studio, {following}"
    if isinstance(event, ev.Reconnected):
        return logging.INFO, f"reconnected after {event.seconds:.1f} s"
    if isinstance(event, ev.OutputRecovered):
        text = f"{event.messages} messages of cell {event.cell.number} had not arrived; fetched from its kernel"
        return logging.INFO, text
    if isinstance(event, ev.RecordEnded):
        return logging.WARNING, f"the kernel keeps no record of its output: {event.reason}"
    if isinstance(event, ev.CellSentAgain):
        return logging.WARNING, f"cell {event.cell.number} is sent again: {event.reason}"
    return logging.DEBUG, "opening the kernel's websocket again"


def error_report(error: CellError) -> Iterator[str]:
    """Yield the source and the traceback of a failed cell as lines."""
    yield f"---- source of cell {error.cell_number} ----"
    yield from _some(error.source.splitlines())
    yield "---- traceback ----"
    yield from _some(error.traceback.splitlines())
    yield "-------------------"


def _some(lines: list[str]) -> list[str]:
    """Return the first and the last lines if there are many, because the end of a traceback says most."""
    if len(lines) <= _LONGEST_REPORT:
        return lines
    half = _LONGEST_REPORT // 2
    left_out = len(lines) - 2 * half
    return [*lines[:half], f"… {left_out} lines, in the executed notebook …", *lines[-half:]]


def _writable(line: str) -> str:
    """Return a line that loggers can encode: a file name that is not UTF-8 has lone surrogates."""
    return line if line.isascii() else line.encode("utf-8", "replace").decode("utf-8")


def _clip(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}… ({len(line)} characters)"


def _describe(output: NotebookNode) -> Iterator[str]:
    """Yield the text of a rich output, and a line for each of its images."""
    data = output.get("data") or {}
    text = data.get("text/plain")
    if "text/markdown" in data:
        text = data["text/markdown"]  # then the plain text is only the object's repr
    if text:
        yield from ("".join(text) if isinstance(text, list) else str(text)).splitlines()
    for mime, value in data.items():
        if mime.startswith("image/"):
            yield f"[{mime}, {len(value) / 1024:.0f} KiB, in the executed notebook]"
