"""One request of one cell, and the messages that came back for it. No I/O."""

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
    :ivar outputs: the outputs that have arrived.
    :ivar reply: the content of its ``execute_reply``, or None until that arrives.
    :ivar idle: whether the kernel has reported ``idle`` for it: all its output was sent.
    :ivar sent: whether this process has sent it.
    :ivar seen: whether there was any sign that the kernel has received it.
    :ivar over_at: when both reply and idle had arrived, by the monotonic clock.
    :ivar ended: whether the run has processed its end.
    :ivar suspect: whether messages of it may have been lost.
    :ivar heard: ids of its messages that have arrived, to recognise repeated messages.
    :ivar kept: how many messages have arrived of the types that a kernel record keeps.
    :ivar shown: how many of these an earlier process has already reported.
    :ivar error_output: its ``error`` output, or None.
    :ivar hands_out: whether the cell has published values.
    :ivar tells_saved: ids of earlier requests that this request reports as saved.
    :ivar losses: the reasons why output of it is missing.
    :ivar changed: whether messages have arrived since the last snapshot.
    :ivar unsaved: whether the kernel must still keep its output.
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
        """Whether both reply and idle have arrived."""
        return self.reply is not None and self.idle

    def first_time(self, message: Message) -> bool:
        """Return whether a message arrives for the first time, and remember it."""
        msg_id = message["header"].get("msg_id")
        if not isinstance(msg_id, str) or not msg_id:
            return True
        if msg_id in self.heard:
            return False
        self.heard.add(msg_id)
        return True


def cell_msg_id(session_id: str, cell: CodeCell, attempt: int) -> str:
    """Return the id of a cell's request. It is the same in every process that watches the run.

    :param session_id: the client session's id.
    :param cell: the cell.
    :param attempt: the number of the request among the cell's requests on one kernel, from 1.
    """
    return f"{session_id}-cell-{cell.index}-{attempt}"


def attempt_of(msg_id: str, session_id: str, cell: CodeCell) -> int | None:
    """Return the number of a request of this cell, or None for any other id."""
    prefix = f"{session_id}-cell-{cell.index}-"
    number = msg_id.removeprefix(prefix)
    return int(number) if msg_id.startswith(prefix) and number.isascii() and number.isdigit() else None


def execute_request(
    cell: CodeCell, msg_id: str, *, session_id: str, stop_on_error: bool, saved: list[str]
) -> Message:
    """Make a cell's request.

    :param cell: the cell.
    :param msg_id: the request's id.
    :param session_id: the client session's id.
    :param stop_on_error: whether the kernel aborts the requests queued behind it when the cell raises.
    :param saved: ids of earlier requests whose output is saved, so the kernel no longer needs to keep it.
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
    """Make a request that runs nothing. Its reply contains the kernel's execution count."""
    content = {
        "code": "",
        "silent": True,
        "store_history": False,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": False,
    }
    return request("execute_request", content, session=session_id, msg_id=msg_id)
