"""The notebook whose outputs wait on disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from airflow_provider_smstudio.studio.jupyter.rest import save_request
from airflow_provider_smstudio.studio.notebook.spool import NotebookSpool

TEXT = new_output("stream", name="stdout", text="one\ntwo é\n")
PLOT = new_output("display_data", data={"image/png": "x" * 5000, "text/plain": "<plot>"}, metadata={"a": [1, {}]})


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[NotebookSpool]:
    spool = NotebookSpool(str(tmp_path))
    yield spool
    spool.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def notebook():
    cells = [
        new_markdown_cell("# title"),
        new_code_cell("1", outputs=[copy.deepcopy(TEXT), copy.deepcopy(PLOT)]),
        new_code_cell("2", outputs=[]),
        new_code_cell("3", outputs=[copy.deepcopy(TEXT)]),
    ]
    return new_notebook(cells=cells, metadata={"papermill": {"status": "running"}})


def written(spool: NotebookSpool, notebook, ended: set[int]):
    file, size, places = spool.write(spool.draft(notebook), ended)
    with file:
        body = file.read()
    assert len(body) == size
    return json.loads(body), places


def test_the_request_is_that_of_a_notebook_in_memory(spool: NotebookSpool, notebook) -> None:
    assert written(spool, notebook, set())[0] == json.loads(save_request(notebook))
    assert written(spool, new_notebook(), set())[0] == json.loads(save_request(new_notebook()))


def test_outputs_that_are_away_are_in_every_later_request(spool: NotebookSpool, notebook) -> None:
    whole = json.loads(save_request(notebook))
    _, places = written(spool, notebook, {1, 2})
    assert set(places) == {1, 2}
    for index, place in places.items():
        spool.put_away(index, notebook, place)
    assert len(json.dumps(notebook)) < 2000
    for _ in range(2):
        assert written(spool, notebook, {3})[0] == whole
    assert spool.fetch(places[1]) == [TEXT, PLOT]
    assert spool.fetch(places[2]) == []


def test_newer_outputs_go_before_those_that_are_away(spool: NotebookSpool, notebook) -> None:
    _, places = written(spool, notebook, {1})
    spool.put_away(1, notebook, places[1])
    assert spool.is_away(1, notebook)
    notebook.cells[1]["outputs"] = [TEXT]
    assert not spool.is_away(1, notebook)
    body, places = written(spool, notebook, {1})
    assert body["content"]["cells"][1]["outputs"] == [TEXT]
    spool.put_away(1, notebook, places[1])
    assert written(spool, notebook, set())[0]["content"]["cells"][1]["outputs"] == [TEXT]


def test_a_draft_does_not_change_with_the_run(spool: NotebookSpool, notebook) -> None:
    draft = spool.draft(notebook)
    before = json.loads(save_request(notebook))
    notebook.metadata["papermill"]["status"] = "failed"
    notebook.cells[1].metadata["x"] = 1
    notebook.cells[1].outputs[0]["text"] += "three"
    notebook.cells[1].outputs[1]["data"] = {}
    notebook.cells[1].outputs.append(TEXT)
    file, _, _ = spool.write(draft, set())
    with file:
        assert json.load(file) == before


def test_half_a_surrogate_pair_is_written_as_a_question_mark(spool: NotebookSpool, notebook) -> None:
    notebook.cells[1].outputs[0]["text"] = "a\ud800b"
    assert written(spool, notebook, {1})[0]["content"]["cells"][1]["outputs"][0]["text"] == "a?b"


def test_the_files_are_for_this_user_only(tmp_path: Path) -> None:
    spool = NotebookSpool(str(tmp_path))
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    spool.close()
