"""Shows a running notebook to Studio's idle shutdown where the Jupyter server does not note what its kernel does.

The idle shutdown asks the server's ``/api/idle``. It tells the latest activity of sessions' kernels and of
terminals, and remembers the latest that it has told (jupyter-activity-monitor-extension 0.3.2, measured). With
jupyter_server_documents 0.2.0 a kernel's activity never moves (measured; with 0.2.6 it does). A new terminal
counts.
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
"""Seconds between two looks. Studio's shortest idle timeout is 60 minutes."""


class ActivityReporter:
    """Looks now and then whether the server notes the activity of one run's kernel, and shows it if not.

    Nothing here delays a run or fails it.

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
        """Look, if it is time; tell what was found at an earlier look.

        :param kernel_id: the run's kernel, which has been at work since the last call; None while it is not.
        :param now: the monotonic clock's reading.
        :param begin: has something done in the background.
        """
        if self._server.classic or kernel_id is None:
            return
        with self._lock:
            lines, self._lines = self._lines, []
        for level, line in lines:
            log.log(level, line)
        if self._due is not None and now >= self._due:
            self._due = now + INTERVAL
            with contextlib.suppress(RuntimeError):  # no thread is to be had
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
                "the Jupyter server has noted no activity of this notebook for ten minutes, and Studio could not "
                f"be shown it otherwise ({error}): the idle shutdown may stop the app while it runs",
            )

    def _show(self) -> None:
        """Make a terminal and have ``/api/idle`` see it."""
        name = self._server.make_terminal()
        try:
            self._server.idle_since()
        finally:
            with contextlib.suppress(StudioError):
                self._server.delete_terminal(name)
        self._say(
            logging.INFO,
            "the Jupyter server has noted no activity of this notebook for ten minutes: a terminal is opened for "
            "a moment now, and every ten minutes, which Studio's idle shutdown sees",
        )

    def _say(self, level: int, line: str) -> None:
        """Have a line told once, by the run's own thread."""
        with self._lock:
            if line not in self._said:
                self._said.add(line)
                self._lines.append((level, line))
