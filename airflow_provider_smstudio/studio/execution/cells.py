"""The cells of a run: which request comes next, what a cell's messages mean, when a cell has ended. No I/O.

This is the part of
:class:`~airflow_provider_smstudio.studio.execution.run.NotebookRun` that handles cells and not time.
:mod:`connection` watches the connection to the kernel. The run itself sends the queries and watches the clock.

A run may have missed messages, because the connection broke or because another process watched it before. In both
cases it sends a query, which the kernel queues behind the cell. When the kernel answers, all earlier requests have
ended. The kernel record (:mod:`kernel_record`) then lists the requests that the kernel received, how they ended
and which messages they sent. Kernels without a record also receive a query, but some facts then stay unknown.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import CellError, HandedValueError, StudioError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution import outcomes
from airflow_provider_smstudio.studio.execution import queries as iq
from airflow_provider_smstudio.studio.execution.autosave import Autosave
from airflow_provider_smstudio.studio.execution.cell_request import (
    CellRequest,
    attempt_of,
    cell_msg_id,
    execute_request,
)
from airflow_provider_smstudio.studio.execution.events import Event
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.notebook import values
from airflow_provider_smstudio.studio.notebook.document import CodeCell
from airflow_provider_smstudio.studio.notebook.outputs import (
    CellOutputs,
    Displays,
    WidgetStates,
    rate_limit_notice,
)
from airflow_provider_smstudio.studio.notebook.run_metadata import RunMetadata
from airflow_provider_smstudio.studio.protocol import kernel_record
from airflow_provider_smstudio.studio.protocol.messages import Message


class CellFlow(ABC):
    """The cells of one run; see
    :class:`~airflow_provider_smstudio.studio.execution.run.NotebookRun` for the parameters.
    """

    def __init__(
        self,
        notebook: NotebookNode,
        *,
        session_id: str,
        options: RunOptions,
        now: float,
        started_at: datetime | None,
        resumed: bool,
        announced: int | None,
        unbroken: bool = False,
    ) -> None:
        self.notebook = notebook
        self.cells = nb.code_cells(notebook)
        self.finished = False
        self.error: StudioError | None = None
        self.stopped_by_notebook = False
        self.requested = False
        """Whether this process has sent a cell to the kernel."""
        self._options = options
        self._session_id = session_id
        self._resumed = resumed
        self._unbroken = unbroken
        self._resting = False
        self._announced = announced
        self._ledger = RunMetadata(notebook, now, started_at, resumed=resumed)
        self._pending = [cell for cell in self.cells if not (resumed and self._ledger.has_run(cell))]
        self.executed = len(self.cells) - len(self._pending)
        self._executions: dict[str, CellRequest] = {}
        self._current: CellRequest | None = None
        self._displays = Displays()
        self._widgets = WidgetStates()
        if resumed:
            self._widgets.seed(notebook.metadata.get("widgets") or {})
        self._saves = Autosave(options.autosave_interval, now)
        self._inquiries = iq.Queries(session_id)
        self._recording = resumed and self._ledger.recorded is True
        # Whether the earlier process was lost before it saved even the type of the kernel.
        self._nothing_saved = resumed and self._ledger.recorded is None
        self._known: dict[str, kernel_record.Recorded] = {}
        self._ended = 0  # at least this many first entries of the record are processed
        self._fetched: list[Message] = []
        self._meanwhile: list[Message] = []
        self._counted: object = None
        self._settle_at: float | None = None
        self._beat_at: float | None = None
        self._stopping: StudioError | None = None
        self._stop_by: float | None = None

    # --- Implemented by the other parts

    @abstractmethod
    def _ask(self, kind: str, now: float, *, start: int = 0) -> ev.Send:
        """Send a query to the kernel."""

    @abstractmethod
    def _ask_behind(self, now: float) -> list[Event]:
        """Send a query about the cell, which the kernel queues behind it."""

    @abstractmethod
    def _kernel_died(self, how: str, now: float) -> list[Event]:
        """End the run because its kernel is gone."""

    @abstractmethod
    def _stop_cell(self, error: StudioError, now: float, grace: float | None = None) -> list[Event]:
        """Interrupt the cell. When it has ended, the run ends with this error."""

    @abstractmethod
    def _finish(self, error: StudioError | None, now: float) -> list[Event]:
        """End the run."""

    @abstractmethod
    def _recorded(self, execution: CellRequest) -> kernel_record.Recorded | None:
        """Return what the kernel record says about a cell's request."""

    @abstractmethod
    def _adopt(self, execution: CellRequest, recorded: kernel_record.Recorded, now: float) -> list[Event]:
        """Use the kernel record's facts about a request that has ended."""

    @abstractmethod
    def _may_have_run(self, cell: CodeCell) -> bool:
        """Return whether a cell may have been sent while the kernel kept no record."""

    @abstractmethod
    def _settle(self, execution: CellRequest, count: object, now: float) -> list[Event]:
        """Decide about a cell of a kernel without a record."""

    def snapshot(self, now: float) -> NotebookNode:
        """Return the notebook in its current state, ready to be saved."""
        over: list[str] = []
        for execution in self._executions.values():
            if execution.changed:
                self.notebook.cells[execution.cell.index]["outputs"] = execution.outputs.collect()
                execution.changed = False
            if execution.unsaved and execution.ended:
                execution.unsaved = False
                over.append(execution.msg_id)
        widgets = self._widgets.metadata()
        if widgets:
            self.notebook.metadata["widgets"] = widgets
        self._saves.made(now, over)
        return self.notebook

    def at_rest(self) -> list[tuple[int, CellOutputs]]:
        """Return the ended cells whose outputs are all in the newest snapshot, as pairs of index and outputs.

        The driver may put their outputs away (:meth:`CellOutputs.put_away`) until more output of a cell arrives.
        """
        over = [found for found in self._executions.values() if found.ended and not found.changed]
        return [(found.cell.index, found.outputs) for found in over]

    # --- Requests

    def _next_cell(self, now: float) -> list[Event]:
        if self._stopping is not None:
            return self._finish(self._stopping, now)
        if not self._pending or self.stopped_by_notebook:
            return self._finish(None, now)
        if self._resting:
            return []
        cell = self._pending.pop(0)
        execution = self._expect(cell, now)
        recorded = self._recorded(execution)
        if recorded is None and self._may_have_run(cell):
            self._current = execution
            return self._settle(execution, self._counted, now)
        if recorded is None and execution.heard and self._recording:
            # Another process, which seemed lost but still runs, has sent it meanwhile. The record lists all of it.
            self._current, execution.suspect = execution, True
            return [ev.CellStarted(cell, len(self.cells)), *self._ask_behind(now)]
        if recorded is None:
            return self._send_cell(execution, now)
        self._current = self._executions[recorded.msg_id]
        return [ev.CellStarted(cell, len(self.cells)), *self._adopt(self._current, recorded, now)]

    def _expect(self, cell: CodeCell, started: float) -> CellRequest:
        """Return the cell's request, as an earlier process made it or as this process would make it."""
        msg_id = cell_msg_id(self._session_id, cell, self._ledger.attempt(cell))
        if msg_id not in self._executions:
            outputs = CellOutputs(self._displays)
            if self._resumed:
                outputs.seed(self.notebook.cells[cell.index]["outputs"])
            suspect = self._resumed and not self._unbroken
            made = self._executions[msg_id] = CellRequest(cell, msg_id, started, outputs, suspect=suspect)
            made.hands_out = any(map(values.values_of, self.notebook.cells[cell.index]["outputs"]))
        return self._executions[msg_id]

    def _send_cell(self, execution: CellRequest, now: float) -> list[Event]:
        if self._stopping is not None:
            return self._finish(self._stopping, now)
        cell = execution.cell
        if self._resting:
            self._pending.insert(0, cell)
            self._current = None
            del self._executions[execution.msg_id]
            return []
        # This request has not run yet, so none of its messages can be missing.
        execution.started, execution.suspect, execution.seen = now, False, False
        execution.outputs.clear()
        self._current = execution
        self._beat_at = now + self._options.heartbeat_interval
        self._settle_at = None
        self.requested = execution.sent = True
        self._saves.changed = True
        self._ledger.cell_started(cell, now, execution.msg_id)
        execution.tells_saved = self._saves.take_saved() if self._recording else []
        message = execute_request(
            cell,
            execution.msg_id,
            session_id=self._session_id,
            # A kernel aborts the requests queued behind an error. It must not abort a cell that should run.
            stop_on_error=not (self._options.allow_errors or cell.may_raise),
            saved=execution.tells_saved,
        )
        announce: list[Event] = []
        if not self._recording:
            self._announced = cell.index
            announce.append(ev.Announce(cell))
        return [ev.CellStarted(cell, len(self.cells)), *announce, ev.Send(message)]

    def _send_again(self, execution: CellRequest, reason: str, now: float, *, tell: bool) -> list[Event]:
        """Send a cell's request again, under another id."""
        if self._stopping is not None:
            return self._finish(self._stopping, now)
        cell = execution.cell
        self._ledger.set_attempt(cell, self._ledger.attempt(cell) + 1)
        execution.outputs.clear()
        self._saves.put_back(execution.tells_saved)
        del self._executions[execution.msg_id]  # its late messages no longer belong to the cell
        again = self._expect(cell, now)
        told: list[Event] = [ev.CellSentAgain(cell, reason)] if tell else []
        return [*told, *self._send_cell(again, now)]

    # --- Messages

    def _overhear(self, parent: str, now: float) -> CellRequest | None:
        """Return the request of a message if an earlier process has sent that request, else None."""
        if not self._resumed:
            return None
        running = [self._current.cell] if self._current else []
        for cell in [*running, *self._pending]:
            attempt = attempt_of(parent, self._session_id, cell)
            if attempt is not None and attempt >= self._ledger.attempt(cell):
                self._ledger.set_attempt(cell, attempt)
                if self._current is not None:
                    self._current.started = now  # its time limit does not start before the later request
                return self._expect(cell, now)
        return None

    def _iopub(
        self, execution: CellRequest, message: Message, *, recorded: bool = False, show: bool = True
    ) -> list[Event]:
        msg_type, content = message["header"].get("msg_type"), message["content"]
        if msg_type == "status":
            state = content.get("execution_state")
            if state in ("busy", "idle"):
                self._ledger.cell_message(execution.cell, f"iopub.status.{state}", message)
            execution.idle = execution.idle or state == "idle"
            return []
        self._saves.changed = execution.changed = execution.unsaved = True
        exceeded = None if recorded else rate_limit_notice(message)
        if self._inquiries.pending(iq.FETCH) and not recorded:
            self._meanwhile.append(message)
        unknown = self._resumed and self._ledger.recorded is None
        if exceeded and (self._recording or unknown) and not execution.ended:
            execution.suspect = True  # the run fetches the dropped output when the cell has ended
            return []
        execution.kept += msg_type in kernel_record.KEPT_TYPES and not exceeded
        if msg_type == "execute_input":
            self._ledger.cell_count(execution.cell, content.get("execution_count"))
            self._ledger.cell_message(execution.cell, "iopub.execute_input", message)
            return []
        if msg_type in ("comm_open", "comm_msg"):
            self._widgets.receive(message)
            return []
        output = execution.outputs.receive(message)
        if output is None:
            return []
        if output["output_type"] == "error":
            execution.error_output = output
        execution.hands_out = execution.hands_out or bool(values.values_of(output))
        events: list[Event] = [ev.CellOutput(execution.cell, output)] if show else []
        if exceeded:
            reason = f"the Jupyter server dropped output of this cell: its {exceeded} limit was exceeded"
            events += self._lost(execution, reason)
        return events

    def _replied(self, execution: CellRequest, message: Message, now: float) -> list[Event]:
        msg_type = message["header"].get("msg_type")
        if msg_type == "execute_reply":
            execution.reply = message["content"]
            self._ledger.cell_message(execution.cell, "shell.execute_reply", message)
        elif msg_type == "input_request" and self._stopping is None:
            return self._asked_for_input(execution.cell, now)
        return []

    def _lost(self, execution: CellRequest, reason: str) -> list[Event]:
        if reason in execution.losses:
            return []
        execution.losses.append(reason)
        self._ledger.cell_lost_output(execution.cell, execution.losses)
        return [ev.OutputLost(execution.cell, reason)]

    def _asked_for_input(self, cell: CodeCell, now: float) -> list[Event]:
        # The request forbids input, so most kernels refuse it themselves. This kernel did not.
        error = outcomes.cell_error(cell, self._name(cell), outcomes.NO_STDIN, "input() was called", "")
        return self._stop_cell(error, now)

    def _maybe_ended(self, execution: CellRequest, now: float) -> list[Event]:
        if not execution.over:
            if execution.reply is not None or execution.idle:
                self._settle_at = now + self._options.settle_time
            return []
        self._settle_at = None
        execution.over_at = now if execution.over_at is None else execution.over_at
        if self._inquiries:
            return []  # the answer to the open query comes next
        if execution.suspect and self._recording:
            return self._ask_behind(now)
        return self._cell_ended(execution, now)

    def _cell_ended(self, execution: CellRequest, now: float) -> list[Event]:
        cell, reply = execution.cell, execution.reply or {}
        events: list[Event] = []
        if execution.suspect:
            events += self._lost(
                execution, "output of this cell was lost on its way, and its kernel has not kept it"
            )
        self._current = self._settle_at = self._beat_at = None
        self._saves.changed = True
        self.executed += 1
        self._ended += self._recording
        execution.ended = True
        execution.heard.clear()
        self._ledger.cell_count(cell, reply.get("execution_count"))
        seconds = now - execution.started
        verdict = outcomes.judge(cell, self._name(cell), reply, execution.error_output)
        error = self._stopping or verdict.error or self._hand_out(execution)
        self.stopped_by_notebook = verdict.ends_notebook and self._stopping is None
        tolerated = isinstance(error, CellError) and (self._options.allow_errors or cell.may_raise)
        fails = error is not None and not tolerated and not self.stopped_by_notebook
        if tolerated:
            self._stopping = self._stop_by = None
        self._ledger.cell_ended(cell, now, seconds, failed=fails, raised=isinstance(error, CellError))
        events.append(ev.CellFinished(cell, len(self.cells), seconds, error))
        if fails:
            return [*events, *self._finish(error, now)]
        following = self._next_cell(now)
        if self._saves.due(now) and not self.finished:
            following.append(ev.Save(required=False))  # after the next request: the kernel works meanwhile
        return [*events, *following]

    def _hand_out(self, execution: CellRequest) -> StudioError | None:
        """Store the values that a cell publishes. Return the error if one of them is not allowed."""
        try:
            for output in execution.outputs.collect() if execution.hands_out else ():
                found = values.values_of(output)
                if found:
                    self._ledger.values = values.add(self._ledger.values, found, self._name(execution.cell))
        except HandedValueError as error:
            return error
        return None

    # --- Helpers

    def _during(self) -> str:
        if self._current is None:
            return ""
        return f" while {self._name(self._current.cell)} ran ({self._current.cell.title})"

    def _name(self, cell: CodeCell) -> str:
        return f"cell {cell.number}/{len(self.cells)}"
