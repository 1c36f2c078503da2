"""Keep the outputs of an executed notebook on disk, for a process that watches many runs at once.

Each save writes the whole notebook, so its outputs must be available until the run ends. In memory, a run would
need as much space as its output. So this module keeps the outputs of finished cells as JSON in a file. A save
reads them from there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nbformat import NotebookNode

_COPY = 2**20


@dataclass(frozen=True)
class Place:
    """The position of one cell's outputs in the file, in bytes."""

    start: int
    size: int


@dataclass
class Draft:
    """A notebook at one moment. Another thread can write it while the run continues.

    :ivar head: the notebook without its cells.
    :ivar cells: the cells without their outputs.
    :ivar outputs: for each cell its outputs, or their place in the file, or None for a cell that has no outputs.
    """

    head: dict[str, Any]
    cells: list[dict[str, Any]]
    outputs: list[Place | list[dict[str, Any]] | None]


class NotebookSpool:
    """A file with the outputs of one run's notebook.

    Call :meth:`draft`, :meth:`is_away` and :meth:`put_away` in the thread of the run. You may call :meth:`write`
    in another thread. Only this user can read the file. :meth:`close` removes it.

    :param folder: where to create the file; None for the system's folder for temporary files.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="smstudio-", dir=folder))
        self._end = 0
        self._away: dict[int, tuple[Place, list[Any]]] = {}

    def close(self) -> None:
        """Remove the file."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def draft(self, notebook: NotebookNode) -> Draft:
        """Return a copy of the notebook's current state.

        The run does not change the copy later: it replaces the parts of an output and never changes them.
        """
        cells, outputs = [], []
        for index, cell in enumerate(notebook.cells):
            cells.append(_plain({key: value for key, value in cell.items() if key != "outputs"}))
            outputs.append(self._of(index, cell))
        return Draft(_plain({key: value for key, value in notebook.items() if key != "cells"}), cells, outputs)

    def _of(self, index: int, cell: NotebookNode) -> Place | list[dict[str, Any]] | None:
        if "outputs" not in cell:
            return None
        away = self._away.get(index)
        if away is not None and away[1] is cell["outputs"]:
            return away[0]
        return [dict(output) for output in cell["outputs"]]

    def is_away(self, index: int, notebook: NotebookNode) -> bool:
        """Return whether the outputs of a cell are on disk, with no newer outputs in the notebook."""
        away = self._away.get(index)
        return away is not None and away[1] is notebook.cells[index]["outputs"]

    def put_away(self, index: int, notebook: NotebookNode, place: Place) -> None:
        """Remove the outputs of a cell from the notebook; :meth:`fetch` reads them again."""
        empty: list[Any] = []
        notebook.cells[index]["outputs"] = empty
        self._away[index] = (place, empty)

    def fetch(self, place: Place) -> list[NotebookNode]:
        """Read outputs from the file."""
        with self._outputs().open("rb") as file:
            file.seek(place.start)
            found = json.loads(file.read(place.size))
        return [_node(output) for output in found]

    def write(self, draft: Draft, ended: set[int]) -> tuple[BinaryIO, int, dict[int, Place]]:
        """Write the body of the HTTP request that saves a draft into a file.

        :param draft: the notebook.
        :param ended: indexes of the cells that have ended. Their outputs are added to the spool if they are not in
            it yet.
        :return: the open file at its start, its size, and the places of the outputs that were added now.
        """
        new: dict[int, Place] = {}
        with self._outputs().open("ab") as kept:
            for index in ended:
                outputs = draft.outputs[index]
                if isinstance(outputs, list):
                    draft.outputs[index] = new[index] = self._keep(kept, outputs)
        file = (self._folder / "request").open("w+b")
        try:
            with open(self._outputs(), "rb") if self._end else contextlib.nullcontext() as source:
                for piece in _pieces(draft, source):
                    file.write(piece)
            size = file.tell()
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file, size, new

    def _keep(self, file: BinaryIO, outputs: list[dict[str, Any]]) -> Place:
        start = self._end
        file.write(b"[")
        length = 2
        for number, output in enumerate(outputs):
            piece = (b"," if number else b"") + _json(output)
            file.write(piece)
            length += len(piece)
        file.write(b"]")
        self._end += length
        return Place(start, length)

    def _outputs(self) -> Path:
        return self._folder / "outputs"


def _pieces(draft: Draft, kept: BinaryIO | None) -> Iterator[bytes]:
    yield b'{"type":"notebook","format":"json","content":{"cells":['
    for number, (cell, outputs) in enumerate(zip(draft.cells, draft.outputs, strict=True)):
        yield (b"," if number else b"") + _json(cell)[:-1]
        if isinstance(outputs, Place) and kept is not None:
            yield b',"outputs":'
            kept.seek(outputs.start)
            left = outputs.size
            while left:
                piece = kept.read(min(left, _COPY))
                if not piece:
                    raise OSError("the file with a run's outputs has become shorter")
                left -= len(piece)
                yield piece
        elif isinstance(outputs, list):
            yield b',"outputs":['
            for place, output in enumerate(outputs):  # one at a time, so that other threads can run in between
                yield (b"," if place else b"") + _json(output)
            yield b"]"
        yield b"}"
    yield b"]," + _json(draft.head)[1:] + b"}"


def _json(value: Any) -> bytes:
    # A cell can print a lone surrogate. It becomes ``?``, because it cannot be encoded as UTF-8.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    """Copy metadata, because the run changes them in place."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _node(value: Any) -> Any:
    if isinstance(value, dict):
        return NotebookNode({key: _node(item) for key, item in value.items()})
    return [_node(item) for item in value] if isinstance(value, list) else value
