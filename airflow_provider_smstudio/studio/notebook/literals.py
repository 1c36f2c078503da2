"""Write values as source code of Python, R and Scala. Only literals, so that no value can become code. No I/O.

A notebook's parameters may come from ``dag_run.conf``, so they are untrusted. This module quotes and escapes every
string. It prints every number with the base type's own method, so a subclass cannot use its own ``repr``. It
refuses a value of any other type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from typing import Any

_MAX_DEPTH = 100
_INT32 = 2**31
_INT64 = 2**63
_EXACT_DOUBLE = 2**53


class LiteralError(ValueError):
    """A value that no literal of the language can express."""


def python(value: Any) -> str:
    """Return a value as a Python expression."""
    return _write(value, _Python, 0)


def r(value: Any) -> str:
    """Return a value as an R expression. Times are POSIXct; a time without a zone counts as UTC."""
    return _write(value, _R, 0)


def scala(value: Any) -> str:
    """Return a value as a Scala expression."""
    return _write(value, _Scala, 0)


class _Language:
    """How one language writes each type of value. Containers receive their items as source code."""

    none: str
    true: str
    false: str
    integer: Callable[[int], str]
    real: Callable[[float], str]
    text: Callable[[str], str]
    day: Callable[[date], str]
    time: Callable[[datetime], str]
    span: Callable[[timedelta], str]
    items: Callable[[list[str]], str]
    pair: Callable[[list[str]], str]
    unique: Callable[[list[str]], str]
    frozen: Callable[[list[str]], str]
    mapping: Callable[[list[tuple[str, str]]], str]

    @classmethod
    def key(cls, key: Any, depth: int) -> str:
        return _write(key, cls, depth)


def _write(value: Any, language: type[_Language], depth: int) -> str:  # noqa: C901  # one line per type
    if depth > _MAX_DEPTH:
        raise LiteralError(f"it is nested more than {_MAX_DEPTH} deep, or contains itself")
    if value is None:
        return language.none
    if isinstance(value, bool):
        return language.true if value else language.false
    if isinstance(value, int):
        return language.integer(value)
    if isinstance(value, float):
        return language.real(value)
    if isinstance(value, str):
        return language.text(value)
    if isinstance(value, datetime):
        return language.time(value)
    if isinstance(value, date):
        return language.day(value)
    if isinstance(value, timedelta):
        return language.span(value)
    if isinstance(value, dict):
        pairs = value.items()
        return language.mapping([(language.key(k, depth + 1), _write(v, language, depth + 1)) for k, v in pairs])
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_write(item, language, depth + 1) for item in value]
        if isinstance(value, (set, frozenset)):
            items.sort()  # the same text for the same set
            return (language.frozen if isinstance(value, frozenset) else language.unique)(items)
        return (language.pair if isinstance(value, tuple) else language.items)(items)
    raise LiteralError(
        f"a value of type {type(value).__module__}.{type(value).__qualname__} has no literal; use None, bool, "
        "int, float, str, date, datetime, timedelta, list, tuple, dict or set"
    )


def _microseconds(span: timedelta) -> int:
    return timedelta.__floordiv__(span, timedelta(microseconds=1))


def _seconds(span: timedelta) -> str:
    """Return a span's seconds as an exact decimal number."""
    whole, rest = divmod(abs(_microseconds(span)), 1_000_000)
    sign = "-" if _microseconds(span) < 0 else ""
    return f"{sign}{whole}.{rest:06d}" if rest else f"{sign}{whole}"


def _real(value: float, nan: str, infinity: str, minus_infinity: str) -> str:
    if math.isnan(value):
        return nan
    if math.isinf(value):
        return infinity if value > 0 else minus_infinity
    return float.__repr__(value)


class _Python(_Language):
    none, true, false = "None", "True", "False"
    integer = staticmethod(int.__repr__)
    text = staticmethod(str.__repr__)

    @staticmethod
    def real(value: float) -> str:
        return _real(value, "float('nan')", "float('inf')", "float('-inf')")

    # Through __import__, because an import statement would rebind a name that the notebook may use.
    @staticmethod
    def day(value: date) -> str:
        return f"__import__('datetime').date.fromisoformat('{date.isoformat(value)}')"

    @staticmethod
    def time(value: datetime) -> str:
        return f"__import__('datetime').datetime.fromisoformat('{datetime.isoformat(value)}')"

    @staticmethod
    def span(value: timedelta) -> str:
        plain = timedelta(microseconds=_microseconds(value))
        return f"__import__('datetime').{timedelta.__repr__(plain).removeprefix('datetime.')}"

    @staticmethod
    def items(items: list[str]) -> str:
        return f"[{', '.join(items)}]"

    @staticmethod
    def pair(items: list[str]) -> str:
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"

    @staticmethod
    def unique(items: list[str]) -> str:
        return f"{{{', '.join(items)}}}" if items else "set()"

    @staticmethod
    def frozen(items: list[str]) -> str:  # a plain set can be neither in a set nor a key
        return f"frozenset({{{', '.join(items)}}})" if items else "frozenset()"

    @staticmethod
    def mapping(items: list[tuple[str, str]]) -> str:
        return f"{{{', '.join(f'{key}: {item}' for key, item in items)}}}"


def _quoted(value: str, escapes: dict[str, str], other: Callable[[str], str]) -> str:
    written = (escapes.get(c) or (c if c.isprintable() else other(c)) for c in str.__str__(value))
    return '"' + "".join(written) + '"'


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _r_character(character: str) -> str:
    code = ord(character)
    if code == 0 or 0xD800 <= code <= 0xDFFF:
        raise LiteralError(f"R has no strings with the character U+{code:04X}")
    return f"\\U{code:08X}"


class _R(_Language):
    none, true, false = "NULL", "TRUE", "FALSE"

    @staticmethod
    def integer(value: int) -> str:
        if abs(value) < _INT32:
            return f"{int.__repr__(value)}L"
        if abs(value) <= _EXACT_DOUBLE:
            return int.__repr__(value)
        raise LiteralError("R has no exact integers beyond 2**53; pass it as a string")

    @staticmethod
    def real(value: float) -> str:
        return _real(value, "NaN", "Inf", "-Inf")

    @staticmethod
    def text(value: str) -> str:
        return _quoted(value, _ESCAPES, _r_character)

    @staticmethod
    def day(value: date) -> str:
        return f'as.Date("{date.isoformat(value)}")'

    @staticmethod
    def time(value: datetime) -> str:
        if datetime.utcoffset(value) is not None:
            value = datetime.astimezone(value, timezone.utc)
        plain = datetime.isoformat(datetime.replace(value, tzinfo=None), sep=" ")
        return f'as.POSIXct("{plain}", tz = "UTC", format = "%Y-%m-%d %H:%M:%OS")'

    @staticmethod
    def span(value: timedelta) -> str:
        return f'as.difftime({_seconds(value)}, units = "secs")'

    @staticmethod
    def items(items: list[str]) -> str:
        return f"list({', '.join(items)})"

    pair = unique = frozen = items

    @classmethod
    def key(cls, key: Any, depth: int) -> str:
        if not isinstance(key, str) or not str.__str__(key):
            raise LiteralError(f"R names list items by non-empty strings, not by {key!r}")
        return cls.text(key)

    @staticmethod
    def mapping(items: list[tuple[str, str]]) -> str:
        # setNames takes any name as a string; with "name = item" R's parser would read some names as code.
        names = ", ".join(key for key, _ in items)
        values = ", ".join(item for _, item in items)
        return f"setNames(list({values}), c({names}))" if items else "setNames(list(), character(0))"


def _scala_character(character: str) -> str:
    encoded = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{encoded[start : start + 4]}" for start in range(0, len(encoded), 4))


class _Scala(_Language):
    none, true, false = "None", "true", "false"

    @staticmethod
    def integer(value: int) -> str:
        if -_INT32 <= value < _INT32:
            return int.__repr__(value)
        if -_INT64 <= value < _INT64:
            return f"{int.__repr__(value)}L"
        return f'BigInt("{int.__repr__(value)}")'

    @staticmethod
    def real(value: float) -> str:
        return _real(value, "Double.NaN", "Double.PositiveInfinity", "Double.NegativeInfinity")

    @staticmethod
    def text(value: str) -> str:
        return _quoted(value, _ESCAPES, _scala_character)

    @staticmethod
    def day(value: date) -> str:
        return f'java.time.LocalDate.parse("{date.isoformat(value)}")'

    @staticmethod
    def time(value: datetime) -> str:
        kind = "LocalDateTime" if datetime.utcoffset(value) is None else "OffsetDateTime"
        return f'java.time.{kind}.parse("{datetime.isoformat(value)}")'

    @staticmethod
    def span(value: timedelta) -> str:
        return f'java.time.Duration.parse("PT{_seconds(value)}S")'

    @staticmethod
    def items(items: list[str]) -> str:
        return f"Seq({', '.join(items)})"

    pair = items

    @staticmethod
    def unique(items: list[str]) -> str:
        return f"Set({', '.join(items)})"

    frozen = unique

    @staticmethod
    def mapping(items: list[tuple[str, str]]) -> str:
        return f"Map({', '.join(f'{key} -> {item}' for key, item in items)})"
