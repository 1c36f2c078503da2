"""The package's docstrings, comments and messages use plain words and short sentences.

The words and the limit come from a review of the project's English by readers whose first language is another.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import airflow_provider_smstudio

PACKAGE = Path(airflow_provider_smstudio.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 25
"""Words in a sentence of a docstring."""

# Each with what to write instead.
WORDS = {
    r"\bgo(?:es|ne|ing)? on\b|\bwent on\b": "continue",
    r"\banew\b|\bafresh\b": "again, from the first cell",
    r"\bours\b": "the package's own",
    r"\btake it that\b": "record that",
    r"\bnobody\b|\bsomebody\b|\banybody\b|\bwhoever\b": "name who acts",
    r"\bhe\b|\bhis\b|\bhim\b": "it: a process is no person",
    r"\bmend\w*\b": "fix",
    r"\bspare[sd]?\b": "skip",
    r"\bbears?\b": "hold, support",
    r"\btells? of\b|\btold of\b": "report, list",
    r", too\b": "also",
    r"\bwatch(?:es|ed|ing)? over\b": "watch",
    r"\bhand(?:s|ed|ing)? out\b": "publish, return",
    r"\bg(?:ive|ives|iven|ave|iving) back\b": "release, remove, return",
    r"\bfront door\b": "gateway, login page",
    r"\bstand-in\b": "local Studio",
    r"\bfor ever\b": "forever",
    r"\bin vain\b": "without an answer",
    r"\bso (?:many|much|long)\b": "a number",
    r"\bshall\b": "must, should",
}
PATTERN = re.compile("|".join(WORDS), re.IGNORECASE)
_FIELD = re.compile(r":(?:param|raises|return|returns|ivar|cvar)\b[^:]*:")
_SENTENCE = re.compile(r"(?<=[.;:!?])\s|\n\s*\n|\n\s*(?:[-*]|\d\.)\s")


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield each comment and string with its line."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def sentences(docstring: str) -> Iterator[str]:
    without_code = re.sub(r"::\n\n(?:[ ]{4}.*\n|\n)*", ".\n", docstring + "\n")
    for sentence in _SENTENCE.split(_FIELD.sub(". ", without_code)):
        yield " ".join(sentence.split())


def words_in(source: str) -> list[str]:
    return [f"line {line}: {found[0]!r}" for line, text in texts(source) for found in PATTERN.finditer(text)]


def long_in(source: str) -> list[str]:
    return [text for doc in docstrings(source) for text in sentences(doc) if len(text.split()) > LONGEST]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_plain_words_and_short_sentences(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert words_in(source) == []
    assert long_in(source) == []


def test_it_finds_what_it_looks_for() -> None:
    assert words_in('"""The run Goes on."""\nx = f"{1} for ever"  # by whoever') == [
        "line 1: 'Goes on'",
        "line 2: 'for ever'",
        "line 2: 'whoever'",
    ]
    longest, longer = (" ".join(["word"] * count) + "." for count in (LONGEST, LONGEST + 1))
    assert long_in(f'"""{longer} {longest}\n\n:param x: {longest}\n"""') == [longer]
