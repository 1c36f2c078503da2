"""Who uses an app that was started for notebooks, written into the app's tags; pure.

Several DAG runs share one app. Each puts a *hold* on it before its notebooks, and takes it away afterwards;
whoever takes away the last one may stop the app. Tags serve for that because they need no login, belong to the
app, and are each written without reading the others. Whether they outlive the app is not known, so a mark also
says when it was made, and counts only for the app that is there now.
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
"""Seconds for which the marks count of somebody who is about to stop the app: he may have died."""

_SKEW = 300.0
"""Seconds by which our clock and the service's may differ."""


@dataclass(frozen=True)
class AppTags:
    """What an app's tags tell.

    :ivar started_here: whether this provider started the app that is there now.
    :ivar holds: who uses it, by the mark's key.
    :ivar waiting: who waits whether somebody else still comes.
    :ivar closing: who is about to stop it.
    """

    started_here: bool
    holds: dict[str, str]
    waiting: dict[str, str]
    closing: dict[str, str]


def key_of(holder: str) -> str:
    """Return what names a holder in the keys of its marks."""
    return hashlib.sha256(holder.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def started(holder: str, now: float) -> dict[str, str]:
    """Return the tag of an app that is started now."""
    return {STARTED: _value(now, holder)}


def hold(holder: str, until: float) -> dict[str, str]:
    """Return the tag of somebody who uses the app.

    :param until: when the hold counts no more, in seconds since the epoch.
    """
    return {_HOLD + key_of(holder): _value(until, holder)}


def waiting(holder: str, now: float) -> dict[str, str]:
    """Return the tag of somebody who waits whether somebody else still comes."""
    return {_WAITING + key_of(holder): _value(now, holder)}


def closing(holder: str, now: float) -> dict[str, str]:
    """Return the tag of somebody who is about to stop the app."""
    return {_CLOSING + key_of(holder): _value(now, holder)}


def keys_of(holder: str) -> list[str]:
    """Return the keys of all marks that a holder may have made."""
    return [prefix + key_of(holder) for prefix in (_HOLD, _WAITING, _CLOSING)]


def read(tags: Mapping[str, str], *, created: float | None, now: float, but: str = "") -> AppTags:
    """Read an app's tags.

    :param created: when the app was created.
    :param now: seconds since the epoch.
    :param but: a holder whose own marks are left out.
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
