"""Questions to the kernel beside the notebook's cells, and which of them have been answered; pure.

On the shell channel a kernel does one thing after the other, so a question's answer also tells that whatever
was sent before it has been dealt with.
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
    """A question.

    :ivar kind: what is asked: ``ready`` is the first ``kernel_info_request``, ``behind`` a request behind a cell
        that runs nothing; the others concern the kernel's record.
    :ivar asked: when, by the monotonic clock.
    :ivar execution: the cell's request that it is about, if any.
    :ivar half: since when the other one of reply and idle is due: one has come, and no output has since.
    """

    kind: str
    asked: float
    execution: CellRequest | None
    reply: Mapping[str, Any] | None = None
    idle: bool = False
    half: float | None = None


class Queries:
    """The questions that are open.

    :param session_id: the client session's id.
    """

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._open: dict[str, Query] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def pending(self, *kinds: str) -> bool:
        """Tell whether a question of one of these kinds is open."""
        return any(inquiry.kind in kinds for inquiry in self._open.values())

    def oldest(self) -> float | None:
        """Tell when the oldest open question was asked."""
        return min((inquiry.asked for inquiry in self._open.values()), default=None)

    def half_answered(self) -> float | None:
        """Tell since when one half of an answer has been there alone, None if there is no such question.

        It waits for no cell any more. The other half is lost where the kernel was started again a moment ago and
        the server did not hear its outputs yet (seen with jupyter_server 2.21).
        """
        return min((inquiry.half for inquiry in self._open.values() if inquiry.half is not None), default=None)

    def output_comes(self, now: float) -> None:
        """Take it that output of a cell has come: what was sent behind it may still be on its way."""
        for inquiry in self._open.values():
            if inquiry.half is not None:
                inquiry.half = now

    def new_id(self) -> str:
        """Make an id for a question that the kernel's record shall not hold."""
        return f"{self._session_id}{HOUSEKEEPING}{uuid.uuid4().hex}"

    def ask(self, message: Message, kind: str, now: float, execution: CellRequest | None = None) -> Message:
        """Note a question that is about to be sent."""
        self._open[message["header"]["msg_id"]] = Query(kind, now, execution)
        return message

    def drop(self, *kinds: str) -> None:
        """Forget questions; of these kinds, or all."""
        self._open = {key: found for key, found in self._open.items() if kinds and found.kind not in kinds}

    def owns(self, parent: str) -> bool:
        """Tell whether a message with this parent belongs to an open question."""
        return parent in self._open

    def take(self, parent: str, message: Message, now: float) -> Query | None:
        """Take a message that belongs to an open question.

        :return: the question when that answered it: reply and idle have come, since only the idle proves that
            outputs are heard as well. It is not open any more then.
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
