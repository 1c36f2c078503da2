"""Reports a running notebook's activity to Studio's idle shutdown, if the Jupyter server does not report it.

The idle shutdown asks the server's ``/api/idle``. This endpoint returns the latest activity of the sessions'
kernels and of terminals. It remembers the latest activity that it has returned (jupyter-activity-monitor-extension
0.3.2, measured). With jupyter_server_documents 0.2.0 a kernel's activity never changes (measured; with 0.2.6 it
does). A new terminal counts as activity.
"""

from __future__ import annotations

import contextlib
import logging
import threading

from airflow_provider_smstudio.studio.errors import StudioError
from airflow_provider_smstudio.studio.jupyter.background import Begin
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer

log = logging.getLogger(__name__)

INTERVAL = 600.0
"""Seconds between two checks. Studio's shortest idle timeout is 60 minutes."""


class ActivityReporter:
    """Checks regularly whether the server reports the activity of one run's kernel. If not, it opens a terminal.

    It never delays a run, and never makes it fail.

    :param server: the Jupyter server.
    """

    def __init__(self, server: JupyterServer) -> None:
        self._server = server
        self._due: float | None = None
        self._seen: object = None
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._lines: list[tuple[int, str]] = []

    def look(self, kernel_id: str | None, now: float, begin: Begin) -> None:
        """Check, if it is time. Log the results of earlier checks.

        :param kernel_id: the run's kernel, if it has worked since the last call; None if not.
        :param now: the time of the monotonic clock.
        :param begin: runs a function in the background.
        """
        if self._server.classic or kernel_id is None:
            return
        with self._lock:
            lines, self._lines = self._lines, []
        for level, line in lines:
            log.log(level, line)
        if self._due is not None and now >= self._due:
            self._due = now + INTERVAL
            with contextlib.suppress(RuntimeError):  # no thread can be started
                begin(lambda: self._note(kernel_id))
        self._due = now + INTERVAL if self._due is None else self._due

    def _note(self, kernel_id: str) -> None:
        try:
            seen = (self._server.kernel(kernel_id) or {}).get("last_activity")
            before, self._seen = self._seen, seen
            if seen is not None and seen == before and self._server.idle_since() is not None:
                self._show()
        except StudioError as error:
            if getattr(error, "status", None) == 404 and getattr(error, "path", "") == "api/idle":
                return  # an image without idle shutdown
            self._say(
                logging.WARNING,
                "the Jupyter server has noted no activity of this notebook for ten minutes, and the client could "
                f"not report it in another way ({error}). The idle shutdown may stop the app while it runs",
            )

    def _show(self) -> None:
        """Open a terminal, so that ``/api/idle`` reports it as activity, and close it."""
        name = self._server.make_terminal()
        try:
            self._server.idle_since()
        finally:
            with contextlib.suppress(StudioError):
                self._server.delete_terminal(name)
        self._say(
            logging.INFO,
            "the Jupyter server has noted no activity of this notebook for ten minutes: a terminal is opened for "
            "a moment now, and every ten minutes. Studio's idle shutdown counts it as activity",
        )

    def _say(self, level: int, line: str) -> None:
        """Store a line that the run's own thread logs, once."""
        with self._lock:
            if line not in self._said:
                self._said.add(line)
                self._lines.append((level, line))
