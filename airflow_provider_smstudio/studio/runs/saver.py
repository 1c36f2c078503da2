"""Saving the executed notebook while the run goes on, without holding it up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from airflow_provider_smstudio.studio.errors import RunTakenOverError, StudioError
from airflow_provider_smstudio.studio.runs.output_guard import OutputGuard

log = logging.getLogger(__name__)

_PAUSES = (1.0, 3.0, 10.0)


class NotebookSaver:
    """Writes one notebook, again and again, to one place.

    A save during the run is made in a thread: a slow server must neither keep the websocket unread nor keep a
    task from being killed. Only one is under way at a time.

    :param guard: writes it, while it may be written.
    """

    def __init__(self, guard: OutputGuard) -> None:
        self.guard = guard
        self._thread: threading.Thread | None = None
        self.closed = False

    def save(self, body: bytes) -> None:
        """Write and wait.

        :raises SaveError: when the server did not take it, three times.
        :raises RunTakenOverError: when the run is another process's.
        """
        self._write(body, hurry=False)

    def _write(self, body: bytes, *, hurry: bool) -> None:
        for pause in (*(() if hurry else _PAUSES), None):
            try:
                self.guard.write(body, hurry=hurry)
                return
            except RunTakenOverError:
                raise
            except StudioError as error:  # the way to the server may fail as well
                if pause is None:
                    raise
                log.warning("%s; trying again", error)
                time.sleep(pause)

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def save_soon(self, body: bytes, done: Callable[[float], None]) -> None:
        """Start writing; nothing happens while an earlier save is under way.

        :param body: the request's body.
        :param done: told how many seconds a save took that went well; a failure is logged.
        """
        if self.busy:
            return

        def work() -> None:
            began = time.monotonic()
            try:
                self.guard.write(body)
            except RunTakenOverError:
                return  # the guard remembers
            except StudioError as error:
                log.warning("%s; the run goes on", error)
            else:
                done(time.monotonic() - began)

        self._thread = threading.Thread(target=work, name="smstudio-save", daemon=True)
        self._thread.start()

    def save_last(self, body: bytes, *, hurry: bool) -> None:
        """Write the notebook as it ended, and wait.

        :param hurry: try once only: a task that is killed has few seconds left.
        :raises SaveError: when the server did not take it.
        :raises RunTakenOverError: when the run is another process's.
        """
        if self._thread is not None:
            self._thread.join(1.0 if hurry else None)  # an older state must not come last
        self._write(body, hurry=hurry)
        self.closed = True
