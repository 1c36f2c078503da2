"""One request of one cell, and what came back of it; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.notebook.document import CodeCell
from airflow_provider_smstudio.studio.notebook.outputs import CellOutputs
from airflow_provider_smstudio.studio.protocol.messages import Message, request


@dataclass
class CellRequest:
    """A cell's request.

    :ivar cell: the cell.
    :ivar msg_id: the request's id.
    :ivar started: when it was made, by the monotonic clock.
    :ivar reply: its ``execute_reply``'s content, once that has come.
    :ivar idle: whether the kernel has said that all output of it is out.
    :ivar sent: whether this process has made it.
    :ivar seen: whether anything at all has been heard of it.
    :ivar over_at: since when reply and idle are both there, by the monotonic clock.
    :ivar ended: whether the run has dealt with its end.
    :ivar suspect: whether messages of it may have been lost.
    :ivar heard: ids of its messages that have come, for telling repetitions.
    :ivar kept: how many have come of those that a kernel's record keeps.
    :ivar shown: how many of these an earlier process has told.
    :ivar error_output: its ``error`` output.
    :ivar hands_out: whether it has displayed values for whoever runs the notebook.
    :ivar tells_saved: ids of earlier requests that it tells to be saved.
    :ivar losses: why output of it is missing, if so.
    :ivar changed: whether it has brought anything since the notebook was last made.
    :ivar unsaved: whether the kernel must still keep what it has brought.
    """

    cell: CodeCell
    msg_id: str
    started: float
    outputs: CellOutputs
    reply: Mapping[str, Any] | None = None
    idle: bool = False
    sent: bool = False
    seen: bool = False
    over_at: float | None = None
    ended: bool = False
    suspect: bool = False
    heard: set[str] = field(default_factory=set)
    kept: int = 0
    shown: int = 0
    error_output: NotebookNode | None = None
    hands_out: bool = False
    tells_saved: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    changed: bool = True
    unsaved: bool = True

    @property
    def over(self) -> bool:
        """Whether reply and idle have come."""
        return self.reply is not None and self.idle

    def first_time(self, message: Message) -> bool:
        """Tell whether a message is heard for the first time, and remember it."""
        msg_id = message["header"].get("msg_id")
        if not isinstance(msg_id, str) or not msg_id:
            return True
        if msg_id in self.heard:
            return False
        self.heard.add(msg_id)
        return True


def cell_msg_id(session_id: str, cell: CodeCell, attempt: int) -> str:
    """Return the id of a cell's request, the same for every process that watches over the run.

    :param attempt: counts the requests of one cell on one kernel, from 1.
    """
    return f"{session_id}-cell-{cell.index}-{attempt}"


def attempt_of(msg_id: str, session_id: str, cell: CodeCell) -> int | None:
    """Return the number of a request of this cell, None for the id of anything else."""
    prefix = f"{session_id}-cell-{cell.index}-"
    number = msg_id.removeprefix(prefix)
    return int(number) if msg_id.startswith(prefix) and number.isascii() and number.isdigit() else None


def execute_request(
    cell: CodeCell, msg_id: str, *, session_id: str, stop_on_error: bool, saved: list[str]
) -> Message:
    """Make a cell's request.

    :param stop_on_error: whether what is queued behind it shall be aborted when it raises.
    :param saved: ids of earlier requests whose output is saved, so that the kernel need not keep it.
    """
    content = {
        "code": cell.source,
        "silent": False,
        "store_history": True,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": stop_on_error,
    }
    message = request("execute_request", content, session=session_id, msg_id=msg_id)
    if saved:
        message["metadata"] = {"smstudio": {"saved": saved}}
    return message


def count_request(msg_id: str, *, session_id: str) -> Message:
    """Make a request that runs nothing, and whose reply tells how many cells the kernel has counted."""
    content = {
        "code": "",
        "silent": True,
        "store_history": False,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": False,
    }
    return request("execute_request", content, session=session_id, msg_id=msg_id)
