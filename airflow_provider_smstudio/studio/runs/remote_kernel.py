"""One kernel for one run: started with its session and websocket, and removed at the end, whatever happens.

In Studio Classic a kernel has its own app: an instance that costs money until it is deleted.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_smstudio.studio.errors import (
    ConnectionLostError,
    KernelStartError,
    RunKilledError,
    RunTakenOverError,
    ServerError,
    StudioError,
)
from airflow_provider_smstudio.studio.jupyter import websocket as websockets
from airflow_provider_smstudio.studio.jupyter.kernel_removal import remove_kernel
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.jupyter.server_settling import wait_until_settled
from airflow_provider_smstudio.studio.protocol.kernelspecs import KernelChoice
from airflow_provider_smstudio.studio.runs.cancellable import while_wanted
from airflow_provider_smstudio.studio.runs.kernel_app import KernelApp
from airflow_provider_smstudio.studio.runs.ownership import RunOwnership

log = logging.getLogger(__name__)

_RECONNECT_TIMEOUT = 20.0


class RemoteKernel:
    """A kernel that belongs to one run.

    The object notes everything that it starts as soon as the server reports it. It forgets an item only when the
    item is gone. So :meth:`release` can be called again after an exception has interrupted it.

    :param server: the Jupyter server.
    :param timeout: limit for the whole start, in seconds.
    :param delete_app: whether to delete Classic's KernelGateway app, unless other kernels use it.
    :param stop_reason: returns why the run must stop, or None if it may continue.
    :param owner: the name of this process in the session's name. None for a process that takes a kernel without an
        owner, to remove it.
    """

    def __init__(
        self,
        server: JupyterServer,
        *,
        timeout: float,
        delete_app: bool,
        stop_reason: Callable[[], str | None],
        owner: str | None = None,
    ) -> None:
        self.kernel_id: str | None = None
        self.websocket: websockets.KernelWebSocket | None = None
        self.was_reached = False
        """Whether a process of the run has ever reached the kernel."""
        self._server = server
        self._timeout = timeout
        self._stop_reason = stop_reason
        self.ownership = RunOwnership(server, owner)
        self._app = KernelApp(server, delete=delete_app, stop_reason=stop_reason)
        self._began = self._said = self._asked = time.monotonic()

    # --- The start

    def start(self, choice: KernelChoice, path: str, name: str, client_session: str) -> websockets.KernelWebSocket:
        """Start the kernel and open its websocket.

        :param choice: the kernel.
        :param path: the session's path, which must be new. The kernel works in its folder.
        :param name: the session's name.
        :param client_session: the client session ID of the websocket.
        :raises KernelStartError: when the kernel did not start, or not in time.
        :raises ConnectionLostError: when its websocket could not be opened in time.
        :raises RunKilledError: when the run was stopped meanwhile.
        """
        self._began = self._said = self._asked = time.monotonic()
        log.info(
            "starting kernel %s%s", choice.name, f" on {choice.instance_type}" if choice.instance_type else ""
        )
        for attempt in (1, 2):
            try:
                self._start_kernel(choice, path, name)
                self.websocket = self._connect(client_session)
                wait_until_settled(self._server, self.kernel_id or "", self.websocket, self._check)
            except (KernelStartError, ServerError) as error:
                late = time.monotonic() >= self._began + self._timeout
                refused = isinstance(error, ServerError) and error.status is None
                if attempt == 2 or not self._server.classic or late or refused or self._stop_reason():
                    raise _start_error(choice, error) from error
                # Another run may just have deleted the app that both use. No cell has run yet.
                log.warning("%s; starting the kernel again", error)
                self.release()
            else:
                self.was_reached = True
                return self.websocket
        raise AssertionError("unreachable")

    def _start_kernel(self, choice: KernelChoice, path: str, name: str) -> None:
        self._check()
        self._app.note_others()
        # Longer than this process waits, so that its own error reports the timeout.
        remaining = max(self._began + self._timeout - time.monotonic(), 0.0) + 5

        def work() -> None:
            kernel = {"name": choice.name}
            if self._server.classic:
                started = self._server.start_classic_kernel(choice, path, timeout=remaining)
                self._app.name = started.get("app_name")
                self.kernel_id = str(started["id"])
                kernel = {"id": self.kernel_id}
            session = self._server.start_session(kernel, path, name, timeout=remaining)
            self.kernel_id = str(session["kernel"]["id"])
            self.ownership.session_id = str(session["id"])
            if session.get("name") not in (None, name):  # the server returned a session that existed already
                self.ownership.rename(name)

        while_wanted(work, check=self._check, undo=lambda _: self.release(hurry=True))

    def _connect(
        self, client_session: str, *, tries_again_after: tuple[type[StudioError], ...] = (ConnectionLostError,)
    ) -> websockets.KernelWebSocket:
        kernel_id, wanted = self.kernel_id or "", [True]

        def work() -> websockets.KernelWebSocket:
            pause = 0.5
            while True:
                remaining = self._began + self._timeout - time.monotonic()
                try:
                    return websockets.connect(
                        self._server.session, kernel_id, client_session, timeout=max(remaining, 0) + 5
                    )
                except tries_again_after as error:
                    # No message was sent yet, so another connection is harmless.
                    if not wanted[0] or remaining <= pause:
                        raise
                    log.info("%s; trying again", error)
                time.sleep(pause)
                pause = min(pause * 2, 10.0)

        def check() -> None:
            self._check()
            now = time.monotonic()
            if now >= self._asked + 1:
                self._asked = now
                if self.is_gone():
                    raise KernelStartError("the kernel died while starting: the server does not know it any more")

        try:
            return while_wanted(work, check=check, undo=lambda late: late.close() if late else None)
        finally:
            wanted[0] = False

    # --- The kernel of an earlier process, and a lost connection

    def adopt(self, session: Mapping[str, Any]) -> None:
        """Treat an existing session as this process's own, so that :meth:`release` removes it.

        :param session: the session, as the server lists it.
        """
        kernel = session["kernel"]
        self.ownership.adopt(str(session["id"]), session.get("name"))
        self.kernel_id, self._app.name = str(kernel["id"]), kernel.get("app_name")
        self.was_reached = True  # by an earlier process

    def attach(self, session: Mapping[str, Any], client_session: str) -> websockets.KernelWebSocket:
        """Take over the kernel of an existing session.

        :param session: the session, as the server lists it.
        :param client_session: the client session ID of the websocket, the same as in the earlier process.
        :raises KernelStartError: when the kernel is gone.
        :raises ConnectionLostError: when its websocket could not be opened in time.
        :raises RunKilledError: when the run was stopped meanwhile.
        """
        self._began = self._said = self._asked = time.monotonic()
        self.adopt(session)
        try:
            self.websocket = self._connect(
                client_session, tries_again_after=(ConnectionLostError, KernelStartError)
            )
        except KernelStartError as error:
            if self.is_gone():
                raise
            raise ConnectionLostError(f"the kernel of an earlier try could not be reached: {error}") from error
        return self.websocket

    def reconnect(self, client_session: str) -> bool:
        """Reconnect the websocket of this kernel.

        :param client_session: the client session ID of the websocket.
        :return: False when the kernel is gone.
        :raises RunTakenOverError: when another process watches the run now.
        :raises RunKilledError: when the run was stopped meanwhile.
        :raises StudioError: when the connection failed. Another attempt may help.
        """
        if self.websocket is not None:
            self.websocket.close()
            self.websocket = None

        def work() -> websockets.KernelWebSocket | None:
            if not self.ownership.is_ours():
                return None
            return websockets.connect(
                self._server.session, self.kernel_id or "", client_session, timeout=_RECONNECT_TIMEOUT
            )

        def check() -> None:
            if self._stop_reason():
                raise RunKilledError(
                    f"the run was stopped while its kernel was out of reach: {self._stop_reason()}"
                )

        try:
            self.websocket = while_wanted(work, check=check, undo=lambda late: late.close() if late else None)
        except KernelStartError as error:  # the handshake raises it if the kernel does not answer
            if self.is_gone():
                return False
            raise ConnectionLostError(f"the kernel's websocket was not opened: {error}") from error
        return self.websocket is not None

    def keeps_messages(self) -> bool:
        """Return whether the server keeps messages while the websocket is closed. Call it while one is open.

        If the server does not say so, the result is False.
        """
        if self.kernel_id is None:
            return False
        try:
            return self._server.keeps_messages(self.kernel_id)
        except StudioError as error:
            log.info("could not ask the server about the kernel: %s", error)
            return False

    def leave(self) -> None:
        """Close the websocket and leave the kernel running for another process."""
        if self.websocket is not None:
            self.websocket.close()
            self.websocket = None
        self.ownership.session_id = self.kernel_id = None
        self._app.forget()

    def _check(self) -> None:
        """Raise an error if it is useless to wait longer for the kernel. Log the wait every 30 seconds."""
        now = time.monotonic()
        reason = self._stop_reason()
        if reason:
            raise RunKilledError(f"the run was stopped while the kernel started: {reason}")
        if now >= self._began + self._timeout:
            raise KernelStartError(f"the kernel did not start within {self._timeout:g} s")
        if now >= self._said + 30:
            self._said = now
            log.info("waiting for the kernel (%.0f s so far, at most %g s)", now - self._began, self._timeout)

    def is_gone(self) -> bool:
        """Return whether the server has forgotten the kernel; False if the request fails."""
        if self.kernel_id is None:
            return False
        try:
            return self._server.kernel_state(self.kernel_id) is None
        except StudioError as error:
            log.warning("could not ask the server about the kernel: %s", error)
            return False

    # --- The end

    def release(self, *, hurry: bool = False) -> None:
        """Remove websocket, session, kernel and, in Classic, the app unless other kernels use it.

        The log lists everything that may still run after a failure. The method does not touch a run that another
        process has taken over. It also does not touch a run if the server does not answer which process owns it.
        Cells that run twice are worse than a kernel that stays until the clean-up.

        :param hurry: wait only a few seconds for each answer: a task that is killed has few seconds left.
        """
        hurry = hurry or bool(self._stop_reason())
        if self.websocket is not None:
            self.websocket.close()
            self.websocket = None
        try:
            self.ownership.ask(hurry)
        except RunTakenOverError as error:
            log.warning("%s: its kernel is left alone", error)
            self.leave()
            return
        except StudioError as error:
            if getattr(error, "status", None) is None:
                what = f"kernel {self.kernel_id}"
                if self._app.deletes:
                    what += f" and KernelGateway app {self._app.name or 'of this run'}, which costs money,"
                log.warning("%s may still run: the server did not say which process owns the run: %s", what, error)
                return
            log.info("could not ask the server about the session: %s", error)
        try:
            self._remove_kernel(hurry)
        except Exception as error:  # a failure here must not hide why the run ended
            log.warning("kernel %s may still run: %s", self.kernel_id, error)
        try:
            self._app.remove(self.kernel_id, hurry=hurry)
        except Exception as error:
            log.warning(
                "KernelGateway app %s may still run, and cost money: %s", self._app.name or "of this run", error
            )

    def _remove_kernel(self, hurry: bool) -> None:
        remove_kernel(self._server, self.ownership.session_id, self.kernel_id, hurry=hurry)
        self.ownership.session_id = self.kernel_id = None

    def interrupt(self) -> None:
        """Interrupt the kernel. If that fails, log it."""
        if self.kernel_id is not None:
            with contextlib.suppress(RunKilledError):
                try:
                    self._server.interrupt(self.kernel_id, timeout=2.0 if self._stop_reason() else 10.0)
                except StudioError as error:
                    log.warning("the kernel could not be interrupted: %s", error)


def _start_error(choice: KernelChoice, error: StudioError) -> StudioError:
    if isinstance(error, KernelStartError):
        return error
    return KernelStartError(f"the kernel {choice.name!r} was not started: {error}")
