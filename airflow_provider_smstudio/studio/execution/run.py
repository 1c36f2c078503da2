"""The run of a notebook on a kernel as a state machine without I/O.

A driver owns the websocket, the REST calls and the clock. It feeds a :class:`NotebookRun` with what happens
and carries out what comes back, in order::

    for event in run.start(now):            # the kernel's websocket is open
        carry_out(event)
    while not run.finished:
        message = receive(until=run.next_deadline())
        for event in run.receive(message, now) if message else run.tick(now):
            carry_out(event)

``now`` is a monotonic clock's reading in seconds. Events that a driver must carry out are :class:`~events.Send`,
:class:`Interrupt`, :class:`CheckKernel` (answered by :meth:`NotebookRun.kernel_state`), :class:`CheckProcess`
(answered by :meth:`NotebookRun.process_found`), :class:`Announce`, :class:`Reconnect` (answered by
:meth:`NotebookRun.reconnected` or :meth:`NotebookRun.disconnected`) and :class:`Save` (answered by
:meth:`NotebookRun.saved` or :meth:`NotebookRun.postpone_save`); the others tell an observer what happens, and
:class:`Finished` is the last one. The protocol is the Jupyter messaging
specification, version 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import (
    CellError,
    CellTimeoutError,
    ConnectionLostError,
    KernelDiedError,
    KernelStartError,
    RunError,
    RunKilledError,
    StudioError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution import outcomes
from airflow_provider_smstudio.studio.execution import queries as iq
from airflow_provider_smstudio.studio.execution.cell_request import count_request
from airflow_provider_smstudio.studio.execution.events import Event
from airflow_provider_smstudio.studio.execution.liveness import ConnectedFlow, is_heartbeat
from airflow_provider_smstudio.studio.execution.memory import MemoryGauge
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.protocol import kernel_record
from airflow_provider_smstudio.studio.protocol.messages import Message, MessageError, parent_id, request

_HALF_LIMIT = 15.0
"""Seconds after which a kernel is given up that has run nothing, and of which only half an answer comes."""

_LONGEST_HALF = 120.0
"""The same later on, at least, however short ``reconnect_timeout`` is."""


class NotebookRun(ConnectedFlow):
    """The run of one notebook on one kernel.

    :param notebook: the notebook, with its parameters injected and :func:`document.begin_metadata` applied;
        it is filled with outputs and metadata in place.
    :param session_id: the client session's id, the same for every websocket and process of this run.
    :param options: limits and switches.
    :param now: the monotonic clock's reading at this moment.
    :param started_at: the wall clock's reading at this moment; the current time by default.
    :param where: names the machine under the kernel for messages, such as an instance type.
    :param resumed: go on with the run that the notebook's metadata tell of; its kernel is still there.
    :param announced: with ``resumed``: index of the cell that was announced last, where that is known.
    :param unbroken: with ``resumed``: the process before has closed its connection in order after :meth:`rest`,
        and nobody was there since; so nothing was lost, and what still comes of the running cell comes here.
    :param shown: with ``resumed``: so many outputs of the running cell need not be told again.
    """

    def __init__(
        self,
        notebook: NotebookNode,
        *,
        session_id: str,
        options: RunOptions | None = None,
        now: float,
        started_at: datetime | None = None,
        where: str | None = None,
        resumed: bool = False,
        announced: int | None = None,
        unbroken: bool = False,
        shown: int = 0,
    ) -> None:
        super().__init__(
            notebook,
            session_id=session_id,
            options=options or RunOptions(),
            now=now,
            started_at=started_at,
            resumed=resumed,
            announced=announced,
            unbroken=unbroken,
        )
        self._shown = shown
        self.never_answered = False
        """Whether the run ended because its kernel, though alive, never said a word."""
        self.memory = MemoryGauge(self._options.memory_interval)
        """How full the memory under the kernel is; the driver has it read."""
        self._where = where
        self._ready_by: float | None = None
        self._grace = 0.0

    # --- What the driver tells

    def start(self, now: float) -> list[Event]:
        """Begin: the kernel's websocket is open. The first request asks whether the kernel answers."""
        self._check_at = now + self._options.check_interval
        if not self._resumed:
            self._ready_by = now + self._options.kernel_start_timeout
            return self._ask_anew(now)
        events: list[Event] = [ev.Reattached(self.executed, len(self.cells))]
        if self._pending:
            cell = self._pending.pop(0)
            self._current = self._expect(cell, self._ledger.started(cell, now))
            self._current.shown = self._shown
            self._beat_at = now
            if self._ledger.is_running(cell):
                self._current.seen = True
                events.append(ev.CellStarted(cell, len(self.cells)))
                if self._unbroken and self._ready:
                    return [*events, self._heartbeat(now)]  # its end will come by itself
        return [*events, *self._ask_anew(now)]

    def receive(self, message: Message, now: float) -> list[Event]:
        """Take a message from the kernel."""
        if self.finished:
            return []
        self._check_at = now + self._options.check_interval
        death = outcomes.kernel_death(message, ready=self._ready)
        if death:
            return self._kernel_died(death, now)
        parent = parent_id(message) or ""
        if is_heartbeat(parent):
            self._beats, self._sign_at = 0, now
            return self._alive(message, now)
        if self._inquiries.owns(parent):
            self._sign_at = now
            self._know_kernel(message)
            inquiry = self._inquiries.take(parent, message, now)
            return self._answered(inquiry, now) if inquiry else []
        execution = self._executions.get(parent) or self._overhear(parent, now)
        if execution is not None and message["channel"] == "iopub":
            self._inquiries.output_comes(now)
            self._half_since = None  # the rest may be behind much output
        if execution is None or not execution.first_time(message):
            return []  # somebody else's, the server's own, or a repetition
        self._sign_at = now
        if not execution.seen:
            execution.seen = True
            self._heard()
        self._know_kernel(message)
        if message["channel"] == "iopub":
            events = self._iopub(execution, message)
        else:
            events = self._replied(execution, message, now)
        if execution is not self._current or self.finished:
            return events  # late output of a cell that has ended
        return [*events, *self._maybe_ended(execution, now)]

    def tick(self, now: float) -> list[Event]:
        """Look at the clock: call it at :meth:`next_deadline` and at least once a second or so."""
        if self.finished:
            return []
        if self._ready_by is not None and now >= self._ready_by:
            limit = self._options.kernel_start_timeout
            self.never_answered = True
            return self._finish(KernelStartError(f"the kernel did not answer within {limit:g} s"), now)
        half = self._half_answered_for(now)
        if half is not None:
            return half
        events: list[Event] = []
        if self._stopping is not None:
            if self._stop_by is not None and now >= self._stop_by:
                return self._finish(self._stopping, now)
        elif self._timed_out(now):
            events += self._cell_timed_out(now)
        events += self._look(now)
        if self._link.retry_at is not None and now >= self._link.retry_at:
            self._link.try_now()
            events.append(ev.Reconnect(orderly=False))
        elif self._link.up:
            events += self._listen(now)
        if self._ready and self._saves.due(now):
            events.append(ev.Save(required=False))
        return events

    def next_deadline(self) -> float | None:
        """Return the clock's reading at which :meth:`tick` has something to do, None if there is none."""
        if self.finished:
            return None
        times = [self._ready_by, self._stop_by, self._link.retry_at, self._look_at(), self._half_answer_at()]
        if self._link.up:
            times += [self._settle_at, self._check_at, self._beat_at, self._unheard_by()]
        if self._current is not None and self._stopping is None and self._options.cell_timeout:
            times.append(self._current.started + self._options.cell_timeout)
        if self._ready:
            times.append(self._saves.next_at())
        return min((time for time in times if time is not None), default=None)

    def stop(self, reason: str, now: float, *, grace: float | None = None) -> list[Event]:
        """Stop the run: interrupt the running cell, wait for its end a little, and finish.

        :param reason: who or what stops it, for the error's message.
        :param grace: how long the cell may take to end, in seconds; as the options say by default.
        """
        if self.finished:
            return []
        if self._stopping is not None and not isinstance(self._stopping, CellError):
            if grace is not None and self._stop_by is not None:
                self._stop_by = min(self._stop_by, now + grace)
            return []
        error = RunKilledError(f"the run was stopped{self._during()}: {reason}")
        return self._stop_cell(error, now, grace) if self._current else self._finish(error, now)

    def interrupted(self, now: float) -> None:
        """Note that the kernel was interrupted just now, as :class:`~events.Interrupt` asked for.

        The request may have taken long; the cell's time to end begins with it.
        """
        if self._stop_by is not None:
            self._stop_by = max(self._stop_by, now + self._grace)

    @property
    def may_rest(self) -> bool:
        """Whether another process could go on with the run now: its kernel is known and can be reached."""
        going = self._kernel_known and self._link.up and self._stopping is None and not self.finished
        return going and not self.half_over and (self._current is None or not self.rests_between_cells)

    @property
    def rests_between_cells(self) -> bool:
        """Whether a cell's answer is lost if nobody is connected when it comes: no cell may run meanwhile."""
        return self._kernel_known and not self.replays and not self._recording

    @property
    def at_work(self) -> bool:
        """Whether the kernel has answered and the run is not over."""
        return self._ready and not self.finished

    @property
    def _kernel_known(self) -> bool:
        """Whether the kernel has answered, and whether it keeps a record."""
        return self._ready and not self._inquiries.pending(iq.READY, iq.INSTALL)

    @property
    def half_over(self) -> bool:
        """Whether something of the running cell's end is known, which no snapshot can tell before it has ended."""
        current = self._current
        return current is not None and (current.reply is not None or current.idle)

    @property
    def shown(self) -> int:
        """How many of the running cell's outputs have been told, for whoever goes on with it."""
        return 0 if self._current is None else max(self._current.kept, self._current.shown)

    def rest(self, resting: bool = True) -> None:
        """Make no further cell's request: another process will go on with the run from a snapshot.

        Feed it what still comes of the connection until that is closed, then save a :meth:`snapshot`.

        :param resting: False takes it back; that is possible while :attr:`half_over`.
        """
        self._resting = resting

    def abandon(self, error: StudioError, now: float) -> list[Event]:
        """End at once, without asking the kernel for anything."""
        return [] if self.finished else self._finish(error, now)

    def saved(self, now: float, seconds: float, size: int = 0) -> None:
        """Take it that the newest snapshot was saved.

        :param now: when the save had ended.
        :param seconds: how long it took.
        :param size: how many bytes were written.
        """
        self._saves.saved(now, seconds, size)

    def postpone_save(self, now: float) -> None:
        """Take it that a snapshot cannot be saved now; it is asked for again after the usual time."""
        self._saves.postpone(now)

    # --- Questions to the kernel

    def _ask_anew(self, now: float) -> list[Event]:
        """Ask whatever must be known now; behind a cell that may run, so that the answer covers it."""
        self._inquiries.drop()
        if not self._ready:
            return [self._ask(iq.READY, now)]
        events: list[Event] = []
        if self._current is not None:
            events.append(self._heartbeat(now))  # answers while a cell runs
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
        """End a run whose server hands over the kernel's outputs and no replies any more.

        jupyter_server_documents 0.2 may never read a reply that comes in the moment of a request. Nothing that is
        sent then brings it back, nor does another websocket (measured, 0.2.6: in its server the message waits
        unread). Before the first cell another kernel can be taken.
        """
        since = self._inquiries.half_answered()
        if not self._inquiries:
            self._half_since = None  # nothing is asked any more
        elif self._half_since is None:
            self._half_since = since
        end_at = self._half_answer_at()
        if end_at is None or now < end_at:
            return None
        if not self.requested and not self._resumed:
            self.never_answered = True
            return self._finish(KernelStartError("the Jupyter server does not hand over the kernel's answer"), now)
        limit = self._half_limit
        lost = f"the Jupyter server has handed over no answer of the kernel for {limit:g} s{self._during()}"
        return self._finish(ConnectionLostError(lost), now)

    @property
    def _half_limit(self) -> float:
        early = not self.requested and not self._resumed
        return _HALF_LIMIT if early else max(self._options.reconnect_timeout, _LONGEST_HALF)

    def _half_answer_at(self) -> float | None:
        """Tell when half an answer is to be dealt with, None while there is none."""
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
            return self._ask_anew(now)  # the cell before it raised, and took what was queued with it
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
            return [ev.RecordEnded(str(error)), *self._ask_anew(now)]

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
        if self._announced is None:  # so no process has ever come as far as the first cell
            return self._send_cell(self._current, now)
        return [self._ask(iq.BEHIND, now)]

    @property
    def _may_install(self) -> bool:
        return self._options.record and self._ledger.records and self._ledger.recorded is None

    # --- The kernel

    def _kernel_ready(self, info: Mapping[str, Any], now: float) -> list[Event]:
        self._ready, self._ready_by, self._settle_at = True, None, None
        self._ledger.kernel_ready(info, records=kernel_record.supported(info))
        events: list[Event] = [ev.KernelReady(info)]
        if self._may_install:
            return [*events, self._ask(iq.INSTALL, now)]
        self._ledger.recording(False)
        self._saves.soon()
        return [*events, *(self._ask_behind(now) if self._current else self._next_cell(now))]

    def _kernel_died(self, how: str, now: float) -> list[Event]:
        if self._stopping is not None:
            return self._finish(self._stopping, now)  # it did not survive the interrupt
        if not self._ready:
            return self._finish(KernelStartError(f"the kernel died while starting: {how}"), now)
        current = self._current.cell if self._current else None
        hint = ""
        if how in (outcomes.CRASHED, outcomes.CRASHED_UNTOLD, outcomes.STARTED_AGAIN):
            place = f" on {self._where}" if self._where else ""
            hint = f". The usual reason of a crash is that memory ran out{place}"
        full = self.memory.before(now)
        hint += f"; {full}" if full else ""
        error = KernelDiedError(
            f"the kernel died{self._during()}: {how}{hint}. Its variables are gone, so nothing more was run",
            cell_number=current.number if current else None,
            cell_index=current.index if current else None,
        )
        return self._finish(error, now)

    # --- Time limits and ends

    def _timed_out(self, now: float) -> bool:
        limit = self._options.cell_timeout
        return bool(limit and self._current and now >= self._current.started + limit)

    def _cell_timed_out(self, now: float) -> list[Event]:
        assert self._current is not None  # noqa: S101  # _timed_out says so
        cell, limit = self._current.cell, self._options.cell_timeout
        error = CellTimeoutError(
            f"{self._name(cell)} took longer than {limit:g} s and was interrupted",
            cell_number=cell.number,
            cell_index=cell.index,
            timeout=limit,
        )
        return self._stop_cell(error, now)

    def _stop_cell(self, error: StudioError, now: float, grace: float | None = None) -> list[Event]:
        self._stopping = error
        self._grace = self._options.interrupt_grace if grace is None else grace
        self._stop_by = now + self._grace
        return [ev.Interrupt()]

    def _finish(self, error: StudioError | None, now: float) -> list[Event]:
        self.finished, self.error = True, error
        self._ready_by = self._stop_by = self._settle_at = self._check_at = self._beat_at = None
        if self._current is not None:
            cut_off, self._current = self._current, None
            self.executed += 1
            if error is None or isinstance(error, RunError):  # else it may well go on, unwatched
                self._ledger.cell_ended(cut_off.cell, now, now - cut_off.started, failed=True)
        self._ledger.ended(now, error, early=self.stopped_by_notebook)
        return [ev.Save(required=True), ev.Finished(error)]
