"""Reads the arguments of tasks after templating: converts each one to its type, or refuses it by name."""

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
    """Read a text. None and an empty text mean that there is none."""
    return None if value is None or value == "" else text(name, value)


def flag(name: str, value: object) -> bool:
    """Read a boolean, which a template may have converted to text."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in (*_TRUE, *_FALSE):
        return text in _TRUE
    raise InvalidInputError(f"{name} must be true or false, not {value!r}")


def seconds(name: str, value: object) -> float | None:
    """Read a time limit, which a template may have converted to text. None means no limit."""
    if value is None or value in ("", "None"):
        return None
    seconds = number(value)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise InvalidInputError(f"{name} must be a positive number of seconds, not {value!r}")
    return seconds


def duration(name: str, value: object) -> float:
    """Read a number of seconds, 0 or more, which a template may have converted to text."""
    seconds = number(value)
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise InvalidInputError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
    return seconds


def hours(name: str, value: object) -> float:
    """Read a number of hours, which a template may have converted to text."""
    hours = number(value)
    if not (hours > 0 and math.isfinite(hours)):
        raise InvalidInputError(f"{name} must be a positive number of hours, not {value!r}")
    return hours


def choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Read a word that must be one of the choices."""
    if value not in choices:
        raise InvalidInputError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    return str(value)


def mebibytes(name: str, value: object) -> float:
    """Read a size in MiB, which a template may have converted to text."""
    size = number(value)
    if not (size >= 0 and math.isfinite(size)):
        raise InvalidInputError(f"{name} must be a number of MiB, 0 or more, not {value!r}")
    return size


def number(value: object) -> float:
    """Read a number. Anything that is not a number becomes NaN."""
    try:
        return math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # or TypeError
    except (TypeError, ValueError):
        return math.nan


def parameters(value: object) -> dict[str, Any]:
    """Read a notebook's parameters. Templates and XComs may leave values of Airflow's own types in them.

    :raises InvalidInputError: if the value is not a mapping, or if a template did not find a value.
    """
    value = plain(None, value)
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"parameters must be a dict, not {type(value).__name__}; a template that returns a whole dict needs "
            "render_template_as_native_obj=True in the DAG"
        )
    return value


def plain(name: str | None, value: Any, depth: int = 0) -> Any:
    """Convert Airflow's containers to plain dicts and lists, and its lazy proxies to their values, at any depth.

    For example, the output of a mapped task is a sequence that reads the XComs one by one. Other values stay as
    they are.

    :param name: the parameter, for messages; None for all parameters together.
    """
    where = "parameters" if name is None else f"parameter {name!r}"
    if depth > _MAX_DEPTH:
        raise ParameterError(f"{where} is nested more than {_MAX_DEPTH} deep, or contains itself", parameter=name)
    while hasattr(type(value), "__wrapped__"):  # a proxy: it behaves like the value in it, but not everywhere
        value = value.__wrapped__
    if isinstance(value, Undefined):  # native templates return it, other templates raise an error
        raise ParameterError(
            f"{where} has no value in this run: {value._undefined_message}. If it is optional, give the template "
            "a default: {{ … | default(none) }}",
            parameter=name,
        )
    if isinstance(value, Mapping):
        # Read key by key: the items of Airflow's own ParamsDict are not its values.
        return {key: plain(str(key) if name is None else name, value[key], depth + 1) for key in value}
    if isinstance(value, tuple):
        return tuple(plain(name, item, depth + 1) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        return [plain(name, item, depth + 1) for item in value]
    return value
