"""Arguments of tasks as templates leave them: read into what they mean, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Undefined

from airflow_provider_smstudio.studio.errors import InvalidInputError, ParameterError

_MAX_DEPTH = 100
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


def parameters(value: object) -> dict[str, Any]:
    """Read a notebook's parameters, in which templates and XComs leave values of Airflow's own types.

    :raises InvalidInputError: for what is no mapping, and for what a template did not find.
    """
    value = plain(None, value)
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"parameters must be a dict, not {type(value).__name__}; a template that makes a whole dict needs "
            "render_template_as_native_obj=True in the DAG"
        )
    return value


def plain(name: str | None, value: Any, depth: int = 0) -> Any:
    """Make plain dicts and lists of Airflow's containers, and values of its lazy proxies, at any depth.

    The output of a mapped task, for one, is a sequence that reads the XComs one by one. All else stays as it is.

    :param name: the parameter, for messages; None for all parameters together.
    """
    where = "parameters" if name is None else f"parameter {name!r}"
    if depth > _MAX_DEPTH:
        raise ParameterError(f"{where} is nested more than {_MAX_DEPTH} deep, or contains itself", parameter=name)
    while hasattr(type(value), "__wrapped__"):  # a proxy, which passes for what it wraps, but not everywhere
        value = value.__wrapped__
    if isinstance(value, Undefined):  # native templates hand it on, where others raise
        raise ParameterError(
            f"{where} has no value in this run: {value._undefined_message}. If that may be, give the template a "
            "default: {{ … | default(none) }}",
            parameter=name,
        )
    if isinstance(value, Mapping):
        # Key by key: the items of Airflow's own ParamsDict are not its values.
        return {key: plain(str(key) if name is None else name, value[key], depth + 1) for key in value}
    if isinstance(value, tuple):
        return tuple(plain(name, item, depth + 1) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        return [plain(name, item, depth + 1) for item in value]
    return value
