"""Interpret messages and replies: how a cell ended, and whether the kernel died. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_smstudio.studio.errors import CellError, RunError, StudioError
from airflow_provider_smstudio.studio.notebook.document import CodeCell
from airflow_provider_smstudio.studio.protocol.messages import Message

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")  # colour codes and links

CRASHED = "it crashed"
CRASHED_UNTOLD = "it crashed, which the Jupyter server did not notice: its process is gone"
STARTED_AGAIN = "it was started again, after a crash or by a user or another program"
NO_STDIN = "StdinNotImplementedError"
_LONGEST_VALUE = 1000


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    :ivar error: the error, or None after success.
    :ivar ends_notebook: whether the cell ended the notebook, with success.
    """

    error: StudioError | None = None
    ends_notebook: bool = False


def judge(cell: CodeCell, name: str, reply: Mapping[str, Any], error_output: Mapping[str, Any] | None) -> Outcome:
    """Return how a cell ended, from its ``execute_reply``.

    :param cell: the cell.
    :param name: the cell's name in messages, such as ``cell 3/12``.
    :param reply: the reply's content.
    :param error_output: the cell's ``error`` output, if it has one; it takes precedence over the reply.
    """
    if asks_to_exit(reply):
        return Outcome(ends_notebook=True)
    if did_not_run(reply):
        return Outcome(RunError(f"{name} was not run: the kernel answered {reply.get('status')!r}"))
    if reply.get("status") == "ok":
        return Outcome()
    ename, evalue, traceback = raised(error_output or reply)
    if is_clean_exit(ename, evalue):
        return Outcome(ends_notebook=True)
    return Outcome(cell_error(cell, name, ename, evalue, traceback))


def cell_error(cell: CodeCell, name: str, ename: str, evalue: str, traceback: str) -> CellError:
    """Make the error of a cell that raised. Its message has a limited length; its fields are complete."""
    hint = ""
    if ename == NO_STDIN:
        hint = ". No user can answer input() in this run: pass the value as a parameter instead"
    shown = evalue if len(evalue) <= _LONGEST_VALUE else f"{evalue[:_LONGEST_VALUE]}… ({len(evalue)} characters)"
    return CellError(
        f"{name} raised {ename}: {shown}{hint}",
        cell_number=cell.number,
        cell_index=cell.index,
        source=cell.source,
        ename=ename,
        evalue=evalue,
        traceback=traceback,
    )


def kernel_death(message: Message, *, ready: bool) -> str | None:
    """Return how the kernel ended, if a message says that it did.

    A server restarts a crashed kernel by itself. Later requests would run on the new kernel, which has no
    variables. So the first sign ends a run. Measured on jupyter_server 2.21: a crash shows as ``restarting`` or
    ``dead`` without a parent. A restart or shutdown by a user or another program shows as a ``shutdown_reply``
    among the outputs.

    :param message: any message of the kernel websocket.
    :param ready: whether the kernel has answered before; then ``starting`` is also a sign.
    :return: how the kernel ended, or None if the message does not say so.
    """
    if message["channel"] != "iopub":
        return None
    msg_type, parent = message["header"].get("msg_type"), message["parent_header"]
    if msg_type == "shutdown_reply" or parent.get("msg_type") == "shutdown_request":
        return "a user or another program restarted it or shut it down"
    if msg_type != "status" or parent.get("msg_id"):
        return None
    state = message["content"].get("execution_state")
    if state in ("restarting", "dead"):
        return CRASHED
    return STARTED_AGAIN if state == "starting" and ready else None


def asks_to_exit(reply: Mapping[str, Any]) -> bool:
    """Return whether a cell called ``quit()``: its reply is ``ok``, and then the kernel exits."""
    payload = reply.get("payload") or []
    return any(isinstance(item, Mapping) and item.get("source") == "ask_exit" for item in payload)


def did_not_run(reply: Mapping[str, Any]) -> bool:
    """Return whether the kernel skipped a request instead of running it."""
    status = reply.get("status")
    return status == "aborted" or (status == "ok" and reply.get("execution_count") is None)


def is_clean_exit(ename: str, evalue: str) -> bool:
    """Return whether an error is ``sys.exit()`` with success; a notebook may end itself so (as in papermill)."""
    return ename == "SystemExit" and evalue in ("", "0", "None")


def raised(shown: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the name, value and plain traceback from an ``error`` output or from a reply with an error."""
    traceback = "\n".join(map(str, shown.get("traceback") or []))
    return (
        str(shown.get("ename") or "Error"),
        _ANSI.sub("", str(shown.get("evalue") or "")),
        _ANSI.sub("", traceback),
    )
