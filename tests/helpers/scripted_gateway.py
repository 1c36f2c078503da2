"""A scripted HTTP server on this machine, for answers that no local Studio gives."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from airflow_provider_smstudio.studio.jupyter.auth import StudioSession

BASE = "/jupyterlab/default"
Answer = tuple[int, dict[str, str], str]


@dataclass
class Door:
    """A server that answers by path, and keeps what it was asked."""

    answers: dict[str, list[Answer] | Answer] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str) -> Answer:
        found = self.answers.get(path.partition("?")[0], (404, {}, "nothing here"))
        return found.pop(0) if isinstance(found, list) else found

    def session(self, app_type: str = "JupyterLab") -> StudioSession:
        return StudioSession(lambda: f"{self.url}/auth?token=abc", app_type)

    def count(self, path: str) -> int:
        return sum(asked == path for _, asked, _ in self.asked)


def html(text: str = "<html>", status: int = 200, headers: Mapping[str, str] = {}) -> Answer:
    return status, {"Content-Type": "text/html", **headers}, text


def data(value: object, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value)


def to(url: str, headers: Mapping[str, str] = {}) -> Answer:
    return 302, {"Location": url, **headers}, ""


def open_door() -> Iterator[Door]:
    door = Door()

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self) -> None:
            path = self.path.partition("?")[0]
            door.asked.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, text = door.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                for one in value.split("\n"):
                    self.send_header(name, one)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = do_DELETE = reply

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    door.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    yield door
    server.shutdown()
    server.server_close()
    thread.join()
