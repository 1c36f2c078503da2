"""What a caller asks for, and what he gets back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

RESUME = ("auto", "failed_cell", "never")
ON_UNKNOWN_CELL = ("fail", "rerun")


@dataclass(frozen=True)
class RunSpec:
    """A notebook to run. All times are in seconds.

    :ivar notebook_path: the notebook, below the Studio home.
    :ivar output_path: where the executed notebook goes, below the Studio home; by default beside the source, in
        a folder ``<name>-runs``, which is created.
    :ivar parameters: values for the notebook's parameters.
    :ivar strict_parameters: refuse parameters that the notebook's parameters cell does not know.
    :ivar upload_from: a local file or an ``s3://`` object that is first copied to ``notebook_path``, replacing
        what is there; missing folders are created.
    :ivar kernel_name: the kernel; by default the one that the notebook names.
    :ivar instance_type: Studio Classic only: what the kernel runs on; by default what the notebook names, then
        the kernelspec's own.
    :ivar allow_errors: go on after cells that raise.
    :ivar cell_timeout: limit for each cell; None for no limit.
    :ivar kernel_start_timeout: limit for the kernel's start; Classic may start an instance in it.
    :ivar create_output_folder: create the folder of ``output_path`` if it is missing.
    :ivar delete_kernel_app: Studio Classic only: delete the KernelGateway app afterwards, unless other kernels
        use it.
    :ivar run_name: names the run, for the default output path and for the Jupyter session.
    :ivar run_key: the same text for every try of one run, so that a later try finds what an earlier one left;
        None for a run that nobody comes back to.
    :ivar resume: ``auto``: go on with a run whose process was lost, start afresh after a cell's error;
        ``failed_cell``: after a cell's error go on from that cell, too; ``never``: always start afresh.
    :ivar retry_series: names the tries of one run that follow each other by themselves, as Airflow's retries do,
        and not because somebody wants the notebook to run again: the same text for each of them. If one of them
        has run the notebook to its end, and was lost before it could tell so, a later one tells it, and runs
        nothing. What a try of another series has left is not continued, except with ``failed_cell``. None: nobody
        knows.
    :ivar try_number: counts the tries, from 1.
    :ivar retries: how many retries there are at most, None where that is not known. If that has changed since an
        earlier try, it is not known whether somebody wants the notebook to run again.
    :ivar will_retry: whether another try follows if this one fails; then the kernel is kept where that try could
        use it.
    :ivar on_unknown_cell: what to do about a cell that may have run, where nobody can tell how it ended:
        ``fail`` or ``rerun``.
    :ivar reconnect_timeout: how long a lost connection to the kernel is tried to be made again.
    :ivar record_mib: MiB of output that an IPython kernel may keep of what is not saved yet, so that nothing is
        lost with a connection or to the server's rate limit; 0 for none.
    :ivar skip_if_output_complete: run nothing where the executed notebook is there already, complete, of the same
        cells, parameters and kernel.
    """

    notebook_path: str
    output_path: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict_parameters: bool = True
    upload_from: str | None = None
    kernel_name: str | None = None
    instance_type: str | None = None
    allow_errors: bool = False
    cell_timeout: float | None = None
    kernel_start_timeout: float = 600.0
    create_output_folder: bool = False
    delete_kernel_app: bool = True
    run_name: str = "run"
    run_key: str | None = None
    retry_series: str | None = None
    try_number: int = 1
    retries: int | None = None
    resume: str = "auto"
    will_retry: bool = False
    on_unknown_cell: str = "fail"
    reconnect_timeout: float = 600.0
    record_mib: float = 100.0
    skip_if_output_complete: bool = False


@dataclass(frozen=True)
class RunResult:
    """How a run went; small and plain, for XCom.

    :ivar status: ``success``, or ``stopped`` where the notebook ended itself before its last cell.
    :ivar notebook_path: the source.
    :ivar output_path: the executed notebook, below the Studio home.
    :ivar output_url: where a browser that is logged in to Studio opens it; holds no secret.
    :ivar kernel_name: the kernel.
    :ivar instance_type: what it ran on, where that is known.
    :ivar cells: how many cells there were to run.
    :ivar cells_executed: how many ran.
    :ivar started_at: the start, in ISO 8601, UTC.
    :ivar duration: the run's time from the kernel's start to the last cell's end, in seconds.
    :ivar startup_seconds: the time before, for login, notebook and kernel.
    :ivar failed_cells: numbers of the cells that raised, and were allowed to.
    :ivar incomplete_cells: numbers of the cells of which output was lost.
    :ivar resumed: whether an earlier process had begun the run.
    :ivar values: the values that the notebook hands out, by name; see :mod:`values`.
    :ivar skipped: whether nothing was run, because the executed notebook was complete already; all else is told of
        the run that made it.
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
        """Return it as a dict of plain values."""
        return asdict(self)
