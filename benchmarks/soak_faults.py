"""The faults of the soak: which there are, a plan of them for one run, and what lets them happen."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_smstudio.local import LocalStudio

_PAUSE = 3.5
"""Seconds between two faults of REST requests: three tries of one request take so long."""


@dataclass(frozen=True)
class Strike:
    """One fault to come.

    :ivar at: when, in seconds since the run's begin.
    :ivar name: which.
    :ivar size: how bad, from 0 to 1.
    """

    at: float
    name: str
    size: float

    def between(self, least: float, most: float) -> float:
        """Return a number between these, by the strike's size."""
        return least + (most - least) * self.size

    def one_of(self, *values: int) -> int:
        """Return one of these, by the strike's size."""
        return values[int(self.size * 997) % len(values)]


Undo = Callable[[], None]


class Faults:
    """Lets faults happen to one Studio, whose runs share it; from any thread.

    Some would keep a single REST request from ever being answered if they came together; such come one after
    the other, unless ``storm`` is set.

    :param local: the Studio.
    :param storm: let all of them come together.
    """

    def __init__(self, local: LocalStudio, *, storm: bool = False) -> None:
        self._local = local
        self._switches = local.switches
        self._storm = storm
        self._lock = threading.Lock()
        self._calm_at = 0.0

    def strike(self, strike: Strike, kernel: str | None) -> tuple[float, Undo] | None:
        """Let one fault happen.

        :param kernel: the kernel of the run whose websocket it is about, if it has one yet.
        :return: after how many seconds it ends, and what ends it; None when it has nothing to strike at now.
        """
        with self._lock:
            return FAULTS[strike.name](self, strike, kernel)

    def end(self) -> None:
        """End all that is still going on."""
        for name, value in _QUIET.items():
            setattr(self._switches, name, value)

    def _cut(self, kernel: str | None, how: str) -> bool:
        return kernel is not None and self._local.cut_websockets(how, kernel_id=kernel) > 0

    def _set(self, seconds: float, **switches: float | bool) -> tuple[float, Undo]:
        for name, value in switches.items():
            setattr(self._switches, name, value)

        def undo() -> None:
            for name in switches:
                setattr(self._switches, name, _QUIET[name])

        return seconds, undo

    def _may_disturb_requests(self, seconds: float) -> bool:
        """Let REST requests fail for so long, if none failed a moment ago."""
        now, switches = time.monotonic(), self._switches
        pending = switches.http_drops or switches.http_errors or switches.refuse_connections
        if not self._storm and (now < self._calm_at or pending):
            return False
        self._calm_at = now + seconds + _PAUSE
        return True

    # --- Each fault

    def _cut_websocket(self, strike: Strike, kernel: str | None) -> tuple[float, Undo] | None:
        how = strike.name.partition(" ")[2]
        return (0.0, _nothing) if self._cut(kernel, how) else None

    def _refused(self, strike: Strike, kernel: str | None) -> tuple[float, Undo] | None:
        seconds = strike.between(0.3, 2.0)
        if not self._may_disturb_requests(seconds):
            return None
        lasting = self._set(seconds, refuse_connections=True)
        self._cut(kernel, "reset")
        return lasting

    def _drops(self, strike: Strike, kernel: str | None) -> tuple[float, Undo] | None:
        if not self._may_disturb_requests(0):
            return None
        self._switches.http_drops = strike.one_of(1, 2)
        return 0.0, _nothing

    def _errors(self, strike: Strike, kernel: str | None) -> tuple[float, Undo] | None:
        if not self._may_disturb_requests(0):
            return None
        self._switches.http_error_status = strike.one_of(502, 503, 504)
        self._switches.http_errors = strike.one_of(1, 2)
        return 0.0, _nothing

    def _delay(self, strike: Strike, kernel: str | None) -> tuple[float, Undo] | None:
        return self._set(strike.between(1.0, 6.0), http_delay=strike.between(0.05, 1.5))

    def _expired(self, strike: Strike, kernel: str | None) -> tuple[float, Undo] | None:
        self._switches.unauthenticated = strike.name.partition(" ")[2]
        self._switches.cut_websockets_at_expiry = bool(strike.one_of(0, 1))
        self._local.expire_logins()
        return 0.0, _nothing

    def _failing_saves(self, strike: Strike, kernel: str | None) -> tuple[float, Undo] | None:
        self._switches.save_failures = strike.one_of(1, 2)
        return 0.0, _nothing

    def _slow_saves(self, strike: Strike, kernel: str | None) -> tuple[float, Undo] | None:
        return self._set(strike.between(2.0, 10.0), save_delay=strike.between(0.3, 6.0))

    def _refused_websockets(self, strike: Strike, kernel: str | None) -> tuple[float, Undo] | None:
        self._switches.websocket_refusal_status = strike.one_of(502, 503, 504, 500, 404, 429)
        self._switches.websocket_refusals = strike.one_of(1, 2, 3)
        self._cut(kernel, "reset")
        return 0.0, _nothing

    def _no_replay(self, strike: Strike, kernel: str | None) -> tuple[float, Undo] | None:
        lasting = self._set(strike.between(1.0, 10.0), replay=False)
        self._cut(kernel, "reset")
        return lasting


def _nothing() -> None:
    """Most faults have no end."""


_QUIET: dict[str, float | bool] = {
    "refuse_connections": False,
    "http_delay": 0.0,
    "http_drops": 0,
    "http_errors": 0,
    "websocket_refusals": 0,
    "save_delay": 0.0,
    "save_failures": 0,
    "replay": True,
}

FAULTS: dict[str, Callable[[Faults, Strike, str | None], tuple[float, Undo] | None]] = {
    "websocket close": Faults._cut_websocket,
    "websocket reset": Faults._cut_websocket,
    "websocket half-open": Faults._cut_websocket,
    "websocket deaf": Faults._cut_websocket,
    "connections refused": Faults._refused,
    "requests dropped": Faults._drops,
    "requests failed": Faults._errors,
    "requests delayed": Faults._delay,
    "login-expired 403": Faults._expired,
    "login-expired 302": Faults._expired,
    "login-expired 200-html": Faults._expired,
    "saves failing": Faults._failing_saves,
    "saves slow": Faults._slow_saves,
    "handshakes refused": Faults._refused_websockets,
    "replay off": Faults._no_replay,
}
"""What can happen, by name. Of a name's words the second is an argument, where there is a choice."""


def plan(draw: random.Random, seconds: float) -> list[Strike]:
    """Draw the faults of one run, in order; some runs have many, some have few."""
    gap = draw.choice([1.0, 2.5, 6.0])
    at, strikes = 0.0, []
    while (at := at + draw.expovariate(1 / gap)) < seconds:
        strikes.append(Strike(round(at, 2), draw.choice(list(FAULTS)), round(draw.random(), 3)))
    return strikes
