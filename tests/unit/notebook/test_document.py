"""Notebooks as documents: reading all kinds of files, the cells that run, paths, and papermill's metadata."""

from __future__ import annotations

import json
from datetime import date, datetime, timezone

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

from airflow_provider_smstudio.studio.errors import InvalidInputError, NotANotebookError
from airflow_provider_smstudio.studio.notebook.document import (
    begin_metadata,
    clean_path,
    code_cells,
    default_output_path,
    read,
    safe_name,
)

NOW = datetime(2026, 11, 6, 7, tzinfo=timezone.utc)


def version_4(*cells, minor=4, **changes):
    return {"nbformat": 4, "nbformat_minor": minor, "metadata": {}, "cells": list(cells), **changes}


def plain(cell_type="code", **changes):
    cell = {"cell_type": cell_type, "metadata": {}, "source": "x"}
    if cell_type == "code":
        cell.update(outputs=[], execution_count=None)
    return {**cell, **changes}


def without(key, cell):
    return {name: value for name, value in cell.items() if name != key}


# --- Reading

NO_NOTEBOOKS = {
    "empty": "",
    "no JSON": "not JSON",
    "cut off": '{"nbformat": 4, "cells": [',
    "null": "null",
    "number": "4",
    "text": '"x"',
    "list": "[]",
    "other JSON": '{"a": 1}',
    "deep": "[" * 100_000,
    "Python": b"{}",
    "none": None,
    "cells missing": without("cells", version_4()),
    "cells null": version_4(cells=None),
    "cells object": version_4(cells={}),
    "cells text": version_4(cells="abc"),
    "cell null": version_4(None),
    "cell text": version_4("x"),
    "cell without type": version_4(without("cell_type", plain())),
    "cell without source": version_4(without("source", plain())),
    "cell with source null": version_4(plain(source=None)),
    "cell with source number": version_4(plain(source=1)),
    "cell with source of numbers": version_4(plain(source=["a", 1])),
    "format 5": version_4(nbformat=5),
    "format 99": version_4(nbformat=99),
    "format text": version_4(nbformat="4"),
    "format fraction": version_4(nbformat=4.5),
    "format null": version_4(nbformat=None),
    "format true": version_4(nbformat=True),
    "format negative": version_4(nbformat=-1),
    "format zero": version_4(nbformat=0),
    "minor null": version_4(minor=None),
    "minor text": version_4(minor="4"),
    "minor negative": version_4(minor=-1),
    "format 3 empty": {"nbformat": 3},
    "format 3 odd": {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [1]}]},
}


@pytest.mark.parametrize("content", NO_NOTEBOOKS.values(), ids=NO_NOTEBOOKS.keys())
def test_what_is_no_notebook_is_told_so_in_one_line(content):
    with pytest.raises(NotANotebookError) as caught:
        read(content, "folder/a.ipynb")
    assert caught.value.path == "folder/a.ipynb"
    assert str(caught.value).startswith("'folder/a.ipynb' is not a valid notebook: ")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400
    if isinstance(content, dict):
        with pytest.raises(NotANotebookError):
            read(json.dumps(content), "a.ipynb")


@pytest.mark.parametrize("content", ["secret" * 1000, json.dumps(version_4(plain(source={"x": "y" * 5000})))])
def test_the_reason_is_short_however_long_the_file(content):
    with pytest.raises(NotANotebookError) as caught:
        read(content, "a.ipynb")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [version_4(nbformat=5), version_4(nbformat="4"), version_4(cells={})])
def test_the_reason_tells_what_is_wrong(content):
    expected = "format 5" if content["nbformat"] == 5 else "'4'" if content["nbformat"] == "4" else "list of cells"
    with pytest.raises(NotANotebookError, match=expected):
        read(content, "a.ipynb")


def test_text_and_object_are_read_alike():
    content = version_4(plain(source="a = 1"), plain("markdown", source="# ü"))
    assert read(json.dumps(content), "a") == read(content, "a")
    assert [cell.source for cell in read(content, "a").cells] == ["a = 1", "# ü"]


def test_lists_of_lines_are_joined():
    notebook = read(version_4(plain(source=["a = 1\n", "b"]), plain("markdown", source=[]), plain("raw")), "a")
    assert [cell.source for cell in notebook.cells] == ["a = 1\nb", "", "x"]


@pytest.mark.parametrize("minor", range(6))
def test_minor_versions_stay_as_they_are(minor):
    content = version_4(plain(), minor=minor)
    if minor == 5:
        content["cells"][0]["id"] = "my-id"
    notebook = read(content, "a")
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, minor)
    assert notebook.cells[0].get("id") == ("my-id" if minor == 5 else None)
    nbformat.validate(notebook)


def test_a_later_minor_version_is_read():
    assert read(version_4(plain(id="a"), minor=9), "a").nbformat_minor == 9


VERSION_3 = {
    "nbformat": 3,
    "nbformat_minor": 0,
    "metadata": {"name": "old"},
    "worksheets": [
        {
            "cells": [
                {"cell_type": "heading", "level": 2, "metadata": {}, "source": ["Title"]},
                {
                    "cell_type": "code",
                    "collapsed": False,
                    "input": ["a = 1\n", "a"],
                    "language": "python",
                    "metadata": {},
                    "outputs": [
                        {"output_type": "stream", "stream": "stdout", "text": ["x"]},
                        {"output_type": "pyout", "prompt_number": 3, "text": ["1"], "metadata": {}},
                    ],
                    "prompt_number": 3,
                },
            ],
            "metadata": {},
        }
    ],
}


def test_format_3_is_upgraded():
    notebook = read(json.dumps(VERSION_3), "a")
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert [cell.source for cell in notebook.cells] == ["## Title", "a = 1\na"]
    assert [output.output_type for output in notebook.cells[1].outputs] == ["stream", "execute_result"]
    assert [cell.source for cell in code_cells(notebook)] == ["a = 1\na"]


def test_format_3_from_an_object_leaves_the_object_alone():
    before = json.dumps(VERSION_3)
    read(VERSION_3, "a")
    assert json.dumps(VERSION_3) == before


@pytest.mark.parametrize(
    "content",
    [
        without("metadata", version_4(plain())),
        version_4(plain(), metadata=None),
        version_4(plain(), metadata=[]),
        without("nbformat_minor", version_4(plain())),
        version_4(without("metadata", plain())),
        version_4(plain(metadata=None)),
        version_4(plain(metadata={"tags": None})),
        version_4(plain(metadata={"tags": "skip-execution"})),
        version_4(without("outputs", plain())),
        version_4(plain(outputs=None)),
        version_4(plain(outputs={})),
        version_4(without("execution_count", plain())),
    ],
)
def test_what_does_not_matter_for_a_run_is_mended(content):
    notebook = read(content, "a")
    nbformat.validate(notebook)
    assert [cell.source for cell in code_cells(notebook)] == ["x"]
    begin_metadata(notebook, parameters={}, input_path="a", output_path="b", version="1")
    nbformat.validate(notebook)


# --- The cells that run


def test_code_runs_unless_it_is_empty_or_skipped():
    notebook = new_notebook(
        cells=[
            new_code_cell(" \n\t"),
            new_markdown_cell("text"),
            new_code_cell("a"),
            new_raw_cell("raw"),
            new_code_cell("b", metadata={"tags": ["x", "skip-execution"]}),
            new_code_cell("c", metadata={"tags": ["raises-exception"]}),
            new_code_cell("# only a comment"),
        ]
    )
    cells = code_cells(notebook)
    assert [(cell.number, cell.index, cell.source) for cell in cells] == [
        (1, 2, "a"),
        (2, 5, "c"),
        (3, 6, "# only a comment"),
    ]
    assert [cell.may_raise for cell in cells] == [False, True, False]


@pytest.mark.parametrize(
    ("source", "title"),
    [
        ("a = 1", "a = 1"),
        ("\n   \n  first()  \nsecond()", "first()"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 79 + "…"),
    ],
)
def test_a_cells_title_is_its_first_line_that_says_something(source, title):
    (cell,) = code_cells(new_notebook(cells=[new_code_cell(source)]))
    assert cell.title == title


# --- Paths


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("a.ipynb", "a.ipynb"),
        ("/a.ipynb", "a.ipynb"),
        ("./reports//2026/./a.ipynb", "reports/2026/a.ipynb"),
        ("reports/", "reports"),
        ("with space/ü.ipynb", "with space/ü.ipynb"),
        ("..a/b..ipynb", "..a/b..ipynb"),
        (".hidden/a", ".hidden/a"),
    ],
)
def test_paths_are_normalised(path, clean):
    assert clean_path(path, "notebook_path") == clean


@pytest.mark.parametrize("path", ["", "/", ".", "./.", "..", "../a", "a/../b", "/../a", "a/..", "a\\b", "a\0b"])
def test_paths_that_leave_the_home_are_refused(path):
    with pytest.raises(InvalidInputError, match="notebook_path") as caught:
        clean_path(path, "notebook_path")
    assert repr(path) in str(caught.value)


RUN_IDS = [
    "scheduled__2026-11-06T00:00:00+00:00",
    "scheduled__2026-11-06T00:00:00-00:00",
    "scheduled__2026-11-06T00_00_00_00_00",
    "manual__2026-11-06T07:08:09.123456+02:00",
    "manual__2026-11-06T07:08:09.123456-02:00",
    "my run",
    "my_run",
    "my/run",
    "../../etc/passwd",
    "日次",
    "月次",
    "",
    ".",
    "..",
    "run",
    "%2e%2e?x#y",
    "\ud800",
    "x" * 1000,
    "x" * 1001,
    "a" * 150,
    "a" * 151,
]


@pytest.mark.parametrize("run_id", RUN_IDS)
def test_an_output_path_is_beside_the_notebook_and_safe(run_id):
    path = default_output_path("reports/daily.ipynb", run_id)
    folder, runs, name = path.split("/")
    assert (folder, runs) == ("reports", "daily-runs")
    assert name.endswith(".ipynb")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.=-")
    assert not name.startswith(".")
    assert len(name) < 200
    assert clean_path(path, "output_path") == path


def test_different_runs_have_different_output_paths():
    assert len({default_output_path("a.ipynb", run_id) for run_id in RUN_IDS}) == len(RUN_IDS)


def test_what_is_cut_off_a_long_name_tells_runs_apart():
    # Of 32 bits alone, some would be alike among as many.
    names = {safe_name(f"{'x' * 160}.{number}") for number in range(300_000)}
    assert len(names) == 300_000


def test_an_output_path_shows_its_run():
    assert safe_name("manual_1") == "manual_1"
    shown = default_output_path("daily.ipynb", "scheduled__2026-11-06T00:00:00+00:00")
    assert shown.startswith("daily-runs/scheduled__2026-11-06T00_00_00_00_00")
    assert default_output_path("a/b.c.ipynb", "r") == "a/b.c-runs/r.ipynb"


# --- Metadata


def executed():
    shown = {"outputs": [new_output("stream", text="old")], "execution_count": 3}
    record = {"papermill": {"status": "failed"}, "smstudio": {"output_lost": ["x"]}, "execution": {"a": "b"}}
    return new_notebook(
        cells=[
            new_code_cell("a", metadata={**record, "tags": ["x"]}, **shown),
            new_code_cell("b", metadata={"tags": ["skip-execution"], **record}, **shown),
            new_code_cell("", **shown),
            new_markdown_cell("c"),
        ],
        metadata={
            "widgets": {"x": 1},
            "papermill": {"exception": True},
            "kernelspec": {"name": "python3", "display_name": "P"},
        },
    )


PENDING = {"exception": None, "start_time": None, "end_time": None, "duration": None, "status": "pending"}


def begun(parameters=None):
    notebook = executed()
    begin_metadata(notebook, parameters=parameters or {}, input_path="in", output_path="out", version="0.1.0")
    nbformat.validate(notebook)
    return notebook


def test_a_run_begins_without_the_traces_of_an_earlier_one():
    notebook = begun()
    assert "widgets" not in notebook.metadata
    assert notebook.metadata["kernelspec"] == {"name": "python3", "display_name": "P"}
    assert [cell.metadata["papermill"] for cell in notebook.cells] == [PENDING] * 4
    assert notebook.cells[0].metadata == {"papermill": PENDING, "tags": ["x"]}
    assert "smstudio" not in notebook.cells[1].metadata


def test_only_cells_that_run_lose_what_they_showed():
    notebook = begun()
    assert [len(cell.get("outputs", [])) for cell in notebook.cells] == [0, 1, 1, 0]
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 3, 3, None]


def test_cells_share_no_record():
    notebook = begun()
    notebook.cells[0].metadata["papermill"]["status"] = "running"
    assert notebook.cells[1].metadata["papermill"]["status"] == "pending"


def test_the_notebooks_record_has_papermills_keys():
    assert begun({"a": 1}).metadata["papermill"] == {
        "default_parameters": {},
        "parameters": {"a": 1},
        "environment_variables": {},
        "version": "0.1.0",
        "input_path": "in",
        "output_path": "out",
        "start_time": None,
        "end_time": None,
        "duration": None,
        "exception": None,
    }


def test_parameters_are_noted_as_json_can_hold_them():
    parameters = {
        "nested": {"set": {2, 1}, 3: (1, [2])},
        "times": [datetime(2026, 1, 2, tzinfo=timezone.utc), date(2026, 1, 2)],
        "numbers": [float("nan"), float("inf"), float("-inf"), 1.5, 10**20, True, None],
        "frozen": frozenset({"b", "a"}),
        "text": "\ud800",
    }
    noted = begun(parameters).metadata["papermill"]["parameters"]
    assert json.loads(json.dumps(noted, allow_nan=False)) == {
        "nested": {"set": [1, 2], "3": [1, [2]]},
        "times": ["2026-01-02T00:00:00+00:00", "2026-01-02"],
        "numbers": ["nan", "inf", "-inf", 1.5, 10**20, True, None],
        "frozen": ["a", "b"],
        "text": "\ud800",
    }
