"""Save the executed notebook during the run, without delaying the run."""

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
    """Writes one notebook to one path, as often as necessary.

    A save during the run is made in a thread. So a slow server delays neither the reading of the websocket nor the
    end of a killed task. Only one save is under way at a time.

    :param guard: writes the notebook while this process owns the run.
    """

    def __init__(self, guard: OutputGuard) -> None:
        self.guard = guard
        self._thread: threading.Thread | None = None
        self.closed = False

    def save(self, body: bytes) -> None:
        """Write the notebook and wait.

        :raises SaveError: when the save failed, and three retries failed too.
        :raises RunTakenOverError: when another process owns the run.
        """
        self._write(body, hurry=False)

    def _write(self, body: bytes, *, hurry: bool) -> None:
        for pause in (*(() if hurry else _PAUSES), None):
            try:
                self.guard.write(body, hurry=hurry)
                return
            except RunTakenOverError:
                raise
            except StudioError as error:  # not only SaveError: a login may fail as well
                if pause is None:
                    raise
                log.warning("%s; trying again", error)
                time.sleep(pause)

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def save_soon(self, body: bytes, done: Callable[[float], None]) -> None:
        """Start a save in a thread. Do nothing while an earlier save is under way.

        :param body: the request's body.
        :param done: called after a successful save, with its duration in seconds. A failure is logged.
        """
        if self.busy:
            return

        def work() -> None:
            began = time.monotonic()
            try:
                self.guard.write(body)
            except RunTakenOverError:
                return  # every later check raises it again
            except StudioError as error:
                log.warning("%s; the run continues", error)
            else:
                done(time.monotonic() - began)

        self._thread = threading.Thread(target=work, name="smstudio-save", daemon=True)
        self._thread.start()

    def save_last(self, body: bytes, *, hurry: bool) -> None:
        """Write the notebook at the end of the run, and wait.

        :param hurry: try only once: a task that is killed has few seconds left.
        :raises SaveError: when the save failed.
        :raises RunTakenOverError: when another process owns the run.
        """
        if self._thread is not None:
            self._thread.join(1.0 if hurry else None)  # an older state must not overwrite the last one
        self._write(body, hurry=hurry)
        self.closed = True
