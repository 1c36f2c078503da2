"""The connection of a run to its kernel: is it up, does the kernel exist, do requests reach it? No I/O.

This is the part of
:class:`~airflow_provider_smstudio.studio.execution.run.NotebookRun` that receives the states of kernel websocket
and kernel. It decides when to check them. It does not choose the queries after a reconnection.
"""

from __future__ import annotations

import uuid
from abc import abstractmethod
from datetime import datetime

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import ConnectionLostError, StudioError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution import outcomes
from airflow_provider_smstudio.studio.execution.cells import CellFlow
from airflow_provider_smstudio.studio.execution.events import Event
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.execution.reconnect_pauses import ConnectionState
from airflow_provider_smstudio.studio.protocol.messages import Message, request

_BEAT = "-beat"
_BEATS = 3
"""After this number of heartbeats without an answer the run reconnects, if the kernel keeps a record."""

_LOOK_PAUSE = 10.0
"""Minimum number of seconds between two process checks of a kernel that does not read its requests."""


class ConnectedFlow(CellFlow):
    """The cells of one run, and the connection to their kernel; see ``NotebookRun`` for the parameters."""

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
        super().__init__(
            notebook,
            session_id=session_id,
            options=options,
            now=now,
            started_at=started_at,
            resumed=resumed,
            announced=announced,
            unbroken=unbroken,
        )
        self._link = ConnectionState(options.reconnect_timeout)
        self.replays = options.replays
        """Whether the server keeps messages while no client is connected. The driver may change it."""
        # An earlier process may have ended before it saved the type of the kernel.
        self._ready = resumed and self._ledger.recorded is not None
        self._check_at: float | None = None
        self._patience = options.unheard_limit
        self._reopened_at = now
        self._reopened = False
        self._beats = 0
        self._half_since: float | None = None
        self._sign_at, self._looked_at = now, now - _LOOK_PAUSE
        self._process: str | None = None
        self._replaced = False
        """Whether the answers come from another kernel process than the one that received the running cell."""

    @abstractmethod
    def _ask_again(self, now: float) -> list[Event]:
        """Send the queries that are needed now."""

    # --- What the driver reports

    def kernel_state(self, state: str | None, now: float) -> list[Event]:
        """Process the server's answer about the kernel.

        ``busy`` does not prove that the kernel lives: the server reports it long after a kernel was killed.
        ``idle`` while a cell runs means that the cell's reply may be lost. A query behind the cell then gives
        certainty. The same is true for ``starting``: the server reports it for a restarted kernel that has run
        nothing since (measured on jupyter_server 2.21).

        :param state: its ``execution_state``, or None when the server does not know the kernel.
        :param now: the monotonic clock's reading, in seconds.
        """
        if self.finished:
            return []
        if state is None or state == "dead":
            return self._kernel_died(outcomes.CRASHED if state else "the server does not know it any more", now)
        if self._current is not None and state == "busy":
            self._current.seen = True  # the kernel has received the request
        if self._current is None or state not in ("idle", "starting") or not self._link.up:
            return []
        asked = self._inquiries.oldest()
        if asked is None:
            return self._ask_behind(now)
        # Studio Classic's kernel states are not known, and without a record a new connection may lose messages.
        sure = state == "idle" or self._recording
        return self._reopen(now) if sure and now >= asked + self._patience else []

    def disconnected(self, error: StudioError, now: float) -> list[Event]:
        """Record that the websocket closed, or that a reconnection failed."""
        if self.finished:
            return []
        if self._stopping is not None:
            return self._finish(self._stopping, now)
        if self._current is not None:
            self._current.suspect = True
        self._inquiries.drop()
        pause = self._link.lost(now)
        if pause is None:
            limit = self._options.reconnect_timeout
            return self._finish(
                ConnectionLostError(f"the kernel could not be reached for {limit:g} s{self._during()}: {error}"),
                now,
            )
        return [ev.Disconnected(str(error), pause)]

    def reconnected(self, now: float, *, orderly: bool = False) -> list[Event]:
        """Record that the websocket is open again.

        :param now: the monotonic clock's reading, in seconds.
        :param orderly: whether the previous websocket was closed in order, without losing a message.
        """
        if self.finished:
            return []
        if self._current is not None and not (orderly and self.replays):
            self._current.suspect = True
        events: list[Event] = [] if self._link.up else [ev.Reconnected(self._link.restored(now))]
        self._reopened_at = now
        self._check_at = now + self._options.check_interval
        return [*events, *self._ask_again(now)]

    def process_found(self, there: bool | None, began: float, now: float) -> list[Event]:
        """Process the result of a check of the kernel's process, which :class:`~events.CheckProcess` asked for.

        :param there: whether the process exists; None if the check could not find out.
        :param began: when the check began. A sign of life after that takes precedence.
        :param now: the monotonic clock's reading, in seconds.
        """
        if self.finished or there is not False or self._sign_at > began:
            return []
        return self._kernel_died(outcomes.CRASHED_UNTOLD, now)

    @property
    def unbroken(self) -> bool:
        """Whether all messages of the running cell so far have arrived, as far as this process knows."""
        return self._link.up and (self._current is None or (self.replays and not self._current.suspect))

    # --- Is the connection up, and does the kernel exist?

    def _listen(self, now: float) -> list[Event]:
        """Return the checks of connection, kernel and requests that are due while the websocket is open."""
        events: list[Event] = []
        if self._settle_at is not None and now >= self._settle_at:
            events += self._ask_behind(now)
        if self._beat_at is not None and now >= self._beat_at:
            if self._beats >= _BEATS and self._recording:
                self._reopened = True  # a websocket to the same channels would not help
                return [*events, *self._reopen(now)]
            events.append(self._heartbeat(now))
        unheard_by = self._unheard_by()
        if unheard_by is not None and now >= unheard_by:
            return [*events, *self._reopen(now)]
        if self._check_at is not None and now >= self._check_at:
            self._check_at = now + self._options.check_interval
            events.append(ev.CheckKernel())
        return events

    def _look_at(self) -> float | None:
        """Return when to check the kernel's process next, or None while the kernel has no work.

        This does not need an open websocket: a server may refuse one for a kernel that has crashed.
        """
        limit, waits = self._options.crash_check_after, self._current is not None or bool(self._inquiries)
        starts = not self._ready and not self._resumed  # the start has its own limit
        if limit is None or not waits or starts or self._stopping is not None:
            return None
        return max(self._sign_at, self._looked_at) + limit

    def _look(self, now: float) -> list[Event]:
        """Ask for a check of the kernel's process, if one is due."""
        look_at = self._look_at()
        return self._look_now(now) if look_at is not None and now >= look_at else []

    def _look_now(self, now: float) -> list[Event]:
        if self._look_at() is None:
            return []
        self._looked_at = now
        return [ev.CheckProcess(self._ledger.process, now - self._sign_at)]

    def _reopen(self, now: float) -> list[Event]:
        """Ask for a reconnection, in order.

        Kernels of ipykernel 7.0 to 7.3 may leave a request unread until the next connection
        (ipython/ipykernel#1554). A new connection makes the kernel read it, and loses no message.
        """
        # If that did not help, our messages may no longer reach the kernel over the server's channels. Measured on
        # jupyter_server 2.21: the connection broke unnoticed, and the next one broke at once. A new client session
        # gets new channels but no replies to earlier requests. So while a cell runs, this needs a kernel record.
        fresh = self._reopened and (self._recording or self._current is None or not self._ready)
        again, self._reopened = self._reopened, True
        self._reopened_at, self._patience, self._beats = now, min(2 * self._patience, 60.0), 0
        # jupyter_server_documents keeps one connection to the kernel for all websockets. So a new websocket does
        # not wake the kernel there (measured, 0.2.6 with ipykernel 7.3), but a check of its process does.
        look = self._look_now(now) if again and now >= self._looked_at + _LOOK_PAUSE else []
        return [*look, ev.Reconnect(orderly=True, fresh=fresh)]

    def _unheard_by(self) -> float | None:
        """Return when a sign is due that the kernel has received the last request, or None if none is due."""
        since = self._inquiries.half_answered()
        if self._current is None or self._current.over or self._replaced:
            since = self._inquiries.oldest()
            over_at = self._current.over_at if self._current is not None else None
            if since is not None and over_at is not None:
                since = max(since, over_at)  # a query behind a long cell is not late before the cell has ended
        elif not self._current.seen:
            since = self._current.started
        return None if since is None else max(since, self._reopened_at) + self._patience

    def _heartbeat(self, now: float) -> ev.Send:
        """Make a heartbeat: a request on the control channel, which the kernel answers while a cell runs.

        It counts as activity for Studio's idle shutdown, which otherwise may stop an app while a silent cell runs
        (measured: it moves ``lastActiveTimestamp`` of ``/api/idle``). A kernel that holds Python's lock for a long
        time cannot answer, although it is healthy. But if several heartbeats get no answer, the connection may be
        the cause.
        """
        self._beat_at = now + self._options.heartbeat_interval
        self._beats += 1
        msg_id = f"{uuid.uuid4().hex}{_BEAT}"
        return ev.Send(
            request("kernel_info_request", {}, session=self._session_id, channel="control", msg_id=msg_id)
        )

    def _heard(self) -> None:
        """Record that requests reach the kernel."""
        self._patience, self._reopened, self._replaced = self._options.unheard_limit, False, False

    def _know_kernel(self, message: Message) -> None:
        """Remember which process answers. Only statuses and replies count; the server itself sends others."""
        msg_type = message["header"].get("msg_type", "")
        if msg_type == "status" or msg_type.endswith("_reply"):
            self._process = message["header"].get("session")

    def _alive(self, message: Message, now: float) -> list[Event]:
        """Process the answer to a heartbeat, and check whether it comes from the same kernel process.

        An IPython kernel that was restarted has another session in its messages. The server reports a restart only
        once. If that report is lost, the cell would seem to run still, although the kernel is new. A query then
        does not wait behind the cell, so its answer is due. ipykernel 7.0 to 7.3 may leave it unread after a
        start.
        """
        process = message["header"].get("session")
        if not process or not message["header"].get("msg_type", "").endswith("_reply"):
            return []
        known, self._process = self._process, process
        if known in (None, process) or not self._ledger.records or self._current is None:
            return []
        self._replaced = self._current.suspect = True
        return [] if self._inquiries else self._ask_behind(now)


def is_heartbeat(parent: str) -> bool:
    """Return whether a message with this parent belongs to a heartbeat."""
    return parent.endswith(_BEAT)
