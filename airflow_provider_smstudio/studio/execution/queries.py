"""Queries: requests to the kernel besides the notebook's cells, and their answers. No I/O.

On the shell channel a kernel processes one request after another. So the answer to a query also proves that the
kernel has processed all earlier requests.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_smstudio.studio.execution.cell_request import CellRequest
from airflow_provider_smstudio.studio.protocol.kernel_record import HOUSEKEEPING
from airflow_provider_smstudio.studio.protocol.messages import Message

READY, BEHIND, INSTALL, STATE, FETCH, REFUSE = "ready", "behind", "install", "state", "fetch", "refuse"


@dataclass
class Query:
    """One query.

    :ivar kind: the type of the query. ``ready`` is the first ``kernel_info_request``. ``behind`` is an empty
        request that is queued behind a cell. The other types concern the kernel record.
    :ivar asked: when it was sent, by the monotonic clock.
    :ivar execution: the cell's request that it concerns, or None.
    :ivar reply: the content of its reply, or None until that arrives.
    :ivar idle: whether the kernel has reported ``idle`` for it.
    :ivar half: since when only one of reply and idle has been there, or the time of the last output after that.
    """

    kind: str
    asked: float
    execution: CellRequest | None
    reply: Mapping[str, Any] | None = None
    idle: bool = False
    half: float | None = None


class Queries:
    """The open queries, which still wait for their answers.

    :param session_id: the client session's id.
    """

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._open: dict[str, Query] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def pending(self, *kinds: str) -> bool:
        """Return whether a query of one of these kinds is open."""
        return any(inquiry.kind in kinds for inquiry in self._open.values())

    def oldest(self) -> float | None:
        """Return when the oldest open query was sent, or None if no query is open."""
        return min((inquiry.asked for inquiry in self._open.values()), default=None)

    def half_answered(self) -> float | None:
        """Return since when a query has had only half of its answer, or None if there is no such query.

        Such a query no longer waits for a cell. The other half may be lost: after a restart of the kernel, the
        server does not receive its outputs at once (seen with jupyter_server 2.21).
        """
        return min((inquiry.half for inquiry in self._open.values() if inquiry.half is not None), default=None)

    def output_comes(self, now: float) -> None:
        """Record that output of a cell has arrived: later messages may still be on their way."""
        for inquiry in self._open.values():
            if inquiry.half is not None:
                inquiry.half = now

    def new_id(self) -> str:
        """Return a new id for a query, of the form that the kernel record does not list."""
        return f"{self._session_id}{HOUSEKEEPING}{uuid.uuid4().hex}"

    def ask(self, message: Message, kind: str, now: float, execution: CellRequest | None = None) -> Message:
        """Record a query that will be sent now, and return its message."""
        self._open[message["header"]["msg_id"]] = Query(kind, now, execution)
        return message

    def drop(self, *kinds: str) -> None:
        """Forget the open queries of these kinds, or all of them."""
        self._open = {key: found for key, found in self._open.items() if kinds and found.kind not in kinds}

    def owns(self, parent: str) -> bool:
        """Return whether a message with this parent belongs to an open query."""
        return parent in self._open

    def take(self, parent: str, message: Message, now: float) -> Query | None:
        """Process a message that belongs to an open query.

        :return: the query if it is answered now, else None. An answer needs both reply and idle: only the idle
            proves that outputs arrive as well. An answered query is no longer open.
        """
        inquiry = self._open[parent]
        msg_type = message["header"].get("msg_type", "")
        if message["channel"] != "iopub" and msg_type.endswith("_reply"):
            inquiry.reply = message["content"]
        elif msg_type == "status" and message["content"].get("execution_state") == "idle":
            inquiry.idle = True
        if inquiry.reply is None or not inquiry.idle:
            if inquiry.half is None and (inquiry.idle or inquiry.reply is not None):
                inquiry.half = now
            return None
        del self._open[parent]
        return inquiry
