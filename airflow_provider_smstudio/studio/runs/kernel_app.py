"""The KernelGateway app of a Studio Classic kernel: it costs money until it is deleted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer

log = logging.getLogger(__name__)

_APP_GONE_TIMEOUT = 300.0


class KernelApp:
    """The app under one kernel. It does nothing if kernels have no apps.

    :param server: the Jupyter server.
    :param delete: whether to delete the app, unless other kernels use it.
    :param stop_reason: returns why the run must stop, or None if it may continue.
    """

    def __init__(self, server: JupyterServer, *, delete: bool, stop_reason: Callable[[], str | None]) -> None:
        self.name: str | None = None
        self.deletes = delete and server.classic
        """Whether there is an app to delete."""
        self._server = server
        self._stop_reason = stop_reason
        self._apps_before: set[str] | None = None

    def note_others(self) -> None:
        """Remember which apps exist before a kernel is requested."""
        if self.deletes:
            self._apps_before = {str(app.get("app_name")) for app in self._server.apps()}

    def forget(self) -> None:
        """Leave the app to another process."""
        self.name = self._apps_before = None

    def remove(self, kernel_id: str | None, *, hurry: bool) -> None:
        """Delete the app, unless other kernels use it.

        :param kernel_id: the run's own kernel.
        :param hurry: do not wait until the app is gone.
        """
        if not self.deletes:
            return
        timeout = 2.0 if hurry else 60.0
        names = [self.name] if self.name else self._new_apps(timeout)
        for name in names:
            # Check right before the deletion: another run may use the app by now.
            kernels = self._server.kernels(timeout=timeout)
            others = [kernel for kernel in kernels if kernel.get("id") != kernel_id]
            if any(kernel.get("app_name") == name for kernel in others):
                log.info("KernelGateway app %s stays: other kernels use it", name)
                continue
            log.info("deleting KernelGateway app %s", name)
            self._server.delete_app(name, timeout=timeout)
            if not hurry:
                self._wait_until_gone(name)
        self.name = self._apps_before = None

    def _new_apps(self, timeout: float) -> list[str]:
        """Return the apps that appeared since the kernel was requested, if no answer named the run's own app."""
        if self._apps_before is None:
            return []  # no kernel was requested
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
