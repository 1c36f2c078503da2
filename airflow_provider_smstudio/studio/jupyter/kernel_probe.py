"""Looks from a second, short-lived kernel whether a run's kernel is still there.

Some Jupyter servers never notice that a kernel has crashed (measured: jupyter_server_documents 0.2), and a kernel
that is busy may be unable to answer for hours. A second kernel of the same space sees which of the two it is
(:mod:`~airflow_provider_smstudio.studio.protocol.kernel_probe_source`). Everything here blocks, and belongs into a
thread.
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
from airflow_provider_smstudio.studio.jupyter.kernel_start import wait_until_settled
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.protocol import kernel_probe_source
from airflow_provider_smstudio.studio.protocol.kernelspecs import KernelSpecs
from airflow_provider_smstudio.studio.protocol.messages import Message, request

log = logging.getLogger(__name__)

_LIMIT = 60.0
"""Seconds that each step may take: the start, the websocket, the answer."""

_MUTE_LIMIT = 15.0
"""Seconds without an answer after which the second kernel is replaced, once."""

_EXPRESSION = "smstudio"


@dataclass(frozen=True)
class ProbeResult:
    """What a look has shown.

    :ivar began: when it began, by the monotonic clock.
    :ivar there: whether the kernel's process is there; None where that could not be seen.
    :ivar reason: why it could not be seen.
    """

    began: float
    there: bool | None
    reason: str = ""


class KernelProbe:
    """Looks for the kernel of one run, in the background.

    :param server: the Jupyter server.
    :param path: path of the second kernel's Jupyter session; see :meth:`Identity.look_path`.
    """

    def __init__(self, server: JupyterServer, path: str) -> None:
        self._server, self._path = server, path
        self._lock = threading.Lock()
        self._finding: ProbeResult | None = None
        self._second: SecondKernel | None = None
        self._done = threading.Event()
        self._done.set()

    def begin(self, kernel_id: str, process: str | None, begin: Callable[[Callable[[], None]], object]) -> None:
        """Begin to look; nothing happens while an earlier look is under way.

        :param kernel_id: the kernel to look for.
        :param process: its process, where it is known: :func:`kernel_probe_source.this_process`.
        :param begin: has something done in a thread.
        """
        with self._lock:
            if not self._done.is_set():
                return
            self._done.clear()
            second = self._second = SecondKernel(self._server, self._path)
        try:
            begin(lambda: self._look(second, kernel_id, process))
        except RuntimeError:  # no thread is to be had
            self._done.set()

    def take(self) -> ProbeResult | None:
        """Return what the last look has shown, once."""
        with self._lock:
            found, self._finding = self._finding, None
        return found

    def end(self, seconds: float) -> None:
        """Give up a look that is under way, and remove its kernel.

        :param seconds: how long to wait for that at most.
        """
        second = self._second
        if second is None or self._done.is_set():
            return
        second.give_up()
        if second.begun and not self._done.wait(seconds):
            second.remove()  # whose own thread may not live to do it

    def _look(self, second: SecondKernel, kernel_id: str, process: str | None) -> None:
        began = time.monotonic()
        finding = ProbeResult(began, None, "the look failed")
        try:
            with self._server.one_look, second:
                text = second.ask(look_source(process, kernel_id))
            there = {kernel_probe_source.GONE: False, kernel_probe_source.THERE: True}.get(text)
            finding = ProbeResult(began, there, "" if there is not None else "nothing here tells")
        except StudioError as error:
            finding = ProbeResult(began, None, str(error))
        except Exception as error:  # whatever it is, the next look may do better
            finding = ProbeResult(began, None, type(error).__name__)
        finally:
            with self._lock:
                self._finding = finding
            self._done.set()

    def _ask(self, second: SecondKernel, code: str) -> str:
        """Run code in a second kernel, and in another one if the first one does not answer.

        A kernel in some 200 never answers, with jupyter_server_documents 0.2 (measured).
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
    """A short-lived kernel beside others; use it as a context manager, again for another kernel.

    :param server: the Jupyter server.
    :param path: its session's path.
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
        """End what is under way as soon as possible; for another thread."""
        self._given_up.set()

    @property
    def given_up(self) -> bool:
        """Whether what is under way must end."""
        return self._given_up.is_set()

    def ask(self, code: str, *, limit: float = _LIMIT) -> str:
        """Run code, and return the text that it leaves in the variable ``_smstudio``.

        :param limit: seconds to wait for the answer.
        :raises StudioError: when there is no answer.
        """
        websocket = self._websocket
        assert websocket is not None  # noqa: S101  # __enter__ has opened it
        message = _question(code)
        websocket.send(message)
        deadline = time.monotonic() + _LIMIT
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
        session = self._server.start_session(kernel, self._path, "smstudio look", timeout=_LIMIT)
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
            raise ConnectionLostError("the look was given up")

    def remove(self) -> None:
        """Remove the kernel; a failure is logged. Harmless when that is done already."""
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
        """Find what was started; a server may have made the session whose answer never came."""
        if self._session_id is not None:
            return [(self._session_id, self.kernel_id)]
        found = [item for item in self._server.sessions(timeout=timeout) if item.get("path") == self._path]
        return [(str(item["id"]), (item.get("kernel") or {}).get("id")) for item in found]


def notes_activity(server: JupyterServer, path: str) -> bool:
    """Tell whether the server notes when its kernels were last used, by using one.

    :param server: the Jupyter server.
    :param path: path of the second kernel's Jupyter session.
    :raises StudioError: when that cannot be tried.
    """
    with SecondKernel(server, path) as second:
        kernel_id = second.kernel_id or ""
        second.ask("_smstudio = ''")
        before = (server.kernel(kernel_id) or {}).get("last_activity")
        second.ask("_smstudio = ''")
        return bool((server.kernel(kernel_id) or {}).get("last_activity") != before)


def look_source(process: str | None, kernel_id: str) -> str:
    """Return the code that looks for a kernel's process, and leaves what it sees in ``_smstudio``."""
    return f"{_source()}\n_smstudio = look({process!a}, {kernel_id!a})\n"


@cache
def _source() -> str:
    return Path(kernel_probe_source.__file__).read_text(encoding="utf-8")


def _python_kernel(specs: KernelSpecs) -> str:
    """Choose a kernel that runs Python.

    :raises KernelStartError: when there is none.
    """
    names = [name for name in (specs.default, "python3", *specs.specs) if name in specs.specs]
    for name in names:
        spec: Any = specs.specs[str(name)].get("spec") or {}
        if str(spec.get("language", "")).lower() == "python" and "ipykernel" in " ".join(spec.get("argv") or ()):
            return str(name)
    for name in names:
        if name == "python3":
            return name
    raise KernelStartError("the app has no Python kernel that could look")


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
    """Read the text that the code has left.

    :raises ConnectionLostError: when it has left none.
    """
    try:
        shown = reply["content"]["user_expressions"][_EXPRESSION]["data"]["text/plain"]
        text = ast.literal_eval(shown)
    except (KeyError, TypeError, ValueError, SyntaxError):
        text = None
    if not isinstance(text, str):
        raise ConnectionLostError(f"a second kernel answered {reply['content'].get('status')!r} and no more")
    return text
