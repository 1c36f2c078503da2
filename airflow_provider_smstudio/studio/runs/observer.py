"""Tells somebody else of a run, who must never decide about it; pure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_LONGEST_REASON = 300


class Observer(Generic[_T]):
    """A function that is told what happens. If it fails, the log says so once, and it is told nothing more.

    In Airflow 3 a task's log is a socket to another process: when that process is gone, each line raises an error.
    The run itself is on Studio, and continues. What is no ``Exception``, such as Ctrl-C and Airflow's timeout of a
    task, comes from a signal handler, and gets through.

    :param tell: the function; None for nobody.
    :param name: what it is, for the log.
    """

    def __init__(self, tell: Callable[[_T], object] | None, name: str) -> None:
        self._tell = tell
        self._name = name

    def __call__(self, news: _T) -> None:
        """Tell it something."""
        if self._tell is None:
            return
        try:
            self._tell(news)
        except Exception as error:
            self._tell = None
            reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
            log.warning("%s failed and gets no more events; the run continues (%s)", self._name, reason)
