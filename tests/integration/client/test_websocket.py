"""The kernel's websocket: what it trusts, and connections that break without a word."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import websocket
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from airflow_provider_smstudio.studio.errors import ConnectionLostError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.jupyter import websocket as websockets
from airflow_provider_smstudio.studio.protocol.messages import V1
from tests.helpers.bench import Bench


class FreezingProxy:
    """Passes bytes on in both directions; when frozen, websockets stay open and silent, and HTTP goes on."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.frozen = threading.Event()
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            is_websocket = threading.Event()
            for one, other in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=self._pass_on, args=(one, other, is_websocket)))
                self._threads[-1].start()

    def _pass_on(self, one: socket.socket, other: socket.socket, is_websocket: threading.Event) -> None:
        while True:
            try:
                data = one.recv(65536)
                if not data:
                    other.shutdown(socket.SHUT_WR)
                    return
                if b"upgrade: websocket" in data.lower():
                    is_websocket.set()
                if not (self.frozen.is_set() and is_websocket.is_set()):
                    other.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def proxy(space: Bench) -> Iterator[FreezingProxy]:
    """A proxy before the front door, which the client takes for Studio's host."""
    door = int(space.local.door_url.rpartition(":")[2])
    proxy = FreezingProxy(door)
    presign = space.studio.control_plane.presigned_url
    space.studio.control_plane.presigned_url = (  # type: ignore[method-assign]
        lambda session_seconds=43200: presign(session_seconds).replace(f":{door}/", f":{proxy.port}/")
    )
    yield proxy
    proxy.close()


def test_a_websocket_that_breaks_without_a_word_is_noticed(
    space: Bench, proxy: FreezingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websockets, "PING_AFTER", 0.5)
    monkeypatch.setattr(websockets, "SILENCE_LIMIT", 2.0)
    path = space.write("open('running', 'w').close()\nimport time; time.sleep(30)")

    def freeze() -> None:
        while not (space.path / "running").exists():
            time.sleep(0.05)
        proxy.frozen.set()

    thread = threading.Thread(target=freeze)
    thread.start()
    began = time.monotonic()
    with pytest.raises(ConnectionLostError, match="could not be reached for 3 s"):
        space.run(path, reconnect_timeout=3)
    assert time.monotonic() - began < 40
    (first, *_) = space.of_type(ev.Disconnected)
    assert "has been silent for 2 s" in first.reason
    thread.join()
    space.assert_clean()


def test_a_silent_cell_on_a_good_connection_is_left_alone(space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websockets, "PING_AFTER", 0.5)
    monkeypatch.setattr(websockets, "SILENCE_LIMIT", 2.0)
    assert space.run(space.write("import time; time.sleep(6)")).status == "success"
    assert space.of_type(ev.Disconnected) == []


def test_where_nobody_answers_pings_silence_is_borne_longer(space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websockets, "PING_AFTER", 0.2)
    monkeypatch.setattr(websockets, "SILENCE_LIMIT", 1.0)
    monkeypatch.setattr(websocket.WebSocket, "ping", lambda self, payload="": None)
    assert space.run(space.write("import time; time.sleep(3)")).status == "success"
    assert space.of_type(ev.Disconnected) == []
    monkeypatch.setattr(websockets, "DEAF_LIMIT", 1.0)
    space.events.clear()
    assert space.run(space.write("import time; time.sleep(3)")).status == "success"
    assert space.of_type(ev.Disconnected) != []


def test_the_binary_subprotocol_is_used_where_the_server_has_it(either: Bench) -> None:
    seen: list[str | None] = []
    connect = websockets.connect

    def spy(*arguments: object, **options: object) -> websockets.KernelWebSocket:
        opened = connect(*arguments, **options)  # type: ignore[arg-type]
        seen.append(opened.subprotocol)
        return opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(websockets, "connect", spy)
        either.run(either.write("print('ü' * 10)"))
    assert seen == [None if either.studio.server.classic else V1]
    assert either.executed().cells[0].outputs[0]["text"] == "ü" * 10 + "\n"


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_websocket_and_rest_trust_the_same_certificates(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    assert websockets.trust(True) == {"ca_certs": DEFAULT_CA_BUNDLE_PATH}
    monkeypatch.setenv(name, "/etc/own.pem")
    assert websockets.trust(True) == {"ca_certs": "/etc/own.pem"}
    assert websockets.trust("/etc/given.pem") == {"ca_certs": "/etc/given.pem"}
    assert websockets.trust(str(tmp_path)) == {"ca_cert_path": str(tmp_path)}


def test_a_closed_channel_says_so(space: Bench) -> None:
    server = space.studio.server
    kernel = server.start_session({"name": "python3"}, f"{space.folder}.ipynb", "a name", timeout=60)["kernel"][
        "id"
    ]
    opened = websockets.connect(server.session, kernel, "s", timeout=60)
    opened.close()
    with pytest.raises(ConnectionLostError, match="is closed"):
        opened.receive(1)
    server.delete_kernel(kernel)
