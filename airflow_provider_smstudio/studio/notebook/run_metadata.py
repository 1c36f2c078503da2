"""Write the events of a run into the metadata of its notebook. No I/O.

The times have the form of papermill (``metadata.papermill``) and of JupyterLab (``metadata.execution`` of a cell).
``metadata.smstudio`` has the data that a later process needs to continue the run. These are the state of the run
(``run.state``), whether the kernel keeps a record, and the id and number of each cell's request.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import CellError, RunError, RunKilledError, StudioError
from airflow_provider_smstudio.studio.notebook.document import METADATA_KEY, CodeCell
from airflow_provider_smstudio.studio.protocol.messages import Message


class RunMetadata:
    """The metadata of one run.

    :param notebook: the notebook, with :func:`document.begin_metadata` applied.
    :param now: the monotonic clock's reading at this moment, in seconds.
    :param started_at: the wall clock's reading at this moment; the current time by default.
    :param resumed: whether to continue the metadata of an earlier process, which are in the notebook.
    """

    def __init__(
        self, notebook: NotebookNode, now: float, started_at: datetime | None, *, resumed: bool = False
    ) -> None:
        self._notebook = notebook
        self._zero = now
        self._zero_at = started_at or datetime.now(timezone.utc)
        record = notebook.metadata["papermill"]
        first = _moment(record.get("start_time")) if resumed else None
        if first is None:
            self._begin(record, now)
        else:
            record.update(end_time=None, duration=None, exception=False)
            self._zero -= (self._zero_at - first).total_seconds()
            self._zero_at = first
        self._run["state"] = "running"
        self._run.pop("error", None)

    def kernel_ready(self, info: Mapping[str, Any], *, records: bool) -> None:
        """Write the kernel's language from its ``kernel_info_reply``, and whether it can keep a record."""
        self._run["can_record"] = records
        if isinstance(info.get("language_info"), Mapping):
            self._notebook.metadata["language_info"] = NotebookNode(info["language_info"])

    @property
    def records(self) -> bool:
        """Whether this type of kernel can keep a record."""
        return self._run.get("can_record") is True

    @property
    def recorded(self) -> bool | None:
        """Whether the kernel keeps a record of the run, or None if that is not known."""
        found = self._run.get("kernel_record")
        return found if isinstance(found, bool) else None

    def recording(self, on: bool) -> None:
        """Write whether the kernel keeps a record of the run."""
        self._run["kernel_record"] = on

    @property
    def process(self) -> str | None:
        """The name of the kernel's process, if it is known; see :func:`kernel_probe_source.this_process`."""
        found = self._run.get("process")
        return found if isinstance(found, str) else None

    @process.setter
    def process(self, process: str | None) -> None:
        self._run["process"] = process

    @property
    def values(self) -> dict[str, Any]:
        """The values that the notebook has published so far."""
        return dict(self._run.get("values") or {})

    @values.setter
    def values(self, values: Mapping[str, Any]) -> None:
        self._run["values"] = dict(values)

    def has_run(self, cell: CodeCell) -> bool:
        """Return whether a cell has run to its end and let the run continue."""
        return str((self._metadata(cell).get("papermill") or {}).get("status")) == "completed"

    def is_running(self, cell: CodeCell) -> bool:
        """Return whether the metadata show a cell as running."""
        return str((self._metadata(cell).get("papermill") or {}).get("status")) == "running"

    def started(self, cell: CodeCell, now: float) -> float:
        """Return when a running cell was started, by the monotonic clock; ``now`` if that is not known."""
        moment = _moment((self._metadata(cell).get("papermill") or {}).get("start_time"))
        if moment is None or not self.is_running(cell):
            return now
        return min(self._zero + (moment - self._zero_at).total_seconds(), now)

    def attempt(self, cell: CodeCell) -> int:
        """Return the number of a cell's request on this kernel, from 1."""
        found = (self._metadata(cell).get(METADATA_KEY) or {}).get("attempt")
        return found if isinstance(found, int) and found > 0 else 1

    def set_attempt(self, cell: CodeCell, attempt: int) -> None:
        """Write the number of a cell's request."""
        self._own(cell)["attempt"] = attempt

    def cell_started(self, cell: CodeCell, now: float, msg_id: str) -> None:
        """Write that a cell's request is made."""
        own = self._own(cell)
        own.update(msg_id=msg_id, attempt=self.attempt(cell))
        own.pop("raised", None)
        self._begin(self._metadata(cell)["papermill"], now)

    def cell_count(self, cell: CodeCell, count: object) -> None:
        """Write a cell's execution count, if the message contains one."""
        if isinstance(count, int):
            self._notebook.cells[cell.index]["execution_count"] = count

    def cell_message(self, cell: CodeCell, key: str, message: Message) -> None:
        """Write the time of a message of a cell, under JupyterLab's name for it."""
        moment = message["header"].get("date")
        if isinstance(moment, str):
            self._metadata(cell).setdefault("execution", NotebookNode())[key] = moment

    def cell_lost_output(self, cell: CodeCell, reasons: list[str]) -> None:
        """Write that output of a cell is missing, and why."""
        self._own(cell)["output_lost"] = list(reasons)

    def cell_ended(
        self, cell: CodeCell, now: float, seconds: float, *, failed: bool, raised: bool = False
    ) -> None:
        """Write that a cell ended.

        :param cell: the cell.
        :param now: the monotonic clock's reading, in seconds.
        :param seconds: the duration of the cell.
        :param failed: whether it ended with an error that ends the run.
        :param raised: whether it raised an error, also one that does not end the run.
        """
        if raised:
            self._own(cell)["raised"] = True
        self._end(self._metadata(cell)["papermill"], now, seconds, failed)

    def last_count(self, cells: list[CodeCell]) -> int:
        """Return the highest execution count of the cells that have run to their end, or 0."""
        counts = [self._notebook.cells[cell.index].get("execution_count") for cell in cells if self.has_run(cell)]
        return max((count for count in counts if isinstance(count, int)), default=0)

    def forget_count(self, cell: CodeCell) -> None:
        """Remove a cell's execution count, because it is not known."""
        self._notebook.cells[cell.index]["execution_count"] = None

    def ended(self, now: float, error: StudioError | None, *, early: bool) -> None:
        """Write that the run ended.

        :param now: the monotonic clock's reading, in seconds.
        :param error: the error that ended the run, or None.
        :param early: whether the notebook ended the run before its last cell.
        """
        failed = error is not None
        self._run["state"] = _state(error, early=early)
        if error is not None and self._run["state"] == "failed":  # the notebook does not show the reason otherwise
            self._run["error"] = {"type": type(error).__name__, "message": error.message}
        if not failed and not early:
            for cell in self._notebook.cells:  # papermill does the same with cells that do not run
                if cell.metadata["papermill"]["status"] == "pending":
                    cell.metadata["papermill"]["status"] = "completed"
        self._end(self._notebook.metadata["papermill"], now, now - self._zero, failed)

    def _begin(self, record: dict[str, Any], now: float) -> None:
        record.update(start_time=self._at(now), end_time=None, duration=None, exception=False)
        if "status" in record:
            record["status"] = "running"

    def _end(self, record: dict[str, Any], now: float, seconds: float, failed: bool) -> None:
        record.update(end_time=self._at(now), duration=round(seconds, 6), exception=failed)
        if "status" in record:
            record["status"] = "failed" if failed else "completed"

    def _at(self, now: float) -> str:
        return (self._zero_at + timedelta(seconds=now - self._zero)).isoformat()

    @property
    def _run(self) -> NotebookNode:
        own = self._notebook.metadata.setdefault(METADATA_KEY, NotebookNode())
        return own.setdefault("run", NotebookNode())  # type: ignore[no-any-return]  # nbformat is untyped

    def _own(self, cell: CodeCell) -> NotebookNode:
        metadata = self._metadata(cell)
        return metadata.setdefault(METADATA_KEY, NotebookNode())  # type: ignore[no-any-return]  # untyped

    def _metadata(self, cell: CodeCell) -> NotebookNode:
        return self._notebook.cells[cell.index].metadata  # type: ignore[no-any-return]  # nbformat is untyped


def _state(error: StudioError | None, *, early: bool) -> str:
    if error is None:
        return "stopped" if early else "completed"
    if not isinstance(error, RunError):
        return "lost"  # the connection to the run failed, not the run itself
    if isinstance(error, CellError):
        return "cell-failed"
    return "killed" if isinstance(error, RunKilledError) else "failed"


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None
