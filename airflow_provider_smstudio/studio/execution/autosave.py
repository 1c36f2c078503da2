"""When the notebook is saved while it runs; pure."""

from __future__ import annotations

_SHARE = 20
"""Saves take a twentieth of the time at most."""

_BYTES_PER_SECOND = 2**18
"""Saves write this much a second at most, so that what a run writes grows with its time, not with the square."""


class Autosave:
    """Spaces the saves of a notebook that grows.

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
        """Tell whether a save is due."""
        return self.changed and now >= self._at + self._gap

    def next_at(self) -> float | None:
        """Tell when the next save is due, None while there is nothing to save."""
        return self._at + self._gap if self.changed else None

    def soon(self) -> None:
        """Have the next save made at once: there is something that a later process would miss."""
        self.changed, self._gap = True, 0.0

    def made(self, now: float, over: list[str]) -> None:
        """Take it that a snapshot was made.

        :param over: ids of the requests that have ended since the snapshot before, and whose output it holds.
        """
        self.changed = False
        self._at, self._gap = now, max(self._gap, self._interval)
        self._in_snapshot += over

    def saved(self, now: float, seconds: float, size: int) -> None:
        """Take it that the newest snapshot was written, ``size`` bytes in ``seconds``."""
        self._at = now
        self._gap = max(self._interval, _SHARE * seconds, size / _BYTES_PER_SECOND)
        self._on_disk += self._in_snapshot
        self._in_snapshot = []

    def postpone(self, now: float) -> None:
        """Take it that nothing can be saved now."""
        self._at, self._gap = now, max(self._gap, self._interval)

    def take_saved(self) -> list[str]:
        """Return the ids of the requests whose output has been written since this was last asked."""
        saved, self._on_disk = self._on_disk, []
        return saved

    def put_back(self, saved: list[str]) -> None:
        """Take back ids that were to be told to the kernel by a request that it never got."""
        self._on_disk = saved + self._on_disk
