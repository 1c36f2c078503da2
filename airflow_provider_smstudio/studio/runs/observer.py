"""Report the events of a run to a function whose errors must never end the run; pure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_LONGEST_REASON = 300


class Observer(Generic[_T]):
    """A function that receives events. If it fails, the log says so once, and it receives no more events.

    In Airflow 3 a task's log is a socket to another process. When that process is gone, each line raises an error.
    The run itself is on Studio, and continues.

    Ctrl-C and Airflow's timeout of a task come from a signal handler and are not an ``Exception``. They are passed
    on to the caller.

    :param tell: the function; None to report nothing.
    :param name: the name of the function, for the log.
    """

    def __init__(self, tell: Callable[[_T], object] | None, name: str) -> None:
        self._tell = tell
        self._name = name

    def __call__(self, news: _T) -> None:
        """Call the function with an event."""
        if self._tell is None:
            return
        try:
            self._tell(news)
        except Exception as error:
            self._tell = None
            reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
            log.warning("%s failed and gets no more events; the run continues (%s)", self._name, reason)
