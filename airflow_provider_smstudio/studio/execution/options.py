"""The limits and switches of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunOptions:
    """How a notebook is run. All times are in seconds.

    :ivar allow_errors: go on after a cell that raised.
    :ivar cell_timeout: limit for each cell, None for no limit.
    :ivar kernel_start_timeout: limit from the open websocket to the kernel's first answer.
    :ivar interrupt_grace: how long an interrupted cell may take to end by itself.
    :ivar autosave_interval: shortest time between two saves while the notebook runs.
    :ivar check_interval: silence after which the server is asked whether the kernel still exists.
    :ivar settle_time: silence after which a cell's missing ``execute_reply`` or ``idle`` is looked into.
    :ivar heartbeat_interval: time between two requests that show a running cell to Studio's idle shutdown.
    :ivar memory_interval: time between two looks at the memory of a space's instance.
    :ivar crash_check_after: time without a sign of life of a kernel that has something to do, after which it is
        looked whether its process is there; None for never. Heartbeats are the signs while a cell runs, so it must
        be longer than ``heartbeat_interval``.
    :ivar unheard_limit: how long a request may go without any sign that the kernel has it.
    :ivar reconnect_timeout: how long a lost connection is tried to be made again.
    :ivar record: have an IPython kernel keep a record of the run's requests and of their output.
    :ivar record_limit: bytes of output that an IPython kernel keeps of what is not saved yet, so that what a
        broken connection or the server's rate limit swallows can be fetched; 0 for none.
    :ivar on_unknown_cell: what to do about a cell that may have run, where nobody can tell: ``fail`` or
        ``rerun``.
    :ivar replays: whether the server keeps what comes while nobody is connected, for whoever comes next under the
        same client session's id. Stock Jupyter servers do; Studio Classic probably does not, and
        jupyter_server_documents does not.
    """

    allow_errors: bool = False
    cell_timeout: float | None = None
    kernel_start_timeout: float = 600.0
    interrupt_grace: float = 10.0
    autosave_interval: float = 5.0
    check_interval: float = 10.0
    settle_time: float = 10.0
    heartbeat_interval: float = 60.0
    memory_interval: float = 30.0
    crash_check_after: float | None = 240.0
    unheard_limit: float = 5.0
    reconnect_timeout: float = 600.0
    record: bool = True
    record_limit: int = 100 * 2**20
    on_unknown_cell: str = "fail"
    replays: bool = True
