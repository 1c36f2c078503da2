"""Sends logins to Airflow's secrets masker, up to a limit.

This package never prints or logs a login. The masker is for what a library or a notebook might print. Airflow
keeps all secrets of a process in one regular expression until the process ends. It builds the expression again for
each new secret. re2 refuses an expression that is too large. From then on *every* new secret of that process is an
error, and so is every lookup of a connection. This was measured on Airflow 2.11 ("pattern too large") at the 159th
secret of 4.4 kB. On 3.3 each secret takes half a second by then. A triggerer may log in more often than that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from airflow_provider_smstudio import _compat

log = logging.getLogger(__name__)

MOST_CHARACTERS = 50_000
"""The most characters of logins that are masked in one process. This is enough for about the first ten logins."""


class _Bounded:
    """Sends secrets to a masker, until there are too many."""

    def __init__(self, mask: Callable[[str], None]) -> None:
        self._mask = mask
        self._left = MOST_CHARACTERS
        self._known: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, secret: str) -> None:
        """Mask a secret, if the limit allows it."""
        with self._lock:
            if hash(secret) in self._known or len(secret) > self._left:
                return
            self._known.add(hash(secret))
            self._left -= len(secret)
        try:
            self._mask(secret)
        except Exception as error:  # other secrets may have filled the masker; this must not end a run
            log.warning("Airflow's secrets masker no longer works: %s", type(error).__name__)
            self._left = 0


mask_login = _Bounded(lambda secret: _compat.mask_secret(secret))
"""For the process of a task."""

mask_login_here = _Bounded(lambda secret: _compat.mask_secret_here(secret))
"""For the process of a triggerer: sends nothing to its supervisor; see :mod:`_compat`."""
