"""Read and write an executed notebook through a spool, so that memory holds little of it.

Each call blocks, so make it in a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import SaveError
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.notebook.spool import Draft, NotebookSpool, Place


class Fetch:
    """Reads the outputs of a cell from the spool. It needs less memory than a closure over a whole run."""

    __slots__ = ("_place", "_spool")

    def __init__(self, spool: NotebookSpool, place: Place) -> None:
        self._spool, self._place = spool, place

    def __call__(self) -> list[NotebookNode]:
        """Return the outputs."""
        return self._spool.fetch(self._place)


def read_into(spool: NotebookSpool, server: JupyterServer, path: str) -> NotebookNode:
    """Read an executed notebook. The outputs of cells that have ended go into the spool.

    :param spool: stores the outputs.
    :param server: the Jupyter server.
    :param path: the path of the executed notebook.
    :raises InvalidInputError: when there is no notebook at this path.
    """
    notebook = server.read_executed(path)
    ended = {
        cell.index
        for cell in nb.code_cells(notebook)
        if (notebook.cells[cell.index].metadata.get("papermill") or {}).get("status") == "completed"
    }
    file, _, places = spool.write(spool.draft(notebook), ended)
    file.close()
    for index, place in places.items():
        spool.put_away(index, notebook, place)
    return notebook


def write_from(
    spool: NotebookSpool, draft: Draft, ended: set[int], write: Callable[[BinaryIO], None]
) -> tuple[int, dict[int, Place]]:
    """Write a draft. The outputs of cells that have ended go into the spool.

    :param spool: stores the outputs.
    :param draft: the notebook.
    :param ended: the indices of the cells that have ended.
    :param write: sends the notebook to the server. Its errors are passed on.
    :return: the size of the notebook in bytes, and the place of each cell's outputs that the spool stored now.
    :raises SaveError: when the notebook could not be written.
    """
    try:
        file, size, places = spool.write(draft, ended)
    except OSError as error:
        raise SaveError(f"this machine could not write the notebook to a file: {error.strerror}") from error
    with file:
        write(file)
    return size, places
