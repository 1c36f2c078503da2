"""Work that a run does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable

Begin = Callable[[Callable[[], None]], object]
"""Has something done in the background."""


def in_daemon(work: Callable[[], None]) -> None:
    """Do something in a thread of its own that keeps no process from ending."""
    threading.Thread(target=work, name="smstudio-background", daemon=True).start()
