"""One kernel for one run: started with its session and websocket, and given back whatever happens.

In Studio Classic a kernel brings an app of its own along, an instance that costs money until it is deleted.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_smstudio.studio.errors import (
    ConnectionLostError,
    InvalidInputError,
    KernelStartError,
    RunKilledError,
    RunTakenOverError,
    ServerError,
    StudioError,
)
from airflow_provider_smstudio.studio.jupyter import websocket as channels
from airflow_provider_smstudio.studio.jupyter.kernel_removal import remove_kernel
from airflow_provider_smstudio.studio.jupyter.kernel_start import wait_until_settled
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.protocol.kernelspecs import KernelChoice
from airflow_provider_smstudio.studio.runs import identity
from airflow_provider_smstudio.studio.runs.cancellable import while_wanted
from airflow_provider_smstudio.studio.runs.identity import owner_of

log = logging.getLogger(__name__)

_APP_GONE_TIMEOUT = 300.0
_RECONNECT_TIMEOUT = 20.0


class KernelLease:
    """A kernel that belongs to one run.

    What has been started is noted the moment the server tells of it, and forgotten only when it is gone; so
    :meth:`release` can be called again after an exception came in the middle of it.

    :param server: the Jupyter server.
    :param timeout: limit for the whole start, in seconds.
    :param delete_app: whether to delete Classic's KernelGateway app, unless other kernels use it.
    :param stop_reason: tells why the run shall stop, None while it shall not.
    :param owner: names this process in the session's name; None for who takes kernels that nobody watches over.
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
        self.channel: channels.KernelChannel | None = None
        self.channel_was_open = False
        """Whether the kernel has ever been reached."""
        self._server = server
        self._timeout = timeout
        self._delete_app = delete_app and server.classic
        self._stop_reason = stop_reason
        self.session_id: str | None = None
        self.taken_over: RunTakenOverError | None = None
        """Set once it was found out, in whatever thread, that another process watches over the run."""
        self._owner = owner
        self._names = {owner}  # who in the session's name means this process
        self._writers = {owner}  # whose notebook is this process's to write
        self._in_vain = False
        self._app_name: str | None = None
        self._apps_before: set[str] | None = None
        self._began = self._said = self._asked = time.monotonic()

    # --- The start

    def start(self, choice: KernelChoice, path: str, name: str, client_session: str) -> channels.KernelChannel:
        """Start the kernel and open its websocket.

        :param choice: the kernel.
        :param path: the session's path, which must be new; the kernel works in its folder.
        :param name: the session's name.
        :param client_session: the id of our side of the websocket.
        :raises KernelStartError: when it did not start, or not in time.
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
                self.channel = self._connect(client_session)
                wait_until_settled(self._server, self.kernel_id or "", self.channel, self._check)
            except (KernelStartError, ServerError) as error:
                late = time.monotonic() >= self._began + self._timeout
                refused = isinstance(error, ServerError) and error.status is None
                if attempt == 2 or not self._server.classic or late or refused or self._stop_reason():
                    raise _start_error(choice, error) from error
                # Another run may have deleted the app that both use just then; nothing of ours has run yet.
                log.warning("%s; starting it once more", error)
                self.release()
            else:
                self.channel_was_open = True
                return self.channel
        raise AssertionError("unreachable")

    def _start_kernel(self, choice: KernelChoice, path: str, name: str) -> None:
        self._check()
        if self._delete_app:
            self._apps_before = {str(app.get("app_name")) for app in self._server.apps()}
        # Longer than we wait, so that it is we who say that it takes too long.
        remaining = max(self._began + self._timeout - time.monotonic(), 0.0) + 5

        def work() -> None:
            kernel = {"name": choice.name}
            if self._server.classic:
                started = self._server.start_classic_kernel(choice, path, timeout=remaining)
                self._app_name = started.get("app_name")
                self.kernel_id = str(started["id"])
                kernel = {"id": self.kernel_id}
            session = self._server.start_session(kernel, path, name, timeout=remaining)
            self.kernel_id = str(session["kernel"]["id"])
            self.session_id = str(session["id"])
            if session.get("name") not in (None, name):  # a server returns the session that is there already
                self.rename(name)

        while_wanted(work, check=self._check, undo=lambda _: self.release(hurry=True))

    def _connect(
        self, client_session: str, *, tries_again_after: tuple[type[StudioError], ...] = (ConnectionLostError,)
    ) -> channels.KernelChannel:
        kernel_id, wanted = self.kernel_id or "", [True]

        def work() -> channels.KernelChannel:
            pause = 0.5
            while True:
                remaining = self._began + self._timeout - time.monotonic()
                try:
                    return channels.connect(
                        self._server.session, kernel_id, client_session, timeout=max(remaining, 0) + 5
                    )
                except tries_again_after as error:
                    # Nothing was sent yet, so opening it anew is harmless.
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

    # --- An earlier process's kernel, and a connection that was lost

    def adopt(self, session: Mapping[str, Any]) -> None:
        """Take a session that is there already for ours, so that :meth:`release` removes it.

        :param session: the session, as the server lists it.
        """
        kernel = session["kernel"]
        self.session_id, self.kernel_id = str(session["id"]), str(kernel["id"])
        self._app_name = kernel.get("app_name")
        former = owner_of(session.get("name"))[0]
        self._names.add(former)  # until it is renamed
        self._writers.add(former)
        self.channel_was_open = True  # by an earlier process

    def attach(self, session: Mapping[str, Any], client_session: str) -> channels.KernelChannel:
        """Take over the kernel of a session that is there already.

        :param session: the session, as the server lists it.
        :param client_session: the id of our side of the websocket, the same as the earlier process's.
        :raises KernelStartError: when it is gone.
        :raises ConnectionLostError: when its websocket could not be opened in time.
        :raises RunKilledError: when the run was stopped meanwhile.
        """
        self._began = self._said = self._asked = time.monotonic()
        self.adopt(session)
        try:
            self.channel = self._connect(client_session, tries_again_after=(ConnectionLostError, KernelStartError))
        except KernelStartError as error:
            if self.is_gone():
                raise
            raise ConnectionLostError(f"the kernel of an earlier try could not be reached: {error}") from error
        return self.channel

    def reconnect(self, client_session: str) -> bool:
        """Open the websocket of this kernel anew.

        :param client_session: the id of our side of it, the same as before.
        :return: False when the kernel is gone.
        :raises RunTakenOverError: when another process watches over the run now.
        :raises RunKilledError: when the run was stopped meanwhile.
        :raises StudioError: when that failed; trying again may help.
        """
        if self.channel is not None:
            self.channel.close()
            self.channel = None

        def work() -> channels.KernelChannel | None:
            if not self.is_ours():
                return None
            return channels.connect(
                self._server.session, self.kernel_id or "", client_session, timeout=_RECONNECT_TIMEOUT
            )

        def check() -> None:
            if self._stop_reason():
                raise RunKilledError(
                    f"the run was stopped while its kernel was out of reach: {self._stop_reason()}"
                )

        try:
            self.channel = while_wanted(work, check=check, undo=lambda late: late.close() if late else None)
        except KernelStartError as error:  # the handshake's words for a kernel that does not answer it
            if self.is_gone():
                return False
            raise ConnectionLostError(f"the kernel's websocket was not opened: {error}") from error
        return self.channel is not None

    def is_ours(self, *, timeout: float = 15) -> bool:
        """Ask the server for the session: is it there, and does this process still watch over it?

        :param timeout: limit for the answer, in seconds.
        :return: False when the server has forgotten the session, and so ended its kernel.
        :raises RunTakenOverError: when another process watches over the run now; from then on, always.
        """
        session_id = self.session_id
        if self.taken_over is not None:
            raise self.taken_over
        if session_id is None:
            return False
        session = self._server.find_session(session_id, timeout=timeout)
        if session is None:
            return False
        other, _ = owner_of(session.get("name"))
        if other is not None and other not in self._names:
            self.taken_over = RunTakenOverError("another process has taken over this run; it goes on there")
            raise self.taken_over
        return True

    def accept_writer(self, writer: str | None) -> None:
        """Count an earlier process's notebook, which is gone on with, as this process's own."""
        self._writers.add(writer)

    def require_ours(self, path: str, *, hurry: bool = False) -> None:
        """See that this process still watches over the run, before it saves or removes anything of it.

        Where the session is gone, another process may have ended the run, or begun it once more: then the executed
        notebook is another's. A server may keep two websockets of a run open, so that who was given up is not told
        (jupyter_server_documents, measured).

        :param path: the executed notebook.
        :param hurry: wait four seconds for an answer, and never again in vain.
        :raises RunTakenOverError: when another process watches over the run, or has done so since.
        :raises StudioError: when the server cannot be asked.
        """
        if self.taken_over is None and (self.session_id is None or self._ask_owner(hurry)):
            return
        if self.taken_over is None and not hurry:
            with contextlib.suppress(InvalidInputError):  # nothing there, or no notebook: nobody's
                saved = self._server.read_notebook(path)
                writer = identity.writer_of(saved)
                # One that was continued, and lived: it has ended the run since its notebook was taken over.
                ended = writer != self._owner and identity.state_of(saved) in ("completed", "stopped")
                if writer is not None and (writer not in self._writers or ended):
                    self.taken_over = RunTakenOverError(
                        "another process has taken over this run, and has ended it"
                    )
        if self.taken_over is not None:
            raise self.taken_over

    def _ask_owner(self, hurry: bool) -> bool:
        """Ask :meth:`is_ours`; in a hurry not once more where there was no answer.

        :raises StudioError: when there is no answer.
        """
        if hurry and self._in_vain:
            raise ServerError("the server was asked in vain a moment ago", status=None)
        try:
            return self.is_ours(timeout=4.0 if hurry else 15.0)
        except ServerError:
            self._in_vain = hurry
            raise

    def keeps_messages(self) -> bool:
        """Tell whether the server keeps what comes while the websocket is away; ask while it is open.

        Where the server does not say, it does not.
        """
        if self.kernel_id is None:
            return False
        try:
            return self._server.keeps_messages(self.kernel_id)
        except StudioError as error:
            log.info("the server could not be asked for the kernel: %s", error)
            return False

    def rename(self, name: str) -> bool:
        """Name the session anew.

        :return: whether the server allowed it.
        """
        if self.session_id is None:
            return False
        try:
            self._server.rename_session(self.session_id, name)
        except StudioError as error:
            log.info("the session could not be renamed: %s", error)
            return False
        self._names = {self._owner}
        return True

    def leave(self) -> None:
        """Close the websocket and let the kernel live, for another process."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self.session_id = self.kernel_id = self._app_name = self._apps_before = None

    def _check(self) -> None:
        """Raise when waiting for the kernel has become pointless; say now and then that it goes on."""
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
        """Ask the server whether it has forgotten the kernel; False where it cannot be asked."""
        if self.kernel_id is None:
            return False
        try:
            return self._server.kernel_state(self.kernel_id) is None
        except StudioError as error:
            log.warning("the server could not be asked for the kernel: %s", error)
            return False

    # --- The end

    def release(self, *, hurry: bool = False) -> None:
        """Give back websocket, session, kernel and, in Classic, an app that nobody else uses.

        Failures are logged; what could not be removed is named. A run that another process has taken over is left
        alone. So is one of which the server does not say whose it is: cells that run twice are worse than a kernel
        that stays for the clean-up.

        :param hurry: ask once, and wait two seconds for an answer: a task that is killed has few seconds left.
        """
        hurry = hurry or bool(self._stop_reason())
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        try:
            self._ask_owner(hurry)
        except RunTakenOverError as error:
            log.warning("%s: its kernel is left alone", error)
            self.leave()
            return
        except StudioError as error:
            if getattr(error, "status", None) is None:
                what = f"kernel {self.kernel_id}"
                if self._delete_app:
                    what += f" and KernelGateway app {self._app_name or 'of this run'}, which costs money,"
                log.warning("%s may still run, because its owner could not be asked for: %s", what, error)
                return
            log.info("the server could not be asked for the session: %s", error)
        try:
            self._remove_kernel(hurry)
        except Exception as error:  # nothing here may hide why the run ended
            log.warning("kernel %s may still run: %s", self.kernel_id, error)
        try:
            self._remove_app(hurry)
        except Exception as error:
            log.warning(
                "KernelGateway app %s may still run, and cost money: %s", self._app_name or "of this run", error
            )

    def _remove_kernel(self, hurry: bool) -> None:
        remove_kernel(self._server, self.session_id, self.kernel_id, hurry=hurry)
        self.session_id = self.kernel_id = None

    def _remove_app(self, hurry: bool) -> None:
        if not self._delete_app:
            return
        timeout = 2.0 if hurry else 60.0
        names = [self._app_name] if self._app_name else self._new_apps(timeout)
        for name in names:
            # As late as possible before the deletion: another run may have taken the app meanwhile.
            kernels = self._server.kernels(timeout=timeout)
            others = [kernel for kernel in kernels if kernel.get("id") != self.kernel_id]
            if any(kernel.get("app_name") == name for kernel in others):
                log.info("KernelGateway app %s stays: other kernels use it", name)
                continue
            log.info("deleting KernelGateway app %s", name)
            self._server.delete_app(name, timeout=timeout)
            if not hurry:
                self._wait_until_gone(name)
        self._app_name = self._apps_before = None

    def _new_apps(self, timeout: float) -> list[str]:
        """Name the apps that came since we asked for a kernel, where no answer told which is ours."""
        if self._apps_before is None:
            return []  # we never asked
        names = [str(app.get("app_name")) for app in self._server.apps(timeout=timeout)]
        return [name for name in names if name not in self._apps_before]

    def _wait_until_gone(self, name: str) -> None:
        deadline = time.monotonic() + _APP_GONE_TIMEOUT
        while any(app.get("app_name") == name for app in self._server.apps()):
            if self._stop_reason():
                return
            if time.monotonic() >= deadline:
                log.warning("KernelGateway app %s is still there after %g s", name, _APP_GONE_TIMEOUT)
                return
            time.sleep(2)
        log.info("KernelGateway app %s is gone", name)

    def interrupt(self) -> None:
        """Interrupt the kernel; a failure is logged."""
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
