"""A small client of our own: plain requests and websocket-client, as any program outside would use."""

from __future__ import annotations

import itertools
import json
import os
import struct
import time
import uuid
from pathlib import Path
from typing import Any

import requests
import websocket

from airflow_provider_smstudio.local import LocalStudio

V1 = "v1.kernel.websocket.jupyter.org"
PATIENCE = 60
"""Seconds that a websocket waits for a message, unless a test says else."""


def presign(studio: LocalStudio, **extra: Any) -> str:
    """Ask the control plane for a login link to the studio's app."""
    if studio.flavour == "jupyterlab":
        extra = {"SpaceName": studio.space_name, **extra}
    answer = studio.client().create_presigned_domain_url(
        DomainId=studio.domain_id, UserProfileName=studio.user_profile_name, **extra
    )
    return answer["AuthorizedUrl"]


class Browser:
    """Cookies, a base URL and the XSRF rule."""

    def __init__(self, studio: LocalStudio, login: bool = True) -> None:
        self.http = requests.Session()
        base = "/jupyter/default" if studio.flavour == "classic" else "/jupyterlab/default"
        self.base = studio.door_url + base
        self.landing = self.http.get(presign(studio)) if login else None

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    @property
    def cookies(self) -> str:
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.http.cookies)

    @property
    def xsrf(self) -> str:
        return next((cookie.value or "" for cookie in self.http.cookies if cookie.name == "_xsrf"), "")

    def call(self, method: str, path: str, **arguments: Any) -> requests.Response:
        headers = {"X-XSRFToken": self.xsrf, **arguments.pop("headers", {})}
        return self.http.request(method, f"{self.base}/{path}", headers=headers, timeout=60, **arguments)

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        answer = self.call("POST", path, json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def channels(self, kernel_id: str, v1: bool = False, session_id: str | None = None) -> Channels:
        return Channels(self, kernel_id, v1, session_id or uuid.uuid4().hex)


class Channels:
    """A kernel's websocket."""

    def __init__(self, browser: Browser, kernel_id: str, v1: bool, session_id: str) -> None:
        self.session_id = session_id
        self.v1 = v1
        self._stranger = lambda: browser.channels(kernel_id)
        self.socket = websocket.create_connection(
            f"{browser.base.replace('http', 'ws', 1)}/api/kernels/{kernel_id}/channels?session_id={session_id}",
            cookie=browser.cookies,
            header={"Sec-WebSocket-Protocol": V1} if v1 else None,
            timeout=PATIENCE,
            skip_utf8_validation=True,
        )

    def __enter__(self) -> Channels:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, msg_type: str, content: dict[str, Any], channel: str = "shell") -> str:
        msg_id = uuid.uuid4().hex
        header = {
            "msg_id": msg_id,
            "msg_type": msg_type,
            "session": self.session_id,
            "username": "",
            "version": "5.3",
        }
        if self.v1:
            parts = [channel.encode(), *(json.dumps(part).encode() for part in (header, {}, {}, content))]
            offsets = [8 * (len(parts) + 2)]
            for part in parts:
                offsets.append(offsets[-1] + len(part))
            self.socket.send_binary(struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts))
        else:
            message = {
                "channel": channel,
                "header": header,
                "parent_header": {},
                "metadata": {},
                "content": content,
            }
            self.socket.send(json.dumps(message))
        return msg_id

    def receive(self) -> dict[str, Any]:
        frame = self.socket.recv()
        if not self.v1:
            assert isinstance(frame, str)
            message: dict[str, Any] = json.loads(frame)
            return message
        assert isinstance(frame, bytes)
        count = struct.unpack_from("<Q", frame)[0]
        offsets = struct.unpack_from(f"<{count}Q", frame, 8)
        parts = [frame[start:end] for start, end in itertools.pairwise(offsets)]
        header, parent, _, content = (json.loads(part) for part in parts[1:5])
        return {
            "channel": parts[0].decode(),
            "msg_type": header["msg_type"],
            "parent_header": parent,
            "content": content,
        }

    def _receive_at_last(self) -> dict[str, Any]:
        """Receive; ipykernel 7.0 to 7.3 may leave a request unread until somebody else comes."""
        if self.socket.gettimeout() != PATIENCE:
            return self.receive()
        deadline = time.monotonic() + PATIENCE
        self.socket.settimeout(5)
        try:
            while True:
                try:
                    return self.receive()
                except websocket.WebSocketTimeoutException:
                    assert time.monotonic() < deadline, "the kernel does not answer"
                    self._stranger().socket.close()
        finally:
            self.socket.settimeout(PATIENCE)

    def execute(self, code: str) -> str:
        return self.send("execute_request", {"code": code, "silent": False, "allow_stdin": False})

    def until_done(self, msg_id: str) -> list[dict[str, Any]]:
        """Messages of one request up to both its reply and its idle status."""
        messages, replied, idle = [], False, False
        while not (replied and idle):
            message = self._receive_at_last()
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            messages.append(message)
            replied = replied or message["channel"] in ("shell", "control")
            idle = idle or message["content"].get("execution_state") == "idle"
        return messages

    def run(self, code: str) -> str:
        """Run a cell; return what it printed."""
        messages = self.until_done(self.execute(code))
        return "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")


def processes_of(folder: Path | str) -> list[int]:
    """Processes whose environment or command line names a local Studio's private folder."""
    assert Path("/proc/self/environ").exists()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            text = Path(f"/proc/{name}/environ").read_bytes() + Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in text:
            found.append(int(name))
    return found
