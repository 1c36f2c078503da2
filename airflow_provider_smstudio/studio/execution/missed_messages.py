"""What happened while the run was not connected: queries to the kernel, and what their answers mean. No I/O.

This is the part of :class:`~airflow_provider_smstudio.studio.execution.run.NotebookRun` that sends queries. The
kernel processes one request after the other, so an answer also tells that all earlier requests have ended.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from airflow_provider_smstudio.studio.errors import (
    ConnectionLostError,
    KernelStartError,
    UnknownOutcomeError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution import outcomes
from airflow_provider_smstudio.studio.execution import queries as iq
from airflow_provider_smstudio.studio.execution.cell_request import CellRequest, attempt_of, count_request
from airflow_provider_smstudio.studio.execution.connection import ConnectedFlow
from airflow_provider_smstudio.studio.execution.events import Event
from airflow_provider_smstudio.studio.notebook.document import CodeCell
from airflow_provider_smstudio.studio.protocol import kernel_record
from airflow_provider_smstudio.studio.protocol.messages import MessageError, parent_id, request

_HALF_LIMIT = 15.0
"""How many seconds the run waits for the second half of an answer before its first cell."""

_LONGEST_HALF = 120.0
"""The minimum of the same time later in the run, even if ``reconnect_timeout`` is shorter."""


class Recovery(ConnectedFlow):
    """The queries of one run; see :class:`~airflow_provider_smstudio.studio.execution.run.NotebookRun`."""

    @abstractmethod
    def _kernel_ready(self, info: Mapping[str, Any], now: float) -> list[Event]:
        """Process the kernel's first answer."""

    # --- Queries

    def _ask_again(self, now: float) -> list[Event]:
        """Send the queries that are needed now. They go behind a running cell, so their answers cover it."""
        self._inquiries.drop()
        if not self._ready:
            return [self._ask(iq.READY, now)]
        events: list[Event] = []
        if self._current is not None:
            events.append(self._heartbeat(now))  # the kernel answers it while a cell runs
        if self._may_install:
            return [*events, self._ask(iq.INSTALL, now)]
        if not self._recording and self._current is None:
            return [*events, *self._next_cell(now)]
        return [*events, *self._ask_behind(now)]

    def _ask_behind(self, now: float) -> list[Event]:
        self._settle_at = None
        return [self._ask(iq.STATE if self._recording else iq.BEHIND, now)]

    def _ask(self, kind: str, now: float, *, start: int = 0) -> ev.Send:
        msg_id, session, current = self._inquiries.new_id(), self._session_id, self._current
        if kind == iq.INSTALL:
            message = kernel_record.install_request(session, msg_id, session, self._options.record_limit)
        elif kind == iq.STATE:
            message = kernel_record.state_request(session, msg_id, start or self._ended)
        elif kind == iq.FETCH and current is not None:
            message = kernel_record.fetch_request(session, msg_id, current.msg_id, start)
        elif kind == iq.REFUSE and current is not None:
            message = kernel_record.refuse_request(session, msg_id, current.msg_id)
        elif kind == iq.BEHIND:
            message = count_request(msg_id, session_id=session)
        else:
            message = request("kernel_info_request", {}, session=session, msg_id=msg_id)
        return ev.Send(self._inquiries.ask(message, kind, now, current))

    def _half_answered_for(self, now: float) -> list[Event] | None:
        """End a run whose server delivers only one half of the kernel's answer, such as the outputs but no reply.

        jupyter_server_documents 0.2 may never read a reply that arrives at the moment of a request. Neither later
        requests nor another websocket help (measured, 0.2.6: the message stays unread in its server). Before the
        first cell, the runner can use another kernel.
        """
        since = self._inquiries.half_answered()
        if not self._inquiries:
            self._half_since = None  # no query is open
        elif self._half_since is None:
            self._half_since = since
        end_at = self._half_answer_at()
        if end_at is None or now < end_at:
            return None
        if not self.requested and not self._resumed:
            self.never_answered = True
            return self._finish(KernelStartError("the Jupyter server does not deliver the kernel's answer"), now)
        limit = self._half_limit
        lost = f"the Jupyter server has delivered no answer of the kernel for {limit:g} s{self._during()}"
        return self._finish(ConnectionLostError(lost), now)

    @property
    def _half_limit(self) -> float:
        early = not self.requested and not self._resumed
        return _HALF_LIMIT if early else max(self._options.reconnect_timeout, _LONGEST_HALF)

    def _half_answer_at(self) -> float | None:
        """Return when the run ends because half an answer is missing, or None if none is."""
        since = self._half_since if self._half_since is not None else self._inquiries.half_answered()
        return (
            None
            if since is None or self._stopping is not None or not self._inquiries
            else since + self._half_limit
        )

    def _answered(self, inquiry: iq.Query, now: float) -> list[Event]:
        reply = inquiry.reply or {}
        self._half_since = None
        self._heard()
        if reply.get("status") == "aborted":
            return self._ask_again(now)  # the cell before it raised, so the kernel aborted the queue
        if inquiry.kind == iq.READY:
            return [] if self._ready else self._kernel_ready(reply, now)
        if inquiry.kind == iq.BEHIND:
            execution = self._current
            return self._settle(execution, reply.get("execution_count"), now) if execution else []
        try:
            return self._record_answered(inquiry, reply, now)
        except MessageError as error:
            self._ledger.recording(False)
            self._recording = False
            self._saves.soon()
            return [ev.RecordEnded(str(error)), *self._ask_again(now)]

    def _record_answered(self, inquiry: iq.Query, reply: Mapping[str, Any], now: float) -> list[Event]:
        if inquiry.kind == iq.STATE:
            return self._state_known(kernel_record.read_state(reply, self._session_id), now)
        if inquiry.kind == iq.FETCH:
            return self._take_fetched(kernel_record.read_fetched(reply), now)
        if inquiry.kind == iq.REFUSE:
            return self._refused(kernel_record.read_refused(reply), now)
        installed = kernel_record.read_installed(reply)
        self._recording = installed.ok
        self._ledger.recording(installed.ok)
        self._ledger.process = installed.process
        self._saves.soon()
        ended = [] if installed.ok else [ev.RecordEnded(installed.reason or "it gave no reason")]
        if self._current is None:
            return [*ended, *self._next_cell(now)]
        if installed.resumed or not installed.ok:
            return [*ended, *self._ask_behind(now)]
        if self._announced is None:  # so no process has reached the first cell yet
            return self._send_cell(self._current, now)
        return [self._ask(iq.BEHIND, now)]

    @property
    def _may_install(self) -> bool:
        return self._options.record and self._ledger.records and self._ledger.recorded is None

    # --- What happened while the run was not connected

    def _state_known(self, state: kernel_record.RecordState | None, now: float) -> list[Event]:
        """Continue according to the kernel record."""
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
        if execution.over:  # its messages arrived, but the record does not list it
            return self._cell_ended(execution, now)
        # The request may still be on its way, from a broken connection or from a lost process.
        return [self._ask(iq.REFUSE, now)]

    def _refused(self, refused: bool, now: float) -> list[Event]:
        execution = self._current
        if execution is None:
            return []
        if not refused:
            return self._ask_behind(now)
        # If this process did not send the request, perhaps no process did: then there is nothing to report.
        return self._send_again(execution, "the kernel never received it", now, tell=execution.sent)

    def _recorded(self, execution: CellRequest) -> kernel_record.Recorded | None:
        """Return a cell's entry in the kernel record: the expected request, or a later one of another process."""
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
        """Process the record's entry of a cell's request that has ended."""
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
            raise MessageError("the kernel record no longer lists a request")
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
        for message in self._meanwhile:  # output of a thread, sent after the kernel's answer
            if parent_id(message) == execution.msg_id and message["header"].get("msg_id") not in there:
                self._iopub(execution, message, recorded=True, show=False)
        if missed:
            events.append(ev.OutputRecovered(execution.cell, missed))
        return [*events, *self._cell_ended(execution, now)]

    def _settle(self, execution: CellRequest, count: object, now: float) -> list[Event]:
        """Decide how a cell ended, after a kernel without a record has answered a query behind it.

        Replies arrive in order, and outputs too. So a message that did not arrive before the answer is lost.

        :param execution: the cell's request.
        :param count: the execution count in the answer.
        :param now: the monotonic clock's reading, in seconds.
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
            return self._send_cell(execution, now)  # a first cell would have been announced before it was sent
        if count == self._ledger.last_count(self.cells) and self._counts and not execution.heard:
            reason = "the kernel's execution count has not changed since the previous cell"
            return self._send_again(execution, reason, now, tell=execution.sent)
        return self._unknown(execution, now)

    def _may_have_run(self, cell: CodeCell) -> bool:
        """Return whether a cell may have been sent while the kernel kept no record."""
        return self._announced is not None and cell.index <= self._announced

    @property
    def _counts(self) -> bool:
        """Whether the kernel is known to count the cells that it runs."""
        last = self._ledger.last_count(self.cells)
        return self._ledger.records or (last > 0 and last == self.executed)

    def _ran_unheard(self, execution: CellRequest, now: float) -> list[Event]:
        """Count a cell as run, because an earlier process sent a later cell. It does so only after success."""
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
            reason = "it is unknown how it ended, and on_unknown_cell is 'rerun'"
            return self._send_again(execution, reason, now, tell=True)
        error = UnknownOutcomeError(
            f"the answer to {self._name(cell)} was lost. It is unknown whether the cell ran and how it ended, so "
            "nothing more was run. Set on_unknown_cell='rerun' if this cell may run twice",
            cell_number=cell.number,
            cell_index=cell.index,
        )
        return self._finish(self._stopping or error, now)
