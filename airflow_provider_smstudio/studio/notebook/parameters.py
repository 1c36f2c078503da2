"""The parameters of a notebook: find them, check the given values, and add the cell that sets them. No I/O.

The rules are papermill's. The parameters are in a separate cell with the tag ``injected-parameters``, behind the
cell with the tag ``parameters``. Without such a cell they are at the top. An earlier injected cell is replaced.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from airflow_provider_smstudio.studio.errors import ParameterError
from airflow_provider_smstudio.studio.notebook import literals

PARAMETERS_TAG = "parameters"
"""Tag of the cell with a notebook's own parameters and their defaults."""

INJECTED_TAG = "injected-parameters"
"""Tag of the cell that a run adds behind it."""


@dataclass(frozen=True)
class Language:
    """How one language writes names, assignments and comments.

    :ivar name: the language's name for messages.
    :ivar identifier: returns whether a text is a valid name for a parameter.
    :ivar keywords: names that a parameter must not have.
    :ivar assignment: finds the names that a parameters cell assigns; its first group is the name.
    :ivar assign: a template of an assignment.
    :ivar comment: the start of a comment.
    :ivar literal: writes a value as source code.
    """

    name: str
    identifier: Callable[[str], object]
    keywords: frozenset[str]
    assignment: re.Pattern[str]
    assign: str
    comment: str
    literal: Callable[[Any], str]


_R_KEYWORDS = frozenset(
    "if else repeat while function for in next break TRUE FALSE NULL Inf NaN NA NA_integer_ NA_real_ "
    "NA_complex_ NA_character_".split()
)
_SCALA_KEYWORDS = frozenset(
    "abstract case catch class def do else enum export extends false final finally for forSome given if "
    "implicit import lazy macro match new null object override package private protected return sealed super "
    "then this throw trait try true type val var while with yield _".split()
)

PYTHON = Language(
    name="Python",
    identifier=str.isidentifier,
    keywords=frozenset([*keyword.kwlist, "__debug__"]),
    assignment=re.compile(r"(?:^|;[ \t]*)([^\W\d]\w*)[ \t]*(?::[^=\n]+)?=(?!=)", re.MULTILINE),
    assign="{name} = {value}",
    comment="#",
    literal=literals.python,
)
R = Language(
    name="R",
    identifier=re.compile(r"(?!\.\.(?:\.|[0-9]+)$)(?:[A-Za-z]|\.(?![0-9]))[A-Za-z0-9._]*").fullmatch,
    keywords=_R_KEYWORDS,
    assignment=re.compile(r"(?:^|;)\s*([A-Za-z.][\w.]*)\s*(?:<<?-|=(?!=))", re.MULTILINE),
    assign="{name} = {value}",
    comment="#",
    literal=literals.r,
)
SCALA = Language(
    name="Scala",
    identifier=re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch,
    keywords=_SCALA_KEYWORDS,
    assignment=re.compile(r"(?:^|;)\s*(?:val|var)\s+([A-Za-z_]\w*)\b", re.MULTILINE),
    assign="val {name} = {value}",
    comment="//",
    literal=literals.scala,
)
_LANGUAGES = {
    "python": PYTHON,
    "python3": PYTHON,
    "ipython": PYTHON,
    "pyspark": PYTHON,
    "r": R,
    "scala": SCALA,
}
_KERNELS = {
    "sparkkernel": SCALA,
    "glue_spark": SCALA,
    "pysparkkernel": PYTHON,
    "glue_pyspark": PYTHON,
    "ir": R,
    "sparkrkernel": R,
}


def language_of(kernel_language: str | None, kernel_name: str | None) -> Language | None:
    """Return the language for a kernel's parameters.

    :param kernel_language: the kernelspec's ``language``, or the notebook's.
    :param kernel_name: the kernel's name. It decides for the Spark kernels, because their kernelspecs disagree.
    :return: None for a language that is not supported.
    """
    by_kernel = _KERNELS.get((kernel_name or "").partition("__SAGEMAKER_INTERNAL__")[0].lower())
    return by_kernel or _LANGUAGES.get((kernel_language or "").lower())


def find_cell(notebook: NotebookNode, tag: str) -> int | None:
    """Return the index of the first code cell with this tag, or None."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and tag in cell.metadata.get("tags", []):
            return index
    return None


def declared_names(notebook: NotebookNode, language: Language) -> set[str] | None:
    """Return the names that the notebook's parameters cell assigns, or None if it has no such cell."""
    index = find_cell(notebook, PARAMETERS_TAG)
    if index is None:
        return None
    source = notebook.cells[index].source
    if language is PYTHON:
        # IPython's own syntax is not Python, so the second attempt removes it.
        plain = re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)
        plain = re.sub(r"=[ \t]*[%!].*$", "= None", plain, flags=re.MULTILINE)
        for text in (source, plain):
            tree = _parse(text)
            if tree is not None:
                return _assigned(tree)
    return set(language.assignment.findall(source))


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they concern the notebook's code, such as its escape sequences
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # magics, Python newer or older than the worker's, or not Python


_SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


def _assigned(tree: ast.Module) -> set[str]:
    """Return the names that a module assigns at its top level, without functions, classes and comprehensions."""
    names: set[str] = set()
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if not isinstance(node, _SCOPES):
            nodes += ast.iter_child_nodes(node)
    return names


def check(
    notebook: NotebookNode, parameters: Mapping[str, Any], language: Language | None, *, strict: bool = True
) -> None:
    """Raise an error for parameters that cannot be injected, before the run starts anything.

    :param notebook: the notebook.
    :param parameters: names and values.
    :param language: the kernel's language, or None if it is unknown or not supported.
    :param strict: refuse names that the notebook's parameters cell does not assign. A notebook without such a
        cell accepts any name.
    :raises ParameterError: when one cannot be injected; the message names the parameter and the remedy.
    """
    if not parameters:
        return
    if language is None:
        raise ParameterError(
            "only Python, R and Scala kernels accept parameters; this notebook's kernel has another language, or "
            "does not report its language"
        )
    for name in parameters:
        _check_name(name, language)
    declared = declared_names(notebook, language) if strict else None
    if declared is not None:
        unknown = sorted(set(parameters) - declared)
        if unknown:
            raise ParameterError(
                f"unknown parameter{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}: the cell "
                f"tagged 'parameters' assigns {', '.join(sorted(declared)) or 'nothing'}. Correct the name, "
                "assign it there, or switch strict_parameters off",
                parameter=unknown[0],
            )
    for name, value in parameters.items():
        _literal(name, value, language)


def _check_name(name: object, language: Language) -> None:
    if not isinstance(name, str):
        raise ParameterError(f"a parameter's name must be a string, not {name!r}", parameter=repr(name))
    if not language.identifier(name) or name in language.keywords:
        kind = "a keyword" if name in language.keywords else "no identifier"
        raise ParameterError(
            f"{name!r} cannot be a parameter's name: it is {kind} in {language.name}", parameter=name
        )


def _literal(name: str, value: Any, language: Language) -> str:
    try:
        return language.literal(value)
    except (ValueError, RecursionError, TypeError, OverflowError) as error:
        raise ParameterError(
            f"parameter {name!r} cannot be written in {language.name}: {error}", parameter=name
        ) from None


def inject(notebook: NotebookNode, parameters: Mapping[str, Any], language: Language) -> int | None:
    """Add a cell that sets the parameters to the notebook, in place.

    :param notebook: the notebook; changed in place.
    :param parameters: names and values that :func:`check` accepted. Without any, the notebook does not change.
    :param language: the kernel's language.
    :return: the index of the cell, or None when there are no parameters.
    """
    if not parameters:
        return None
    lines = [
        language.assign.format(name=name, value=_literal(name, value, language))
        for name, value in parameters.items()
    ]
    cell = new_code_cell("\n".join([f"{language.comment} Parameters", *lines]))
    cell.metadata["tags"] = [INJECTED_TAG]
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        del cell["id"]  # cells have ids only since format 4.5
    previous = find_cell(notebook, INJECTED_TAG)
    declared = find_cell(notebook, PARAMETERS_TAG)
    if previous is not None:
        notebook.cells[previous] = cell
        return previous
    index = 0 if declared is None else declared + 1
    notebook.cells.insert(index, cell)
    return index
