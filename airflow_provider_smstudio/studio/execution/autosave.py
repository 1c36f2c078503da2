"""Decide when to save the notebook while it runs. No I/O."""

from __future__ import annotations

_SHARE = 20
"""Saves take at most one twentieth of the time."""

_BYTES_PER_SECOND = 2**18
"""Saves write at most this many bytes per second. So their total grows with time, not with its square."""


class Autosave:
    """Decides when the next save of a growing notebook is due.

    :param interval: the shortest time between two saves, in seconds.
    :param now: the monotonic clock's reading at this moment.
    """

    def __init__(self, interval: float, now: float) -> None:
        self.changed = True
        """Whether there is anything to save."""
        self._interval = self._gap = interval
        self._at = now
        self._in_snapshot: list[str] = []
        self._on_disk: list[str] = []

    def due(self, now: float) -> bool:
        """Return whether a save is due."""
        return self.changed and now >= self._at + self._gap

    def next_at(self) -> float | None:
        """Return when the next save is due, or None while there is nothing to save."""
        return self._at + self._gap if self.changed else None

    def soon(self) -> None:
        """Make the next save due at once: a later process would need the new data."""
        self.changed, self._gap = True, 0.0

    def made(self, now: float, over: list[str]) -> None:
        """Record that a snapshot was made.

        :param now: the monotonic clock's reading, in seconds.
        :param over: ids of the requests that ended since the previous snapshot; this one contains their output.
        """
        self.changed = False
        self._at, self._gap = now, max(self._gap, self._interval)
        self._in_snapshot += over

    def saved(self, now: float, seconds: float, size: int) -> None:
        """Record that the newest snapshot was written, ``size`` bytes in ``seconds``."""
        self._at = now
        self._gap = max(self._interval, _SHARE * seconds, size / _BYTES_PER_SECOND)
        self._on_disk += self._in_snapshot
        self._in_snapshot = []

    def postpone(self, now: float) -> None:
        """Record that no save is possible now."""
        self._at, self._gap = now, max(self._gap, self._interval)

    def take_saved(self) -> list[str]:
        """Return the ids of the requests whose output was saved since the last call."""
        saved, self._on_disk = self._on_disk, []
        return saved

    def put_back(self, saved: list[str]) -> None:
        """Put back ids that a request should have sent to the kernel, but the kernel never received it."""
        self._on_disk = saved + self._on_disk
