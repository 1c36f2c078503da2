"""Kernel websockets through the door, on real kernels."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from pathlib import Path

import pytest
import requests
from websocket import ABNF, WebSocketConnectionClosedException

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers.browser import V1, Browser, Channels, processes_of


@pytest.mark.parametrize("v1", [False, True], ids=["json", "v1"])
def test_a_kernel_talks(browser: Browser, kernel_id: str, v1: bool) -> None:
    with browser.channels(kernel_id, v1) as channels:
        subprotocol = (channels.socket.getheaders() or {}).get("sec-websocket-protocol")
        assert subprotocol == (V1 if v1 else None)
        info = channels.until_done(channels.send("kernel_info_request", {}))
        assert next(m for m in info if m["msg_type"] == "kernel_info_reply")["content"]["status"] == "ok"
        assert channels.run("print(6 * 7)") == "42\n"


def test_greeting_names_requests_that_the_client_did_not_send(browser: Browser, kernel_id: str) -> None:
    with browser.channels(kernel_id) as channels:
        while (first := channels.receive())["msg_type"] != "status":
            pass
        assert first["parent_header"]["msg_type"] == "kernel_info_request"


def test_control_channel_answers_while_a_cell_runs(browser: Browser, kernel_id: str) -> None:
    with browser.channels(kernel_id) as channels:
        cell = channels.execute("import time; time.sleep(1.5); print('done')")
        started = time.monotonic()
        channels.until_done(channels.send("kernel_info_request", {}, channel="control"))
        assert time.monotonic() - started < 1.2
        messages = channels.until_done(cell)
        assert any(m["content"].get("text") == "done\n" for m in messages)


@pytest.mark.parametrize("v1", [False, True], ids=["json", "v1"])
def test_big_output_arrives_whole(browser: Browser, kernel_id: str, v1: bool) -> None:
    with browser.channels(kernel_id, v1) as channels:
        shown = channels.until_done(channels.execute("display({'text/plain': 'x' * 20_000_000}, raw=True)"))
        sizes = [len(m["content"]["data"]["text/plain"]) for m in shown if m["msg_type"] == "display_data"]
        assert sizes == [20_000_000]
        lines = channels.run("for i in range(20_000): print(i)").split()
        assert lines == [str(i) for i in range(20_000)]


def test_a_slow_client_holds_the_door_back(browser: Browser, kernel_id: str) -> None:
    with browser.channels(kernel_id, True) as channels:
        before = _resident_bytes()
        code = "for i in range(50): display({'text/plain': 'x' * 1_000_000}, raw=True)"
        cell = channels.execute(code)
        time.sleep(1.5)
        # Much less than the 50 MB that wait in the server and the sockets.
        assert _resident_bytes() - before < 15_000_000
        messages = channels.until_done(cell)
        assert [m["msg_type"] for m in messages].count("display_data") == 50


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def connections(studio: LocalStudio, kernel_id: str) -> int:
    return next(kernel["connections"] for kernel in studio.kernels() if kernel["id"] == kernel_id)


def wait_until_gone(studio: LocalStudio, kernel_id: str) -> None:
    deadline = time.monotonic() + 5
    while connections(studio, kernel_id):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_client_close_reaches_the_server(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    channels = browser.channels(kernel_id)
    assert connections(spaces, kernel_id) == 1
    channels.socket.send_close()
    # The server's own close frame comes back, then the end of the connection.
    while (frame := channels.socket.recv_frame()).opcode != ABNF.OPCODE_CLOSE:
        pass
    assert struct.unpack(">H", frame.data[:2])[0] == 1000
    assert channels.socket.sock is not None
    assert channels.socket.sock.recv(1) == b""
    channels.socket.shutdown()
    wait_until_gone(spaces, kernel_id)


def test_client_reset_reaches_the_server(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    channels = browser.channels(kernel_id)
    raw = channels.socket.sock
    assert raw is not None
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()
    wait_until_gone(spaces, kernel_id)


def test_missed_output_is_replayed_as_by_the_real_server(
    spaces: LocalStudio, browser: Browser, kernel_id: str
) -> None:
    channels = browser.channels(kernel_id, session_id="the-same")
    cell = channels.execute("import time\nfor i in range(5): print(i, flush=True); time.sleep(0.2)")
    channels.socket.shutdown()
    wait_until_gone(spaces, kernel_id)
    with browser.channels(kernel_id, session_id="the-same") as again:
        text = "".join(m["content"].get("text", "") for m in again.until_done(cell))
        assert text.split() == ["0", "1", "2", "3", "4"][-len(text.split()) :]
        assert "4" in text


def test_server_death_reaches_the_client_and_fails_the_app(
    spaces: LocalStudio, browser: Browser, kernel_id: str
) -> None:
    with browser.channels(kernel_id) as channels:
        channels.run("1")
        for pid in processes_of(spaces.home.parent):
            with contextlib.suppress(OSError):
                if "jupyterlab" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:4]:
                    os.kill(pid, signal.SIGKILL)
        with pytest.raises((WebSocketConnectionClosedException, ConnectionError)):
            channels.run("print('never')")
    deadline = time.monotonic() + 5
    while spaces.app_status != "Failed":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    app = {"DomainId": spaces.domain_id, "SpaceName": spaces.space_name, "AppType": "JupyterLab"}
    described = spaces.client().describe_app(**app, AppName="default")
    assert "encountered a problem and was stopped" in described["FailureReason"]
    assert (spaces.kernels(), spaces.sessions()) == ([], [])
    # Whoever asks next gets a page for people.
    assert "Loading" in browser.call("GET", "api/status").text


def test_unknown_kernel(browser: Browser) -> None:
    target = f"{browser.base}/api/kernels/00000000-0000-0000-0000-000000000000/channels"
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x" * 16,
    }
    assert browser.http.get(target, headers=headers, timeout=10).status_code == 404


def test_the_proxy_adds_no_nagle_delay(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    """Pings cross door and server at once, in both directions, also between messages."""
    with browser.channels(kernel_id) as channels:
        channels.run("1")
        times = []
        for _ in range(20):
            started = time.perf_counter()
            channels.socket.send_frame(ABNF.create_frame(b"p", ABNF.OPCODE_PING))
            while channels.socket.recv_data(control_frame=True)[0] != ABNF.OPCODE_PONG:
                pass
            times.append(time.perf_counter() - started)
        assert sorted(times)[10] < 0.02


def test_requests_of_many_kinds_share_a_connection(browser: Browser, kernel_id: str) -> None:
    for _ in range(3):
        assert browser.call("HEAD", "api/status").status_code in (200, 405)
        assert browser.call("POST", f"api/kernels/{kernel_id}/interrupt").status_code == 204
        assert browser.call("GET", "api/kernels/nonsense").status_code == 404
    pools = browser.http.get_adapter(browser.base).poolmanager.pools  # type: ignore[attr-defined]
    assert [pools[key].num_connections for key in pools.keys()] == [1]  # noqa: SIM118 - not a dict


def test_two_websockets_of_one_kernel(browser: Browser, kernel_id: str) -> None:
    with contextlib.ExitStack() as stack:
        one: Channels = stack.enter_context(browser.channels(kernel_id))
        other: Channels = stack.enter_context(browser.channels(kernel_id, True))
        assert one.run("x = 1; print(x)") == "1\n"
        assert other.run("print(x + 1)") == "2\n"


def test_home_of_the_kernel_is_the_studio_home(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    with browser.channels(kernel_id) as channels:
        assert channels.run("import pathlib; print(pathlib.Path.home())").strip() == str(spaces.home)
        leaked = channels.run("import os; print([n for n in os.environ if n.startswith(('PYTEST_', 'AWS_ENDP'))])")
        assert leaked.strip() == "[]"
    assert requests.get(f"{spaces.server_url}/api/status", timeout=5).json()["kernels"] >= 1
