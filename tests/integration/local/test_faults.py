"""The local Studio's faults, each shown to do what it says."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import requests
from websocket import (
    ABNF,
    WebSocketBadStatusException,
    WebSocketConnectionClosedException,
    WebSocketTimeoutException,
)

from airflow_provider_smstudio.local import LocalStudio, Switches, cli
from airflow_provider_smstudio.local.server.classic_images import CLASSIC_IMAGES
from airflow_provider_smstudio.local.transport.frames import FrameSplitter
from tests.helpers.browser import Browser, Channels, processes_of

CLASSIC_NAME = CLASSIC_IMAGES[0].kernel_name("us-east-1")
MASKED_TEXT = b"\x81\x82\x00\x00\x00\x00"
MASKED_PING = b"\x89\x82\x00\x00\x00\x00"


def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def connections(studio: LocalStudio, kernel_id: str) -> int:
    return next(kernel["connections"] for kernel in studio.kernels() if kernel["id"] == kernel_id)


def until_broken(channels: Channels) -> Exception:
    """Read to the websocket's end; return what that looks like."""
    try:
        while True:
            channels.receive()
    except (WebSocketConnectionClosedException, ConnectionError) as error:
        return error
    finally:
        channels.socket.shutdown()


def printed(messages: list[dict[str, Any]]) -> str:
    """What a cell printed, in however many messages."""
    return "".join(message["content"].get("text", "") for message in messages)


def raw_door(studio: LocalStudio) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(studio.door_url.rpartition(":")[2])), timeout=5)


def silent(sock: socket.socket, seconds: float = 0.2) -> bool:
    """Whether nothing comes, and no end."""
    sock.settimeout(seconds)
    try:
        got = sock.recv(100)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(5)
    raise AssertionError(got)


# ---- websockets, with sockets at both ends ----------------------------------------------------------------


class Ends:
    """Opens websockets of made-up kernels through the door, to a server of our own."""

    def __init__(self, studio: LocalStudio, browser: Browser, listener: socket.socket) -> None:
        self.studio = studio
        self.browser = browser
        self.listener = listener
        self.opened: list[socket.socket] = []

    def open(self, kernel_id: str = "k", query: str = "?session_id=s") -> tuple[socket.socket, socket.socket]:
        client = raw_door(self.studio)
        self.opened.append(client)
        path = f"/jupyterlab/default/api/kernels/{kernel_id}/channels{query}"
        fields = f"Host: x\r\nCookie: {self.browser.cookies}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        client.sendall(f"GET {path} HTTP/1.1\r\n{fields}".encode())
        server, _ = self.accept()
        assert self.upto_empty_line(client).startswith(b"HTTP/1.1 101 ")
        return client, server

    def accept(self) -> tuple[socket.socket, bytes]:
        server, _ = self.listener.accept()
        server.settimeout(5)
        self.opened.append(server)
        request = self.upto_empty_line(server)
        server.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        return server, request

    @staticmethod
    def upto_empty_line(sock: socket.socket) -> bytes:
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += sock.recv(1)
        return data


@pytest.fixture
def ends(spaces: LocalStudio, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        monkeypatch.setattr(spaces._slot.server, "port", listener.getsockname()[1])
        made = Ends(spaces, browser, listener)
        yield made
        monkeypatch.undo()
        for sock in made.opened:
            sock.close()
    until(lambda: not spaces.websockets())


def test_websockets_are_listed_while_they_are_open(spaces: LocalStudio, ends: Ends) -> None:
    assert spaces.websockets() == []
    client, server = ends.open("k1")
    ends.open("k2", "?session_id=a%20b&x=1")
    ends.open("k3", "")
    shown = [(websocket.kernel_id, websocket.session_id) for websocket in spaces.websockets()]
    assert shown == [("k1", "s"), ("k2", "a b"), ("k3", "")]
    client.close()
    assert server.recv(10) == b""
    server.close()
    until(lambda: [websocket.kernel_id for websocket in spaces.websockets()] == ["k2", "k3"])
    assert spaces.cut_websockets(kernel_id="k2") == 1
    assert spaces.cut_websockets() == 1
    assert spaces.cut_websockets() == 0
    with pytest.raises(ValueError, match="'close', 'reset'|close, reset, half-open, deaf"):
        spaces.cut_websockets("gently")


def test_close_is_an_end_in_order_on_both_sides(spaces: LocalStudio, ends: Ends) -> None:
    client, server = ends.open()
    server.sendall(b"before")
    assert client.recv(100) == b"before"
    (websocket,) = spaces.websockets()
    assert websocket.cut("close") is True
    server.sendall(b"too late")  # unread data would turn the end into a reset
    client.sendall(MASKED_TEXT + b"no")
    assert (client.recv(100), server.recv(100)) == (b"", b"")
    assert spaces.websockets() == []
    assert websocket.cut("reset") is False


def test_reset_is_abrupt_on_both_sides(spaces: LocalStudio, ends: Ends) -> None:
    client, server = ends.open()
    assert spaces.cut_websockets() == 1
    # In force when the call has returned: not even a wait is needed.
    client.setblocking(False)
    server.setblocking(False)
    for sock in (client, server):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_half_open_swallows_everything_and_ends_nothing(spaces: LocalStudio, ends: Ends) -> None:
    client, server = ends.open()
    assert spaces.cut_websockets("half-open") == 1
    # Far more than all buffers hold: somebody reads it.
    for sock in (client, server):
        sock.sendall(b"x" * 30_000_000)
    assert silent(client)
    assert silent(server)
    assert spaces.cut_websockets("half-open") == spaces.cut_websockets("deaf") == 0
    assert [websocket.state for websocket in spaces.websockets()] == ["half-open"]
    # Neither learns of the other's end.
    client.close()
    until(lambda: not spaces.websockets())
    server.sendall(b"x" * 1_000_000)
    assert silent(server)


def test_server_that_gives_up_a_half_open_websocket(spaces: LocalStudio, ends: Ends) -> None:
    client, server = ends.open()
    spaces.cut_websockets("half-open")
    server.close()
    assert silent(client)
    (websocket,) = spaces.websockets()
    websocket.cut("reset")
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_half_open_while_the_client_does_not_read(spaces: LocalStudio, ends: Ends) -> None:
    _, server = ends.open()
    server.settimeout(0.3)
    with pytest.raises(TimeoutError):
        server.sendall(b"x" * 30_000_000)
    spaces.cut_websockets("half-open")
    server.settimeout(5)
    server.sendall(b"x" * 30_000_000)


def test_deaf_holds_messages_and_nothing_else(spaces: LocalStudio, ends: Ends) -> None:
    client, server = ends.open()
    client.sendall(MASKED_TEXT[:4])
    assert silent(server, 0.05)
    assert spaces.cut_websockets("deaf") == 1
    client.sendall(MASKED_TEXT[4:] + b"11" + MASKED_PING + b"pi" + MASKED_TEXT + b"22")
    # The message whose head was not complete yet is held as well.
    assert read_exactly(server, 8) == MASKED_PING + b"pi"
    assert silent(server)
    server.sendall(b"still heard")
    assert client.recv(100) == b"still heard"
    other, _ = ends.open("another kernel")
    assert silent(server, 0.1)
    ends.open("k", "?session_id=other")
    assert read_exactly(server, 16) == MASKED_TEXT + b"11" + MASKED_TEXT + b"22"
    client.sendall(MASKED_TEXT + b"33")
    assert read_exactly(server, 8) == MASKED_TEXT + b"33"
    assert {websocket.state for websocket in spaces.websockets()} == {"open"}
    other.close()


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        assert piece, data
        data += piece
    return data


@pytest.mark.parametrize("end", ["client", "reset", "half-open"])
def test_what_a_deaf_websocket_held_outlives_it(spaces: LocalStudio, ends: Ends, end: str) -> None:
    client, server = ends.open()
    (websocket,) = spaces.websockets()
    websocket.cut("deaf")
    client.sendall(MASKED_TEXT + b"11" + MASKED_PING + b"pi")
    read_exactly(server, 8)
    if end != "client":
        websocket.cut(end)
    client.close()
    if end != "half-open":
        with contextlib.suppress(ConnectionResetError):
            assert server.recv(1) == b""
        server.close()
    # The same client's next websocket has the same identity to the server.
    newer, new_server = ends.open()
    assert read_exactly(new_server, 8) == MASKED_TEXT + b"11"
    newer.close()
    server.close()


def test_what_a_deaf_websocket_held_has_its_own_identity(spaces: LocalStudio, ends: Ends) -> None:
    client, server = ends.open()
    spaces.cut_websockets("deaf")
    client.sendall(MASKED_TEXT + b"11" + MASKED_PING + b"pi")
    read_exactly(server, 8)
    client.close()
    server.close()
    until(lambda: not spaces.websockets())
    newer, new_server = ends.open(query="?session_id=other")
    late, request = ends.accept()
    assert b"/channels?session_id=" in request
    assert b"session_id=s HTTP" not in request
    assert b"session_id=other HTTP" not in request
    assert read_exactly(late, 8) == MASKED_TEXT + b"11"
    assert read_exactly(late, 8)[0] == 0x88
    late.close()
    assert silent(new_server, 0.05)
    newer.close()


def test_frames_are_told_apart_in_whatever_pieces_they_come() -> None:
    frames = [
        (False, b"\x81\x83mask123"),
        (True, b"\x89\x80mask"),
        (False, b"\x82\xfe\x00\x80mask" + b"x" * 128),
        (True, b"\x8a\x02pp"),
        (False, b"\x02\xff" + (70_000).to_bytes(8, "big") + b"mask" + b"y" * 70_000),
        (True, b"\x88\x82mask\x03\xe8"),
    ]
    stream = b"".join(frame for _, frame in frames)
    for size in (1, 3, 1000, len(stream)):
        splitter, found = FrameSplitter(), []
        for at in range(0, len(stream), size):
            for control, begins, piece in splitter.feed(stream[at : at + size]):
                if begins:
                    found.append((control, b""))
                found[-1] = (control, found[-1][1] + piece)
        assert found == frames


# ---- websockets of real kernels ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
def test_cut_websocket_is_noticed_and_replayed(
    spaces: LocalStudio, browser: Browser, kernel_id: str, how: str
) -> None:
    channels = browser.channels(kernel_id, session_id="mine")
    channels.run("1")
    cell = channels.execute("import time; time.sleep(0.3); print('missed')")
    while channels.receive()["content"].get("execution_state") != "busy":
        pass
    assert spaces.cut_websockets(how, kernel_id=kernel_id) == 1
    expected = WebSocketConnectionClosedException if how == "close" else ConnectionResetError
    assert isinstance(until_broken(channels), expected)
    until(lambda: connections(spaces, kernel_id) == 0)
    with browser.channels(kernel_id, session_id="mine") as again:
        assert "missed\n" in printed(again.until_done(cell))


def test_half_open_websocket_of_a_kernel(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    channels = browser.channels(kernel_id, session_id="mine")
    channels.run("1")
    spaces.cut_websockets("half-open")
    channels.socket.settimeout(0.3)
    channels.socket.ping()
    channels.execute("x = 1")
    with pytest.raises(WebSocketTimeoutException):
        channels.receive()
    channels.socket.shutdown()
    time.sleep(0.1)
    assert connections(spaces, kernel_id) == 1
    # The client comes back with another session id: the server has two connections then.
    with browser.channels(kernel_id) as again:
        assert connections(spaces, kernel_id) == 2
        assert again.run("print('x' in dir())") == "False\n"
    until(lambda: not spaces.websockets())


def test_deaf_websocket_of_a_kernel(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    with browser.channels(kernel_id) as channels:
        channels.run("1")
        spaces.cut_websockets("deaf")
        cell = channels.execute("print('at last')")
        channels.socket.settimeout(0.3)
        with pytest.raises(WebSocketTimeoutException):
            channels.until_done(cell)
        # The websocket itself is well.
        channels.socket.send_frame(ABNF.create_frame(b"p", ABNF.OPCODE_PING))
        assert channels.socket.recv_data(control_frame=True) == (ABNF.OPCODE_PONG, b"p")
        channels.socket.settimeout(10)
        with browser.channels(kernel_id):
            assert "at last\n" in printed(channels.until_done(cell))


@pytest.mark.parametrize("same", [True, False])
def test_request_to_a_deaf_kernel_runs_though_its_client_left(
    spaces: LocalStudio, browser: Browser, kernel_id: str, same: bool
) -> None:
    channels = browser.channels(kernel_id, session_id="mine")
    channels.run("1")
    spaces.cut_websockets("deaf")
    cell = channels.execute("print('at last')")
    channels.socket.send_frame(ABNF.create_frame(b"p", ABNF.OPCODE_PING))
    while channels.socket.recv_data(control_frame=True)[0] != ABNF.OPCODE_PONG:
        pass
    channels.socket.shutdown()
    until(lambda: connections(spaces, kernel_id) == 0)
    with browser.channels(kernel_id, session_id="mine" if same else "other") as again:
        if same:
            assert "at last\n" in printed(again.until_done(cell))
        else:
            # Output is for everyone; the reply for one who is not there any more.
            channels_heard = set()
            while True:
                message = again.receive()
                if message["parent_header"].get("msg_id") == cell:
                    channels_heard.add(message["channel"])
                    if message["content"].get("execution_state") == "idle":
                        break
            again.until_done(again.execute("1"))
            assert channels_heard == {"iopub"}


# ---- requests ---------------------------------------------------------------------------------------------


def test_refused_connections(spaces: LocalStudio, browser: Browser) -> None:
    browser.get("api/status")
    spaces.switches.refuse_connections = True
    assert browser.get("api/status")  # its connection was open before
    with pytest.raises(ConnectionResetError), raw_door(spaces) as raw:
        raw.recv(1)
    assert spaces.client().describe_domain(DomainId=spaces.domain_id)["Status"] == "InService"
    spaces.switches.refuse_connections = False
    with raw_door(spaces) as raw:
        assert silent(raw, 0.05)


def test_delay_of_requests_and_handshakes(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    spaces.switches.http_delay = 0.3
    started = time.monotonic()
    browser.get("api/status")
    took = time.monotonic() - started
    assert 0.3 <= took < 5
    started = time.monotonic()
    with browser.channels(kernel_id):
        assert 0.3 <= time.monotonic() - started < 5


def test_dropped_requests_are_counted(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    spaces.switches.http_drops = 2
    model = {"type": "file", "format": "text", "content": "x" * 3_000_000}
    for _ in range(2):
        with pytest.raises(requests.ConnectionError):
            browser.call("PUT", "api/contents/dropped.txt", json=model)
        with browser.channels(kernel_id):
            pass
    assert spaces.switches.http_drops == 0
    assert not (spaces.home / "dropped.txt").exists()
    assert browser.call("PUT", "api/contents/dropped.txt", json=model).status_code == 201
    (spaces.home / "dropped.txt").unlink()


def test_dropped_request_is_read_first(spaces: LocalStudio) -> None:
    spaces.switches.http_drops = 1
    with raw_door(spaces) as raw:
        raw.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        assert silent(raw)
        raw.sendall(b"cd")
        with pytest.raises(ConnectionResetError):
            raw.recv(1)


def test_errors_are_counted_after_drops(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    browser.get("api/status")
    spaces.switches.http_errors = 2
    spaces.switches.http_error_status = 503
    spaces.switches.http_drops = 1
    with pytest.raises(requests.ConnectionError):
        browser.call("DELETE", f"api/kernels/{kernel_id}")
    for _ in range(2):
        answer = browser.call("DELETE", f"api/kernels/{kernel_id}", data=b"x" * 1_000_000)
        assert (answer.status_code, answer.headers["Content-Type"]) == (503, "text/html; charset=UTF-8")
        assert "<html>" in answer.text
        with browser.channels(kernel_id):
            pass
    assert [kernel["id"] for kernel in browser.get("api/kernels")] == [kernel_id]


def test_refused_handshakes_are_counted(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    spaces.switches.websocket_refusals = 2
    for status in (502, 403):
        spaces.switches.websocket_refusal_status = status
        assert browser.get("api/status")
        with pytest.raises(WebSocketBadStatusException) as refused:
            browser.channels(kernel_id)
        assert refused.value.status_code == status
    with browser.channels(kernel_id) as channels:
        assert channels.run("print(1)") == "1\n"


def save(browser: Browser, name: str, text: str = "") -> requests.Response:
    source = {"cell_type": "markdown", "metadata": {}, "id": "a", "source": text}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [source]}
    if name.endswith(".txt"):
        return browser.call(
            "PUT", f"api/contents/{name}", json={"type": "file", "format": "text", "content": text}
        )
    return browser.call("PUT", f"api/contents/{name}", json={"type": "notebook", "content": notebook})


def test_failed_saves_concern_notebooks_only(spaces: LocalStudio, browser: Browser) -> None:
    assert save(browser, "Größe 1.ipynb", "first").status_code == 201
    spaces.switches.save_failures = 2
    assert save(browser, "note.txt").status_code == 201
    assert browser.get("api/contents/Größe 1.ipynb")["type"] == "notebook"
    failed = save(browser, "Größe 1.ipynb", "second")
    assert (failed.status_code, failed.json()["message"]) == (
        500,
        "Unexpected error while saving file: Größe 1.ipynb",
    )
    spaces.switches.save_failure_status = 413
    assert save(browser, "Größe 1.ipynb", "third").status_code == 413
    assert "first" in (spaces.home / "Größe 1.ipynb").read_text()
    assert save(browser, "Größe 1.ipynb", "fourth").status_code == 200
    assert "fourth" in (spaces.home / "Größe 1.ipynb").read_text()


def test_delayed_save_outlives_its_client(spaces: LocalStudio, browser: Browser) -> None:
    spaces.switches.save_delay = 0.4
    started = time.monotonic()
    assert save(browser, "note.txt").ok
    assert time.monotonic() - started < 0.4
    body = json.dumps(
        {"type": "notebook", "content": {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}}
    )
    headers = {"X-XSRFToken": browser.xsrf, "Cookie": browser.cookies}
    with pytest.raises(requests.Timeout):
        requests.put(f"{browser.base}/api/contents/late.ipynb", data=body, headers=headers, timeout=0.1)
    assert not (spaces.home / "late.ipynb").exists()
    until((spaces.home / "late.ipynb").exists)
    assert 0.4 <= time.monotonic() - started < 3


def test_requests_are_told_before_they_are_dealt_with(
    spaces: LocalStudio, browser: Browser, kernel_id: str
) -> None:
    told: list[tuple[str, str]] = []
    states: list[bool] = []

    def callback(method: str, path: str) -> None:
        told.append((method, path))
        states.append((spaces.home / "told.txt").exists())

    remove = spaces.on_request(callback)
    save(browser, "told.txt", "x")
    with browser.channels(kernel_id):
        pass
    remove()
    remove()
    browser.get("api/status?x=1")
    base = "/jupyterlab/default/api"
    assert told == [("PUT", f"{base}/contents/told.txt"), ("GET", f"{base}/kernels/{kernel_id}/channels")]
    assert states == [False, True]
    with spaces.on_request(callback):
        browser.get("api/status?x=1")
    browser.get("api/status")
    assert told[2:] == [("GET", f"{base}/status")]


def test_callback_strikes_in_the_middle_of_a_save(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    waiting = []

    def strike(method: str, path: str) -> None:
        if method == "PUT":
            assert spaces.cut_websockets("reset") == 1
            spaces.kill_kernel(kernel_id)
            try:
                spaces.kernels()
            except RuntimeError as error:
                waiting.append(str(error))

    channels = browser.channels(kernel_id)
    channels.run("1")
    with spaces.on_request(strike):
        assert save(browser, "struck.ipynb").status_code == 201
    assert isinstance(until_broken(channels), ConnectionResetError)
    assert "another thread" in waiting[0]


def test_requests_are_held_until_released(spaces: LocalStudio, browser: Browser) -> None:
    with ThreadPoolExecutor() as pool:
        with spaces.hold("PUT", "api/contents/a b") as held:
            assert held.wait(0.05) is False
            save(browser, "not-held.ipynb")
            saving = pool.submit(save, browser, "a b.ipynb", "one")
            assert held.wait(5) is True
            assert browser.get("api/status")
            assert not (spaces.home / "a b.ipynb").exists()
            assert not saving.done()
            held.release()
            assert saving.result(10).status_code == 201
            assert save(browser, "a b.ipynb").status_code == 200
            assert held.requests == [("PUT", "/jupyterlab/default/api/contents/a%20b.ipynb")]
        with spaces.hold("get", "api/status") as held:
            asking = pool.submit(browser.get, "api/status")
            assert held.wait(5)
        assert asking.result(10)


# ---- what the server missed, idle shutdown, processes -----------------------------------------------------


@pytest.fixture(params=["jupyterlab", "classic"])
def studio(request: pytest.FixtureRequest) -> LocalStudio:
    found: LocalStudio = request.getfixturevalue("spaces" if request.param == "jupyterlab" else "classic")
    return found


@pytest.fixture
def user(studio: LocalStudio) -> Iterator[Browser]:
    with Browser(studio) as logged_in:
        yield logged_in


def new_session(user: Browser, path: str = "f.ipynb") -> tuple[str, str]:
    name = CLASSIC_NAME if "/jupyter/" in user.base else "python3"
    body = {"path": path, "name": "f", "type": "notebook", "kernel": {"name": name}}
    session = user.post("api/sessions", body)
    return session["id"], session["kernel"]["id"]


@contextlib.contextmanager
def session_kernel(user: Browser) -> Iterator[str]:
    session_id, kernel_id = new_session(user)
    yield kernel_id
    user.call("DELETE", f"api/sessions/{session_id}")


@pytest.mark.parametrize("replay", [True, False])
def test_replay(studio: LocalStudio, user: Browser, replay: bool) -> None:
    studio.switches.replay = replay
    with session_kernel(user) as kernel_id:
        channels = user.channels(kernel_id, session_id="mine")
        channels.run("1")
        go, ready = studio.home / "go", studio.home / "ready"
        cell = channels.execute(
            "import pathlib, time; print('missed', flush=True); pathlib.Path('ready').touch()\n"
            "while not pathlib.Path('go').exists(): time.sleep(0.02)\nprint('present')"
        )
        while channels.receive()["content"].get("execution_state") != "busy":
            pass
        assert studio.cut_websockets() == 1
        until_broken(channels)
        until(ready.exists)
        with user.channels(kernel_id, session_id="mine") as again:
            assert studio.websockets()[-1].session_id == "mine"
            time.sleep(1)  # a server that replays nothing has subscribed to the outputs just now
            go.touch()
            again.socket.settimeout(5)
            heard: list[dict[str, Any]] = []
            while not any(m["content"].get("execution_state") == "idle" for m in heard):
                if (message := again.receive())["parent_header"].get("msg_id") == cell:
                    heard.append(message)
            # A reply would be on its way for longer than this one's.
            after = again.execute("1")
            while (message := again.receive())["parent_header"].get("msg_id") != after or message[
                "channel"
            ] != "shell":
                heard.append(message)
        replied = any(m["channel"] == "shell" and m["parent_header"].get("msg_id") == cell for m in heard)
        assert "present" in printed(heard)
        assert replied is replay
        go.unlink()
        ready.unlink()


def test_idle_shutdown(studio: LocalStudio, user: Browser) -> None:
    root = studio.home.parent
    servers_before = studio.server_url
    _, kernel_id = new_session(user)
    with user.channels(kernel_id) as channels:
        channels.run("1")
        studio.switches.idle_timeout = 0.8
        started = time.monotonic()
        # Output is activity, as is nothing else.
        channels.run("import time\nfor i in range(6): print(i, flush=True); time.sleep(0.2)")
        assert studio.app_status == "InService"
        pid = studio.kernel_pid(kernel_id)
        until(lambda: studio.app_status == "Deleted", 6)
        assert 1.7 < time.monotonic() - started < 5
        until_broken(channels)
    assert not Path(f"/proc/{pid}").exists()
    assert processes_of(root) == []
    assert (studio.kernels(), studio.sessions()) == ([], [])
    # A new app has the whole time again.
    studio.switches.idle_timeout = 60
    studio.start_app()
    assert studio.server_url != servers_before


def test_killed_kernel_is_restarted_by_the_server(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    with browser.channels(kernel_id) as channels:
        told = int(channels.run("import os; print(os.getpid())"))
        forked = "import multiprocessing as m, time; m.get_context('fork').Process(target=time.sleep, args=(60,)).start()"
        channels.until_done(channels.execute(forked))
        assert spaces.kernel_pid(kernel_id) == told
        spaces.kill_kernel(kernel_id)
        while channels.receive()["content"].get("execution_state") != "restarting":
            pass
        assert until(lambda: _pid_or_none(spaces, kernel_id)) != told


def _pid_or_none(studio: LocalStudio, kernel_id: str) -> int | None:
    try:
        return studio.kernel_pid(kernel_id)
    except LookupError:
        return None


def test_other_signals_for_kernels(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    with browser.channels(kernel_id) as channels:
        channels.run("1")
        # The kernel says that it is busy before it runs the cell, and loses a signal that comes in between.
        cell = channels.execute("print('asleep', flush=True); import time; time.sleep(30)")
        while "asleep" not in channels.receive()["content"].get("text", ""):
            pass
        spaces.kill_kernel(kernel_id, signal.SIGINT)
        assert any(m["content"].get("ename") == "KeyboardInterrupt" for m in channels.until_done(cell))
    with pytest.raises(LookupError):
        spaces.kill_kernel("00000000-0000-0000-0000-000000000000")


def test_server_restarts_under_its_app(studio: LocalStudio, user: Browser) -> None:
    _, kernel_id = new_session(user)
    channels = user.channels(kernel_id)
    channels.run("1")
    pid = studio.kernel_pid(kernel_id)
    seen: set[int] = set()
    over = threading.Event()
    created = studio.apps()[0]["CreationTime"]

    def ask() -> None:
        while not over.is_set():
            assert studio.app_status == "InService"
            seen.add(user.call("GET", "api/status").status_code)
            time.sleep(0.02)

    with ThreadPoolExecutor() as pool:
        asking = pool.submit(ask)
        studio.restart_server()
        over.set()
        asking.result(10)
    assert HTTPStatus.BAD_GATEWAY in seen
    assert seen <= {200, 502}
    until_broken(channels)
    assert not Path(f"/proc/{pid}").exists()
    assert (user.get("api/sessions"), user.get("api/kernels")) == ([], [])  # the login is still good
    assert studio.apps()[0]["CreationTime"] == created
    with session_kernel(user) as kernel_id, user.channels(kernel_id) as again:
        assert again.run("print(2)") == "2\n"


def test_only_a_running_server_restarts() -> None:
    with LocalStudio(app_status="Stopped") as stopped, pytest.raises(RuntimeError, match="Deleted"):
        stopped.restart_server()


# ---- switches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("refuse_connections", "yes"),
        ("http_delay", -1),
        ("save_delay", "1"),
        ("http_drops", 1.5),
        ("http_errors", True),
        ("save_failures", -1),
        ("http_error_status", 200),
        ("save_failure_status", 599),
        ("websocket_refusal_status", "502"),
        ("idle_timeout", 0),
        ("replay", None),
        ("instance_metrics", None),
        ("memory_percent", 101),
        ("memory_percent", "90"),
    ],
)
def test_wrong_values_of_switches(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"switch {name} must be"):
        Switches(**{name: value})  # type: ignore[arg-type]


def test_faults_on_the_command_line() -> None:
    given = [cli._switch(text) for text in ("replay=false", "http_errors=3", "memory_percent=97.5")]
    assert given == [("replay", False), ("http_errors", 3), ("memory_percent", 97.5)]


def test_counting_down_from_several_threads() -> None:
    switches = Switches(http_drops=2000)

    def take() -> int:
        return sum(switches.take("http_drops") for _ in range(1000))

    with ThreadPoolExecutor(4) as pool:
        assert sum(future.result() for future in [pool.submit(take) for _ in range(4)]) == 2000
    assert switches.http_drops == 0
