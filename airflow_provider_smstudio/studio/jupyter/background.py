"""Work that a run does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable

Begin = Callable[[Callable[[], None]], object]
"""Runs a function in the background."""


def in_daemon(work: Callable[[], None]) -> None:
    """Run a function in its own daemon thread, which does not keep the process alive."""
    threading.Thread(target=work, name="smstudio-background", daemon=True).start()
