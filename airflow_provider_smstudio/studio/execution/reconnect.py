"""Whether the run's websocket is up, and when to try again if not; pure."""

from __future__ import annotations

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0


class ConnectionState:
    """The state of the connection to the kernel.

    :param limit: seconds after which a connection that is down is given up.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._down_since: float | None = None
        self._pause = 0.0
        self.retry_at: float | None = None
        """When to try next; None while the connection is up, or while a try is under way."""

    @property
    def up(self) -> bool:
        """Whether messages can be sent."""
        return self._down_since is None

    def seconds_down(self, now: float) -> float:
        """Tell for how long it has been down."""
        return 0.0 if self._down_since is None else now - self._down_since

    def lost(self, now: float) -> float | None:
        """Take it that the connection broke, or that opening it failed.

        :return: seconds until the next try; None when it has been down for too long.
        """
        if self._down_since is None:
            self._down_since, self._pause = now, 0.0
        elif now >= self._down_since + self._limit:
            return None
        else:
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        left = self._down_since + self._limit - now
        pause = max(min(self._pause, left), 0.0)
        self.retry_at = now + pause
        return pause

    def try_now(self) -> None:
        """Take it that a try begins."""
        self.retry_at = None

    def restored(self, now: float) -> float:
        """Take it that the connection is there again.

        :return: for how many seconds it was not.
        """
        seconds = self.seconds_down(now)
        self._down_since = self.retry_at = None
        return seconds
