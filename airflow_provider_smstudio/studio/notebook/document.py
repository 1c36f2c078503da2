"""Read notebooks, list the cells that run, and set the metadata of a run. Pure functions over nbformat, no I/O.

The metadata keys are papermill's (``metadata.papermill`` of the notebook and of every cell). So papermill's
tools can read the executed notebooks. The package's own metadata are below ``metadata.smstudio``.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import nbformat
from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import NotANotebookError
from airflow_provider_smstudio.studio.notebook.paths import clean_path as clean_path

SKIP_TAG = "skip-execution"
"""Tag of a cell that is not run. Its outputs stay in the notebook."""

RAISES_TAG = "raises-exception"
"""Tag of a cell that may raise an error; the run then continues."""

METADATA_KEY = "smstudio"
"""Key of the package's own metadata."""

_LONGEST_NAME = 150


@dataclass(frozen=True)
class CodeCell:
    """A cell that runs.

    :ivar number: its number among the cells that run, from 1.
    :ivar index: its index in the notebook, from 0.
    :ivar source: its source.
    :ivar may_raise: whether the cell may raise an error without ending the run.
    """

    number: int
    index: int
    source: str
    may_raise: bool

    @property
    def title(self) -> str:
        """The first line of its source that is not empty, shortened to 80 characters."""
        line = next((line.strip() for line in self.source.splitlines() if line.strip()), "")
        return line if len(line) <= 80 else f"{line[:79]}…"


def code_cells(notebook: NotebookNode) -> list[CodeCell]:
    """Return the cells that run: code that is not empty and not tagged ``skip-execution``."""
    cells: list[CodeCell] = []
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and cell.source.strip() and SKIP_TAG not in tags:
            cells.append(CodeCell(len(cells) + 1, index, cell.source, RAISES_TAG in tags))
    return cells


def read(content: object, path: str) -> NotebookNode:
    """Make a notebook of format 4 from the content that a server or a file returned.

    :param content: the notebook as text, or as the parsed JSON object.
    :param path: its path, for messages.
    :raises NotANotebookError: when it is not a notebook, or its format is newer than 4.
    """
    try:
        if isinstance(content, str):
            content = nbformat.reader.parse_json(content)
        if not isinstance(content, Mapping):
            raise ValueError("it is not a JSON object")
        notebook = _current(content)
        if not isinstance(notebook.get("cells"), list):
            raise ValueError("it has no list of cells")
        notebook.setdefault("nbformat_minor", 0)
        if not isinstance(notebook.get("metadata"), Mapping):
            notebook["metadata"] = NotebookNode()
        for number, cell in enumerate(notebook.cells, start=1):
            _check_cell(cell, number)
    except Exception as error:  # nbformat's converters raise many types of errors for a broken file
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise NotANotebookError(f"{path!r} is not a valid notebook: {reason}", path=path) from None
    return notebook


def _current(content: Mapping[str, Any]) -> NotebookNode:
    """Convert it to a notebook of the current major format."""
    major, minor = nbformat.reader.get_version(content)
    if not _is_version(major) or not _is_version(minor):
        raise ValueError(f"its format is {major!r}.{minor!r}")
    if major not in nbformat.versions:
        raise ValueError(f"it has format {major}; supported formats go up to {nbformat.current_nbformat}")
    notebook: NotebookNode = nbformat.from_dict(dict(content))
    if major < nbformat.current_nbformat:
        # Files of old formats have lists of lines, but the converters need joined text.
        notebook = nbformat.versions[major].to_notebook_json(notebook, minor=minor)
        notebook = nbformat.convert(notebook, nbformat.current_nbformat)
    return notebook


def _is_version(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _check_cell(cell: NotebookNode, number: int) -> None:
    if not isinstance(cell, Mapping) or "cell_type" not in cell:
        raise ValueError(f"cell {number} has no cell_type")
    if isinstance(cell.get("source"), list):
        cell["source"] = "".join(cell["source"])
    if not isinstance(cell.get("source"), str):
        raise ValueError(f"cell {number} has no source")
    if not isinstance(cell.get("metadata"), Mapping):
        cell["metadata"] = NotebookNode()
    if not isinstance(cell.metadata.get("tags", []), list):
        del cell.metadata["tags"]
    if cell.cell_type == "code":
        if not isinstance(cell.get("outputs"), list):
            cell["outputs"] = []
        cell.setdefault("execution_count", None)


def default_output_path(notebook_path: str, run_name: str) -> str:
    """Return the default path of an executed notebook: in a folder beside its source, named after the run.

    :param notebook_path: the path of the source notebook.
    :param run_name: names the run. This function makes it safe for a file name.
    """
    folder, name = posixpath.split(notebook_path)
    stem = name.removesuffix(".ipynb")
    return posixpath.join(folder, f"{stem}-runs", f"{safe_name(run_name)}.ipynb")


def safe_name(name: str) -> str:
    """Make a file name from any text: characters that are special in file systems or URLs become ``_``.

    If the name differs from the text, a digest is added. So different texts have different names.
    """
    safe = re.sub(r"[^\w.=-]+", "_", name, flags=re.ASCII).strip("._")
    if safe and safe == name and len(safe) <= _LONGEST_NAME:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    # Many long names of one DAG (mapped tasks, runs) may differ only in the part that is cut off.
    return f"{safe[:_LONGEST_NAME] or 'run'}-{digest[: 8 if len(safe) <= _LONGEST_NAME else 16]}"


def cells_run(notebook: NotebookNode) -> int:
    """Count the cells of an executed notebook that ran to their end and let the run continue."""
    records = [notebook.cells[cell.index].metadata.get("papermill") or {} for cell in code_cells(notebook)]
    return sum(record.get("status") == "completed" for record in records)


def seconds_of(notebook: NotebookNode, cell: CodeCell) -> float | None:
    """Return the duration of a cell of an executed notebook, in seconds; None if it did not run to its end."""
    record = notebook.cells[cell.index].metadata.get("papermill") or {}
    seconds = record.get("duration")
    if record.get("status") != "completed" or not isinstance(seconds, (int, float)):
        return None
    return float(seconds)


def has_lost_output(notebook: NotebookNode, cell: CodeCell) -> bool:
    """Return whether an executed notebook marks a cell as one with lost output."""
    own = notebook.cells[cell.index].metadata.get(METADATA_KEY)
    return isinstance(own, Mapping) and bool(own.get("output_lost"))


def has_raised(notebook: NotebookNode, cell: CodeCell) -> bool:
    """Return whether an executed notebook marks a cell as one that raised."""
    own = notebook.cells[cell.index].metadata.get(METADATA_KEY)
    return isinstance(own, Mapping) and bool(own.get("raised"))


def begin_metadata(
    notebook: NotebookNode,
    *,
    parameters: Mapping[str, Any],
    input_path: str,
    output_path: str | None,
    version: str,
) -> None:
    """Set a notebook's metadata for a run that is about to start. Clear the outputs of the cells that run.

    :param notebook: the notebook; changed in place.
    :param parameters: the parameters of the run.
    :param input_path: the path of the source notebook.
    :param output_path: the path of the executed notebook, if it is known.
    :param version: the package's version.
    """
    for cell in notebook.cells:
        cell.metadata["papermill"] = _cell_record("pending")
        cell.metadata.pop(METADATA_KEY, None)
        cell.metadata.pop("execution", None)
    for code_cell in code_cells(notebook):
        cell = notebook.cells[code_cell.index]
        cell["outputs"], cell["execution_count"] = [], None
    notebook.metadata.pop("widgets", None)
    notebook.metadata["papermill"] = {
        "default_parameters": {},
        "parameters": plain(parameters),
        "environment_variables": {},
        "version": version,
        "input_path": input_path,
        "output_path": output_path,
        "start_time": None,
        "end_time": None,
        "duration": None,
        "exception": None,
    }


def _cell_record(status: str) -> dict[str, Any]:
    return {"exception": None, "start_time": None, "end_time": None, "duration": None, "status": status}


def plain(value: Any) -> Any:
    """Return a value for JSON: times as ISO text, spans in seconds, tuples and sets as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value, key=repr)]
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return timedelta.total_seconds(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)  # JSON has no such numbers
    return value
