"""Jupyter messages as jupyter_server sends them over a kernel's websocket, built literally."""

from __future__ import annotations

import base64
import itertools
import json
import re

from airflow_provider_smstudio.studio.protocol.kernel_record import HOUSEKEEPING

KERNEL_SESSION = "3c8b6f1e-2f1ff7a3f4b7d0a5c1d2e3f4"
DATE = "2026-11-06T07:00:00.123456Z"

_numbers = itertools.count(1)


def message(msg_type, content, parent=None, *, channel="iopub", metadata=None, buffers=()):
    """Make a message; ``parent`` is the request that it belongs to, None for none."""
    return {
        "channel": channel,
        "header": {
            "msg_id": f"{KERNEL_SESSION}_4242_{next(_numbers)}",
            "msg_type": msg_type,
            "username": "username",
            "session": KERNEL_SESSION,
            "date": DATE,
            "version": "5.4",
        },
        "parent_header": dict(parent["header"]) if parent else {},
        "metadata": metadata or {},
        "content": content,
        "buffers": list(buffers),
    }


def foreign_request(msg_type="kernel_info_request"):
    """A request that somebody else sent, such as the server's own nudge."""
    return message(msg_type, {}, channel="shell")


def status(parent, state):
    return message("status", {"execution_state": state}, parent)


def busy(parent):
    return status(parent, "busy")


def idle(parent):
    return status(parent, "idle")


def restarting():
    """A crash as the server reports it: it belongs to no request."""
    return status(None, "restarting")


def dead():
    return status(None, "dead")


def starting():
    return status(None, "starting")


def shutdown_reply(*, restart):
    """A restart or shutdown by somebody: the kernel broadcasts its reply among the outputs."""
    return message("shutdown_reply", {"status": "ok", "restart": restart}, foreign_request("shutdown_request"))


LANGUAGE_INFO = {
    "name": "python",
    "version": "3.12.1",
    "mimetype": "text/x-python",
    "codemirror_mode": {"name": "ipython", "version": 3},
    "pygments_lexer": "ipython3",
    "nbconvert_exporter": "python",
    "file_extension": ".py",
}


def kernel_info_reply(parent):
    content = {
        "status": "ok",
        "protocol_version": "5.4",
        "implementation": "ipython",
        "implementation_version": "9.7.0",
        "language_info": LANGUAGE_INFO,
        "banner": "Python 3.12.1",
        "help_links": [],
        "supported_features": [],
    }
    return message("kernel_info_reply", content, parent, channel="shell")


def execute_input(parent, count=1):
    return message("execute_input", {"code": parent["content"]["code"], "execution_count": count}, parent)


def stream(parent, text, name="stdout"):
    return message("stream", {"name": name, "text": text}, parent)


def display_data(parent, text, display_id=None, metadata=None):
    transient = {"display_id": display_id} if display_id else {}
    content = {"data": {"text/plain": text}, "metadata": metadata or {}, "transient": transient}
    return message("display_data", content, parent)


def update_display_data(parent, text, display_id, metadata=None):
    content = {
        "data": {"text/plain": text},
        "metadata": metadata or {},
        "transient": {"display_id": display_id},
    }
    return message("update_display_data", content, parent)


def execute_result(parent, text, count=1, display_id=None):
    content = {"data": {"text/plain": text}, "metadata": {}, "execution_count": count}
    if display_id:
        content["transient"] = {"display_id": display_id}
    return message("execute_result", content, parent)


TRACEBACK = [
    "\x1b[31m---------------------------------------------------------------------------\x1b[39m",
    "\x1b[38;5;241m1\x1b[39m\x1b[31mZeroDivisionError\x1b[39m: division by zero",
]


def error(parent, ename="ZeroDivisionError", evalue="division by zero", traceback=None):
    traceback = TRACEBACK if traceback is None else traceback
    return message("error", {"ename": ename, "evalue": evalue, "traceback": traceback}, parent)


def clear_output(parent, *, wait=False):
    return message("clear_output", {"wait": wait}, parent)


def reply_ok(parent, count=1, payload=()):
    content = {
        "status": "ok",
        "execution_count": count,
        "user_expressions": {},
        "payload": list(payload),
    }
    return message("execute_reply", content, parent, channel="shell")


def reply_error(parent, ename="ZeroDivisionError", evalue="division by zero", traceback=None, count=1):
    content = {
        "status": "error",
        "traceback": TRACEBACK if traceback is None else traceback,
        "ename": ename,
        "evalue": evalue,
        "engine_info": {"engine_uuid": "u", "engine_id": -1, "method": "execute"},
        "execution_count": count,
        "user_expressions": {},
        "payload": [],
    }
    return message("execute_reply", content, parent, channel="shell")


def reply_aborted(parent):
    return message("execute_reply", {"status": "aborted"}, parent, channel="shell")


def input_request(parent, prompt=""):
    return message("input_request", {"prompt": prompt, "password": False}, parent, channel="stdin")


ASK_EXIT = {"source": "ask_exit", "keepkernel": False}


def rate_notice(parent, what="data", server="Jupyter", newline="\n"):
    text = (
        f"IOPub {what} rate exceeded.{newline}"
        f"The {server} server will temporarily stop sending output\n"
        "to the client in order to avoid crashing it.\n"
        "To change this limit, set the config variable\n"
        f"`--ServerApp.iopub_{what}_rate_limit`.\n\n"
        "Current values:\n"
        f"ServerApp.iopub_{what}_rate_limit=1000000.0 (bytes/sec)\n"
        "ServerApp.rate_limit_window=3.0 (secs)\n\n"
    )
    return stream(parent, text, name="stderr")


def comm_open(parent, comm_id, state, *, target="jupyter.widget", buffer_paths=(), buffers=()):
    content = {
        "data": {"state": state, "buffer_paths": [list(path) for path in buffer_paths]},
        "comm_id": comm_id,
        "target_name": target,
        "target_module": None,
    }
    return message("comm_open", content, parent, metadata={"version": "2.1.0"}, buffers=buffers)


def comm_msg(parent, comm_id, state, *, buffer_paths=(), buffers=()):
    content = {
        "data": {"method": "update", "state": state, "buffer_paths": [list(path) for path in buffer_paths]},
        "comm_id": comm_id,
    }
    return message("comm_msg", content, parent, buffers=buffers)


# --- The requests of a run


def request_of(msg_id, code):
    """A cell's request that an earlier process has made."""
    made = message("execute_request", {"code": code}, channel="shell")
    made["header"].update(msg_id=msg_id, session="my-session")
    return made


def is_cell(message):
    """Tell a cell's request from a question."""
    return message["header"]["msg_type"] == "execute_request" and HOUSEKEEPING not in message["header"]["msg_id"]


def question(message):
    """Name a question: ``info``, ``count``, or what it asks the kernel's record, such as ``state 0``."""
    if message["header"]["msg_type"] == "kernel_info_request":
        return "info"
    expression = message["content"]["user_expressions"].get("smstudio")
    if expression is None:
        return "count"
    if "m.install(" in expression:
        return "install"
    match = re.search(r"m\.answer\('(\w+)', (.*?)\)", expression)
    assert match is not None
    operation, arguments = match.groups()
    parts = [part.strip("'") for part in arguments.split(", ")]
    return " ".join([operation, *(parts if operation == "refuse" else parts[:-1])])  # the last is a size


# --- What a kernel answers that keeps a record


def recorded(parent, answer, count=1):
    """The reply to a question to the record; ``answer`` is its JSON value, or text that is none."""
    text = answer if isinstance(answer, str) else json.dumps(answer)
    value = {"status": "ok", "data": {"text/plain": text}, "metadata": {}}
    content = {"status": "ok", "execution_count": count, "user_expressions": {"smstudio": value}, "payload": []}
    return message("execute_reply", content, parent, channel="shell")


def record_raised(parent):
    value = {"status": "error", "ename": "AttributeError", "evalue": "no", "traceback": []}
    content = {"status": "ok", "execution_count": 1, "user_expressions": {"smstudio": value}, "payload": []}
    return message("execute_reply", content, parent, channel="shell")


def installed(parent, *, ok=True, reason=None, resumed=False):
    answer = {"ok": ok, "reason": reason, "resumed": resumed, "process": "boot pid:[1] 17 4711"}
    return recorded(parent, answer)


def entry(msg_id, *, kept=0, dropped=0, reply=None):
    """One request in a record; ``reply`` is the content of its reply, a good one by default."""
    reply = (
        {"status": "ok", "execution_count": 1, "user_expressions": {}, "payload": []} if reply is None else reply
    )
    return {
        "id": msg_id,
        "began": 1.5,
        "ended": 2.5,
        "idle": 2.75,
        "kept": kept,
        "bytes": 100 * kept,
        "dropped": dropped,
        "dropped_bytes": 100 * dropped,
        "reply": reply,
        "reply_header": {"msg_type": "execute_reply"},
        "reply_cut": False,
    }


def unfinished(msg_id):
    return {**entry(msg_id), "ended": None, "idle": None, "reply": None, "reply_header": None}


def state(parent, *entries, since=0, total=None, following=None, run="my-session", broken=None, count=2):
    """What the record tells of the run's requests."""
    answer = {
        "run": run,
        "version": 1,
        "broken": broken,
        "since": since,
        "total": since + len(entries) if total is None else total,
        "next": following,
        "requests": list(entries),
        "count": count,
    }
    return recorded(parent, answer)


def fetched(parent, *messages, following=None, dropped=0):
    """What the record has kept of a request."""
    written = []
    for kept in messages:
        buffers = [base64.b64encode(buffer).decode("ascii") for buffer in kept["buffers"]]
        written.append({**kept, "buffers": buffers})
    return recorded(parent, {"next": following, "dropped": dropped, "messages": written})


def refused(parent, *, came=False):
    """What a kernel answers that is asked to put a request aside: whether it had not come."""
    return recorded(parent, {"refused": not came})


def no_record(parent):
    """A kernel without a record: it was started again, or never had one."""
    return recorded(parent, "None")


def counted(parent, count):
    """The reply to a request that runs nothing."""
    return reply_ok(parent, count)
