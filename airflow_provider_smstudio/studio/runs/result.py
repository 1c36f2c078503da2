"""The result of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.runs import saved_run
from airflow_provider_smstudio.studio.runs.spec import RunSpec


@dataclass(frozen=True)
class RunResult:
    """The result of a run; small and plain, for XCom.

    :ivar status: ``success``, or ``stopped`` if the notebook ended itself before its last cell.
    :ivar notebook_path: the source notebook.
    :ivar output_path: the executed notebook, below the Studio home.
    :ivar output_url: the URL of the executed notebook, for a browser that is logged in to Studio. It contains no
        secret.
    :ivar kernel_name: the kernel.
    :ivar instance_type: the instance under the kernel, if it is known.
    :ivar cells: how many cells there were to run.
    :ivar cells_executed: how many cells ran.
    :ivar started_at: the start, in ISO 8601, UTC.
    :ivar duration: the time from the kernel's start to the last cell's end, in seconds.
    :ivar startup_seconds: the time before, for login, notebook and kernel, in seconds.
    :ivar failed_cells: numbers of the cells that raised an error, and were allowed to.
    :ivar incomplete_cells: numbers of the cells that lost output.
    :ivar resumed: whether an earlier process began the run.
    :ivar values: the values that the notebook publishes, by name; see :mod:`values`.
    :ivar skipped: whether nothing was run, because the executed notebook was complete already. Then all other
        fields describe the run that made this notebook.
    """

    status: str
    notebook_path: str
    output_path: str
    output_url: str
    kernel_name: str
    instance_type: str | None
    cells: int
    cells_executed: int
    started_at: str
    duration: float
    startup_seconds: float
    failed_cells: list[int]
    incomplete_cells: list[int]
    resumed: bool = False
    skipped: bool = False
    values: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a dict of plain values."""
        return asdict(self)


def result_of(
    notebook: NotebookNode,
    spec: RunSpec,
    *,
    output_path: str,
    output_url: str,
    kernel_name: str,
    instance_type: str | None,
    cells_executed: int,
    startup_seconds: float,
    resumed: bool,
) -> RunResult:
    """Return the result of a run that did not fail.

    :param notebook: the executed notebook, with or without its outputs.
    :param cells_executed: how many of its cells ran.
    """
    cells = nb.code_cells(notebook)
    return RunResult(
        status="stopped" if saved_run.state_of(notebook) == "stopped" else "success",
        notebook_path=spec.notebook_path,
        output_path=output_path,
        output_url=output_url,
        kernel_name=kernel_name,
        instance_type=instance_type,
        cells=len(cells),
        cells_executed=cells_executed,
        started_at=notebook.metadata["papermill"]["start_time"],
        duration=notebook.metadata["papermill"]["duration"],
        startup_seconds=round(startup_seconds, 3),
        failed_cells=[cell.number for cell in cells if nb.has_raised(notebook, cell)],
        incomplete_cells=[cell.number for cell in cells if nb.has_lost_output(notebook, cell)],
        resumed=resumed,
        values=saved_run.values_of(notebook),
    )
