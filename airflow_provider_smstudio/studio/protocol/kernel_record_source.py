"""Keep the kernel record of a run inside an IPython kernel. The package sends this file there as source.

It runs on any Python and ipykernel of an image: standard library only, Python 3.6 syntax, ipykernel 5 and later.
It is not a module of the user. It is in ``sys.modules`` under :data:`MODULE`, adds no name to the notebook's
namespace, and wraps three methods of the kernel. A failure in this code never reaches the kernel. It ends the
recording, and the answers report it as ``broken``.
:mod:`~airflow_provider_smstudio.studio.protocol.kernel_record` is the other side.
"""

import base64
import sys
from json import dumps, loads
from os import getpid, readlink
from threading import Event, RLock
from time import time
from types import ModuleType
from typing import Any

MODULE = "_smstudio_record"
VERSION = 1
HOUSEKEEPING = "-record-"
METADATA_KEY = "smstudio"

KEPT_TYPES = frozenset(
    "stream display_data update_display_data execute_result error clear_output comm_open comm_msg comm_close "
    "execute_input".split()
)

_DELIMITER = b"<IDS|MSG>"
_NOTED = frozenset(["status", "execute_input", "execute_reply"])
_LONGEST_REPLY = 256 * 1024
_LONGEST_EVALUE = 10000
_SETTLE_SECONDS = 60


class Impossible(Exception):  # noqa: N818  # not the notebook's error; it says why there is no record
    """The kernel's internals are not as this module expects."""


class Answer:
    """JSON text that IPython shows unchanged: as a bundle, pretty-printed, or by ``repr`` under ``%pprint``.

    :param text: the JSON text, ASCII only.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.text)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> "dict[str, str]":
        return {"text/plain": self.text}


class Request:
    """One request, with its times, its messages and its reply.

    :param msg_id: the request's id.
    """

    __slots__ = ("began", "dropped", "dropped_bytes", "ended", "heard", "idle", "kept", "msg_id", "reply", "size")

    def __init__(self, msg_id: str) -> None:
        self.msg_id = msg_id
        self.began: float | None = None
        self.ended: float | None = None
        self.idle: float | None = None
        self.heard = False
        self.kept: list[tuple[Any, ...]] = []
        self.size = 0
        self.dropped = 0
        self.dropped_bytes = 0
        self.reply = '"reply": null, "reply_header": null, "reply_cut": false'

    def entry(self) -> str:
        """Return the request's entry of the list as JSON."""
        fields = {
            "id": self.msg_id,
            "began": self.began,
            "ended": self.ended,
            "idle": self.idle,
            "kept": len(self.kept),
            "bytes": self.size,
            "dropped": self.dropped,
            "dropped_bytes": self.dropped_bytes,
        }
        return dumps(fields)[:-1] + ", " + self.reply + "}"


class Record:
    """The requests of one run, in order of arrival, and the messages that the kernel sent for them.

    :param run: the run's key.
    :param limit: how many bytes of messages the record may keep. With 0 it keeps only the list of requests.
    """

    def __init__(self, run: str, limit: int) -> None:
        self.run = run
        self.limit = limit
        self.sessions: set[str] = set()
        self.refused: set[str] = set()
        self.broken: str | None = None
        self._requests: dict[str, Request] = {}
        self._order: list[Request] = []
        self._size = 0
        self._parents: dict[bytes, Request | None] = {}
        self._lock = RLock()  # reentrant: a garbage collection may run any code on the thread that holds it

    def admit(self, session: str, limit: int) -> None:
        """Record the requests of one more client session, for example of a worker that took over."""
        with self._lock:
            self.sessions.add(session)
            self.limit = limit
            self._parents.clear()

    def on_wire(self, parts: "list[Any]") -> None:
        """Process a message of the iopub channel, as it goes over the wire."""
        header, parent, metadata, content = parts[parts.index(_DELIMITER) + 2 :][:4]
        buffers = parts[parts.index(_DELIMITER) + 6 :]
        with self._lock:
            request = self._request_of(parent)
            if request is None:
                return
            kind = _parse(header)["msg_type"]
            if kind == "status":
                state = _parse(content)["execution_state"]
                if state == "busy":
                    request.began = request.began or time()
                elif state == "idle":
                    request.idle = time()
            elif kind in KEPT_TYPES:
                self._keep(request, [header, parent, metadata, content], buffers)

    def on_input(self, msg_id: str, metadata: Any) -> None:
        """Read a request's metadata: they say which outputs its sender has saved."""
        with self._lock:
            request = self._request(msg_id)
            if request.heard:
                return
            request.heard = True  # only once: a repetition would delete output that came since and is not saved
            ours = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
            saved = ours.get("saved") if isinstance(ours, dict) else None
            if isinstance(saved, list):
                self._forget(saved)

    def on_reply(self, msg_id: str, header: Any, content: Any) -> None:
        """Keep the reply to a request; header and content are plain JSON values."""
        text, cut = dumps(content), "false"
        if len(text) > _LONGEST_REPLY:
            text, cut = dumps(_shortened(content)), "true"
        with self._lock:
            request = self._request(msg_id)
            if request.ended is not None:
                return  # the same request again, which was not run: only the first reply is true
            request.ended = time()
            request.reply = f'"reply": {text}, "reply_header": {dumps(header)}, "reply_cut": {cut}'

    def state(self, since: int, max_bytes: int) -> str:
        """Return the list of requests from an index on, as JSON; ``next`` is the index to continue at, or null."""
        entries: list[str] = []
        size = 0
        following: int | None = None
        with self._lock:
            for request in self._order[since:]:
                entry = request.entry()
                if entries and size + len(entry) > max_bytes:
                    following = since + len(entries)
                    break
                entries.append(entry)
                size += len(entry)
            fields = {
                "run": self.run,
                "version": VERSION,
                "broken": self.broken,
                "since": since,
                "total": len(self._order),
                "next": following,
            }
        return dumps(fields)[:-1] + ', "requests": [' + ", ".join(entries) + "]}"

    def fetch(self, msg_id: str, start: int, max_bytes: int) -> str:
        """Return the kept messages of a request from an index on, as JSON; a very long message comes alone."""
        with self._lock:
            request = self._requests.get(msg_id)
            if request is None:
                return "null"
            kept, dropped = request.kept[start:], request.dropped
        pieces: list[str] = []
        size = 0
        following: int | None = None
        for parts in kept:
            piece = _literal(parts)
            if pieces and size + len(piece) > max_bytes:
                following = start + len(pieces)
                break
            pieces.append(piece)
            size += len(piece)
        fields = {"next": following, "dropped": dropped}
        return dumps(fields)[:-1] + ', "messages": [' + ", ".join(pieces) + "]}"

    def forget(self, msg_ids: "list[str]") -> str:
        """Delete the messages of requests. The record still keeps the messages that they send later."""
        with self._lock:
            return dumps({"forgot": self._forget(msg_ids)})

    def refuse(self, msg_id: str) -> str:
        """Skip a request if it arrives later. Return whether it had not arrived yet."""
        with self._lock:
            late = msg_id not in self._requests
            if late:
                self.refused.add(msg_id)
            return dumps({"refused": late})

    def puts_aside(self, msg_id: str) -> bool:
        """Return whether the kernel must skip a request: it was refused, or has already run under this id."""
        with self._lock:
            known = self._requests.get(msg_id)
            return msg_id in self.refused or (known is not None and known.heard)

    def _forget(self, msg_ids: "list[Any]") -> int:
        forgot = 0
        for msg_id in msg_ids:
            request = self._requests.get(msg_id) if isinstance(msg_id, str) else None
            if request is not None:
                forgot += len(request.kept)
                self._size -= request.size
                request.kept, request.size = [], 0
        return forgot

    def _request(self, msg_id: str) -> Request:
        request = self._requests.get(msg_id)
        if request is None:
            request = self._requests[msg_id] = Request(msg_id)
            self._order.append(request)
        return request

    def _request_of(self, parent: bytes) -> "Request | None":
        """Return the recorded request of a message, or None. Most messages in a row have the same parent."""
        if parent in self._parents:
            return self._parents[parent]
        header = _parse(parent)
        msg_id = header.get("msg_id")
        ours = header.get("session") in self.sessions and header.get("msg_type") == "execute_request"
        ours = ours and HOUSEKEEPING not in msg_id and msg_id not in self.refused
        request = self._request(msg_id) if ours else None
        if len(self._parents) >= 16:
            self._parents.clear()
        self._parents[parent] = request
        return request

    def _keep(self, request: Request, parts: "list[bytes]", buffers: "list[Any]") -> None:
        size = sum(map(len, parts)) + sum(memoryview(buffer).nbytes for buffer in buffers)
        if self._size + size > self.limit:
            request.dropped += 1
            request.dropped_bytes += size
            return
        if request.kept and request.kept[-1][1] == parts[1]:
            parts[1] = request.kept[-1][1]  # share one copy of the parent
        # A buffer may be the user's own memory, which changes.
        request.kept.append((*parts, [bytes(buffer) for buffer in buffers]))
        request.size += size
        self._size += size


class Recorder:
    """The hooks in a kernel.

    :param shell: IPython's shell.
    """

    def __init__(self, shell: Any) -> None:
        self.record = Record("", 0)
        self._shell = shell
        self._pid = getpid()
        self._last_parent: Any = None
        self._last_result: tuple[Any, Any] | None = None
        kernel = self._kernel = _found(shell, "kernel")
        session = _found(kernel, "session")
        thread = _found(kernel, "iopub_thread") or _found(_found(kernel, "iopub_socket"), "io_thread")
        for owner, what in (
            (thread, "_really_send"),
            (thread, "schedule"),
            (session, "send"),
            (session, "pack"),
            (shell, "set_parent"),
            (kernel, "should_handle"),
        ):
            if not callable(_found(owner, what)):
                raise Impossible(f"the kernel has no {what}")
        self._session = session
        self._thread = thread
        if _parse(self._session.pack({"a": [1, "\u00e9"]})) != {"a": [1, "\u00e9"]}:
            raise Impossible("the kernel's messages are not JSON")
        self._really_send = self._thread._really_send
        self._send = self._session.send
        self._should_handle = self._kernel.should_handle

    def attach(self) -> None:
        """Install the hooks."""
        self._thread._really_send = self._on_wire
        self._session.send = self._on_send
        self._kernel.should_handle = self._on_request

    def detach(self) -> None:
        """Restore the kernel's own methods. A hook that other code has wrapped stays, but records nothing."""
        self.record.broken = "it was replaced"
        for owner, name, ours in (
            (self._thread, "_really_send", self._on_wire),
            (self._session, "send", self._on_send),
            (self._kernel, "should_handle", self._on_request),
        ):
            if getattr(owner, name) == ours:
                delattr(owner, name)

    def answer(self, operation: str, arguments: "tuple[Any, ...]") -> str:
        """Answer a request of the client as JSON, and leave the shell as the user's last cell left it."""
        self.guard(self._restore)
        settled = Event()
        self._thread.schedule(settled.set)
        if not settled.wait(_SETTLE_SECONDS):
            raise Impossible("the kernel's output thread does not answer")
        text = str(getattr(self.record, operation)(*arguments))
        if operation == "state":
            text = text[:-1] + f', "count": {dumps(self._shell.execution_count)}' + "}"
        return text

    def guard(self, call: Any, *arguments: Any) -> None:
        """Call a function of this module. If it fails, the recording ends and the kernel continues."""
        if self.record.broken is not None:
            return
        try:
            call(*arguments)
        except BaseException as error:
            self.record.broken = f"{getattr(call, '__name__', call)}: {_described(error)}"
            if not isinstance(error, Exception):
                raise  # the user's interrupt must reach the kernel

    def _on_wire(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._really_send(*args, **kwargs)
        finally:
            if getpid() == self._pid:  # a forked child sends its messages through this process, which records them
                self.guard(self.record.on_wire, _argument(args, kwargs, 0, "msg"))

    def _on_request(self, *args: Any, **kwargs: Any) -> Any:
        request = _argument(args, kwargs, 1, "msg")
        header = request.get("header") if isinstance(request, dict) else None
        msg_id = header.get("msg_id") if isinstance(header, dict) else None
        if isinstance(msg_id, str) and self.record.puts_aside(msg_id):
            self.guard(self._restore)
            return False
        return self._should_handle(*args, **kwargs)

    def _on_send(self, *args: Any, **kwargs: Any) -> Any:
        sent = self._send(*args, **kwargs)
        kind = _argument(args, kwargs, 1, "msg_or_type")
        if isinstance(kind, str) and kind in _NOTED and getpid() == self._pid:
            self.guard(self._note, kind, sent, _argument(args, kwargs, 3, "parent"))
        return sent

    def _note(self, kind: str, sent: Any, parent: Any) -> None:
        if not isinstance(sent, dict) or not isinstance(parent, dict):
            return
        header = parent.get("header", parent)
        msg_id = header.get("msg_id")
        if header.get("msg_type") != "execute_request" or not isinstance(msg_id, str):
            return
        if HOUSEKEEPING in msg_id:
            if kind == "status" and sent["content"]["execution_state"] == "busy":
                self._last_result = (self._shell.last_execution_result, self._shell.last_execution_succeeded)
            return
        if kind == "status":
            return
        self._last_parent = parent
        if header.get("session") not in self.record.sessions or msg_id in self.record.refused:
            return
        if kind == "execute_input" or sent["content"].get("status") == "aborted":
            self.record.on_input(msg_id, parent.get("metadata"))
        if kind == "execute_reply":
            pack = self._session.pack
            self.record.on_reply(msg_id, _parse(pack(sent["header"])), _parse(pack(sent["content"])))

    def _restore(self) -> None:
        """Undo what our silent request changed: the last result, and the parent of a thread's late output."""
        if self._last_result is not None:
            self._shell.last_execution_result, self._shell.last_execution_succeeded = self._last_result
            self._last_result = None
        if self._last_parent is not None:
            self._shell.set_parent(self._last_parent)


_recorder: Any = None


def install(module: ModuleType, run: str, session: str, limit: int) -> Answer:
    """Start to record a run, or continue its record.

    :param module: this module; it is put into ``sys.modules`` if recording is possible.
    :param run: the run's key. The record of another run is deleted.
    :param session: the client session whose requests belong to the run.
    :param limit: how many bytes of messages the record may keep.
    """
    global _recorder
    try:
        recorder = _recorder
        if recorder is None:
            recorder = Recorder(__import__("IPython").get_ipython())
            former = sys.modules.get(MODULE)
            if former is not None and former is not module:
                former.uninstall()
            recorder.attach()
            _recorder = recorder
            sys.modules[MODULE] = module
        resumed = recorder.record.run == run
        if not resumed:
            recorder.record = Record(run, limit)
        recorder.record.admit(session, limit)
        text = recorder.answer("state", (0, 0))
        broken = loads(text)["broken"]
    except Exception as error:
        return Answer(dumps({"ok": False, "reason": _described(error), "resumed": False, "process": _process()}))
    return Answer(dumps({"ok": broken is None, "reason": broken, "resumed": resumed, "process": _process()}))


def answer(operation: str, *arguments: Any) -> Answer:
    """Answer a request of the client.

    :param operation: ``state``, ``fetch``, ``forget`` or ``refuse``, of :class:`Record`.
    """
    try:
        if _recorder is None:
            raise Impossible("it is not installed")
        return Answer(_recorder.answer(operation, arguments))
    except Exception as error:
        return Answer(dumps({"failed": _described(error)}))


def uninstall() -> None:
    """Remove the hooks from the kernel and delete the record."""
    global _recorder
    if _recorder is not None:
        _recorder.detach()
    _recorder = None
    sys.modules.pop(MODULE, None)


def _process() -> "str | None":
    """Return the process name that a second kernel checks; as ``kernel_probe_source.this_process`` does."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot, open("/proc/self/stat") as stat:
            start = stat.read().rpartition(")")[2].split()[19]
            return f"{boot.read().strip()} {readlink('/proc/self/ns/pid')} {getpid()} {start}"
    except (OSError, IndexError):
        return None


def _found(owner: Any, name: str) -> Any:
    return getattr(owner, name, None)


def _parse(part: Any) -> Any:
    # Session encodes with surrogateescape: an invalid byte of a file name is the same byte on the wire.
    return loads(bytes(part).decode("utf-8", "surrogateescape"))


def _literal(parts: "tuple[Any, ...]") -> str:
    header, parent, metadata, content, buffers = parts
    message = {
        "channel": "iopub",
        "header": _parse(header),
        "parent_header": _parse(parent),
        "metadata": _parse(metadata),
        "content": _parse(content),
        "buffers": [base64.b64encode(buffer).decode("ascii") for buffer in buffers],
    }
    return dumps(message)


def _shortened(content: Any) -> "dict[str, Any]":
    """Keep only the fields of a huge reply that say how the request ended."""
    short = {key: content[key] for key in ("status", "execution_count", "ename") if key in content}
    if "evalue" in content:
        short["evalue"] = str(content["evalue"])[:_LONGEST_EVALUE]
    payload = content.get("payload")
    if isinstance(payload, list):
        exits = [item for item in payload if isinstance(item, dict) and item.get("source") == "ask_exit"]
        short["payload"] = exits
    return short


def _argument(args: "tuple[Any, ...]", kwargs: "dict[str, Any]", position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _described(error: BaseException) -> str:
    if isinstance(error, Impossible):
        return str(error)
    return f"{type(error).__name__}: {str(error)[:500]}"
