"""When a reading of the instance's memory is worth a line in the log; pure."""

from __future__ import annotations

import math

from airflow_provider_smstudio.studio.protocol.instance_metrics import THRESHOLDS, Reading

FIRST, RISE, FALL = "first", "rise", "fall"
"""What a reading is worth telling for: as the run's first, for a threshold that it reached, for a clear fall."""

_CLEARLY = 10.0
"""So many percentage points below a threshold the memory has clearly fallen again."""

_QUIET = 600.0
"""Seconds for which the same threshold is not told again, for notebooks whose memory goes up and down."""

_MOMENT = 1.0


def describe(reading: Reading, change: str) -> str:
    """Write a line of the log.

    :param change: ``FIRST``, ``RISE`` or ``FALL``.
    """
    if change == FIRST:
        return f"the instance's memory: {reading.memory}"
    if change == FALL:
        return f"the instance's memory has fallen again: {reading.memory}"
    count = reading.kernels
    sharing = "" if count is None else f", {count} kernel{'' if count == 1 else 's'} on it"
    return (
        f"THE INSTANCE'S MEMORY FILLS UP: {reading.memory}{sharing}. When it is full, kernels are killed. "
        "Run fewer notebooks at a time (with a pool, or max_active_tis_per_dag), or start the app on a larger "
        "instance_type"
    )


class MemoryGauge:
    """Decides for one run which readings are worth a line.

    :param interval: time between two readings, in seconds.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._next_at = -math.inf
        self._level: float | None = None
        self._warned = False
        self._told_at: dict[float, float] = {}
        self._seen: list[Reading] = []

    @property
    def level(self) -> float | None:
        """The threshold that stands reached, 0 for none, None before the first reading."""
        return self._level

    def go_on(self, level: float | None) -> None:
        """Go on where another process's gauge was, so that nothing is told twice."""
        self._level, self._warned = level, bool(level)

    def due(self, now: float) -> bool:
        """Tell whether it is time for a reading."""
        return now >= self._next_at

    def wait(self, now: float) -> None:
        """Take it that a reading may come in a moment: it is due again then."""
        self._next_at = now + min(self.interval / 4, _MOMENT)

    def take(self, reading: Reading, now: float) -> str | None:
        """Take a reading.

        :return: what it is worth telling for: ``FIRST``, ``RISE``, ``FALL``; None for one that is not, and for one
            that was taken before.
        """
        if self._seen and reading.at <= self._seen[-1].at:
            return None
        self._next_at = now + self.interval
        self._seen = [*self._seen[-1:], reading]
        before, self._level = self._level, self._level_at(reading.memory.percent)
        if self._level > (before or 0.0):
            if now < self._told_at.get(self._level, -math.inf) + _QUIET:
                return None
            self._told_at[self._level], self._warned = now, True
            return RISE
        if before is None:
            return FIRST
        if self._level or not self._warned:
            return None
        self._warned = False
        return FALL

    def _level_at(self, percent: float) -> float:
        reached = max((at for at in THRESHOLDS if percent >= at), default=0.0)
        held = max((at for at in THRESHOLDS if percent >= at - _CLEARLY), default=0.0)
        return max(reached, min(self._level or 0.0, held))

    def before(self, now: float) -> str:
        """Tell how full the memory was before something happened; empty where that is not known.

        It is the fuller of the last two readings: the last one may have been made when a killed kernel's memory
        was free already, and the server had not told of its end yet.
        """
        if not self._seen:
            return ""
        fuller = max(reversed(self._seen), key=lambda seen: seen.memory.percent)
        age = max(now - fuller.at, 0.0)
        return f"the instance's memory was {int(fuller.memory.percent)} % full {age:.0f} s before"
