"""Tells Airflow's masker of logins, within bounds.

Nothing of ours writes a login anywhere; the masker is for what a library or a notebook might print. Airflow puts
all that it shall mask into one regular expression, for as long as its process lives, and makes it anew for each
secret; re2 refuses one that is too large. From then on *every* new secret of that process is an error, and with
it every look at a connection ("pattern too large": measured on Airflow 2.11 at the 159th secret of 4.4 kB; on
3.3 each takes half a second by then). A triggerer may log in more often than that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from airflow_provider_smstudio import _compat

log = logging.getLogger(__name__)

MOST_CHARACTERS = 50_000
"""So many characters of logins are masked in one process: those of the first ten or so."""


class _Bounded:
    """Passes secrets on to a masker, until there are too many."""

    def __init__(self, mask: Callable[[str], None]) -> None:
        self._mask = mask
        self._left = MOST_CHARACTERS
        self._known: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, secret: str) -> None:
        """Have a secret masked, if there is room for it."""
        with self._lock:
            if hash(secret) in self._known or len(secret) > self._left:
                return
            self._known.add(hash(secret))
            self._left -= len(secret)
        try:
            self._mask(secret)
        except Exception as error:  # other secrets may have filled the masker; that must not end a run
            log.warning("Airflow's masker of secrets does not work any more: %s", type(error).__name__)
            self._left = 0


mask_login = _Bounded(lambda secret: _compat.mask_secret(secret))
"""For a task's process."""

mask_login_here = _Bounded(lambda secret: _compat.mask_secret_here(secret))
"""For a triggerer's process: tells its supervisor nothing; see :mod:`_compat`."""
