"""Read the memory use of the instance that runs a space's kernels. No I/O.

The answer comes from the server extension that AWS adds to its images. Its source (version 0.6.1) uses psutil's
numbers for the whole machine, with ``memory_percentage`` from 0 to 100. No answer from AWS itself was seen so far.
So any other form counts as "not known".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

THRESHOLDS = (80.0, 90.0, 95.0)
"""Percentages at which the run writes a warning."""

_MOST_BYTES = 2.0**60
_FAR_APART = 25.0


@dataclass(frozen=True)
class Memory:
    """The memory of an instance.

    :ivar percent: the part that is in use, 0 to 100.
    :ivar used: bytes in use, or None if that is not known.
    :ivar total: bytes in total, or None if that is not known.
    """

    percent: float
    used: float | None = None
    total: float | None = None

    def __str__(self) -> str:
        full = f"{int(self.percent)} %"  # rounded down: it never shows a threshold that was not reached
        if self.used is None or self.total is None:
            return f"{full} in use"
        return f"{self.used / 2**30:.1f} of {self.total / 2**30:.1f} GiB in use ({full})"


@dataclass(frozen=True)
class Reading:
    """One reading of the instance's memory.

    :ivar memory: the instance's memory.
    :ivar at: the time of the reading, by the monotonic clock.
    :ivar kernels: how many kernels ran there, or None if that is not known.
    """

    memory: Memory
    at: float
    kernels: int | None = None


def read_memory(document: object) -> Memory | None:
    """Return the memory from the answer of ``instance/metrics``, or None if the answer does not contain it."""
    found = document
    for key in ("metrics", "memory"):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    used, total = (_number(found.get(key), _MOST_BYTES) for key in ("rss_in_bytes", "total_in_bytes"))
    if used is None or total is None or used > total:
        used = total = None
    share = None if used is None or total is None else 100 * used / total
    percent = _percent(_number(found.get("memory_percentage"), 100.0), share)
    if percent is None:
        return None
    if share is not None and abs(percent - share) > _FAR_APART:  # the bytes measure another thing
        used = total = None
    return Memory(percent, used, total)


def _number(value: object, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
        return None
    return float(value)


def _percent(told: float | None, share: float | None) -> float | None:
    """Return the percentage. A value up to 1 may be a fraction of 1; the bytes must then confirm it."""
    if told is None or (told <= 1 and share is None):
        return share
    if told > 1 or share is None:
        return told
    return told if abs(told - share) < abs(100 * told - share) else 100 * told
