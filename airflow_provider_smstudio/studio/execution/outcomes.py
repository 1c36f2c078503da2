"""What a message or a reply means for the run; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_smstudio.studio.errors import CellError, RunError, StudioError
from airflow_provider_smstudio.studio.notebook.document import CodeCell
from airflow_provider_smstudio.studio.protocol.messages import Message

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")  # colours and the like, links

CRASHED = "it crashed"
CRASHED_UNTOLD = "it crashed, which the Jupyter server did not notice: its process is gone"
STARTED_AGAIN = "it was started again, after a crash or by somebody"
NO_STDIN = "StdinNotImplementedError"
_LONGEST_VALUE = 1000


@dataclass(frozen=True)
class Outcome:
    """What a cell's end means.

    :ivar error: what went wrong, None after success.
    :ivar ends_notebook: whether the notebook ended itself here, with success.
    """

    error: StudioError | None = None
    ends_notebook: bool = False


def judge(cell: CodeCell, name: str, reply: Mapping[str, Any], error_output: Mapping[str, Any] | None) -> Outcome:
    """Tell what a cell's ``execute_reply`` means.

    :param cell: the cell.
    :param name: how messages call it, such as ``cell 3/12``.
    :param reply: the reply's content.
    :param error_output: the cell's ``error`` output, if it brought one; it is preferred to the reply.
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
    """Make the error of a cell that raised; its message is bounded, its fields are whole."""
    hint = ""
    if ename == NO_STDIN:
        hint = ". Nobody is there to answer input(): give the value as a parameter instead"
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
    """Tell what a message says about the kernel's end.

    A server restarts a crashed kernel by itself, and whatever is sent then runs on the fresh kernel without
    a variable; so the first sign ends a run. Measured on jupyter_server 2.21: a crash shows as ``restarting``
    or ``dead`` without a parent; a restart or shutdown by somebody as a ``shutdown_reply`` among the outputs.

    :param message: any message of the kernel's websocket.
    :param ready: whether the kernel has answered before; then ``starting`` is a sign as well.
    :return: how it ended, None if it did not.
    """
    if message["channel"] != "iopub":
        return None
    msg_type, parent = message["header"].get("msg_type"), message["parent_header"]
    if msg_type == "shutdown_reply" or parent.get("msg_type") == "shutdown_request":
        return "somebody restarted it or shut it down"
    if msg_type != "status" or parent.get("msg_id"):
        return None
    state = message["content"].get("execution_state")
    if state in ("restarting", "dead"):
        return CRASHED
    return STARTED_AGAIN if state == "starting" and ready else None


def asks_to_exit(reply: Mapping[str, Any]) -> bool:
    """Tell whether a cell called ``quit()``: its reply is ``ok``, and then the kernel leaves."""
    payload = reply.get("payload") or []
    return any(isinstance(item, Mapping) and item.get("source") == "ask_exit" for item in payload)


def did_not_run(reply: Mapping[str, Any]) -> bool:
    """Tell whether the kernel put a request aside instead of running it."""
    status = reply.get("status")
    return status == "aborted" or (status == "ok" and reply.get("execution_count") is None)


def is_clean_exit(ename: str, evalue: str) -> bool:
    """Tell whether an error is ``sys.exit()`` with success, by which a notebook ends itself (as in papermill)."""
    return ename == "SystemExit" and evalue in ("", "0", "None")


def raised(shown: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return name, value and plain traceback of an ``error`` output or of a reply with an error."""
    traceback = "\n".join(map(str, shown.get("traceback") or []))
    return (
        str(shown.get("ename") or "Error"),
        _ANSI.sub("", str(shown.get("evalue") or "")),
        _ANSI.sub("", traceback),
    )
