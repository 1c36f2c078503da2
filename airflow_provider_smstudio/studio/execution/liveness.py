"""The connection of a run to its kernel: is it up, is the kernel there, and has it got what was sent; pure.

This is the part of
:class:`~airflow_provider_smstudio.studio.execution.run.NotebookRun` that is told what becomes of the
websocket and of the kernel, and that says when to ask after them. What is to be asked once the way is open again
is not its business.
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
from airflow_provider_smstudio.studio.execution.reconnect import ConnectionState
from airflow_provider_smstudio.studio.protocol.messages import Message, request

_BEAT = "-beat"
_BEATS = 3
"""So many heartbeats without an answer, and the connection is made anew."""

_LOOK_PAUSE = 10.0
"""Seconds between two looks at a kernel that does not read what it is sent, at least."""


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
        """Whether the server keeps what comes while nobody is connected; a driver that learns it may say so."""
        # What kind of kernel it is may not have been saved yet.
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
        """Whether another process answers than the one that had the running cell."""

    @abstractmethod
    def _ask_anew(self, now: float) -> list[Event]:
        """Ask whatever must be known now."""

    # --- What the driver tells

    def kernel_state(self, state: str | None, now: float) -> list[Event]:
        """Take the server's answer about the kernel.

        :param state: its ``execution_state``, or None when the server knows no such kernel. ``busy`` is no proof
            of life: the server calls a kernel so long after it was killed. ``idle`` while a cell runs means that
            its answer may be lost; a question behind it will tell. So does ``starting``: a kernel that was started
            again and has run nothing since is called so (measured on jupyter_server 2.21).
        """
        if self.finished:
            return []
        if state is None or state == "dead":
            return self._kernel_died(outcomes.CRASHED if state else "the server does not know it any more", now)
        if self._current is not None and state == "busy":
            self._current.seen = True  # so the request has reached it
        if self._current is None or state not in ("idle", "starting") or not self._link.up:
            return []
        asked = self._inquiries.oldest()
        if asked is None:
            return self._ask_behind(now)
        # Nobody knows how Studio Classic calls a kernel, and without a record a new connection may lose something.
        sure = state == "idle" or self._recording
        return self._reopen(now) if sure and now >= asked + self._patience else []

    def disconnected(self, error: StudioError, now: float) -> list[Event]:
        """Take it that the websocket broke, or that it could not be opened anew."""
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
        """Take it that the websocket is open again.

        :param orderly: the one before was closed in order, so nothing of it was lost.
        """
        if self.finished:
            return []
        if self._current is not None and not (orderly and self.replays):
            self._current.suspect = True
        events: list[Event] = [] if self._link.up else [ev.Reconnected(self._link.restored(now))]
        self._reopened_at = now
        self._check_at = now + self._options.check_interval
        return [*events, *self._ask_anew(now)]

    def process_found(self, there: bool | None, began: float, now: float) -> list[Event]:
        """Take what a look at the kernel's process has shown, which :class:`~events.CheckProcess` asked for.

        :param there: whether it is there; None where that could not be seen.
        :param began: when the look began; what the kernel has said since counts for more.
        """
        if self.finished or there is not False or self._sign_at > began:
            return []
        return self._kernel_died(outcomes.CRASHED_UNTOLD, now)

    @property
    def unbroken(self) -> bool:
        """Whether all that the running cell has brought so far has come, as far as this process knows."""
        return self._link.up and (self._current is None or (self.replays and not self._current.suspect))

    # --- Whether it is up, and the kernel there

    def _listen(self, now: float) -> list[Event]:
        """While the connection is up: is it, and is the kernel there, and has it got what was sent?"""
        events: list[Event] = []
        if self._settle_at is not None and now >= self._settle_at:
            events += self._ask_behind(now)
        if self._beat_at is not None and now >= self._beat_at:
            if self._beats >= _BEATS and self._recording:
                self._reopened = True  # the same channels would not help
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
        """Tell when it is to be looked whether the kernel's process is there, None while it has nothing to do.

        Whether the websocket is up does not matter: a server may not open one to a kernel that has crashed.
        """
        limit, waits = self._options.crash_check_after, self._current is not None or bool(self._inquiries)
        starts = not self._ready and not self._resumed  # which has a limit of its own
        if limit is None or not waits or starts or self._stopping is not None:
            return None
        return max(self._sign_at, self._looked_at) + limit

    def _look(self, now: float) -> list[Event]:
        """Have it looked whether the kernel's process is there, if it is time."""
        look_at = self._look_at()
        return self._look_now(now) if look_at is not None and now >= look_at else []

    def _look_now(self, now: float) -> list[Event]:
        if self._look_at() is None:
            return []
        self._looked_at = now
        return [ev.CheckProcess(self._ledger.process, now - self._sign_at)]

    def _reopen(self, now: float) -> list[Event]:
        """Have the connection made anew, in order.

        Kernels of ipykernel 7.0 to 7.3 may leave a request unread until the next connection comes
        (ipython/ipykernel#1554): a new one gets it read, and loses nothing.
        """
        # Where that did not help, the server may have given us channels that the kernel does not hear: measured on
        # jupyter_server 2.21 after a connection that broke unseen, and whose successor broke at once. A stranger
        # gets new ones; he gets no reply to what was sent before, so where a cell runs, the kernel's record must
        # know that.
        fresh = self._reopened and (self._recording or self._current is None or not self._ready)
        again, self._reopened = self._reopened, True
        self._reopened_at, self._patience, self._beats = now, min(2 * self._patience, 60.0), 0
        # jupyter_server_documents keeps one connection to the kernel whatever websockets come, so a new websocket
        # does not wake the kernel there (measured, 0.2.6 with ipykernel 7.3): a look at it does.
        look = self._look_now(now) if again and now >= self._looked_at + _LOOK_PAUSE else []
        return [*look, ev.Reconnect(orderly=True, fresh=fresh)]

    def _unheard_by(self) -> float | None:
        """Tell when a sign must have come that the kernel has got what was sent last, None if none is due."""
        since = self._inquiries.half_answered()
        if self._current is None or self._current.over or self._replaced:
            since = self._inquiries.oldest()
            over_at = self._current.over_at if self._current is not None else None
            if since is not None and over_at is not None:
                since = max(since, over_at)  # a question behind a long cell is not late before that has ended
        elif not self._current.seen:
            since = self._current.started
        return None if since is None else max(since, self._reopened_at) + self._patience

    def _heartbeat(self, now: float) -> ev.Send:
        """Ask on the control channel, which answers while a cell runs.

        This counts as activity for Studio's idle shutdown, which else may end an app under a silent cell
        (measured: it moves ``lastActiveTimestamp`` of ``/api/idle``). A kernel that holds Python's lock for long
        cannot answer, and is well; but where several stay without an answer the connection may be at fault.
        """
        self._beat_at = now + self._options.heartbeat_interval
        self._beats += 1
        msg_id = f"{uuid.uuid4().hex}{_BEAT}"
        return ev.Send(
            request("kernel_info_request", {}, session=self._session_id, channel="control", msg_id=msg_id)
        )

    def _heard(self) -> None:
        """Take it that the kernel gets what is sent."""
        self._patience, self._reopened, self._replaced = self._options.unheard_limit, False, False

    def _know_kernel(self, message: Message) -> None:
        """Remember which process answers; the server speaks of our requests as well, but not of their states."""
        msg_type = message["header"].get("msg_type", "")
        if msg_type == "status" or msg_type.endswith("_reply"):
            self._process = message["header"].get("session")

    def _alive(self, message: Message, now: float) -> list[Event]:
        """Take the answer that shows that the kernel is there, and see whether it is the same one.

        An IPython kernel that was started again has another session in its messages. The server tells of that but
        once, and where that was lost a restarted kernel would be taken for one whose cell still runs. A question
        is not behind the cell then, so its answer is due: ipykernel 7.0 to 7.3 may leave it unread after a start.
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
    """Tell whether a message with this parent belongs to a heartbeat."""
    return parent.endswith(_BEAT)
