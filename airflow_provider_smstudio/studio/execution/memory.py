"""Decide which readings of the instance's memory need a line in the log. No I/O."""

from __future__ import annotations

import math

from airflow_provider_smstudio.studio.protocol.instance_metrics import THRESHOLDS, Reading

FIRST, RISE, FALL = "first", "rise", "fall"
"""Why a reading is reported: it is the run's first, it reached a threshold, or it fell clearly."""

_CLEARLY = 10.0
"""How many percentage points below a threshold the memory use must be to count as fallen."""

_QUIET = 600.0
"""Seconds before the same threshold is reported again, for notebooks whose memory use goes up and down."""

_MOMENT = 1.0


def describe(reading: Reading, change: str) -> str:
    """Return a line for the log.

    :param reading: the reading to report.
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
    """Decides for one run which readings need a line in the log.

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
        """The threshold that is reached now, 0 for none, None before the first reading."""
        return self._level

    def go_on(self, level: float | None) -> None:
        """Continue from the level of another process's gauge, so that no level is reported twice."""
        self._level, self._warned = level, bool(level)

    def due(self, now: float) -> bool:
        """Return whether the next reading is due."""
        return now >= self._next_at

    def wait(self, now: float) -> None:
        """Postpone the next reading by a moment, so that the driver does not ask again at once."""
        self._next_at = now + min(self.interval / 4, _MOMENT)

    def take(self, reading: Reading, now: float) -> str | None:
        """Process a reading.

        :return: why to report it: ``FIRST``, ``RISE`` or ``FALL``. None if the reading needs no report or is not
            new.
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
        """Return a text about the memory use before an event, or an empty text if it is not known.

        It uses the higher of the last two readings. The last reading may be too low: a killed kernel's memory is
        free before the server reports the kernel's end.
        """
        if not self._seen:
            return ""
        fuller = max(reversed(self._seen), key=lambda seen: seen.memory.percent)
        age = max(now - fuller.at, 0.0)
        return f"the instance's memory was {int(fuller.memory.percent)} % full {age:.0f} s before"
