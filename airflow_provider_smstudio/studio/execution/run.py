"""The run of a notebook on a kernel, as a state machine without I/O.

A driver owns the websocket, the REST calls and the clock. It passes messages and results to a
:class:`NotebookRun`. It carries out the events that the run returns, in order::

    for event in run.start(now):            # the kernel's websocket is open
        carry_out(event)
    while not run.finished:
        message = receive(until=run.next_deadline())
        for event in run.receive(message, now) if message else run.tick(now):
            carry_out(event)

``now`` is a monotonic clock's reading in seconds. A driver must carry out these events, and answer some of them:

- :class:`~events.Send`, :class:`Interrupt` and :class:`Announce`;
- :class:`CheckKernel`, answered by :meth:`NotebookRun.kernel_state`;
- :class:`CheckProcess`, answered by :meth:`NotebookRun.process_found`;
- :class:`Reconnect`, answered by :meth:`NotebookRun.reconnected` or :meth:`NotebookRun.disconnected`;
- :class:`Save`, answered by :meth:`NotebookRun.saved` or :meth:`NotebookRun.postpone_save`.

The other events inform an observer. :class:`Finished` is the last event. The protocol is the Jupyter messaging
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
    KernelDiedError,
    KernelStartError,
    RunError,
    RunKilledError,
    StudioError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution import outcomes
from airflow_provider_smstudio.studio.execution import queries as iq
from airflow_provider_smstudio.studio.execution.connection import is_heartbeat
from airflow_provider_smstudio.studio.execution.events import Event
from airflow_provider_smstudio.studio.execution.memory import MemoryGauge
from airflow_provider_smstudio.studio.execution.missed_messages import Recovery
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.protocol import kernel_record
from airflow_provider_smstudio.studio.protocol.messages import Message, parent_id


class NotebookRun(Recovery):
    """The run of one notebook on one kernel.

    :param notebook: the notebook, with its parameters injected and :func:`document.begin_metadata` applied.
        The run adds outputs and metadata to it in place.
    :param session_id: the client session's id. All websockets and processes of this run use the same id.
    :param options: limits and switches.
    :param now: the monotonic clock's reading at this moment.
    :param started_at: the wall clock's reading at this moment; the current time by default.
    :param where: the name of the kernel's machine for messages, such as an instance type.
    :param resumed: whether to continue the run that the notebook's metadata describe, on its old kernel.
    :param announced: with ``resumed``: index of the last announced cell, if that is known.
    :param unbroken: with ``resumed``: whether the previous process closed its connection in order after
        :meth:`rest`, and no other client connected since. Then no message was lost, and further messages of the
        running cell arrive here.
    :param shown: with ``resumed``: how many messages of the running cell were already reported.
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
        """Whether the run ended because its kernel never answered, although it was alive."""
        self.memory = MemoryGauge(self._options.memory_interval)
        """Decides which readings of the instance's memory to report. The driver takes the readings."""
        self._where = where
        self._ready_by: float | None = None
        self._grace = 0.0

    # --- What the driver reports

    def start(self, now: float) -> list[Event]:
        """Start the run: the kernel websocket is open. The first request checks whether the kernel answers."""
        self._check_at = now + self._options.check_interval
        if not self._resumed:
            self._ready_by = now + self._options.kernel_start_timeout
            return self._ask_again(now)
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
                    return [*events, self._heartbeat(now)]  # the messages of its end will arrive without a query
        return [*events, *self._ask_again(now)]

    def receive(self, message: Message, now: float) -> list[Event]:
        """Process a message from the kernel."""
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
            self._half_since = None  # the other half may be queued behind much output
        if execution is None or not execution.first_time(message):
            return []  # another client's, the server's own, or a repeated message
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
        """Return the events that are due now. Call it at :meth:`next_deadline`, and about once a second."""
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
        """Return the clock's reading at which :meth:`tick` is due next, or None if it is never due."""
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
        """Stop the run: interrupt the running cell, wait a short time for its end, and finish.

        :param reason: why the run is stopped, for the error's message.
        :param now: the monotonic clock's reading, in seconds.
        :param grace: how long the cell may take to end, in seconds; by default the value in the options.
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
        """Record that the kernel was interrupted just now, as :class:`~events.Interrupt` asked for.

        The interrupt request itself may take long. So the cell's time to end starts only now.
        """
        if self._stop_by is not None:
            self._stop_by = max(self._stop_by, now + self._grace)

    @property
    def may_rest(self) -> bool:
        """Whether another process could continue the run now: its kernel is known and connected."""
        going = self._kernel_known and self._link.up and self._stopping is None and not self.finished
        return going and not self.half_over and (self._current is None or not self.rests_between_cells)

    @property
    def rests_between_cells(self) -> bool:
        """Whether a reply that comes while no client is connected is lost. Then no cell may run meanwhile."""
        return self._kernel_known and not self.replays and not self._recording

    @property
    def at_work(self) -> bool:
        """Whether the kernel has answered and the run is not over."""
        return self._ready and not self.finished

    @property
    def _kernel_known(self) -> bool:
        """Whether the kernel has answered, and the run knows whether the kernel keeps a record."""
        return self._ready and not self._inquiries.pending(iq.READY, iq.INSTALL)

    @property
    def half_over(self) -> bool:
        """Whether a part of the running cell's end has arrived. A snapshot contains it only after the end."""
        current = self._current
        return current is not None and (current.reply is not None or current.idle)

    @property
    def shown(self) -> int:
        """How many messages of the running cell were reported, for the process that continues the run."""
        return 0 if self._current is None else max(self._current.kept, self._current.shown)

    def rest(self, resting: bool = True) -> None:
        """Send no further cell, because another process will continue the run from a snapshot.

        Pass all messages to :meth:`receive` until the connection is closed. Then save a :meth:`snapshot`.

        :param resting: False makes this process continue the run; that is possible while :attr:`half_over`.
        """
        self._resting = resting

    def abandon(self, error: StudioError, now: float) -> list[Event]:
        """End the run at once, without a request to the kernel."""
        return [] if self.finished else self._finish(error, now)

    def saved(self, now: float, seconds: float, size: int = 0) -> None:
        """Record that the newest snapshot was saved.

        :param now: when the save ended.
        :param seconds: how long it took.
        :param size: how many bytes were written.
        """
        self._saves.saved(now, seconds, size)

    def postpone_save(self, now: float) -> None:
        """Record that no save is possible now. The run asks for one again after the usual time."""
        self._saves.postpone(now)

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
            if error is None or isinstance(error, RunError):  # otherwise the cell may continue to run
                self._ledger.cell_ended(cut_off.cell, now, now - cut_off.started, failed=True)
        self._ledger.ended(now, error, early=self.stopped_by_notebook)
        return [ev.Save(required=True), ev.Finished(error)]
