"""Track whether the run's websocket is open, and when to reconnect if not. No I/O."""

from __future__ import annotations

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0


class ConnectionState:
    """The state of the connection to the kernel.

    :param limit: seconds after which the run stops trying to reconnect.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._down_since: float | None = None
        self._pause = 0.0
        self.retry_at: float | None = None
        """When to reconnect next; None while the connection is up or a reconnection is in progress."""

    @property
    def up(self) -> bool:
        """Whether messages can be sent."""
        return self._down_since is None

    def seconds_down(self, now: float) -> float:
        """Return how many seconds the connection has been down, 0 while it is up."""
        return 0.0 if self._down_since is None else now - self._down_since

    def lost(self, now: float) -> float | None:
        """Record that the connection broke, or that a reconnection failed.

        :return: seconds until the next reconnection; None when the connection has been down for too long.
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
        """Record that a reconnection begins."""
        self.retry_at = None

    def restored(self, now: float) -> float:
        """Record that the connection is up again.

        :return: how many seconds it was down.
        """
        seconds = self.seconds_down(now)
        self._down_since = self.retry_at = None
        return seconds
