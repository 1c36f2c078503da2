"""The door as an HTTP proxy, in front of the real server and of servers that misbehave."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers.browser import Browser


def test_big_download_streams(spaces: LocalStudio, browser: Browser) -> None:
    data = os.urandom(1 << 20) * 200
    (spaces.home / "big.bin").write_bytes(data)
    digest = hashlib.sha256()
    with browser.call("GET", "files/big.bin", stream=True) as answer:
        for piece in answer.iter_content(1 << 20):
            digest.update(piece)
    assert digest.digest() == hashlib.sha256(data).digest()
    (spaces.home / "big.bin").unlink()


def test_big_upload(spaces: LocalStudio, browser: Browser) -> None:
    text = "0123456789abcdef" * (60 << 16)
    model = {"type": "file", "format": "text", "content": text}
    assert browser.call("PUT", "api/contents/up.txt", json=model).status_code == 201
    assert (spaces.home / "up.txt").read_text() == text
    assert browser.call("DELETE", "api/contents/up.txt").status_code == 204


def test_chunked_upload(spaces: LocalStudio, browser: Browser) -> None:
    body = json.dumps({"type": "file", "format": "text", "content": "in pieces"}).encode()

    def pieces() -> Iterator[bytes]:
        yield body[:10]
        time.sleep(0.1)
        yield body[10:]

    assert browser.call("PUT", "api/contents/pieces.txt", data=pieces()).status_code == 201
    assert (spaces.home / "pieces.txt").read_text() == "in pieces"


def test_compressed_answers_pass_unchanged(browser: Browser) -> None:
    with browser.call("GET", "lab", headers={"Accept-Encoding": "gzip"}, stream=True) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert b"<html" in gzip.decompress(answer.raw.read(decode_content=False)).lower()


def test_expect_continue(spaces: LocalStudio, browser: Browser) -> None:
    body = json.dumps({"type": "file", "format": "text", "content": "asked first"}).encode()
    with socket.create_connection(("127.0.0.1", int(spaces.door_url.rpartition(":")[2])), timeout=10) as raw:
        head = (
            "PUT /jupyterlab/default/api/contents/asked.txt HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Cookie: {browser.cookies}\r\nX-XSRFToken: {browser.xsrf}\r\nExpect: 100-continue\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        raw.sendall(head.encode())
        assert raw.recv(1000).startswith(b"HTTP/1.1 100 ")
        raw.sendall(body)
        assert b" 201 Created" in raw.recv(1000)
    assert (spaces.home / "asked.txt").read_text() == "asked first"


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"GET /" + b"x" * 300_000, b"GET / HT"]
)
def test_nonsense_ends_the_connection_only(spaces: LocalStudio, browser: Browser, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(spaces.door_url.rpartition(":")[2])), timeout=10) as raw:
        try:
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            answer = raw.recv(1000)
        except OSError:
            answer = b""
        assert answer == b""
    assert browser.get("api/status")["kernels"] >= 0


@pytest.fixture
def behind(spaces: LocalStudio, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Put a server behind the door that answers with given bytes and then closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    answers: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answers[-1])

    thread = threading.Thread(target=serve)
    thread.start()
    monkeypatch.setattr(spaces._slot.server, "port", listener.getsockname()[1])
    yield answers.append
    monkeypatch.undo()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_server_that_answers_nothing(browser: Browser, behind: Callable[[bytes], None]) -> None:
    behind(b"")
    assert browser.call("GET", "api/status").status_code == 502


def test_answer_without_a_length_lasts_until_the_end(browser: Browser, behind: Callable[[bytes], None]) -> None:
    behind(b"HTTP/1.1 299 Odd\r\nX-One: 1\r\nX-One: 2\r\nSet-Cookie: a=value-that-a-test-sets\r\n\r\nall of it")
    answer = browser.call("GET", "api/status")
    assert (answer.status_code, answer.reason, answer.text) == (299, "Odd", "all of it")
    assert answer.headers["X-One"] == "1, 2"


def test_early_refusal_of_a_big_body(browser: Browser, behind: Callable[[bytes], None]) -> None:
    behind(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
    # The server closes while the client still sends: the answer or a broken connection, never a hang.
    with contextlib.suppress(OSError):
        assert browser.call("PUT", "api/contents/x", data=b"x" * 30_000_000).status_code in (403, 502)


def test_answer_that_breaks_off(browser: Browser, behind: Callable[[bytes], None]) -> None:
    behind(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
    with pytest.raises(OSError):
        browser.call("GET", "api/status")


def test_server_gone(browser: Browser, spaces: LocalStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr(spaces._slot.server, "port", port)
    assert browser.call("GET", "api/status").status_code == 502


def test_paths_of_the_studio_home(spaces: LocalStudio, browser: Browser) -> None:
    (spaces.home / ".hidden").write_text("x")
    (spaces.home / "Straße & co").mkdir()
    assert browser.get("api/contents/.hidden")["content"] == "x"
    assert browser.get("api/contents/Stra%C3%9Fe%20%26%20co")["type"] == "directory"
    assert browser.call("DELETE", "api/contents/Stra%C3%9Fe%20%26%20co").status_code == 204
    assert not Path(spaces.home / "Straße & co").exists()
