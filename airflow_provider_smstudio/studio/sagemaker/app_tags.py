"""Marks in an app's tags that name the runs that use the app. Pure functions.

Several DAG runs share one app. Each run puts a *hold* on the app before its notebooks, and removes the hold
afterwards. The run that removes the last hold may stop the app. Tags are suitable: they need no login, they belong
to the app, and a run can write one without reading the others. It is not known whether tags outlive the app. So
each mark also contains a time: an expired mark does not count, and a start mark counts only for the app created
at that time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

STARTED = "smstudio:started"
_HOLD, _WAITING, _CLOSING = "smstudio:hold:", "smstudio:waiting:", "smstudio:closing:"
_NOT_ALLOWED = re.compile(r"[^\w .:/=+\-@]", re.ASCII)
_NAME_LIMIT = 200
_FRESH = 120.0
"""Seconds for which a waiting or closing mark counts: the process that made it may have died."""

_SKEW = 300.0
"""Seconds by which the clocks of this machine and of AWS may differ."""


@dataclass(frozen=True)
class AppTags:
    """The marks in an app's tags. Each dict maps the key of a holder to its name.

    :ivar started_here: whether this provider started the current app.
    :ivar holds: the holders that use the app.
    :ivar waiting: the holders that wait for other runs, before the app is stopped.
    :ivar closing: the holders that are about to stop the app.
    """

    started_here: bool
    holds: dict[str, str]
    waiting: dict[str, str]
    closing: dict[str, str]


def key_of(holder: str) -> str:
    """Return the text that identifies a holder in the keys of its marks."""
    return hashlib.sha256(holder.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def started(holder: str, now: float) -> dict[str, str]:
    """Return the tag of an app that the holder starts now."""
    return {STARTED: _value(now, holder)}


def hold(holder: str, until: float) -> dict[str, str]:
    """Return the tag of a holder that uses the app.

    :param until: when the hold expires, in seconds since the epoch.
    """
    return {_HOLD + key_of(holder): _value(until, holder)}


def waiting(holder: str, now: float) -> dict[str, str]:
    """Return the tag of a holder that waits for other runs."""
    return {_WAITING + key_of(holder): _value(now, holder)}


def closing(holder: str, now: float) -> dict[str, str]:
    """Return the tag of a holder that is about to stop the app."""
    return {_CLOSING + key_of(holder): _value(now, holder)}


def keys_of(holder: str) -> list[str]:
    """Return the keys of all marks that a holder may have made."""
    return [prefix + key_of(holder) for prefix in (_HOLD, _WAITING, _CLOSING)]


def read(tags: Mapping[str, str], *, created: float | None, now: float, but: str = "") -> AppTags:
    """Read the marks in an app's tags.

    :param created: when the app was created, in seconds since the epoch; None if not known.
    :param now: the current time, in seconds since the epoch.
    :param but: a holder whose marks are left out.
    """
    own = key_of(but) if but else None

    def those(prefix: str, last: float) -> dict[str, str]:
        found = {}
        for key, text in tags.items():
            if key.startswith(prefix) and key.removeprefix(prefix) != own:
                when, who = _read_value(text)
                if when >= last:
                    found[key.removeprefix(prefix)] = who
        return found

    asked = _read_value(tags.get(STARTED, ""))[0]
    here = asked > 0 and (created is None or abs(created - asked) < _SKEW)
    return AppTags(here, those(_HOLD, now), those(_WAITING, now - _FRESH), those(_CLOSING, now - _FRESH))


def _value(moment: float, holder: str) -> str:
    return f"{moment:.0f} {_NOT_ALLOWED.sub('_', holder)[:_NAME_LIMIT]}".strip()


def _read_value(text: str) -> tuple[float, str]:
    moment, _, who = text.partition(" ")
    return (float(moment), who) if moment.isascii() and moment.isdigit() else (0.0, "")
