"""Which names a notebook takes, and the cell that sets them; the expected notebooks are papermill's."""

from __future__ import annotations

import ast
import unicodedata
from datetime import datetime

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from airflow_provider_smstudio.studio.errors import ParameterError
from airflow_provider_smstudio.studio.notebook.parameters import (
    PYTHON,
    SCALA,
    R,
    check,
    declared_names,
    find_cell,
    inject,
    language_of,
)

CLASSIC = "__SAGEMAKER_INTERNAL__arn:aws:sagemaker:eu-west-1:470317259841:image/datascience-1.0"


def cell(source, *tags):
    return new_code_cell(source, metadata={"tags": list(tags)})


def declaring(source):
    return new_notebook(cells=[new_markdown_cell("# title"), cell(source, "parameters"), cell("x")])


def sources(notebook):
    return [item.source for item in notebook.cells]


# --- Injecting


def test_parameters_stand_behind_the_cell_tagged_so():
    notebook = new_notebook(cells=[cell("import x"), cell("a = 1", "other", "parameters"), cell("a")])
    assert inject(notebook, {"a": 2, "b": "it's"}, PYTHON) == 2
    assert sources(notebook) == ["import x", "a = 1", '# Parameters\na = 2\nb = "it\'s"', "a"]
    assert notebook.cells[2].metadata == {"tags": ["injected-parameters"]}
    nbformat.validate(notebook)


def test_parameters_stand_at_the_top_without_such_a_cell():
    notebook = new_notebook(cells=[new_markdown_cell("# title"), cell("a")])
    assert inject(notebook, {"a": 2}, PYTHON) == 0
    assert sources(notebook) == ["# Parameters\na = 2", "# title", "a"]


def test_an_earlier_injected_cell_is_replaced_where_it_stands():
    notebook = new_notebook(
        cells=[cell("a = 1", "parameters"), cell("between"), cell("a = 0", "injected-parameters")]
    )
    notebook.cells[2]["outputs"] = [nbformat.v4.new_output("stream", text="old")]
    assert inject(notebook, {"a": 2}, PYTHON) == 2
    assert sources(notebook) == ["a = 1", "between", "# Parameters\na = 2"]
    assert notebook.cells[2].outputs == []


def test_injecting_twice_leaves_one_cell_with_the_last_values():
    notebook = declaring("a = 1")
    inject(notebook, {"a": 2}, PYTHON)
    inject(notebook, {"a": 3}, PYTHON)
    assert sources(notebook) == ["# title", "a = 1", "# Parameters\na = 3", "x"]


def test_without_parameters_nothing_changes():
    notebook = new_notebook(cells=[cell("a = 1", "parameters"), cell("a = 0", "injected-parameters")])
    before = nbformat.writes(notebook)
    assert inject(notebook, {}, PYTHON) is None
    assert nbformat.writes(notebook) == before


@pytest.mark.parametrize(("minor", "has_id"), [(0, False), (4, False), (5, True)])
def test_the_cell_has_an_id_where_the_format_knows_ids(minor, has_id):
    notebook = new_notebook(cells=[])
    notebook["nbformat_minor"] = minor
    inject(notebook, {"a": 1}, PYTHON)
    assert ("id" in notebook.cells[0]) is has_id
    nbformat.validate(notebook)


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        (
            PYTHON,
            "# Parameters\nday = __import__('datetime').datetime.fromisoformat('2026-11-06T00:00:00')\nn = None",
        ),
        (
            R,
            '# Parameters\nday = as.POSIXct("2026-11-06 00:00:00", tz = "UTC", format = "%Y-%m-%d %H:%M:%OS")\nn = NULL',
        ),
        (SCALA, '// Parameters\nval day = java.time.LocalDateTime.parse("2026-11-06T00:00:00")\nval n = None'),
    ],
    ids=["python", "r", "scala"],
)
def test_each_language_comments_and_assigns_in_its_own_way(language, expected):
    notebook = new_notebook(cells=[])
    inject(notebook, {"day": datetime(2026, 11, 6), "n": None}, language)
    assert sources(notebook) == [expected]


def test_values_with_braces_are_no_templates():
    notebook = new_notebook(cells=[])
    inject(notebook, {"a": "{name} {value} {0} %s"}, PYTHON)
    assert sources(notebook) == ["# Parameters\na = '{name} {value} {0} %s'"]


def test_the_injected_python_assigns_these_names_and_does_nothing_else():
    notebook = new_notebook(cells=[])
    parameters = {"a": "x'\n; import os", "ü": ["\r\nb = 1"], "_c": {"'": '"""'}}
    inject(notebook, parameters, PYTHON)
    tree = ast.parse(notebook.cells[0].source)
    assert {ast.unparse(line.targets[0]): ast.literal_eval(line.value) for line in tree.body} == parameters


def test_tags_count_on_code_cells_only():
    notebook = new_notebook(
        cells=[new_markdown_cell("a = 1", metadata={"tags": ["parameters"]}), new_code_cell("x")]
    )
    assert find_cell(notebook, "parameters") is None
    assert declared_names(notebook, PYTHON) is None


# --- Declared names


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("", ""),
        ("# nothing\n", ""),
        ("a = 1\nb=2", "a b"),
        ("a: int = 1\nb: dict[str, int]", "a b"),
        ("a, (b, *c) = 1, (2, 3)\n[d, e] = 1, 2", "a b c d e"),
        ("a = b = c", "a b"),
        ("a = 1; b = 2", "a b"),
        ("if True:\n    a = 1\nelse:\n    b = 2", "a b"),
        ("try:\n    a = 1\nexcept Exception:\n    a = 2\nwith open('x') as b:\n    pass", "a b"),
        ("a = f(b=1)\nc.d = 2\ne['f'] = 3\na == g", "a"),
        ("def f(x=1):\n    inner = 2\n    return inner\na = lambda y: (z := y)", "a"),
        ("class A:\n    field = 1\nasync def g():\n    inner = 1", ""),
        ("a = [i for i in b]\nc = {j: k for j, k in d}\ne = {n for n in o}\np = list(q for q in r)", "a c e p"),
        ("text = '''\nb = 1\n'''", "text"),
        ("a = '\\d'\nb, c = 1, 2", "a b c"),
        ("ü = 1", "ü"),
        ("%matplotlib inline\n!ls\n%%time\na, b = 1, 2", "a b"),
        ("files = !ls\na, b = 1, 2", "files a b"),
        ("data = %sql select 1\na, b = 1, 2", "data a b"),
        ("a = ('%s'\n     % 1)\nb, c = 1, 2", "a b c"),
        ("a = (\n  1\n)\n%load_ext x\nb, c = 1, 2", "a b c"),
        ("a = 1\nb: int = 2\nprint 'Python 2'\nc == d\n  e = 3", "a b"),
        ("a = 1; b = 2\nx?", "a b"),
        ("a = 1\nb = '\0'", "a b"),
        ("a = 1\nb = " + "(" * 1000 + ")" * 1000, "a b"),
    ],
)
def test_python_names_are_those_that_the_cell_itself_assigns(source, names):
    assert declared_names(declaring(source), PYTHON) == set(names.split())


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a <- 1\nb = 2\n.c <<- 3", "a b .c"),
        ("my.name <- 'x'\nx_1=1", "my.name x_1"),
        ("a <- 1; b <- 2;c=3", "a b c"),
        ("a == 1\nb < -1\n# c <- 1\nf(d)", ""),
    ],
)
def test_r_names_are_found(source, names):
    assert declared_names(declaring(source), R) == set(names.split())


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('val a = 1\nvar b: String = "x"', "a b"),
        ("val a = 1; val b = 2", "a b"),
        ("  val a=1", "a"),
        ("a = 1\n// val b = 1\ndef c = 1\nvalue d = 1", ""),
    ],
)
def test_scala_names_are_found(source, names):
    assert declared_names(declaring(source), SCALA) == set(names.split())


# --- Checking


def refused(parameters, language=PYTHON, notebook=None, **options):
    with pytest.raises(ParameterError) as caught:
        check(notebook or new_notebook(cells=[]), parameters, language, **options)
    return caught.value


def test_an_unknown_parameter_is_refused_with_what_there_is():
    error = refused({"b": 1, "z": 1, "aa": 1}, notebook=declaring("b = 1\na = 2"))
    assert error.parameter == "aa"
    assert "unknown parameters 'aa', 'z'" in str(error)
    assert "assigns a, b" in str(error)
    assert "strict_parameters" in str(error)


def test_an_empty_parameters_cell_takes_nothing():
    assert "unknown parameter 'a': the cell tagged 'parameters' assigns nothing" in str(
        refused({"a": 1}, notebook=declaring("# no defaults"))
    )


def test_a_notebook_without_a_parameters_cell_takes_any_name():
    check(new_notebook(cells=[cell("x")]), {"anything": 1}, PYTHON)


def test_an_unknown_parameter_is_taken_when_not_strict():
    check(declaring("a = 1"), {"b": 1}, PYTHON, strict=False)
    assert refused({"1b": 1}, notebook=declaring("a = 1"), strict=False).parameter == "1b"


def test_known_parameters_are_taken():
    check(declaring("a = 1\nb: str = ''"), {"a": [1], "b": "x"}, PYTHON)


NAMES = {
    "good": {
        PYTHON: ["a", "_", "_a1", "ü", "Straße", "match", "type", "print", "a" * 500],
        R: ["a", "a.b", "a_b", ".a", ".", "a1", "if.x", "T"],
        SCALA: ["a", "_a", "A1", "valX"],
    },
    "bad": {
        PYTHON: [
            "",
            " a",
            "a ",
            "a\n",
            "1a",
            "a-b",
            "a.b",
            "a b",
            "a=1;b",
            "²",
            "a²",
            "if",
            "None",
            "__debug__",
            "a\0",
        ],
        R: [
            "",
            "_a",
            "1a",
            ".1a",
            "a-b",
            "ü",
            "a\n",
            "if",
            "TRUE",
            "NA_integer_",
            "function",
            "...",
            "..1",
            "..22",
        ],
        SCALA: ["", "1a", "a.b", "a-b", "ü", "a\n", "val", "_", "type", "given", "`a`"],
    },
}


def cases(kind):
    return [(language, name) for language, names in NAMES[kind].items() for name in names]


@pytest.mark.parametrize(("language", "name"), cases("good"), ids=lambda item: getattr(item, "name", None))
def test_a_good_name_is_taken(language, name):
    check(new_notebook(cells=[]), {name: 1}, language)


@pytest.mark.parametrize(("language", "name"), cases("bad"), ids=lambda item: getattr(item, "name", None))
def test_a_bad_name_is_refused(language, name):
    error = refused({"good": 1, name: 1}, language)
    assert error.parameter == name
    assert repr(name) in str(error)
    assert language.name in str(error)


def assigns_in_python(name):
    try:
        names = compile(f"{name} = 1", "<test>", "exec").co_names
    except (SyntaxError, ValueError):
        return False
    return names == (unicodedata.normalize("NFKC", name),)


def test_python_takes_a_name_exactly_when_python_assigns_it():
    for name in [f"a{chr(code)}" for code in range(0x3000)] + [chr(code) for code in range(0x3000)]:
        try:
            check(new_notebook(cells=[]), {name: 1}, PYTHON)
        except ParameterError:
            assert not assigns_in_python(name)
        else:
            assert assigns_in_python(name)


def test_a_keyword_is_told_from_a_bad_identifier():
    assert "a keyword" in str(refused({"if": 1}))
    assert "no identifier" in str(refused({"1": 1}))


def test_a_name_must_be_a_string():
    assert refused({1: 1}).parameter == "1"


@pytest.mark.parametrize(
    ("value", "language"),
    [(object(), PYTHON), (b"x", SCALA), (2**60, R), (print, PYTHON)],
)
def test_a_value_without_a_literal_is_refused_by_name_and_language(value, language):
    error = refused({"ok": 1, "bad_value": {"deep": [value]}}, language)
    assert error.parameter == "bad_value"
    assert "'bad_value' cannot be written in " + language.name in str(error)


def test_an_unknown_language_takes_no_parameters():
    assert "Python, R and Scala" in str(refused({"a": 1}, None))
    check(new_notebook(cells=[]), {}, None)


def test_nothing_of_a_notebook_is_executed_or_warned_about(recwarn):
    check(declaring("a = '\\d' is 1\nraise SystemExit"), {"a": 1}, PYTHON)
    assert not recwarn.list


# --- Languages


@pytest.mark.parametrize(
    ("kernel_language", "kernel_name", "expected"),
    [
        ("python", "python3", PYTHON),
        ("Python", None, PYTHON),
        ("python", f"conda_python3{CLASSIC}", PYTHON),
        ("R", "ir", R),
        (None, f"ir{CLASSIC}", R),
        ("python", "sparkkernel", SCALA),
        ("scala", f"sparkkernel{CLASSIC}__SAGEMAKER_INTERNAL__1.2.0", SCALA),
        ("python", "glue_spark", SCALA),
        ("scala", "glue_pyspark", PYTHON),
        (None, f"pysparkkernel{CLASSIC}", PYTHON),
        ("python", f"sparkrkernel{CLASSIC}", R),
        (None, "PySparkKernel", PYTHON),
        ("julia", "julia-1.10", None),
        (None, None, None),
        ("", "", None),
    ],
)
def test_the_language_is_the_kernels(kernel_language, kernel_name, expected):
    assert language_of(kernel_language, kernel_name) is expected
