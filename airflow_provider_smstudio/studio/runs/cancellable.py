"""Do blocking work in a thread, and give it up when the caller does not need it any more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from airflow_provider_smstudio.studio.errors import StudioError

_T = TypeVar("_T")


class _Work(threading.Thread):
    def __init__(self, work: Callable[[], object], undo: Callable[[object], None]) -> None:
        super().__init__(name="smstudio-wait", daemon=True)
        self._work, self._undo = work, undo
        self._lock = threading.Lock()
        self._abandoned = False
        self.result: object = None
        self.error: BaseException | None = None
        self.done = False

    def run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        with self._lock:
            self.done = True
            late = self._abandoned
        if late:
            self._take_back()

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            done = self.done
        if done:
            self._take_back()

    def _take_back(self) -> None:
        with contextlib.suppress(StudioError):
            self._undo(self.result)


def while_wanted(work: Callable[[], _T], *, check: Callable[[], None], undo: Callable[[_T | None], None]) -> _T:
    """Do blocking work in a thread, and check meanwhile whether it is still needed.

    :param work: the work. This function returns its result, or raises its error.
    :param check: called ten times a second while the work runs. If it raises an error, the waiting ends.
    :param undo: called at the end of work that this function no longer waits for. It receives the result of the
        work, or None if the work failed, perhaps half-way.
    """
    thread = _Work(work, undo)  # type: ignore[arg-type]  # undo receives only the result of work, or None
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if thread.is_alive():
                check()
        if thread.error is None:
            return thread.result  # type: ignore[return-value]  # the result of work
    except BaseException:
        thread.abandon()
        raise
    raise thread.error
