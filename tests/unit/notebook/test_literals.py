"""Values as literals: Python's are evaluated and taken apart, R's and Scala's compared and scanned."""

from __future__ import annotations

import ast
import math
import random
from collections import OrderedDict, UserDict, namedtuple
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID

import pytest

from airflow_provider_smstudio.studio.notebook.literals import LiteralError, python, r, scala

HOUR_AND_HALF = timezone(timedelta(hours=1, minutes=30))
ODD_ZONE = timezone(-timedelta(hours=5, minutes=53, seconds=28))
TEXTS = [
    "",
    "plain",
    "it's",
    'say "hi"',
    "both ' and \"",
    "'''",
    '"""',
    '""" + x + """',
    "back\\slash",
    "ends in \\",
    '\\"',
    "\\\\'",
    "line\nfeed\r\n\ttab\x0b\x0c",
    "nul\0nul",
    "bell\a\b\x1b[0m\x1a\x7f\x85",
    "\u2028\u2029\u00a0\u200b\ufeff\u202e",
    "ü 日本 😀 \U0010ffff",
    "${x} $x %s {x} `x` #{x}",
    "\\u0022 + x + \\u0022",
    "\\\u2028",
    "\\N{BULLET}\\x41\\101",
    "# comment // /* */",
]
SURROGATES = ["\ud800", "a\udfffb", "\udc00\ud800"]
NUMBERS = [0, 1, -1, 2**31 - 1, 2**31, -(2**31), 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**400, -(10**400)]
REALS = [0.0, 1.0, -1.5, 0.1, 1e300, 5e-324, 1e16, 1e-7, math.inf, -math.inf, 1.7976931348623157e308]
TIMES = [
    date(1, 1, 1),
    date(2026, 11, 6),
    datetime(2026, 11, 6),
    datetime(2026, 11, 6, 7, 8, 9, 123456),
    datetime(2026, 11, 6, 7, 8, 9, 5, tzinfo=timezone.utc),
    datetime(2026, 11, 6, 7, 8, tzinfo=HOUR_AND_HALF),
    datetime(1883, 11, 18, 12, tzinfo=ODD_ZONE),
    datetime.max,
]
SPANS = [
    timedelta(0),
    timedelta(days=1),
    timedelta(days=-1, seconds=3, microseconds=5),
    timedelta(microseconds=-1),
    timedelta.max,
    timedelta.min,
]
CONTAINERS = [
    [],
    (),
    {},
    set(),
    frozenset(),
    [1],
    (1,),
    (1, 2),
    {1},
    {1, 2.5, "c", None, (1, "x")},
    frozenset({"b", "a"}),
    {frozenset({1}), frozenset()},
    {frozenset({1}): {frozenset({2}): ()}},
    {"a": 1, 2: [3], None: (4,), (5, "six"): {7}, True: {}, 1.5: date(2026, 1, 1)},
    [[], [[]], ({"x": [(), set(), {}]},)],
    {"__class__": "x", "a b": 1, "'": 2, "": 3},
    OrderedDict(b=1, a=2),
]
VALUES = [None, True, False, *TEXTS, *SURROGATES, *NUMBERS, *REALS, *TIMES, *SPANS, *CONTAINERS]


class EvilText(str):
    __slots__ = ()

    def __repr__(self):
        return "__import__('os').system('x')"

    __str__ = __format__ = lambda self, *_: EvilText.__repr__(self)  # type: ignore[assignment]  # evil

    def __iter__(self):
        return iter(['" + evil() + "'])

    def encode(self, *_):
        return b"evil"


class EvilInt(int):
    __repr__ = __str__ = __format__ = lambda self, *_: "evil()"  # type: ignore[assignment]  # evil

    def __lt__(self, other):
        return True

    def __index__(self):
        return 666


class EvilFloat(float):
    __repr__ = __str__ = __format__ = __float__ = lambda self, *_: "evil()"  # type: ignore[assignment]  # evil


class EvilDict(dict):
    __repr__ = __str__ = lambda self: "evil()"


class EvilList(list):
    __repr__ = __str__ = lambda self: "evil()"


class EvilDate(date):
    __repr__ = __str__ = isoformat = lambda self, *_: "'); evil(); ('"


class EvilTime(datetime):
    __repr__ = __str__ = isoformat = lambda self, *_: "'); evil(); ('"


class EvilSpan(timedelta):
    __repr__ = __str__ = lambda self, *_: "evil()"
    __floordiv__ = __abs__ = lambda self, *_: "evil()"  # type: ignore[assignment]  # evil
    __neg__ = total_seconds = lambda self, *_: "evil()"  # type: ignore[assignment]  # evil
    days = seconds = microseconds = property(lambda self: "evil()")


class EvilZone(tzinfo):
    def utcoffset(self, when):
        return timedelta(hours=1)

    def tzname(self, when):
        return "'); evil(); ('"

    __repr__ = __str__ = lambda self: "'); evil(); ('"


EVIL_ZONE = EvilZone()  # type: ignore[abstract]  # it has no dst()


class Colour(IntEnum):
    RED = 3


Point = namedtuple("Point", "x y")
EVIL = [
    (EvilText("a'b\"c"), "a'b\"c"),
    (EvilInt(7), 7),
    (EvilFloat(1.5), 1.5),
    (EvilFloat("inf"), math.inf),
    (EvilDict({EvilText("k"): EvilInt(1)}), {"k": 1}),
    (EvilList([EvilInt(1)]), [1]),
    ({EvilText("a"), EvilText("b")}, {"a", "b"}),
    (EvilDate(2026, 1, 2), date(2026, 1, 2)),
    (EvilTime(2026, 1, 2, 3), datetime(2026, 1, 2, 3)),
    (datetime(2026, 1, 2, tzinfo=EVIL_ZONE), datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1)))),
    (EvilSpan(1, 2, 3), timedelta(1, 2, 3)),
    (Colour.RED, 3),
    (Point(1, 2), (1, 2)),
]


def evaluated(text):
    return eval(
        text, {"__builtins__": {"__import__": __import__, "float": float, "set": set, "frozenset": frozenset}}
    )


def same(left, right):
    return left == right and type(left) is type(right)


# --- Python


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_python_reads_back_the_value(value):
    back = evaluated(python(value))
    assert back == value
    assert type(back) is (dict if isinstance(value, OrderedDict) else type(value))
    assert python(value).isprintable()


def test_python_reads_back_a_time_with_its_offset():
    for value in TIMES:
        if isinstance(value, datetime):
            assert evaluated(python(value)).utcoffset() == value.utcoffset()


def test_python_keeps_nan_and_the_sign_of_zero():
    assert math.isnan(evaluated(python(math.nan)))
    assert math.copysign(1, evaluated(python(-0.0))) == -1
    assert math.isnan(evaluated(python({"a": [math.nan]}))["a"][0])


def test_python_keeps_bools_apart_from_numbers():
    assert [type(item) for item in evaluated(python([True, 1, 1.0, False, 0]))] == [bool, int, float, bool, int]


def test_python_texts_of_random_characters_read_back():
    chance = random.Random(20261106)
    for _ in range(2000):
        text = random_text(chance)
        assert evaluated(python(text)) == text
        assert len(python(text).splitlines()) == 1


def random_text(chance):
    special = "'\"\\\n\r\t\0$`{}\u2028\x85\x1a unx041é😀"
    return "".join(chance.choice(special) for _ in range(chance.randint(0, 12)))


@pytest.mark.parametrize(("evil", "plain"), EVIL, ids=lambda pair: type(pair).__name__)
def test_a_subclass_cannot_bring_its_own_text(evil, plain):
    assert same(evaluated(python(evil)), plain)
    for write in (python, r, scala):
        assert write(evil) == write(plain)
        assert "evil" not in write(evil)


ALLOWED_CALLS = {
    "__import__('datetime').date.fromisoformat",
    "__import__('datetime').datetime.fromisoformat",
    "__import__('datetime').timedelta",
    "__import__",
    "float",
    "set",
    "frozenset",
}


def check_call(node):
    name = ast.unparse(node.func)
    assert name in ALLOWED_CALLS
    if name.endswith(".timedelta"):
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            assert type(ast.literal_eval(argument)) is int
        return
    assert not node.keywords
    if name == "frozenset" and node.args:
        assert isinstance(node.args[0], ast.Set)
    elif name in ("set", "frozenset"):
        assert not node.args
    else:
        (argument,) = node.args
        assert isinstance(argument.value, str)
        if name == "float":
            assert argument.value in ("nan", "inf", "-inf")
        if name == "__import__":
            assert argument.value == "datetime"


LITERALS = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.USub, ast.Load, ast.keyword)


@pytest.mark.parametrize(
    "value",
    [*VALUES, math.nan, *[evil for evil, _ in EVIL]],
    ids=lambda value: type(value).__name__,
)
def test_python_expressions_hold_literals_and_the_allowed_calls_alone(value):
    tree = ast.parse(python(value), mode="eval")
    for node in ast.walk(tree.body):
        if isinstance(node, ast.Call):
            check_call(node)
        elif isinstance(node, ast.Name):
            assert node.id in ("__import__", "float", "set", "frozenset")
        elif isinstance(node, ast.Attribute):
            assert node.attr in ("date", "datetime", "fromisoformat", "timedelta")
        else:
            assert isinstance(node, LITERALS), ast.dump(node)


def test_the_same_set_gives_the_same_text():
    words = [f"word{number}" for number in range(50)]
    assert python(set(words)) == "{" + ", ".join(sorted(map(repr, words))) + "}"


# --- What has no literal


UNSUPPORTED = [
    object(),
    b"bytes",
    bytearray(b"x"),
    1j,
    Decimal(1),
    time(1),
    UUID(int=1),
    range(3),
    print,
    UserDict(a=1),
]


@pytest.mark.parametrize("write", [python, r, scala])
@pytest.mark.parametrize("value", UNSUPPORTED, ids=lambda value: type(value).__name__)
def test_other_types_are_refused_by_name(write, value):
    for nested in (value, [value], {"a": (value,)}):
        with pytest.raises(LiteralError, match=type(value).__qualname__):
            write(nested)


class HashableDict(dict):
    def __hash__(self):  # type: ignore[override]  # a dict has none
        return 1


def cycles():
    items: list[Any] = []
    table: dict[str, Any] = {}
    key = HashableDict()
    items.append(items)
    table["a"] = [table]
    key[key] = 1
    return {"list": items, "dict": table, "key": key}


@pytest.mark.parametrize("write", [python, scala, r])
@pytest.mark.parametrize("kind", ["list", "dict", "key"])
def test_what_contains_itself_is_refused(write, kind):
    with pytest.raises(LiteralError, match=r"contains itself|non-empty strings"):
        write(cycles()[kind])


@pytest.mark.parametrize("write", [python, r, scala])
def test_nesting_is_limited_to_what_parsers_take(write):
    def nested(depth):
        return [nested(depth - 1)] if depth else 1

    assert write(nested(100)).count("1") >= 1
    with pytest.raises(LiteralError, match="100 deep"):
        write(nested(101))
    assert evaluated(python(nested(90))) == nested(90)


# --- R and Scala: the exact text


@pytest.mark.parametrize(
    ("value", "in_r", "in_scala"),
    [
        (None, "NULL", "None"),
        (True, "TRUE", "true"),
        (False, "FALSE", "false"),
        (7, "7L", "7"),
        (-7, "-7L", "-7"),
        (2**31 - 1, "2147483647L", "2147483647"),
        (2**31, "2147483648", "2147483648L"),
        (-(2**31), "-2147483648", "-2147483648"),
        (-(2**31) - 1, "-2147483649", "-2147483649L"),
        (2**53, "9007199254740992", "9007199254740992L"),
        (1.0, "1.0", "1.0"),
        (-0.0, "-0.0", "-0.0"),
        (0.1, "0.1", "0.1"),
        (1e16, "1e+16", "1e+16"),
        (math.nan, "NaN", "Double.NaN"),
        (math.inf, "Inf", "Double.PositiveInfinity"),
        (-math.inf, "-Inf", "Double.NegativeInfinity"),
        ("", '""', '""'),
        ("a'b", '"a\'b"', '"a\'b"'),
        ('"', '"\\""', '"\\""'),
        ("\\", '"\\\\"', '"\\\\"'),
        ("\n\r\t", '"\\n\\r\\t"', '"\\n\\r\\t"'),
        ("\x1b", '"\\U0000001B"', '"\\u001b"'),
        ("\u2028", '"\\U00002028"', '"\\u2028"'),
        ("ü😀", '"ü😀"', '"ü😀"'),
        ("\U0010ffff", '"\\U0010FFFF"', '"\\udbff\\udfff"'),
        (date(2026, 1, 2), 'as.Date("2026-01-02")', 'java.time.LocalDate.parse("2026-01-02")'),
        (
            datetime(2026, 1, 2, 3, 4, 5, 6),
            'as.POSIXct("2026-01-02 03:04:05.000006", tz = "UTC", format = "%Y-%m-%d %H:%M:%OS")',
            'java.time.LocalDateTime.parse("2026-01-02T03:04:05.000006")',
        ),
        (
            datetime(2026, 1, 2, 3, tzinfo=HOUR_AND_HALF),
            'as.POSIXct("2026-01-02 01:30:00", tz = "UTC", format = "%Y-%m-%d %H:%M:%OS")',
            'java.time.OffsetDateTime.parse("2026-01-02T03:00:00+01:30")',
        ),
        (timedelta(0), 'as.difftime(0, units = "secs")', 'java.time.Duration.parse("PT0S")'),
        (timedelta(days=1), 'as.difftime(86400, units = "secs")', 'java.time.Duration.parse("PT86400S")'),
        (
            timedelta(seconds=-2, microseconds=-50),
            'as.difftime(-2.000050, units = "secs")',
            'java.time.Duration.parse("PT-2.000050S")',
        ),
        (
            timedelta(microseconds=-1),
            'as.difftime(-0.000001, units = "secs")',
            'java.time.Duration.parse("PT-0.000001S")',
        ),
        ([], "list()", "Seq()"),
        ([1, "a"], 'list(1L, "a")', 'Seq(1, "a")'),
        ((1,), "list(1L)", "Seq(1)"),
        ({2, 1}, "list(1L, 2L)", "Set(1, 2)"),
        (frozenset({1}), "list(1L)", "Set(1)"),
        ({}, "setNames(list(), character(0))", "Map()"),
        ({"a": 1, "if": None}, 'setNames(list(1L, NULL), c("a", "if"))', 'Map("a" -> 1, "if" -> None)'),
        (
            {"a": {"b": [1]}},
            'setNames(list(setNames(list(list(1L)), c("b"))), c("a"))',
            'Map("a" -> Map("b" -> Seq(1)))',
        ),
    ],
)
def test_r_and_scala_are_written_so(value, in_r, in_scala):
    assert r(value) == in_r
    assert scala(value) == in_scala


def test_scala_has_longer_integers_and_other_keys():
    assert scala(2**63 - 1) == "9223372036854775807L"
    assert scala(-(2**63)) == "-9223372036854775808L"
    assert scala(2**63) == 'BigInt("9223372036854775808")'
    assert scala({(1, 2): 3, None: 4}) == "Map(Seq(1, 2) -> 3, None -> 4)"


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 10**400, "a\0b", "\ud800", {1: 2}, {"": 1}, {None: 1}])
def test_r_refuses_what_it_cannot_hold(value):
    with pytest.raises(LiteralError, match="R "):
        r([value])


# --- R and Scala: a string ends where it should


def unquoted(text, escapes, width):
    """Read one string literal as R's or Scala's lexer does; return its value, which must be all of the text."""
    assert text[0] == '"'
    assert not text.startswith('"""')
    units, at = [], 1
    while text[at] != '"':
        character = text[at]
        assert character not in "\n\r"
        if character != "\\":
            units.append(character)
            at += 1
        elif text[at + 1] in width:
            digits = text[at + 2 : at + 2 + width[text[at + 1]]]
            assert len(digits) == width[text[at + 1]]
            units.append(chr(int(digits, 16)))
            at += 2 + len(digits)
        else:
            units.append(escapes[text[at + 1]])
            at += 2
    assert at == len(text) - 1, "the string ends early"
    return "".join(units)


def unquoted_r(text):
    return unquoted(text, {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}, {"U": 8})


def unquoted_scala(text):
    # Scala 2.12 acts on \uXXXX before it looks for the string's end: where an odd number of backslashes stands.
    value = unquoted(text, {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}, {"u": 4})
    return value.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")


def all_texts():
    chance = random.Random(4711)
    return [*TEXTS, *[chr(code) for code in range(0x3000)], *[random_text(chance) for _ in range(2000)]]


def test_an_r_string_ends_at_its_end_and_holds_the_value():
    for text in all_texts():
        if "\0" not in text:
            assert unquoted_r(r(text)) == text


def test_a_scala_string_ends_at_its_end_and_holds_the_value():
    for text in [*all_texts(), *SURROGATES]:
        assert unquoted_scala(scala(text)) == text


def test_scala_escapes_by_number_neither_quotes_nor_line_ends():
    for text in all_texts():
        for forbidden in ("\\u0022", "\\u000a", "\\u000d", "\\u005c"):
            position = scala(text).find(forbidden)
            while position >= 0:
                before = scala(text)[:position]
                assert (len(before) - len(before.rstrip("\\"))) % 2 == 1, "an escape that Scala 2.12 acts on early"
                position = scala(text).find(forbidden, position + 1)
