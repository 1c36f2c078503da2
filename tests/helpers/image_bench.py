"""What the tests beside this file share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.helpers.bench import Bench
from tests.helpers.faults import hurry, set_options, wait_for

CRASH_OPTIONS = {"crash_check_after": 3.0}
"""Run options by which a crash that the server does not tell is noticed in seconds."""

CRASH_LIMIT = 20.0


def hurry_all(patch: pytest.MonkeyPatch) -> None:
    """Shorten the limits as the fault matrix does, and the one for a crash that nobody tells of."""
    hurry(patch)
    set_options(patch, **CRASH_OPTIONS)


def stays(seconds: float, then: str = "") -> str:
    """Return a cell that prints a line, says in a file that it has begun, and is silent for a while.

    :param then: what it does after that.
    """
    return f"import os, time\nprint('on', flush=True)\nopen('began', 'w').close()\ntime.sleep({seconds})\n{then}"


def when_begun(bench: Bench, act: Callable[[], object], after: float = 1.0) -> list[float]:
    """Do something, in a thread of its own, a while after a cell of :func:`stays` has begun.

    :return: a list that gets the moment.
    """
    moments: list[float] = []

    def wait() -> None:
        wait_for((bench.path / "began").exists, 60)
        time.sleep(after)
        moments.append(time.monotonic())
        act()

    threading.Thread(target=wait, daemon=True).start()
    return moments


def kernel_of(bench: Bench) -> str:
    """Return the id of the only kernel."""
    (kernel,) = bench.local.kernels()
    return str(kernel["id"])


def state_of(bench: Bench) -> str:
    """Return how the executed notebook says that its run ended."""
    return str(bench.executed().metadata["smstudio"]["run"]["state"])


def papermill(bench: Bench) -> list[str]:
    """Return what the executed notebook says of each code cell."""
    cells = [cell for cell in bench.executed().cells if cell.cell_type == "code"]
    return [cell.metadata["papermill"]["status"] for cell in cells]
