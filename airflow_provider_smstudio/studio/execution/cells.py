"""The cells of a run: which request is made next, what a message of a cell means, when a cell has ended; pure.

This is the part of
:class:`~airflow_provider_smstudio.studio.execution.run.NotebookRun` that knows cells and not time;
:mod:`liveness` watches over the way to the kernel, and the run itself asks the questions and watches the clock.

What has happened while nobody listened is found out in one way, whether the connection broke or a later
process takes over the run: a question behind the cell in the kernel's queue. When it is answered, everything
before it has ended, and the kernel's own record (:mod:`kernel_record`) tells which requests it had, how they ended
and what they brought. Kernels without a record are asked as well, and what then is not known stays unknown.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import CellError, HandedValueError, StudioError, UnknownOutcomeError
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
from airflow_provider_smstudio.studio.protocol.messages import Message, MessageError, parent_id


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
        """Whether this process has had the kernel run anything."""
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
        # Whether the earlier process was lost before it had saved so much as the kind of the kernel.
        self._nothing_saved = resumed and self._ledger.recorded is None
        self._known: dict[str, kernel_record.Recorded] = {}
        self._ended = 0  # as many entries of the record are of no interest any more, at least
        self._fetched: list[Message] = []
        self._meanwhile: list[Message] = []
        self._counted: object = None
        self._settle_at: float | None = None
        self._beat_at: float | None = None
        self._stopping: StudioError | None = None
        self._stop_by: float | None = None

    # --- What the other parts do

    @abstractmethod
    def _ask(self, kind: str, now: float, *, start: int = 0) -> ev.Send:
        """Ask the kernel something."""

    @abstractmethod
    def _ask_behind(self, now: float) -> list[Event]:
        """Ask what the kernel knows of the cell, behind it."""

    @abstractmethod
    def _kernel_died(self, how: str, now: float) -> list[Event]:
        """End the run because its kernel is gone."""

    @abstractmethod
    def _stop_cell(self, error: StudioError, now: float, grace: float | None = None) -> list[Event]:
        """Interrupt the cell; the run ends with this error when it has ended."""

    @abstractmethod
    def _finish(self, error: StudioError | None, now: float) -> list[Event]:
        """End the run."""

    def snapshot(self, now: float) -> NotebookNode:
        """Return the notebook as it stands, ready to be saved."""
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
        """Return the cells that have ended, with outputs that are all in the newest snapshot, by their index.

        Their outputs may be put away (:meth:`CellOutputs.put_away`) until something more comes of such a cell.
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
            # Another process has sent it meanwhile: one that was given up, and lives. The record tells all of it.
            self._current, execution.suspect = execution, True
            return [ev.CellStarted(cell, len(self.cells)), *self._ask_behind(now)]
        if recorded is None:
            return self._send_cell(execution, now)
        self._current = self._executions[recorded.msg_id]
        return [ev.CellStarted(cell, len(self.cells)), *self._adopt(self._current, recorded, now)]

    def _expect(self, cell: CodeCell, started: float) -> CellRequest:
        """Return the cell's request as an earlier process made it or as this one would."""
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
        # Nothing has run yet under this request, so nothing can be missing of it.
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
            # A kernel that aborts what is queued behind an error must not abort a cell that shall run.
            stop_on_error=not (self._options.allow_errors or cell.may_raise),
            saved=execution.tells_saved,
        )
        announce: list[Event] = []
        if not self._recording:
            self._announced = cell.index
            announce.append(ev.Announce(cell))
        return [ev.CellStarted(cell, len(self.cells)), *announce, ev.Send(message)]

    def _send_again(self, execution: CellRequest, reason: str, now: float, *, tell: bool) -> list[Event]:
        """Make a cell's request once more, under another id."""
        if self._stopping is not None:
            return self._finish(self._stopping, now)
        cell = execution.cell
        self._ledger.set_attempt(cell, self._ledger.attempt(cell) + 1)
        execution.outputs.clear()
        self._saves.put_back(execution.tells_saved)
        del self._executions[execution.msg_id]  # what may still come of it is not the cell's
        again = self._expect(cell, now)
        told: list[Event] = [ev.CellSentAgain(cell, reason)] if tell else []
        return [*told, *self._send_cell(again, now)]

    # --- Messages

    def _overhear(self, parent: str, now: float) -> CellRequest | None:
        """Recognise a message of a cell that an earlier process has sent."""
        if not self._resumed:
            return None
        running = [self._current.cell] if self._current else []
        for cell in [*running, *self._pending]:
            attempt = attempt_of(parent, self._session_id, cell)
            if attempt is not None and attempt >= self._ledger.attempt(cell):
                self._ledger.set_attempt(cell, attempt)
                if self._current is not None:
                    self._current.started = now  # its time limit starts no earlier than the later cell did
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
            execution.suspect = True  # what was dropped is fetched when the cell has ended
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
        # Kernels refuse by themselves, as asked; this one did not.
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
            return []  # its answer comes right behind
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
            following.append(ev.Save(required=False))  # behind the next request: the kernel works meanwhile
        return [*events, *following]

    def _hand_out(self, execution: CellRequest) -> StudioError | None:
        """Note the values that a cell hands out; return why that cannot be."""
        try:
            for output in execution.outputs.collect() if execution.hands_out else ():
                found = values.values_of(output)
                if found:
                    self._ledger.values = values.add(self._ledger.values, found, self._name(execution.cell))
        except HandedValueError as error:
            return error
        return None

    # --- What happened while nobody listened

    def _state_known(self, state: kernel_record.RecordState | None, now: float) -> list[Event]:
        """Go on as the kernel's record says."""
        if state is None:
            return self._kernel_died(outcomes.STARTED_AGAIN, now)
        if state.broken:
            raise MessageError(f"its record broke: {state.broken}")
        self._known.update((entry.msg_id, entry) for entry in state.requests)
        if state.next is not None:
            return [self._ask(iq.STATE, now, start=state.next)]
        execution = self._current
        if execution is None:
            return self._next_cell(now)
        recorded = self._recorded(execution)
        if recorded is not None:
            self._current = self._executions[recorded.msg_id]
            return self._adopt(self._current, recorded, now)
        if self._may_have_run(execution.cell):
            return [self._ask(iq.BEHIND, now)]
        if execution.over:  # it was heard of, yet the record has forgotten it
            return self._cell_ended(execution, now)
        # It may still be on its way, out of a connection that broke or out of a lost process.
        return [self._ask(iq.REFUSE, now)]

    def _refused(self, refused: bool, now: float) -> list[Event]:
        execution = self._current
        if execution is None:
            return []
        if not refused:
            return self._ask_behind(now)
        # Of what an earlier process may have sent, and has not, there is nothing to tell.
        return self._send_again(execution, "the kernel never got it", now, tell=execution.sent)

    def _recorded(self, execution: CellRequest) -> kernel_record.Recorded | None:
        """Find a cell's request in the kernel's record: the expected one, or a later one of an earlier process."""
        cell, found, newest = execution.cell, None, self._ledger.attempt(execution.cell)
        for msg_id, entry in self._known.items():
            attempt = attempt_of(msg_id, self._session_id, cell)
            if attempt is not None and attempt >= newest:
                found, newest = entry, attempt
        if found is not None:
            self._ledger.set_attempt(cell, newest)
            self._expect(cell, execution.started)
        return found

    def _adopt(self, execution: CellRequest, recorded: kernel_record.Recorded, now: float) -> list[Event]:
        """Take what the record tells of a request that has ended."""
        execution.seen = True
        if execution.reply is None:
            execution.reply = recorded.reply
        if execution.reply is None:
            return self._unknown(execution, now)
        execution.idle = True
        if execution.kept >= recorded.kept:
            if recorded.dropped == 0 or execution.kept >= recorded.kept + recorded.dropped:
                execution.suspect = False
            return self._cell_ended(execution, now)
        self._fetched, self._meanwhile = [], []
        return [self._ask(iq.FETCH, now)]

    def _take_fetched(self, part: kernel_record.Fetched | None, now: float) -> list[Event]:
        execution = self._current
        if execution is None:
            return []
        if part is None:
            raise MessageError("the kernel's record has forgotten a request")
        self._fetched += part.messages
        if part.next is not None:
            return [self._ask(iq.FETCH, now, start=part.next)]
        messages, self._fetched = self._fetched, []
        execution.outputs.clear()
        execution.kept, execution.error_output, execution.suspect = 0, None, part.dropped > 0
        events: list[Event] = []
        missed = 0
        for number, message in enumerate(messages):
            new = execution.first_time(message) and number >= execution.shown
            missed += new
            events += self._iopub(execution, message, recorded=True, show=new)
        there = {message["header"].get("msg_id") for message in messages}
        for message in self._meanwhile:  # of a thread, since the kernel answered
            if parent_id(message) == execution.msg_id and message["header"].get("msg_id") not in there:
                self._iopub(execution, message, recorded=True, show=False)
        if missed:
            events.append(ev.OutputRecovered(execution.cell, missed))
        return [*events, *self._cell_ended(execution, now)]

    def _settle(self, execution: CellRequest, count: object, now: float) -> list[Event]:
        """Decide on a cell, now that a kernel without a record has answered a question behind it.

        Replies and outputs each come in order, so what the answer overtook will never come.

        :param count: the execution count that the answer gave.
        """
        self._counted = count
        if execution.over:
            return self._cell_ended(execution, now)
        if execution.reply is not None:
            execution.idle = True
            lost = self._lost(execution, "the end of this cell's output did not arrive")
            return [*lost, *self._cell_ended(execution, now)]
        if self._resumed and self._announced is not None:
            if execution.cell.index < self._announced:
                return self._ran_unheard(execution, now)
            if execution.cell.index > self._announced:
                return self._send_cell(execution, now)
        if self._nothing_saved and self._announced is None and not execution.seen:
            return self._send_cell(execution, now)  # for a first cell would have been announced
        if count == self._ledger.last_count(self.cells) and self._counts and not execution.heard:
            reason = "the kernel has counted no cell since the one before"
            return self._send_again(execution, reason, now, tell=execution.sent)
        return self._unknown(execution, now)

    def _may_have_run(self, cell: CodeCell) -> bool:
        """Tell whether a cell may have been sent while the kernel kept no record."""
        return self._announced is not None and cell.index <= self._announced

    @property
    def _counts(self) -> bool:
        """Whether the kernel is known to count the cells that it runs."""
        last = self._ledger.last_count(self.cells)
        return self._ledger.records or (last > 0 and last == self.executed)

    def _ran_unheard(self, execution: CellRequest, now: float) -> list[Event]:
        """Count a cell as run: an earlier process sent a later one, which it does after success only."""
        execution.reply, execution.idle = {"status": "ok", "execution_count": 0}, True
        execution.suspect = True
        following = self._cell_ended(execution, now)
        self._ledger.forget_count(execution.cell)
        return following

    def _unknown(self, execution: CellRequest, now: float) -> list[Event]:
        cell = execution.cell
        if execution.error_output is not None:
            execution.reply, execution.idle = {"status": "error", **execution.error_output}, True
            return self._cell_ended(execution, now)
        if self._options.on_unknown_cell == "rerun":
            reason = "how it ended is unknown, and on_unknown_cell says rerun"
            return self._send_again(execution, reason, now, tell=True)
        error = UnknownOutcomeError(
            f"the answer to {self._name(cell)} was lost: whether it ran and how it ended is unknown, so nothing "
            "more was run. Set on_unknown_cell='rerun' for cells that may run twice",
            cell_number=cell.number,
            cell_index=cell.index,
        )
        return self._finish(self._stopping or error, now)

    # --- Small things

    def _during(self) -> str:
        if self._current is None:
            return ""
        return f" while {self._name(self._current.cell)} ran ({self._current.cell.title})"

    def _name(self, cell: CodeCell) -> str:
        return f"cell {cell.number}/{len(self.cells)}"
