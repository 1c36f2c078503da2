"""A Studio without kernels, light enough to serve thousands of runs at once, for measuring a client.

``python benchmarks/fake_studio.py --notebooks 2000 --cells 3 --cell-seconds 10 [--output-kib 0] [--tls-dir DIR]``
serves a space: the SageMaker API, the login, and a Jupyter server whose kernels only wait and print. It prints one
line, ``{"control": URL, "app": URL, "ca": PATH or null}``, and serves until SIGTERM, or until its standard input
ends if that is a pipe. ``<control>/stats`` tells what the clients did.

The notebooks are ``run-0.ipynb`` and so on. Of what a real server does it leaves out whatever a client does not
see: it pings nobody, limits no rates and forgets nothing. The kernel's record is the package's own.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import gc
import json
import os
import re
import resource
import signal
import ssl
import stat
import struct
import subprocess
import time
import uuid
from array import array
from asyncio import sslproto
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from itertools import accumulate
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from airflow_provider_smstudio.studio.protocol.kernel_record_source import Record

BASE = "/jupyterlab/default"
V1 = "v1.kernel.websocket.jupyter.org"
LOOPBACK = "127.0.0.1"
BUSY, IDLE = b'{"execution_state": "busy"}', b'{"execution_state": "idle"}'
SPEC = {"argv": ["python"], "display_name": "Python 3", "language": "python"}
SPECS = {"default": "python3", "kernelspecs": {"python3": {"name": "python3", "spec": SPEC, "resources": {}}}}
LANGUAGE = {"name": "python", "version": "3.12.1", "mimetype": "text/x-python", "file_extension": ".py"}
KERNEL_INFO = {
    "status": "ok",
    "protocol_version": "5.4",
    "implementation": "ipython",
    "implementation_version": "9.7.0",
    "language_info": LANGUAGE,
    "banner": "no Python at all",
    "help_links": [],
}
CODE_CELL: dict[str, Any] = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
SAVE_HEAD = b'{"type": "notebook", "format": "json", "content": '

_V1_OFFSETS = struct.Struct("<7Q")
_TEXT = b'{"channel": "%b", "header": %b, "parent_header": %b, "metadata": {}, "content": %b, "buffers": []}'
_CELL = re.compile(r"-cell-(\d+)-\d+$")
_INSTALL = re.compile(r"\(lambda m: m\.install\(m, (.+?)\)\)\(\(lambda old")
_QUESTION = re.compile(r"\(lambda m: None if m is None else m\.answer\((.+)\)\)\(__import__")


@dataclass
class Load:
    """What the kernels do, and what the clients did."""

    cells: int
    cell_seconds: float
    lines_per_second: float
    output: bytes | None
    counts: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    turnarounds: array[float] = field(default_factory=lambda: array("d"))
    lags: array[float] = field(default_factory=lambda: array("d"))
    cpu_before: float = field(default_factory=time.process_time)

    def measure_lag(self, due: float) -> None:
        """Note how late this process itself is: so much of a turnaround may not be the client's."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.lags.append(now - due)
        loop.call_at(now + 0.05, self.measure_lag, now + 0.05)


@dataclass(slots=True)
class Request:
    """A message to a kernel; ``header`` is kept as it came, since every answer carries it."""

    channel: bytes
    header: bytes
    fields: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any]
    sender: str

    @classmethod
    def read(cls, data: bytes | str, sender: str) -> Request:
        """Read a frame's payload in either of the two formats."""
        if isinstance(data, str):
            parsed = json.loads(data)
            fields = parsed["header"]
            header, channel = json.dumps(fields).encode(), parsed["channel"].encode()
            return cls(channel, header, fields, parsed["metadata"], parsed["content"], sender)
        at = _V1_OFFSETS.unpack_from(data)[1:]
        header = data[at[1] : at[2]]
        metadata, content = json.loads(data[at[3] : at[4]]), json.loads(data[at[4] : at[5]])
        return cls(data[at[0] : at[1]], header, json.loads(header), metadata, content, sender)


class Socket:
    """An open websocket. It writes frames itself: aiohttp's writer must be awaited, so each would need a task."""

    def __init__(self, ws: web.WebSocketResponse, transport: Any) -> None:
        self._ws = ws
        self._transport = transport
        self._binary = ws.ws_protocol == V1

    @property
    def open(self) -> bool:
        """Whether what is written still arrives, as far as can be known."""
        return not (self._ws.closed or self._transport.is_closing())

    def send(self, *parts: bytes) -> None:
        """Send a message: channel, header, parent's header and content. Each goes out by itself, as in reality."""
        channel, header, parent, content = parts
        if self._binary:
            opcode, parts = 0x82, (channel, header, parent, b"{}", content)
            payload = b"".join((_V1_OFFSETS.pack(6, *accumulate(map(len, parts), initial=56)), *parts))
        else:
            opcode, payload = 0x81, _TEXT % parts
        size = len(payload)
        head = struct.pack(">BBQ", opcode, 127, size)
        if size < 65536:
            head = bytes((opcode, size)) if size < 126 else struct.pack(">BBH", opcode, 126, size)
        self._transport.write(head + payload)

    def close(self) -> None:
        """Close it from this side."""
        if self.open:
            self._transport.write(b"\x88\x02\x03\xe8")
        self._transport.close()


@dataclass(slots=True)
class Cell:
    """A cell that runs."""

    request: Request
    started: float
    lines: int = 0


class Kernel:
    """A kernel with its Jupyter session. It runs one request after the other.

    What it sends while no websocket is open it keeps for the client whose websocket was open last.
    """

    def __init__(self, load: Load, path: str, name: str) -> None:
        self.id, self.session_id = str(uuid.uuid4()), str(uuid.uuid4())
        self.path = path
        self.rename(name)
        self.sockets: dict[str, Socket] = {}
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._activity = _now()
        self._record: Record | None = None
        self._queue: deque[Request] = deque()
        self._cell: Cell | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._count = self._sent = 0
        self._ran: set[str] = set()
        self._idle_at: float | None = None
        self._kept: list[tuple[bytes, bytes, bytes, bytes]] = []
        self._kept_for: str | None = None

    def rename(self, name: str) -> None:
        """Rename the session."""
        place = {"path": self.path, "name": name}
        fields = {"id": self.session_id, **place, "type": "notebook", "notebook": place}
        self._session_head = json.dumps(fields)[:-1] + ', "kernel": '  # written once, since lists are long

    def model(self) -> str:
        """Write what the REST API tells of the kernel."""
        state = "busy" if self._cell else "idle"
        return (
            f'{{"id": "{self.id}", "name": "python3", "last_activity": "{self._activity}", '
            f'"execution_state": "{state}", "connections": {len(self.sockets)}}}'
        )

    def session_model(self) -> str:
        """Write what the REST API tells of the session."""
        return f"{self._session_head}{self.model()}}}"

    # --- Websockets

    def connect(self, client: str, socket: Socket) -> None:
        """Take a websocket; the one that was there last gets what it missed, if the same client has opened it."""
        stale = self.sockets.get(client)
        if stale is not None:
            stale.close()
        self.sockets[client] = socket
        kept, self._kept = self._kept, []
        if client == self._kept_for:
            for message in kept:
                socket.send(*message)
        self._kept_for = None

    def disconnect(self, client: str, socket: Socket) -> None:
        """Record that a websocket is closed."""
        if self.sockets.get(client) is socket:
            del self.sockets[client]
            self._idle_at = None
            self._kept_for = client if not self.sockets else None

    def close(self) -> None:
        """End."""
        self._stop_cell()
        for socket in self.sockets.values():
            socket.close()

    def _publish(self, channel: bytes, msg_type: str, request: Request, content: bytes) -> bytes:
        """Send a message to whom it concerns; return its header."""
        self._sent += 1
        self._activity = _now()
        header = (
            f'{{"msg_id": "{self.id}_{self._sent}", "msg_type": "{msg_type}", "username": "fake", '
            f'"session": "{self.id}", "date": "{self._activity}", "version": "5.4"}}'
        ).encode()
        to = None if channel == b"iopub" else request.sender
        if to is None and self._record is not None:
            self._record.on_wire([b"<IDS|MSG>", b"", header, request.header, b"{}", content])
        for client, socket in list(self.sockets.items()):
            if not socket.open:
                self.disconnect(client, socket)  # its handler is about to hear of that
            elif to in (None, client):
                socket.send(channel, header, request.header, content)
        if self._kept_for is not None and to in (None, self._kept_for):
            self._kept.append((channel, header, request.header, content))
        return header

    # --- Requests

    def receive(self, request: Request) -> None:
        """Take a message from a client."""
        msg_type = request.fields["msg_type"]
        self._load.requests[f"{request.channel.decode()} {msg_type}"] += 1
        if request.channel == b"control":
            self._load.counts["heartbeats"] += 1
            self._answer(request, KERNEL_INFO)
            return
        if self._idle_at is not None and msg_type == "execute_request" and not request.content.get("silent"):
            self._load.turnarounds.append(self._loop.time() - self._idle_at)
            self._idle_at = None
        self._queue.append(request)
        self._go_on()

    def interrupt(self) -> None:
        """End the running cell by its error, and put aside what is queued behind it if it says so."""
        if self._cell is None:
            return
        request = self._cell.request
        error = {"ename": "KeyboardInterrupt", "evalue": "", "traceback": ["KeyboardInterrupt"]}
        self._publish(b"iopub", "error", request, json.dumps(error).encode())
        self._end({"status": "error", **error})
        while self._queue and request.content.get("stop_on_error", True):
            behind = self._queue.popleft()
            self._answer(behind, {"status": "aborted"} if _is_execution(behind) else KERNEL_INFO)
        self._go_on()

    def _go_on(self) -> None:
        while self._queue and self._cell is None:
            request = self._queue.popleft()
            if self._record is not None and self._record.puts_aside(request.fields["msg_id"]):
                self._answer(request, None)
            elif not _is_execution(request):
                self._answer(request, KERNEL_INFO)
            elif request.content.get("silent"):
                questions = request.content.get("user_expressions") or {}
                answers = {name: self._ask_record(expression) for name, expression in questions.items()}
                self._answer(request, self._reply_ok(answers))
            else:
                self._begin(request)

    def _answer(self, request: Request, reply: dict[str, Any] | None) -> None:
        """Answer something that takes no time."""
        self._publish(b"iopub", "status", request, BUSY)
        if reply is not None:
            msg_type = request.fields["msg_type"].replace("_request", "_reply")
            self._publish(request.channel, msg_type, request, json.dumps(reply).encode())
        self._publish(b"iopub", "status", request, IDLE)

    def _reply_ok(self, answers: dict[str, Any]) -> dict[str, Any]:
        return {"status": "ok", "execution_count": self._count, "user_expressions": answers, "payload": []}

    def _ask_record(self, expression: str) -> dict[str, Any]:
        """Answer a question of :mod:`recorder` as :mod:`kernel_record` does in a kernel."""
        install, question = _INSTALL.match(expression), _QUESTION.match(expression)
        if install is not None:
            self._load.requests["record install"] += 1
            run, session, limit = ast.literal_eval(f"({install[1]},)")
            resumed = self._record is not None and self._record.run == run
            if self._record is None or not resumed:
                self._record = Record(run, limit)
            self._record.admit(session, limit)
            text = json.dumps({"ok": True, "reason": None, "resumed": resumed})
        elif question is not None:
            operation, *arguments = ast.literal_eval(f"({question[1]},)")
            self._load.requests[f"record {operation}"] += 1
            text = "None" if self._record is None else getattr(self._record, operation)(*arguments)
            if operation == "state" and self._record is not None:
                text = f'{text[:-1]}, "count": {self._count + 1}}}'
        else:
            return {"status": "error", "ename": "NotImplementedError", "evalue": expression[:200], "traceback": []}
        return {"status": "ok", "data": {"text/plain": text}, "metadata": {}}

    # --- Cells

    def _begin(self, request: Request) -> None:
        msg_id, counts = request.fields["msg_id"], self._load.counts
        index = _CELL.search(msg_id)
        if index is not None:
            counts["cells_run_twice"] += index[1] in self._ran
            self._ran.add(index[1])
        self._count += 1
        counts["cells_running"] += 1
        counts["cells_running_peak"] = max(counts["cells_running"], counts["cells_running_peak"])
        self._cell = Cell(request, self._loop.time())
        self._publish(b"iopub", "status", request, BUSY)
        shown = json.dumps({"code": request.content["code"], "execution_count": self._count}).encode()
        self._publish(b"iopub", "execute_input", request, shown)
        record = self._record_of(request)
        if record is not None:
            record.on_input(msg_id, request.metadata)
        self._print()

    def _record_of(self, request: Request) -> Record | None:
        record = self._record
        return record if record is not None and request.fields.get("session") in record.sessions else None

    def _print(self) -> None:
        """Print what is due, the first line at once, and come back for the next line or the end."""
        cell, load = self._cell, self._load
        assert cell is not None
        rate, now, end = load.lines_per_second, self._loop.time(), cell.started + load.cell_seconds
        while (due := cell.started + cell.lines / rate if rate else end) < end and due <= now:
            cell.lines += 1
            line = f'{{"name": "stdout", "text": "cell {self._count} line {cell.lines}\\n"}}'
            self._publish(b"iopub", "stream", cell.request, line.encode())
        if now < end:
            self._timer = self._loop.call_at(min(due, end), self._print)
            return
        if load.output is not None:
            self._publish(b"iopub", "stream", cell.request, load.output)
        self._end(self._reply_ok({}))
        self._go_on()

    def _end(self, reply: dict[str, Any]) -> None:
        assert self._cell is not None
        request = self._cell.request
        self._stop_cell()
        header = self._publish(b"shell", "execute_reply", request, json.dumps(reply).encode())
        record = self._record_of(request)
        if record is not None:
            record.on_reply(request.fields["msg_id"], json.loads(header), reply)
        self._publish(b"iopub", "status", request, IDLE)
        self._load.counts["cells_run"] += 1
        # What comes when somebody has taken over, or was sent ahead, tells nothing of how fast a client is.
        self._idle_at = self._loop.time() if self.sockets and not self._queue else None

    def _stop_cell(self) -> None:
        self._load.counts["cells_running"] -= self._cell is not None
        self._cell = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeStudio:
    """The SageMaker API of one account, and the one app that all its presigned URLs lead to."""

    def __init__(self, load: Load, notebooks: int, *, secure: bool) -> None:
        self.app_url = ""
        self._load = load
        self._notebooks = notebooks
        self._secure = secure
        self._tokens: set[str] = set()
        self._logins: set[str] = set()
        self._kernels: dict[str, Kernel] = {}
        self._sessions: dict[str, Kernel] = {}
        self._by_path: dict[str, Kernel] = {}
        self._saved: dict[str, bytes] = {}
        cells = [{**CODE_CELL, "id": f"cell-{n}", "source": f"work({n})"} for n in range(load.cells)]
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        source = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        self._source = json.dumps(source).encode()

    # --- The control plane

    def control(self) -> web.Application:
        """Make the application of the SageMaker API and the statistics."""
        app = web.Application()
        app.router.add_post("/", self._call)
        app.router.add_get("/stats", self._stats)
        return app

    async def _call(self, request: web.Request) -> web.Response:
        operation = request.headers.get("X-Amz-Target", "").removeprefix("SageMaker.")
        asked = await request.json()
        self._load.requests[operation] += 1
        answer: dict[str, Any] = {**asked, "Status": "InService"}
        if operation == "CreatePresignedDomainUrl":
            self._load.counts["presigned"] += 1
            token = uuid.uuid4().hex
            self._tokens.add(token)
            answer = {"AuthorizedUrl": f"{self.app_url}/auth?token={token}"}
        elif operation == "DescribeApp":
            answer["ResourceSpec"] = {"InstanceType": "ml.t3.medium"}
        elif operation == "DescribeDomain":
            answer["AuthMode"] = "IAM"
        elif operation not in ("DescribeUserProfile", "DescribeSpace"):
            fault = {"__type": "UnknownOperationException", "message": f"no {operation} here"}
            return _json(json.dumps(fault), 400)
        return web.Response(body=json.dumps(answer).encode(), content_type="application/x-amz-json-1.1")

    async def _stats(self, request: web.Request) -> web.Response:
        load, counts = self._load, self._load.counts
        names = "logins presigned saves bytes_saved cells_run cells_run_twice heartbeats cells_running".split()
        found: dict[str, Any] = {name: counts[name] for name in names}
        found |= {
            "sessions_open": len(self._sessions),
            "kernels_open": len(self._kernels),
            "sockets_open": sum(len(kernel.sockets) for kernel in self._kernels.values()),
            "sockets_peak": counts["sockets_peak"],
            "cells_running_peak": counts["cells_running_peak"],
            "turnaround_ms": _spread(load.turnarounds),
            "own_lag_ms": _spread(load.lags),
            "own_cpu_seconds": round(time.process_time() - load.cpu_before, 2),
            "own_rss_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "requests": dict(sorted(load.requests.items())),
        }
        return _json(json.dumps(found))

    # --- The app

    def app(self) -> web.Application:
        """Make the application behind the presigned URLs."""
        app = web.Application(client_max_size=2**30)
        app.router.add_get("/auth", self._log_in)
        for method, path, handler in (
            ("GET", "contents{path:.*}", self._read),
            ("PUT", "contents{path:.*}", self._save),
            ("GET", "kernelspecs", self._list_specs),
            ("GET", "sessions", self._list_sessions),
            ("POST", "sessions", self._start_session),
            ("GET", "sessions/{session}", self._show_session),
            ("PATCH", "sessions/{session}", self._rename_session),
            ("DELETE", "sessions/{session}", self._delete),
            ("GET", "kernels", self._list_kernels),
            ("GET", "kernels/{kernel}", self._show_kernel),
            ("DELETE", "kernels/{kernel}", self._delete),
            ("POST", "kernels/{kernel}/interrupt", self._interrupt),
            ("GET", "kernels/{kernel}/channels", self._channels),
        ):
            guarded = self._guarded(handler, f"{method} {path.replace(':.*', '')}")
            app.router.add_route(method, f"{BASE}/api/{path}", guarded)
        app.router.add_get(f"{BASE}/lab", self._guarded(self._page, "GET lab"))
        return app

    def _guarded(self, handler: Handler, kind: str) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            self._load.requests[kind] += 1
            # Not request.cookies: the library's parser would cost more than many an answer.
            pairs = (pair.strip().partition("=") for pair in request.headers.get("Cookie", "").split(";"))
            cookies = {name: value for name, _, value in pairs}
            if cookies.get("studio") not in self._logins:
                return _error(403, "Forbidden")
            if request.method != "GET" and request.headers.get("X-XSRFToken") != cookies.get("_xsrf", ""):
                return _error(403, "'_xsrf' argument missing from the request")
            for name, known in (("session", self._sessions), ("kernel", self._kernels)):
                if name in request.match_info:
                    request["kernel"] = known.get(request.match_info[name])
                    if request["kernel"] is None:
                        return _error(404, f"no such {name}: {request.match_info[name]}")
            return await handler(request)

        return guarded

    async def _log_in(self, request: web.Request) -> web.Response:
        token = request.query.get("token", "")
        if token not in self._tokens:
            return web.Response(status=302, headers={"Location": "https://sign-in.invalid/"})
        self._tokens.remove(token)
        self._load.counts["logins"] += 1
        login = uuid.uuid4().hex
        self._logins.add(login)
        answer = web.Response(status=302, headers={"Location": f"{BASE}/lab"})
        answer.set_cookie("studio", login, path="/", httponly=True, secure=self._secure)
        return answer

    async def _page(self, request: web.Request) -> web.Response:
        answer = web.Response(text="<html><body>JupyterLab</body></html>", content_type="text/html")
        answer.set_cookie("_xsrf", uuid.uuid4().hex, path=f"{BASE}/", secure=self._secure)
        return answer

    # --- Contents

    def _notebook(self, path: str) -> bytes | None:
        body = self._saved.get(path)
        if body is not None:
            if body.startswith(SAVE_HEAD):
                return body[len(SAVE_HEAD) : body.rindex(b"}")]
            return json.dumps(json.loads(body).get("content")).encode()
        number = re.fullmatch(r"run-(\d+)\.ipynb", path)
        return self._source if number and int(number[1]) < self._notebooks else None

    async def _read(self, request: web.Request) -> web.Response:
        path = request.match_info["path"].strip("/")
        if "." not in path.rpartition("/")[2]:  # folders are simply there
            return _json(_contents(path, "directory", b"[]"))
        notebook = self._notebook(path)
        if notebook is None:
            return _error(404, f"No such file or directory: {path}")
        wanted = request.query.get("content") != "0"
        return _json(_contents(path, "notebook", notebook if wanted else b"null"))

    async def _save(self, request: web.Request) -> web.Response:
        path = request.match_info["path"].strip("/")
        body = await request.read()
        if len(body) < 200 and json.loads(body).get("type") == "directory":
            return _json(_contents(path, "directory", b"null"), 201)
        self._load.counts["saves"] += 1
        self._load.counts["bytes_saved"] += len(body)
        new = path not in self._saved
        self._saved[path] = body  # nothing is parsed before somebody reads it
        return _json(_contents(path, "notebook", b"null"), 201 if new else 200)

    # --- Sessions and kernels

    async def _list_specs(self, request: web.Request) -> web.Response:
        return _json(json.dumps(SPECS))

    async def _list_sessions(self, request: web.Request) -> web.Response:
        return _json(f"[{', '.join(kernel.session_model() for kernel in self._kernels.values())}]")

    async def _list_kernels(self, request: web.Request) -> web.Response:
        return _json(f"[{', '.join(kernel.model() for kernel in self._kernels.values())}]")

    async def _start_session(self, request: web.Request) -> web.Response:
        body = await request.json()
        kernel = self._by_path.get(body["path"])
        if kernel is None:
            kernel = Kernel(self._load, body["path"], body["name"])
            self._kernels[kernel.id] = self._sessions[kernel.session_id] = self._by_path[kernel.path] = kernel
        return _json(kernel.session_model(), 201)

    async def _show_session(self, request: web.Request) -> web.Response:
        return _json(request["kernel"].session_model())

    async def _show_kernel(self, request: web.Request) -> web.Response:
        return _json(request["kernel"].model())

    async def _rename_session(self, request: web.Request) -> web.Response:
        request["kernel"].rename((await request.json())["name"])
        return _json(request["kernel"].session_model())

    async def _delete(self, request: web.Request) -> web.Response:
        kernel = request["kernel"]
        kernel.close()
        del self._kernels[kernel.id], self._sessions[kernel.session_id], self._by_path[kernel.path]
        return web.Response(status=204)

    async def _interrupt(self, request: web.Request) -> web.Response:
        request["kernel"].interrupt()
        return web.Response(status=204)

    async def _channels(self, request: web.Request) -> web.StreamResponse:
        kernel: Kernel = request["kernel"]
        client, counts = request.query.get("session_id") or uuid.uuid4().hex, self._load.counts
        ws = web.WebSocketResponse(protocols=(V1,), max_msg_size=10 * 2**20, compress=False)
        await ws.prepare(request)
        socket = Socket(ws, request.transport)
        kernel.connect(client, socket)
        counts["sockets"] += 1
        counts["sockets_peak"] = max(counts["sockets"], counts["sockets_peak"])
        try:
            async for message in ws:
                if message.type in (WSMsgType.BINARY, WSMsgType.TEXT) and kernel.id in self._kernels:
                    kernel.receive(Request.read(message.data, client))
        finally:
            kernel.disconnect(client, socket)
            counts["sockets"] -= 1
        return ws


def _is_execution(request: Request) -> bool:
    return bool(request.fields["msg_type"] == "execute_request")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def _contents(path: str, kind: str, content: bytes) -> bytes:
    place = {"name": path.rpartition("/")[2], "path": path, "type": kind, "format": "json", "writable": True}
    head = json.dumps({**place, "created": _now(), "last_modified": _now()})
    return b'%b, "content": %b}' % (head[:-1].encode(), content)


def _json(body: bytes | str, status: int = 200) -> web.Response:
    data = body if isinstance(body, bytes) else body.encode()
    return web.Response(body=data, status=status, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    return _json(json.dumps({"message": message, "reason": None}), status)


def _spread(seconds: array[float]) -> dict[str, Any]:
    """Summarise times, in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    found = {name: round(ordered[int(share * (len(ordered) - 1))] * 1000, 3) for name, share in shares.items()}
    return {"count": len(seconds), **found}


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for this machine that is its own CA; return where it is, and where its key is."""
    folder.mkdir(parents=True, exist_ok=True)
    crt, key = folder / "fake-studio.crt", folder / "fake-studio.key"
    try:
        pem, secret = _self_signed()
        crt.write_bytes(pem)
        key.write_bytes(secret)
    except ImportError:
        words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=fake-studio"
        extensions = f"subjectAltName=IP:{LOOPBACK},DNS:localhost keyUsage=critical,digitalSignature,keyCertSign"
        added = [word for extension in extensions.split() for word in ("-addext", extension)]
        command = ["openssl", *words.split(), *added, "-keyout", str(key), "-out", str(crt)]
        subprocess.run(command, check=True, capture_output=True)
    return crt, key


def _self_signed() -> tuple[bytes, bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())  # thousands of handshakes: RSA would take ten times as long
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fake-studio")])
    now = datetime.now(timezone.utc)
    places = x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK)), x509.DNSName("localhost")])
    usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)  # sign; be a CA
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=30))
    for extension in (places, x509.BasicConstraints(True, 0), usage, identifier):
        builder = builder.add_extension(extension, extension not in (places, identifier))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(encoding, form, serialization.NoEncryption())
    return builder.sign(key, hashes.SHA256()).public_bytes(encoding), secret


async def _listen(app: web.Application, port: int, trust: ssl.SSLContext | None) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=3600, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, port, backlog=4096, ssl_context=trust).start()
    return runner, f"{'https' if trust else 'http'}://{LOOPBACK}:{runner.addresses[0][1]}"


async def serve(args: argparse.Namespace) -> None:
    """Serve until told to stop."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if stat.S_ISFIFO(os.fstat(0).st_mode):  # of the end of what is no pipe, such as /dev/null, nothing follows
        loop.add_reader(0, lambda: None if os.read(0, 4096) else stop.set())
    output = json.dumps({"name": "stdout", "text": ("x" * 63 + "\n") * (16 * args.output_kib)}).encode()
    load = Load(args.cells, args.cell_seconds, args.lines_per_second, output if args.output_kib else None)
    trust, crt = None, None
    if args.tls_dir:
        crt, key = make_certificate(args.tls_dir.resolve())
        # A buffer of each connection; else it is 256 KiB, all of them touched.
        sslproto.SSLProtocol.max_size = 2**14  # type: ignore[attr-defined]
        trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trust.load_cert_chain(crt, key)
    studio = FakeStudio(load, args.notebooks, secure=trust is not None)
    control, control_url = await _listen(studio.control(), args.port, None)
    app, studio.app_url = await _listen(studio.app(), args.port and args.port + 1, trust)
    load.measure_lag(loop.time())
    gc.freeze()
    gc.set_threshold(50_000)  # its pauses would look like the client's
    print(json.dumps({"control": control_url, "app": studio.app_url, "ca": crt and str(crt)}), flush=True)
    await stop.wait()
    loop.remove_reader(0)
    for runner in (control, app):
        await runner.cleanup()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebooks", type=int, default=10, help="how many there are: run-0.ipynb and so on")
    parser.add_argument("--cells", type=int, default=3, help="cells of each notebook")
    parser.add_argument("--cell-seconds", type=float, default=10.0, help="how long each cell takes")
    parser.add_argument("--lines-per-second", type=float, default=1.0, help="what a cell prints; 0 for nothing")
    parser.add_argument("--output-kib", type=int, default=0, help="KiB that each cell prints at its end")
    parser.add_argument("--tls-dir", type=Path, help="serve the app by TLS, with a certificate made there")
    parser.add_argument("--port", type=int, default=0, help="of the SageMaker API, the app's is the next; 0: any")
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(serve(args))


if __name__ == "__main__":
    main()
