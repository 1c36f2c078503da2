"""The record in real IPython kernels, compared with what a client saw that missed nothing.

Another kernel than that of this environment is tried with ``SMSTUDIO_TEST_KERNEL``, the name of a kernelspec.
"""

from __future__ import annotations

import os
import queue
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from airflow_provider_smstudio.studio.protocol import kernel_record
from airflow_provider_smstudio.studio.protocol.messages import Message, request

LIMIT = 200 * 2**20


class Client:
    """A client that reads everything, and keeps it by the id of the request it belongs to."""

    def __init__(self):
        self.manager, self.client = start_new_kernel(kernel_name=os.environ.get("SMSTUDIO_TEST_KERNEL", "python3"))
        self.session = self.client.session.session
        self.seen = {}
        self.counter = 0
        self.info = self.ask(request("kernel_info_request", {}, session=self.session))["content"]

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def new_id(self, kind="-cell-"):
        self.counter += 1
        return f"{self.session}{kind}{self.counter}"

    def send(self, message):
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def ask(self, message, *, idle=True, seconds=60):
        """Send a request, and read until its reply and its idle status have come."""
        msg_id, reply, until = self.send(message), None, time.monotonic() + seconds
        while reply is None or (idle and not self.is_idle(msg_id)):
            assert time.monotonic() < until, f"no answer to {message['header']['msg_type']}"
            self.read()
            try:
                got = self.client.get_shell_msg(timeout=0.01 if reply is None else 0)
            except queue.Empty:
                continue
            if got["parent_header"].get("msg_id") == msg_id:
                reply = got
        return reply

    def read(self, until=None, seconds=30):
        """Read what has come over iopub; until something is true, if given."""
        end = time.monotonic() + seconds
        while True:
            try:
                got = self.client.get_iopub_msg(timeout=0 if until is None else 0.05)
                self.seen.setdefault(got["parent_header"].get("msg_id"), []).append(got)
            except queue.Empty:
                if until is None:
                    return
            if until is not None and (until() or time.monotonic() > end):
                return

    def is_idle(self, msg_id):
        return any(
            got["msg_type"] == "status" and got["content"]["execution_state"] == "idle"
            for got in self.seen.get(msg_id, ())
        )

    def run(self, code, *, metadata=None, msg_id=None, **options):
        """Run a cell to its end; return its id and the content of its reply."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
        content.update(allow_stdin=False, stop_on_error=True, **options)
        message = request("execute_request", content, session=self.session, msg_id=msg_id or self.new_id())
        message["metadata"] = metadata or {}
        return message["header"]["msg_id"], self.ask(message)["content"]

    def shown(self, msg_id):
        """Return what came over iopub for a request, except statuses."""
        return [got for got in self.seen.get(msg_id, ()) if got["msg_type"] in kernel_record.KEPT_TYPES]

    def value(self, expression):
        """Evaluate in the kernel without running a cell or asking the record."""
        options = {"user_expressions": {"x": expression}, "silent": True, "store_history": False}
        content = {"code": "", "allow_stdin": False, "stop_on_error": False, **options}
        message = request("execute_request", content, session="other", msg_id=uuid.uuid4().hex)
        return self.ask(message)["content"]["user_expressions"]["x"]["data"]["text/plain"]

    # --- the record

    def housekeep(self, make, *arguments):
        msg_id = self.new_id(kernel_record.HOUSEKEEPING)
        content = self.ask(make(self.session, msg_id, *arguments))["content"]
        assert self.shown(msg_id) == []
        return content

    def install(self, run="run", limit=LIMIT):
        return kernel_record.read_installed(self.housekeep(kernel_record.install_request, run, limit))

    def state(self, since=0, run="run"):
        return kernel_record.read_state(self.housekeep(kernel_record.state_request, since), run)

    def entry(self, msg_id):
        (found,) = [entry for entry in self.state().requests if entry.msg_id == msg_id]
        return found

    def refuse(self, msg_id):
        return kernel_record.read_refused(self.housekeep(kernel_record.refuse_request, msg_id))

    def send_cell(self, code, msg_id):
        """Send a cell's request and wait for nothing."""
        content = {"code": code, "silent": False, "store_history": True, "stop_on_error": True}
        return self.send(request("execute_request", content, session=self.session, msg_id=msg_id))

    def fetch(self, msg_id, max_bytes=kernel_record.MAX_ANSWER_BYTES):
        """Fetch all that is kept for a request, in chunks."""
        messages: list[Message] = []
        start: int | None = 0
        while start is not None:
            part = kernel_record.read_fetched(
                self.housekeep(kernel_record.fetch_request, msg_id, start, max_bytes)
            )
            assert part is not None
            assert part.next is None or part.next == start + len(part.messages)
            messages += part.messages
            start = part.next
        return messages

    def printed(self, msg_id):
        """Return what a request has printed; a flush may come in the midst of a print."""
        return "".join(message["content"].get("text", "") for message in self.fetch(msg_id))


def essence(message):
    """Return what has to be the same in a message that came over iopub and in the fetched one."""
    header, parent = message["header"], message["parent_header"]
    return {
        "id": (header["msg_id"], header["msg_type"], header["session"]),
        "parent": (parent["msg_id"], parent["session"]),
        "metadata": message["metadata"],
        "content": message["content"],
        "buffers": [bytes(buffer) for buffer in message["buffers"]],
    }


def assert_same(client, msg_id, **options):
    fetched, seen = client.fetch(msg_id, **options), client.shown(msg_id)
    assert [essence(message) for message in fetched] == [essence(message) for message in seen]
    return fetched


@pytest.fixture(scope="module")
def kernel() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


@pytest.fixture
def client(kernel: Client) -> Client:
    """A kernel with an empty record."""
    kernel.install(run=uuid.uuid4().hex)
    assert kernel.install() == kernel_record.Installed(ok=True, reason=None, resumed=False)
    return kernel


@pytest.fixture
def fresh() -> Iterator[Client]:
    """A kernel that nobody has used."""
    client = Client()
    yield client
    client.close()


CELLS = {
    "print": ("print('hé \U0001f600')\nimport sys; print('err', file=sys.stderr)", ["stream", "stream"]),
    "display": ("display({'text/plain': 'a', 'text/html': '<b>'}, raw=True)", ["display_data"]),
    "update": (
        "h = display('a', display_id='x'); h.update('b'); h.update('c')",
        ["display_data", "update_display_data", "update_display_data"],
    ),
    "clear": (
        "from IPython.display import clear_output\nprint(1, flush=True); clear_output(wait=True); print(2)",
        ["stream", "clear_output", "stream"],
    ),
    "result": ("40 + 2", ["execute_result"]),
    "error": ("1 / 0", ["error"]),
    "nothing": ("pass", []),
    "comm": (
        """
get_ipython().kernel.session.send(get_ipython().kernel.iopub_socket, "comm_open",
    {"comm_id": "c", "target_name": "t", "data": {}}, parent=get_ipython().parent_header,
    buffers=[memoryview(bytearray(b"\\0\\xff")), b""]);
""",
        ["comm_open"],
    ),
}


@pytest.mark.parametrize("kind", list(CELLS))
def test_the_record_is_what_a_client_saw(client, kind):
    code, expected = CELLS[kind]
    began = time.time()
    msg_id, reply = client.run(code)
    fetched = assert_same(client, msg_id)
    assert [message["header"]["msg_type"] for message in fetched] == ["execute_input", *expected]
    entry = client.entry(msg_id)
    assert entry.reply == reply
    assert entry.reply_header["msg_type"] == "execute_reply"
    assert began - 1 < entry.began <= entry.ended <= entry.idle + 1 < time.time() + 2
    assert (entry.kept, entry.dropped, entry.reply_cut) == (1 + len(expected), 0, False)
    assert client.state().broken is None


def test_the_ledger_in_order_and_from_an_index_on(client):
    ids = [client.run(f"{n}")[0] for n in range(4)]
    state = client.state()
    assert [entry.msg_id for entry in state.requests] == ids
    assert (state.run, state.total, state.since, state.next) == ("run", 4, 0, None)
    assert state.count == state.requests[-1].reply["execution_count"] + 1
    later = client.state(since=3)
    assert ([entry.msg_id for entry in later.requests], later.total, later.since) == (ids[3:], 4, 3)
    assert client.state(since=9).requests == []


def test_a_long_ledger_comes_in_parts(client):
    ids = [client.run("raise ValueError('x' * 3000)")[0] for _ in range(5)]
    got: list[kernel_record.Recorded] = []
    since: int | None = 0
    while since is not None:
        state = kernel_record.read_state(client.housekeep(kernel_record.state_request, since, 9000), "run")
        assert state is not None
        assert state.since == since
        got += state.requests
        since = state.next
    assert [entry.msg_id for entry in got] == ids


def test_requests_of_others_are_not_recorded(client):
    content = {"code": "print(1)", "silent": False, "store_history": False, "stop_on_error": True}
    client.ask(request("execute_request", content, session="a browser"))
    client.ask(request("kernel_info_request", {}, session=client.session))
    assert client.state().requests == []


def test_a_request_that_was_put_aside(client):
    content = {"code": "import time; time.sleep(.3); 1/0", "silent": False, "stop_on_error": True}
    first = client.send(request("execute_request", content, session=client.session, msg_id=client.new_id()))
    second, reply = client.run("2", metadata=kernel_record.saved_metadata([first]))
    assert reply["status"] == "aborted"
    time.sleep(0.3)
    aborted = client.entry(second)
    assert (aborted.reply["status"], aborted.kept) == ("aborted", 0)
    assert (client.entry(first).reply["status"], client.entry(first).kept) == ("error", 0)


def test_a_huge_print_in_one_piece_and_in_many(client):
    msg_id, _ = client.run("print('x' * 20_000_000)")
    assert sum(len(m["content"].get("text", "")) for m in assert_same(client, msg_id)) == 20_000_001
    msg_id, _ = client.run("for n in range(200): print('\\u00fc\"' * 50_000, flush=True)")
    fetched = assert_same(client, msg_id)  # how many messages it makes depends on a timer as well
    assert "".join(m["content"].get("text", "") for m in fetched) == ('ü"' * 50_000 + "\n") * 200
    assert client.entry(msg_id).kept == len(fetched) > 100


def test_many_displays(client):
    msg_id, _ = client.run("for n in range(20_000): display(n)")
    fetched = client.fetch(msg_id)
    texts = [message["content"]["data"]["text/plain"] for message in fetched[1:]]
    assert texts == [str(n) for n in range(20_000)]
    # ZeroMQ itself drops messages for a reader that falls behind.
    seen = {message["header"]["msg_id"] for message in client.shown(msg_id)}
    assert seen <= {message["header"]["msg_id"] for message in fetched}


@pytest.mark.parametrize("max_bytes", [1, 3000, 10**6])
def test_chunks_of_any_size(client, max_bytes):
    msg_id, _ = client.run("for n in range(20): print('y' * n * 100, flush=True)")
    assert_same(client, msg_id, max_bytes=max_bytes)


LATE = """
import os, threading, time
def late():
    while not os.path.exists({path!r}): time.sleep(.02)
    print('late')
threading.Thread(target=late).start()
"""


def hear_late(client, path, msg_id):
    path.touch()
    client.read(until=lambda: any(m["content"].get("text") == "late\n" for m in client.shown(msg_id)))


def test_output_of_a_thread_after_the_end(client, tmp_path):
    path = tmp_path / "go"
    msg_id, _ = client.run(LATE.format(path=str(path)))
    assert client.entry(msg_id).kept == 1  # and this question must not attract the thread's output
    hear_late(client, path, msg_id)
    assert [m["content"]["text"] for m in assert_same(client, msg_id)[1:]] == ["late\n"]


def test_output_of_a_forked_child(client):
    code = "import os\nif os.fork() == 0:\n  print('child', flush=True); os._exit(0)\nos.wait(); print('parent')"
    msg_id, _ = client.run(code)

    def text(messages):  # stderr may have a warning about forks
        shown = [m["content"] for m in messages if m["content"].get("name") == "stdout"]
        return "".join(content["text"] for content in shown)

    client.read(lambda: len(text(client.shown(msg_id))) == len("child\nparent\n"))
    shown = text(assert_same(client, msg_id))  # the two processes' lines may mix
    assert shown.replace("\n", "") in ("childparent", "parentchild")
    assert client.state().broken is None


def test_stray_bytes_and_odd_text(client):
    msg_id, _ = client.run(r"print('a\udc80\x00\u2028\"\\ NaN'); float('nan')")
    fetched = client.fetch(msg_id)
    text = "".join(m["content"].get("text", "") for m in fetched)
    assert text == 'a\udc80\0\u2028"\\ NaN\n'
    assert client.state().broken is None


USER_VIEW = (
    "(sorted(n for n in get_ipython().user_ns if n not in ('_i', '_ii', '_iii', '__builtins__')), len(In), "
    "sorted(Out), get_ipython().execution_count, list(get_ipython().history_manager.get_range())[-3:], "
    "repr(globals().get('_')))"
)


def test_the_user_sees_nothing_of_it(fresh):
    fresh.run("a = 5; a")
    fresh.run("a + 1")
    before = fresh.value(USER_VIEW)
    assert fresh.install().ok
    fresh.state()
    assert kernel_record.read_fetched(fresh.housekeep(kernel_record.fetch_request, "unknown", 0)) is None
    assert fresh.install() == kernel_record.Installed(ok=True, reason=None, resumed=True)
    assert fresh.value(USER_VIEW) == before
    _, reply = fresh.run("(_, __, _i, len(In))")
    assert reply["execution_count"] == 3
    (result,) = [m for m in fresh.seen[fresh.state().requests[-1].msg_id] if m["msg_type"] == "execute_result"]
    assert result["content"]["data"]["text/plain"] == "(6, 5, 'a + 1', 4)"


def test_the_last_result_is_the_users(client):
    client.run("'mine'")
    client.state()
    msg_id, _ = client.run("r = get_ipython().last_execution_result; print(r.result, r.info.raw_cell)")
    client.state()
    assert client.printed(msg_id) == "mine 'mine'\n"
    client.run("1/0")
    client.state()
    msg_id, _ = client.run("r = get_ipython(); print(r.last_execution_succeeded, r.last_execution_result.success)")
    assert client.printed(msg_id) == "False False\n"


HOSTILE = {
    "reset": "%reset -f",
    "shadowed": "get_ipython = print = len = str = repr = sys = json = exec = compile = display = 1",
    "stdout swapped": "import sys, io; sys.stdout = io.StringIO()",
    "pprint off": "%pprint",
    "precision": "%precision 2",
    "printers": """
for kind in ("text/plain", "text/html"):
    get_ipython().display_formatter.formatters[kind].for_type(object, lambda *rest: "no")""",
    "plain replaced": """
from IPython.core.formatters import BaseFormatter
class Mine(BaseFormatter):
    def __call__(self, value): return "no"
get_ipython().display_formatter.formatters["text/plain"] = Mine()""",
    "builtins": "import builtins; builtins.print = builtins.input = None",
    "plain disabled": "get_ipython().display_formatter.formatters['text/plain'].enabled = False",
    "transformers": "get_ipython().input_transformers_post.append(lambda lines: ['1/0\\n'])",
    "warnings": "import warnings; warnings.filterwarnings('error', module='_smstudio')",
    "hooks": "def f(*a): raise KeyError(1)\nfor e in ('pre_run_cell', 'post_run_cell'): get_ipython().events.register(e, f)",
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_whatever_the_user_has_done(fresh, what):
    fresh.install()
    fresh.run(HOSTILE[what])
    assert fresh.state().broken is None
    msg_id, reply = fresh.run("None")
    assert fresh.entry(msg_id).reply == reply
    assert_same(fresh, msg_id)
    assert fresh.install(run="another") == kernel_record.Installed(ok=True, reason=None, resumed=False)


@pytest.mark.parametrize("what", list(HOSTILE))
def test_installed_after_whatever_the_user_has_done(fresh, what):
    fresh.run(HOSTILE[what])
    assert fresh.install() == kernel_record.Installed(ok=True, reason=None, resumed=False)


def test_redirected_output_is_not_the_cells(client):
    code = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): print('hidden')\nprint('shown')"
    msg_id, _ = client.run(code)
    assert [m["content"]["text"] for m in assert_same(client, msg_id)[1:]] == ["shown\n"]


def test_the_limit(client):
    client.install(limit=10_000)
    first, _ = client.run("print('x' * 3000)")
    second, _ = client.run("print('y' * 9000, flush=True); print('z')")
    entry = client.entry(second)
    assert (entry.kept, entry.dropped) == (2, 1)
    assert 9000 < entry.dropped_bytes < 10_500
    assert [m["content"].get("text", "")[:1] for m in client.fetch(second)] == ["", "z"]
    saved: list[Any] = [first, second, "?", 1]
    third, _ = client.run("print('w' * 5000)", metadata=kernel_record.saved_metadata(saved))
    assert [client.entry(i).kept for i in (first, second, third)] == [0, 0, 2]
    client.install(limit=0)
    fourth, reply = client.run("print('v')")
    entry = client.entry(fourth)
    assert (entry.kept, entry.dropped, entry.reply) == (0, 2, reply)


def test_forgetting(client, tmp_path):
    path = tmp_path / "go"
    first, _ = client.run(LATE.format(path=str(path)) + "print('soon')")
    assert kernel_record.read_forgotten(client.housekeep(kernel_record.forget_request, [first, "unknown"])) == 2
    assert (client.entry(first).kept, client.entry(first).kept_bytes) == (0, 0)
    assert client.entry(first).reply["status"] == "ok"
    hear_late(client, path, first)
    assert [m["content"]["text"] for m in client.fetch(first)] == ["late\n"]


def test_a_huge_reply_is_cut(client):
    msg_id, reply = client.run("raise ValueError('x' * 1_000_000)")
    entry = client.entry(msg_id)
    assert len(reply["evalue"]) == 1_000_000
    assert (entry.reply_cut, entry.reply["ename"], len(entry.reply["evalue"])) == (True, "ValueError", 10_000)


def test_a_refused_request_does_not_run_and_has_no_reply(client):
    client.run("ran = []; 'the last'")
    late = client.new_id()
    assert client.refuse(late)
    assert client.refuse(late)
    before = client.value(USER_VIEW)
    client.send_cell("ran.append('late'); print('late')", late)
    assert client.value(USER_VIEW) == before
    msg_id, reply = client.run("print(ran, _)")
    assert (reply["status"], client.printed(msg_id)) == ("ok", "[] the last\n")
    assert client.shown(late) == []
    with pytest.raises(queue.Empty):
        client.client.get_shell_msg(timeout=0.2)  # every reply before was to one of these questions
    assert client.refuse(late)
    assert late not in [entry.msg_id for entry in client.state().requests]
    assert client.state().broken is None


def test_a_request_that_runs_or_has_run_is_not_refused(client):
    msg_id, _ = client.run("1/0")
    assert not client.refuse(msg_id)
    running = client.send_cell("import time; time.sleep(.5); print('done')", client.new_id())
    assert not client.refuse(running)  # answered behind it
    assert client.printed(running) == "done\n"


def test_a_refused_request_among_those_that_an_error_puts_aside(client):
    late, other = client.new_id(), client.new_id()
    assert client.refuse(late)
    client.send_cell("import time; time.sleep(.3); 1/0", client.new_id())
    client.send_cell("ran = 'late'", late)
    client.send_cell("ran = 'other'", other)
    time.sleep(0.6)
    assert client.value("'ran' in globals() and ran in ('late', 'other')") == "False"
    assert client.entry(other).reply["status"] == "aborted"
    assert client.refuse(late)
    assert late not in [entry.msg_id for entry in client.state().requests]


def test_a_request_that_comes_twice_is_run_once(client):
    client.run("times = 0")
    msg_id, _ = client.run("times += 1")
    client.send_cell("times += 1", msg_id)
    assert client.value("times") == "1"
    assert client.entry(msg_id).reply["status"] == "ok"


def test_output_of_a_thread_after_a_request_was_put_aside_is_the_last_cells(client, tmp_path):
    path = tmp_path / "go"
    msg_id, _ = client.run(LATE.format(path=str(path)))
    late = client.new_id()
    assert client.refuse(late)
    client.send_cell("print('late')", late)
    client.read(until=lambda: late in client.seen)
    time.sleep(0.2)
    hear_late(client, path, msg_id)
    assert [m["content"]["text"] for m in client.fetch(msg_id)[1:]] == ["late\n"]


def test_a_replaced_record_gives_the_kernels_method_back(fresh):
    fresh.install()
    late = fresh.new_id()
    assert fresh.refuse(late)
    fresh.run("import sys; sys.modules['_smstudio_record'].uninstall()")
    assert fresh.value("'should_handle' in vars(get_ipython().kernel)") == "False"
    assert fresh.run("5", msg_id=late)[1]["status"] == "ok"


def test_quit(fresh):
    fresh.install()
    message = {"code": "print('bye'); quit()", "silent": False, "store_history": True}
    reply = fresh.ask(request("execute_request", message, session=fresh.session), idle=False)
    assert reply["content"]["payload"][0]["source"] == "ask_exit"
    until = time.monotonic() + 15
    while fresh.manager.is_alive() and time.monotonic() < until:
        time.sleep(0.1)
    assert not fresh.manager.is_alive()


def test_an_interrupt_is_the_users(client):
    code = "import os, signal, time\nfor n in range(3000): display(n)\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)"
    msg_id, reply = client.run(code)
    assert reply["ename"] == "KeyboardInterrupt"
    assert client.state().broken is None
    assert len(client.fetch(msg_id)) >= 3001


def test_a_restarted_kernel_has_no_record(fresh):
    assert kernel_record.supported(fresh.info)
    assert fresh.state() is None
    assert kernel_record.read_fetched(fresh.housekeep(kernel_record.fetch_request, "x", 0)) is None
    fresh.install(run="theirs")
    assert fresh.state() is None
    assert fresh.state(run="theirs").requests == []


def test_a_failure_in_the_record_is_not_the_kernels(fresh):
    fresh.install()
    fresh.run("import sys; sys.modules['_smstudio_record']._recorder.record.on_wire = lambda parts: 1 / 0")
    _, reply = fresh.run("print(1)")
    assert reply["status"] == "ok"
    assert "ZeroDivisionError" in fresh.state().broken
    assert "ZeroDivisionError" in fresh.install().reason
