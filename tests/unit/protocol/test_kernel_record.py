"""Requests to a kernel's record and its answers, and the kernel's side on a kernel made of fakes."""

from __future__ import annotations

import json
import sys
import types
import warnings
from typing import Any

import pytest

from airflow_provider_smstudio.studio.protocol import kernel_record, kernel_record_source
from airflow_provider_smstudio.studio.protocol.kernel_record_source import Record
from airflow_provider_smstudio.studio.protocol.messages import MessageError

SESSION, RUN = "client-1", "run-1"
INFO = {"implementation": "ipython", "language_info": {"name": "python"}}


def pack(value):
    return json.dumps(value, ensure_ascii=False).encode("utf8", "surrogateescape")


def header(msg_id, msg_type, session="kernel"):
    return {"msg_id": msg_id, "msg_type": msg_type, "session": session}


def request(msg_id, session=SESSION, msg_type="execute_request", metadata=None):
    return {"header": header(msg_id, msg_type, session), "metadata": metadata or {}, "content": {}}


class Thread:
    """ipykernel's IOPubThread: one way out, in order."""

    def __init__(self):
        self.out = []
        self.fails = False

    def schedule(self, call):
        call()

    def _really_send(self, msg, **options):
        if self.fails:
            raise OSError("gone")
        self.out.append(msg)


class Session:
    pack = staticmethod(pack)

    def __init__(self, thread):
        self.thread = thread
        self.count = 0

    def send(self, stream, msg_or_type, content=None, parent=None, ident=None, buffers=(), metadata=None):
        self.count += 1
        sent = {"header": header(f"m{self.count}", msg_or_type), "content": content}
        parent_header = (parent or {}).get("header", parent or {})
        if stream is self.thread:
            parts = [pack(part) for part in (sent["header"], parent_header, metadata or {}, content)]
            msg = [b"topic", b"<IDS|MSG>", b"signature", *parts, *buffers]
            self.thread.schedule(lambda: self.thread._really_send(msg, copy=True))
        return sent


class Dispatcher:
    """ipykernel's Kernel."""

    def __init__(self, thread):
        self.session, self.iopub_thread = Session(thread), thread
        self.asked = []

    def should_handle(self, stream, msg, idents):
        self.asked.append(msg)
        return True


class Shell:
    """A kernel with its shell."""

    def __init__(self):
        self.kernel = Dispatcher(Thread())
        self.execution_count = 1
        self.last_execution_result, self.last_execution_succeeded = None, True
        self.parent = None

    def set_parent(self, parent):
        self.parent = parent

    def publish(self, kind, content, parent, **options):
        self.kernel.session.send(self.kernel.iopub_thread, kind, content, parent=parent, **options)

    def status(self, state, parent):
        self.publish("status", {"execution_state": state}, parent)

    def cell(self, msg_id, *texts, reply=None, aborting=False, tells_aside=True, **about):
        """Take a request as ipykernel does; return whether it was run."""
        parent = request(msg_id, **about)
        self.parent = parent
        self.status("busy", parent)
        if aborting:
            self.kernel.session.send("shell", "execute_reply", {"status": "aborted"}, parent)
            self.status("idle", parent)
            return False
        if not self.kernel.should_handle("stream", parent, []):
            if tells_aside:  # ipykernel 7 does
                self.status("idle", parent)
            return False
        self.publish("execute_input", {"code": "x", "execution_count": self.execution_count}, parent)
        for text in texts:
            self.publish("stream", {"name": "stdout", "text": text}, parent)
        self.execution_count += 1
        self.last_execution_result = f"result of {msg_id}"
        self.kernel.session.send("shell", "execute_reply", reply or {"status": "ok"}, parent)
        self.status("idle", parent)
        return True

    def evaluate(self, message):
        """Answer a request to the record as IPython does; return the reply's content."""
        self.parent = message
        self.status("busy", message)
        self.last_execution_result, self.last_execution_succeeded = "of the empty cell", True
        content = message["content"]
        assert (content["code"], content["silent"], content["store_history"]) == ("", True, False)
        names = {"__builtins__": __builtins__}
        values = {
            key: {"status": "ok", "data": {"text/plain": repr(eval(code, names, names))}, "metadata": {}}
            for key, code in content["user_expressions"].items()
        }
        assert list(names) == ["__builtins__"]
        reply = {"status": "ok", "execution_count": self.execution_count - 1, "user_expressions": values}
        self.kernel.session.send("shell", "execute_reply", reply, message)
        self.status("idle", message)
        return json.loads(pack(reply))


class Kernel(Shell):
    """A shell, and the client's side of its record."""

    def ask(self, make, *arguments):
        return self.evaluate(make(SESSION, f"x{kernel_record.HOUSEKEEPING}1", *arguments))

    def install(self, run=RUN, limit=10**6, session=SESSION):
        message = kernel_record.install_request(session, f"x{kernel_record.HOUSEKEEPING}0", run, limit)
        return kernel_record.read_installed(self.evaluate(message))

    def state(self, *arguments, run=RUN):
        return kernel_record.read_state(self.ask(kernel_record.state_request, *arguments), run)

    def entry(self, msg_id):
        (found,) = [entry for entry in self.state().requests if entry.msg_id == msg_id]
        return found

    def fetch(self, *arguments):
        return kernel_record.read_fetched(self.ask(kernel_record.fetch_request, *arguments))

    def refuse(self, msg_id):
        return kernel_record.read_refused(self.ask(kernel_record.refuse_request, msg_id))

    def texts(self, msg_id):
        return [m["content"]["text"] for m in self.fetch(msg_id, 0).messages if "text" in m["content"]]


@pytest.fixture
def kernel(monkeypatch):
    made = Kernel()
    fake: Any = types.ModuleType("IPython")
    fake.get_ipython = lambda: made
    monkeypatch.setitem(sys.modules, "IPython", fake)
    yield made
    sys.modules.pop(kernel_record_source.MODULE, None)


# --- the client's side


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (INFO, True),
        ({**INFO, "implementation": "xeus-python"}, False),
        ({**INFO, "language_info": {"name": "R"}}, False),
        ({**INFO, "language_info": "python"}, False),
        ({}, False),
    ],
)
def test_which_kernels_may_keep_a_record(info, expected):
    assert kernel_record.supported(info) is expected


def test_a_request_is_silent_and_empty():
    message = kernel_record.state_request("s", "a-record-b", 3)
    assert (message["channel"], message["header"]["msg_id"], message["header"]["session"]) == (
        "shell",
        "a-record-b",
        "s",
    )
    content = message["content"]
    expression = content.pop("user_expressions")["smstudio"]
    assert content == {
        "code": "",
        "silent": True,
        "store_history": False,
        "allow_stdin": False,
        "stop_on_error": False,
    }
    assert "answer('state', 3, " in expression


@pytest.mark.parametrize("text", ["'; import os", "\\", "\udc80 é\n", '"""'])
def test_what_is_asked_for_cannot_become_code(kernel, text):
    assert kernel.install(run=text, session=text).ok
    assert kernel.state(run=text).run == text
    assert kernel.fetch(text, 0) is None
    assert kernel.refuse(text)
    assert not kernel.cell(text)
    assert kernel_record.install_request(text, f"{text}-record-", text, 1)["content"]["user_expressions"][
        "smstudio"
    ].isascii()


def test_an_id_without_the_marker_is_refused():
    with pytest.raises(ValueError, match="-record-"):
        kernel_record.state_request("s", "a-cell-1")


def reply_of(text):
    return {"status": "ok", "user_expressions": {"smstudio": {"status": "ok", "data": {"text/plain": text}}}}


READERS = [
    kernel_record.read_installed,
    lambda reply: kernel_record.read_state(reply, RUN),
    kernel_record.read_fetched,
    kernel_record.read_forgotten,
    kernel_record.read_refused,
]
GARBAGE = [
    {},
    {"status": "aborted"},
    {"status": "error", "ename": "X"},
    {"status": "ok"},
    {"status": "ok", "user_expressions": []},
    {"status": "ok", "user_expressions": {"smstudio": {"status": "error", "ename": "E", "evalue": "v"}}},
    {"status": "ok", "user_expressions": {"smstudio": {"status": "ok", "data": {}}}},
    *map(
        reply_of,
        ["", "no", "[]", "7", "[" * 100_000, "{}", '{"failed": "x"}', '{"run": 1, "ok": 1, "forgot": "x"}'],
    ),
    *map(reply_of, ['{"run": "run-1", "version": 2}', '{"run": "run-1", "version": true}']),
    *map(reply_of, ['{"messages": [1], "dropped": 0}', '{"messages": {}, "dropped": 0}']),
    *map(reply_of, ['{"refused": 1}', '{"refused": "true"}', '{"refused": null}']),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("reply", GARBAGE)
def test_garbage_is_a_wire_error(reader, reply):
    with pytest.raises(MessageError):
        reader(reply)


@pytest.mark.parametrize("field", ["header", "content", "buffers"])
@pytest.mark.parametrize("value", [None, 1, ["not base64!"], [1]])
def test_a_bad_message_is_a_wire_error(field, value):
    message = {"header": {}, "parent_header": {}, "metadata": {}, "content": {}, "buffers": ["AAE="]}
    answer = {"messages": [message], "dropped": 0, "next": None}
    fetched = kernel_record.read_fetched(reply_of(json.dumps(answer)))
    assert fetched is not None
    assert fetched.messages[0]["buffers"] == [b"\0\1"]
    message[field] = value
    with pytest.raises(MessageError):
        kernel_record.read_fetched(reply_of(json.dumps(answer)))


def test_no_record_is_none():
    assert [read(reply_of("None")) for read in READERS[1:4]] == [None, None, None]
    for reader in (kernel_record.read_installed, kernel_record.read_refused):
        with pytest.raises(MessageError):
            reader(reply_of("None"))


@pytest.mark.parametrize("refused", [True, False])
def test_whether_a_request_was_refused(refused):
    assert kernel_record.read_refused(reply_of(json.dumps({"refused": refused}))) is refused


# --- the kernel's side


def test_a_run_and_its_record(kernel):
    assert kernel.state() is None
    assert kernel.install() == kernel_record.Installed(ok=True, reason=None, resumed=False)
    kernel.cell("c1", "one", "\udc80 é\u2028")
    kernel.cell("c2", reply={"status": "error", "ename": "E", "x": float("inf")})
    kernel.cell("c3", session="a browser")
    kernel.cell("c4", msg_type="comm_msg")
    state = kernel.state()
    assert (state.count, state.total, state.broken, state.next) == (5, 2, None, None)
    first, second = state.requests
    assert (first.msg_id, first.kept, first.reply, first.dropped) == ("c1", 3, {"status": "ok"}, 0)
    assert first.began <= first.ended <= first.idle
    assert second.reply["ename"] == "E"
    assert [entry.msg_id for entry in kernel.state(1).requests] == ["c2"]
    assert kernel.texts("c1") == ["one", "\udc80 é\u2028"]
    assert kernel.fetch("c1", 2).messages[0]["parent_header"]["msg_id"] == "c1"
    assert kernel.fetch("c3", 0) is None


def test_the_same_run_goes_on_and_another_starts_anew(kernel):
    kernel.install()
    kernel.cell("c1", "one")
    assert kernel.install(session="client-2") == kernel_record.Installed(ok=True, reason=None, resumed=True)
    kernel.cell("c2", session="client-2")
    kernel.cell("c3", session=SESSION)
    assert [entry.msg_id for entry in kernel.state().requests] == ["c1", "c2", "c3"]
    assert not kernel.install(run="run-2").resumed
    assert kernel.state() is None
    assert kernel.state(run="run-2").requests == []


def test_a_newer_module_replaces_an_older_one(kernel):
    kernel.install()
    older: Any = sys.modules[kernel_record_source.MODULE]
    older.VERSION = 0
    kernel.cell("c1")
    assert not kernel.install().resumed
    assert sys.modules[kernel_record_source.MODULE] is not older
    kernel.cell("c2", "two")
    assert [entry.msg_id for entry in kernel.state().requests] == ["c2"]
    assert kernel.texts("c2") == ["two"]
    sys.modules[kernel_record_source.MODULE].uninstall()
    assert "_really_send" not in vars(kernel.kernel.iopub_thread)
    assert vars(kernel.kernel.session).keys() == {"thread", "count"}
    assert "should_handle" not in vars(kernel.kernel)


def test_chunks(kernel):
    kernel.install()
    kernel.cell("c1", *("x" * n for n in (10, 5000, 10, 10)))
    starts: list[tuple[int, int]] = []
    start: int | None = 0
    while start is not None:
        part = kernel.fetch("c1", start, 1000)
        starts.append((start, len(part.messages)))
        start = part.next
    assert starts == [(0, 2), (2, 1), (3, 2)]


def test_the_limit_and_what_is_saved(kernel):
    kernel.install(limit=2000)
    kernel.cell("c1", "x" * 500, "y" * 1900, "z")
    entry = kernel.entry("c1")
    assert (entry.kept, entry.dropped) == (3, 1)
    assert entry.kept_bytes < 2000 < entry.dropped_bytes
    kernel.cell("c2", "x" * 1500)
    assert (kernel.entry("c2").kept, kernel.entry("c2").dropped) == (1, 1)
    kernel.cell("c3", "x" * 1500, metadata=kernel_record.saved_metadata(["c1", "c2", "unknown"]))
    assert [(entry.kept, entry.dropped) for entry in kernel.state().requests] == [(0, 1), (0, 1), (2, 0)]
    assert kernel_record.read_forgotten(kernel.ask(kernel_record.forget_request, ["c3"])) == 2
    kernel.publish("stream", {"text": "late"}, request("c3"))
    assert kernel.texts("c3") == ["late"]


@pytest.mark.parametrize(
    "metadata", [{"smstudio": 1}, {"smstudio": {"saved": "c1"}}, {"smstudio": {"saved": [[], None]}}, []]
)
def test_strange_metadata_forgets_nothing(kernel, metadata):
    kernel.install()
    kernel.cell("c1", "one")
    kernel.cell("c2", metadata=metadata)
    assert kernel.texts("c1") == ["one"]
    assert kernel.state().broken is None


def test_output_after_the_end_of_a_saved_cell_is_forgotten_only_once(kernel):
    record = Record(RUN, 1000)
    record.admit(SESSION, 1000)
    message = [
        b"",
        b"<IDS|MSG>",
        b"",
        pack(header("m", "stream")),
        pack(header("c1", "execute_request", SESSION)),
        b"{}",
        b"{}",
    ]
    record.on_wire(message)
    record.on_input("c2", kernel_record.saved_metadata(["c1"]))
    record.on_wire(message)
    record.on_input("c2", kernel_record.saved_metadata(["c1"]))
    assert len(json.loads(record.fetch("c1", 0, 1000))["messages"]) == 1


# --- requests that shall not run any more


@pytest.mark.parametrize("tells_aside", [True, False])
def test_a_request_that_has_not_come_is_put_aside_when_it_comes(kernel, tells_aside):
    kernel.install()
    assert kernel.cell("c0", "zero")
    assert kernel.refuse("c1")
    before = len(kernel.kernel.iopub_thread.out)
    assert not kernel.cell("c1", "one", tells_aside=tells_aside)
    assert len(kernel.kernel.iopub_thread.out) == before + 1 + tells_aside
    assert kernel.execution_count == 2
    assert kernel.cell("c2", "two")
    assert kernel.texts("c2") == ["two"]
    assert not kernel.cell("c1", "one")  # however often it comes
    state = kernel.state()
    assert (state.broken, state.count) == (None, 3)


def test_a_request_that_has_come_is_not_refused(kernel):
    kernel.install()
    kernel.cell("c1", "one")
    kernel.cell("c2", aborting=True)
    assert not kernel.refuse("c1")
    assert not kernel.refuse("c2")
    assert not kernel.cell("c1", "again")  # an id runs once, however often it comes


@pytest.mark.parametrize("aborting", [False, True])
def test_a_request_that_comes_twice_is_run_once_and_its_record_stays(kernel, aborting):
    kernel.install()
    assert kernel.cell("c1", "one")
    before = kernel.entry("c1")
    assert not kernel.cell("c1", "one", aborting=aborting)
    after = kernel.entry("c1")
    assert (after.reply, after.ended, after.kept) == (before.reply, before.ended, before.kept)
    assert kernel.texts("c1") == ["one"]
    assert kernel.execution_count == 2


def test_a_request_that_was_put_aside_by_an_error_does_not_run_when_it_comes_twice(kernel):
    kernel.install()
    kernel.cell("c1", aborting=True)
    assert not kernel.cell("c1")
    assert kernel.entry("c1").reply == {"status": "aborted"}


def test_a_request_of_somebody_else_may_come_twice(kernel):
    kernel.install()
    assert kernel.cell("c1", session="a browser")
    assert kernel.cell("c1", session="a browser")


def test_a_request_that_is_being_run_is_not_refused(kernel):
    kernel.install()
    kernel.status("busy", request("c1"))
    assert not kernel.refuse("c1")


@pytest.mark.parametrize("aborting", [False, True])
def test_a_request_that_was_put_aside_is_as_if_it_had_never_come(kernel, aborting):
    kernel.install()
    assert kernel.refuse("c1")
    assert not kernel.cell("c1", "one", aborting=aborting)
    assert kernel.refuse("c1")  # asked anew, for the answer was lost
    assert kernel.state().requests == []


def test_a_request_is_refused_while_another_is_taken_however_it_came(kernel):
    kernel.install()
    kernel.refuse("c1")
    handled = kernel.kernel.should_handle
    assert handled("stream", request("c2"), [])
    assert handled(stream="stream", msg=request("c2"), idents=[])
    assert not handled("stream", request("c1"), [])
    assert not handled(stream="stream", msg=request("c1"), idents=[])
    assert [msg["header"]["msg_id"] for msg in kernel.kernel.asked] == ["c2", "c2"]  # the kernel's own was asked


@pytest.mark.parametrize("verdict", [True, False, None])
def test_the_kernels_own_verdict_counts_for_every_other_request(kernel, verdict):
    type(kernel.kernel).should_handle, former = lambda self, *rest: verdict, type(kernel.kernel).should_handle
    try:
        kernel.install()
        kernel.refuse("c1")
        assert kernel.kernel.should_handle("stream", request("c2"), []) is verdict
    finally:
        type(kernel.kernel).should_handle = former


@pytest.mark.parametrize(
    "odd",
    [
        None,
        "text",
        b"bytes",
        [],
        {},
        {"header": None},
        {"header": "c1"},
        {"header": {}},
        {"header": {"msg_id": None}},
        {"header": {"msg_id": 1}},
        {"header": {"msg_id": ["c1"]}},
        {"header": {"msg_id": {}}},
    ],
)
def test_an_odd_request_is_left_to_the_kernel(kernel, odd):
    kernel.install()
    kernel.refuse("c1")
    assert kernel.kernel.should_handle("stream", odd, [])
    assert kernel.kernel.asked == [odd]
    assert kernel.state().broken is None


def test_a_forked_childs_messages_do_not_disturb_refusals(kernel, monkeypatch):
    kernel.install()
    kernel.refuse("c1")
    monkeypatch.setitem(vars(sys.modules[kernel_record_source.MODULE]), "getpid", lambda: -1)
    assert not kernel.kernel.should_handle("stream", request("c1"), [])
    assert kernel.kernel.should_handle("stream", request("c2"), [])


def test_a_broken_record_goes_on_putting_aside(kernel):
    def fail(parts):
        raise ZeroDivisionError

    kernel.install()
    kernel.refuse("c1")
    sys.modules[kernel_record_source.MODULE]._recorder.record.on_wire = fail
    assert kernel.cell("c2")
    assert "ZeroDivisionError" in kernel.state().broken
    assert not kernel.cell("c1")


def test_refusals_belong_to_a_run_and_not_to_a_session(kernel):
    kernel.install()
    kernel.refuse("c1")
    kernel.install(session="client-2")
    assert not kernel.cell("c1", session="client-2")
    kernel.install(run="run-2")
    assert kernel.cell("c1")


def test_what_was_taken_out_leaves_the_kernels_own_method(kernel):
    kernel.install()
    assert kernel.refuse("c1")
    assert "should_handle" in vars(kernel.kernel)
    sys.modules[kernel_record_source.MODULE].uninstall()
    assert "should_handle" not in vars(kernel.kernel)
    assert kernel.cell("c1")


def test_a_method_that_somebody_else_has_wrapped_stays(kernel):
    kernel.install()
    ours = kernel.kernel.should_handle
    kernel.kernel.should_handle = theirs = lambda *rest: ours(*rest)
    sys.modules[kernel_record_source.MODULE].uninstall()
    assert kernel.kernel.should_handle is theirs
    assert kernel.cell("c1")


def test_a_thread_writes_to_the_last_cell_after_a_request_was_put_aside(kernel):
    kernel.install()
    kernel.cell("c1")
    kernel.refuse("c2")
    kernel.cell("c2")
    assert kernel.parent["header"]["msg_id"] == "c1"


def test_buffers_are_copies(kernel):
    kernel.install()
    memory = bytearray(b"\0\xff")
    kernel.publish("comm_msg", {}, request("c1"), buffers=[memoryview(memory), b""])
    memory[0] = 7
    assert kernel.fetch("c1", 0).messages[0]["buffers"] == [b"\0\xff", b""]


def test_the_shell_is_left_as_it_was(kernel):
    kernel.install()
    kernel.cell("c1")
    kernel.last_execution_succeeded = False
    kernel.state()
    assert (kernel.last_execution_result, kernel.last_execution_succeeded) == ("result of c1", False)
    assert kernel.parent["header"]["msg_id"] == "c1"


def test_a_huge_reply_keeps_how_it_ended(kernel):
    kernel.install()
    payload = [{"source": "page", "data": "x" * 300_000}, {"source": "ask_exit", "keepkernel": False}]
    kernel.cell("c1", reply={"status": "ok", "execution_count": 1, "payload": payload})
    entry = kernel.entry("c1")
    assert entry.reply_cut
    assert entry.reply == {"status": "ok", "execution_count": 1, "payload": payload[1:]}


def test_a_forked_child_records_nothing(kernel, monkeypatch):
    kernel.install()
    monkeypatch.setitem(vars(sys.modules[kernel_record_source.MODULE]), "getpid", lambda: -1)
    kernel.cell("c1", "x")
    assert kernel.state().requests == []


@pytest.mark.parametrize("failure", [ZeroDivisionError("x"), MemoryError(), RecursionError()])
def test_a_failure_breaks_the_record_alone(kernel, failure):
    def fail(parts):
        raise failure

    kernel.install()
    sys.modules[kernel_record_source.MODULE]._recorder.record.on_wire = fail
    sent = len(kernel.kernel.iopub_thread.out)
    kernel.cell("c1", "x")
    assert len(kernel.kernel.iopub_thread.out) == sent + 4
    assert type(failure).__name__ in kernel.state().broken
    assert kernel.install() == kernel_record.Installed(ok=False, reason=kernel.state().broken, resumed=True)


def test_an_interrupt_is_passed_on(kernel):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    kernel.install()
    sys.modules[kernel_record_source.MODULE]._recorder.record.on_reply = interrupt
    with pytest.raises(KeyboardInterrupt):
        kernel.cell("c1")
    assert "KeyboardInterrupt" in kernel.state().broken


def test_what_cannot_be_sent_is_recorded_and_the_failure_passed_on(kernel):
    kernel.install()
    kernel.kernel.iopub_thread.fails = True
    with pytest.raises(OSError, match="gone"):
        kernel.publish("stream", {"text": "unheard"}, request("c1"))
    kernel.kernel.iopub_thread.fails = False
    assert kernel.texts("c1") == ["unheard"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda kernel: delattr(kernel, "kernel"), "the kernel has no _really_send"),
        (lambda kernel: setattr(kernel.kernel.iopub_thread, "schedule", None), "the kernel has no schedule"),
        (lambda kernel: delattr(kernel.kernel, "session"), "the kernel has no send"),
        (lambda kernel: setattr(kernel.kernel, "should_handle", None), "the kernel has no should_handle"),
        (lambda kernel: setattr(kernel.kernel.session, "pack", lambda value: b"\x80"), "JSONDecodeError"),
        (
            lambda kernel: setattr(kernel.kernel.session, "pack", lambda value: b"{}"),
            "the kernel's messages are not JSON",
        ),
    ],
)
def test_why_there_can_be_no_record(kernel, spoil, reason):
    spoil(kernel)
    message = kernel_record.install_request(SESSION, "x-record-0", RUN, 0)
    value = repr(eval(message["content"]["user_expressions"]["smstudio"]))
    installed = kernel_record.read_installed(reply_of(value))
    assert (installed.ok, installed.resumed) == (False, False)
    assert installed.reason is not None
    assert reason in installed.reason
    assert kernel_record_source.MODULE not in sys.modules


def test_the_thread_is_found_by_its_socket_as_well(kernel):
    thread = vars(kernel.kernel).pop("iopub_thread")
    kernel.kernel.iopub_socket = types.SimpleNamespace(io_thread=thread)
    message = kernel_record.install_request(SESSION, "x-record-0", RUN, 0)
    assert '"ok": true' in repr(eval(message["content"]["user_expressions"]["smstudio"]))


def test_an_answer_shows_as_it_is_in_every_way():
    answer = kernel_record_source.Answer('{"a": 1}')
    printed: list[str] = []
    answer._repr_pretty_(types.SimpleNamespace(text=printed.append), False)
    assert [repr(answer), *printed, *answer._repr_mimebundle_(include=None).values()] == ['{"a": 1}'] * 3


def test_the_kernels_source_is_ascii_and_compiles_without_warnings():
    text = kernel_record._source()
    assert text.isascii()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile(text, "kernel_record.py", "exec")
