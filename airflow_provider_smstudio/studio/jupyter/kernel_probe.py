"""Checks from a second, short-lived kernel whether a run's kernel still exists.

Some Jupyter servers never notice that a kernel has crashed (measured: jupyter_server_documents 0.2). A busy kernel
may be unable to answer for hours. A second kernel in the same space can distinguish the two cases
(:mod:`~airflow_provider_smstudio.studio.protocol.kernel_probe_source`). All functions here block, so call them in
a thread.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from airflow_provider_smstudio.studio.errors import ConnectionLostError, KernelStartError, StudioError
from airflow_provider_smstudio.studio.jupyter import websocket as websockets
from airflow_provider_smstudio.studio.jupyter.kernel_removal import remove_kernel
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.jupyter.server_settling import wait_until_settled
from airflow_provider_smstudio.studio.protocol import kernel_probe_source
from airflow_provider_smstudio.studio.protocol.kernelspecs import KernelSpecs
from airflow_provider_smstudio.studio.protocol.messages import Message, request

log = logging.getLogger(__name__)

_LIMIT = 60.0
"""Seconds that each step may take: the start of the kernel, the websocket, the answer."""

_MUTE_LIMIT = 15.0
"""Seconds without an answer after which the second kernel is replaced, once."""

_EXPRESSION = "smstudio"


@dataclass(frozen=True)
class ProbeResult:
    """The result of a check.

    :ivar began: when the check began, by the monotonic clock.
    :ivar there: whether the kernel's process exists; None if the check could not find out.
    :ivar reason: why the check could not find out.
    """

    began: float
    there: bool | None
    reason: str = ""


class KernelProbe:
    """Checks the kernel of one run, in the background.

    :param server: the Jupyter server.
    :param path: the path of the second kernel's Jupyter session; see :meth:`Identity.probe_path`.
    """

    def __init__(self, server: JupyterServer, path: str) -> None:
        self._server, self._path = server, path
        self._lock = threading.Lock()
        self._finding: ProbeResult | None = None
        self._second: SecondKernel | None = None
        self._done = threading.Event()
        self._done.set()

    def begin(self, kernel_id: str, process: str | None, begin: Callable[[Callable[[], None]], object]) -> None:
        """Begin a check, unless an earlier check still runs.

        :param kernel_id: the kernel to check.
        :param process: its process, if known: :func:`kernel_probe_source.this_process`.
        :param begin: runs a function in a thread.
        """
        with self._lock:
            if not self._done.is_set():
                return
            self._done.clear()
            second = self._second = SecondKernel(self._server, self._path)
        try:
            begin(lambda: self._look(second, kernel_id, process))
        except RuntimeError:  # no thread can be started
            self._done.set()

    def take(self) -> ProbeResult | None:
        """Return the result of the last check once; None if there is no new result."""
        with self._lock:
            found, self._finding = self._finding, None
        return found

    def end(self, seconds: float) -> None:
        """Cancel a running check, and remove its kernel.

        :param seconds: how long to wait for that, at most.
        """
        second = self._second
        if second is None or self._done.is_set():
            return
        second.give_up()
        if second.begun and not self._done.wait(seconds):
            second.remove()  # its own thread may end before it removes the kernel

    def _look(self, second: SecondKernel, kernel_id: str, process: str | None) -> None:
        began = time.monotonic()
        finding = ProbeResult(began, None, "the check failed")
        try:
            with self._server.one_look:
                text = self._ask(second, look_source(process, kernel_id))
            there = {kernel_probe_source.GONE: False, kernel_probe_source.THERE: True}.get(text)
            finding = ProbeResult(began, there, "" if there is not None else "the check found no answer")
        except StudioError as error:
            finding = ProbeResult(began, None, str(error))
        except Exception as error:  # any error: the next check may succeed
            finding = ProbeResult(began, None, type(error).__name__)
        finally:
            with self._lock:
                self._finding = finding
            self._done.set()

    def _ask(self, second: SecondKernel, code: str) -> str:
        """Run code in a second kernel, and in another one if the first one does not answer.

        About one kernel in 200 never answers with jupyter_server_documents 0.2 (measured).
        """
        with second:
            try:
                return second.ask(code, limit=_MUTE_LIMIT)
            except ConnectionLostError as error:
                if second.given_up:
                    raise
                log.info("%s: another one is started", error)
        with second:
            return second.ask(code)


class SecondKernel:
    """A short-lived kernel beside the other kernels. Use it as a context manager, again for another kernel.

    :param server: the Jupyter server.
    :param path: the path of its Jupyter session.
    """

    def __init__(self, server: JupyterServer, path: str) -> None:
        self._server, self._path = server, path
        self.begun = False
        self._session_id: str | None = None
        self._given_up = threading.Event()
        self._websocket: websockets.KernelWebSocket | None = None
        self.kernel_id: str | None = None

    def __enter__(self) -> SecondKernel:
        try:
            self._start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def give_up(self) -> None:
        """End the current step as soon as possible. Call this method from another thread."""
        self._given_up.set()

    @property
    def given_up(self) -> bool:
        """Whether the current step must end."""
        return self._given_up.is_set()

    def ask(self, code: str, *, limit: float = _LIMIT) -> str:
        """Run code, and return the text that the code stores in the variable ``_smstudio``.

        :param code: the code.
        :param limit: how long to wait for the answer, in seconds.
        :raises StudioError: if there is no answer.
        """
        websocket = self._websocket
        assert websocket is not None  # noqa: S101  # __enter__ has opened it
        message = _question(code)
        websocket.send(message)
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline and not self._given_up.is_set():
            answer = websocket.receive(0.5)
            if answer is None or answer["header"].get("msg_type") != "execute_reply":
                continue
            if answer["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return _text(answer)
        raise ConnectionLostError(f"a second kernel did not answer within {limit:g} s")

    def _start(self) -> None:
        self._require_wanted()
        self.begun = True
        kernel = {"name": _python_kernel(self._server.kernelspecs())}
        session = self._server.start_session(kernel, self._path, "smstudio probe", timeout=_LIMIT)
        self._session_id, self.kernel_id = str(session["id"]), str(session["kernel"]["id"])
        deadline = time.monotonic() + _LIMIT
        while True:
            self._require_wanted()
            try:
                self._websocket = websockets.connect(
                    self._server.session, self.kernel_id, uuid.uuid4().hex, timeout=_LIMIT
                )
                wait_until_settled(self._server, self.kernel_id, self._websocket, self._require_wanted)
                return
            except (ConnectionLostError, KernelStartError):  # jupyter_server_documents refuses it at first
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.3)

    def _require_wanted(self) -> None:
        if self._given_up.is_set():
            raise ConnectionLostError("the check was cancelled")

    def remove(self) -> None:
        """Remove the kernel, and log a failure. A second call does nothing."""
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            with contextlib.suppress(StudioError):
                websocket.close()
        if not self.begun:
            return
        hurry = self._given_up.is_set()
        try:
            for session_id, kernel_id in self._sessions(2.0 if hurry else 60.0):
                remove_kernel(self._server, session_id, kernel_id, hurry=hurry)
            self.begun, self._session_id, self.kernel_id = False, None, None
        except StudioError as error:
            log.warning("the second kernel %s may still run: %s", self.kernel_id or "", error)

    def _sessions(self, timeout: float) -> list[tuple[str, str | None]]:
        """Return the sessions and kernels to remove. A server may have started a session and sent no answer."""
        if self._session_id is not None:
            return [(self._session_id, self.kernel_id)]
        found = [item for item in self._server.sessions(timeout=timeout) if item.get("path") == self._path]
        return [(str(item["id"]), (item.get("kernel") or {}).get("id")) for item in found]


def notes_activity(server: JupyterServer, path: str) -> bool:
    """Return whether the server reports when its kernels were last used. A second kernel tests this.

    :param server: the Jupyter server.
    :param path: the path of the second kernel's Jupyter session.
    :raises StudioError: if the test failed.
    """
    with SecondKernel(server, path) as second:
        kernel_id = second.kernel_id or ""
        second.ask("_smstudio = ''")
        before = (server.kernel(kernel_id) or {}).get("last_activity")
        second.ask("_smstudio = ''")
        return bool((server.kernel(kernel_id) or {}).get("last_activity") != before)


def look_source(process: str | None, kernel_id: str) -> str:
    """Return the code that checks a kernel's process, and stores the result in ``_smstudio``."""
    return f"{_source()}\n_smstudio = look({process!a}, {kernel_id!a})\n"


@cache
def _source() -> str:
    return Path(kernel_probe_source.__file__).read_text(encoding="utf-8")


def _python_kernel(specs: KernelSpecs) -> str:
    """Return the name of a kernelspec that runs Python.

    :raises KernelStartError: if there is none.
    """
    names = [name for name in (specs.default, "python3", *specs.specs) if name in specs.specs]
    for name in names:
        spec: Any = specs.specs[str(name)].get("spec") or {}
        if str(spec.get("language", "")).lower() == "python" and "ipykernel" in " ".join(spec.get("argv") or ()):
            return str(name)
    for name in names:
        if name == "python3":
            return name
    raise KernelStartError("the app has no Python kernel for the check")


def _question(code: str) -> Message:
    content = {
        "code": code,
        "silent": True,
        "store_history": False,
        "user_expressions": {_EXPRESSION: "_smstudio"},
        "allow_stdin": False,
        "stop_on_error": False,
    }
    return request("execute_request", content, session=uuid.uuid4().hex, msg_id=uuid.uuid4().hex)


def _text(reply: Message) -> str:
    """Return the text that the code has stored.

    :raises ConnectionLostError: if there is none.
    """
    try:
        shown = reply["content"]["user_expressions"][_EXPRESSION]["data"]["text/plain"]
        text = ast.literal_eval(shown)
    except (KeyError, TypeError, ValueError, SyntaxError):
        text = None
    if not isinstance(text, str):
        raise ConnectionLostError(f"a second kernel answered {reply['content'].get('status')!r} without a result")
    return text
