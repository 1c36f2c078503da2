"""Arguments of tasks as templates leave them: read into what they mean, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

from airflow_provider_smstudio.studio.errors import InvalidInputError

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def text(name: str, value: object) -> str:
    """Read a text that must not be empty."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError(f"{name} must be a text, not {value!r}")
    return value


def optional_text(name: str, value: object) -> str | None:
    """Read a text; None and an empty one are none."""
    return None if value is None or value == "" else text(name, value)


def flag(name: str, value: object) -> bool:
    """Read a switch, which a template may have turned into text."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in (*_TRUE, *_FALSE):
        return text in _TRUE
    raise InvalidInputError(f"{name} must be true or false, not {value!r}")


def seconds(name: str, value: object) -> float | None:
    """Read a time limit, which a template may have turned into text."""
    if value is None or value in ("", "None"):
        return None
    seconds = number(value)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise InvalidInputError(f"{name} must be a positive number of seconds, not {value!r}")
    return seconds


def duration(name: str, value: object) -> float:
    """Read a number of seconds that may be none at all, and which a template may have turned into text."""
    seconds = number(value)
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise InvalidInputError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
    return seconds


def hours(name: str, value: object) -> float:
    """Read a number of hours, which a template may have turned into text."""
    hours = number(value)
    if not (hours > 0 and math.isfinite(hours)):
        raise InvalidInputError(f"{name} must be a positive number of hours, not {value!r}")
    return hours


def choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Read one of some words."""
    if value not in choices:
        raise InvalidInputError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    return str(value)


def mebibytes(name: str, value: object) -> float:
    """Read a size, which a template may have turned into text."""
    size = number(value)
    if not (size >= 0 and math.isfinite(size)):
        raise InvalidInputError(f"{name} must be a number of MiB, 0 or more, not {value!r}")
    return size


def number(value: object) -> float:
    """Read a number; what is none becomes NaN."""
    try:
        return math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # or TypeError
    except (TypeError, ValueError):
        return math.nan
