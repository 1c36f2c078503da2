"""The limits and switches of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunOptions:
    """How to run a notebook. All times are in seconds.

    :ivar allow_errors: continue after a cell that raised.
    :ivar cell_timeout: limit for each cell, None for no limit.
    :ivar kernel_start_timeout: limit from the open websocket to the kernel's first answer.
    :ivar interrupt_grace: how long an interrupted cell may take to end by itself.
    :ivar autosave_interval: shortest time between two saves while the notebook runs.
    :ivar check_interval: time without a message after which the run asks the server whether the kernel exists.
    :ivar settle_time: how long to wait for a cell's missing ``execute_reply`` or ``idle`` before the run asks the
        kernel about it.
    :ivar heartbeat_interval: time between two heartbeats. They show Studio's idle shutdown that a cell runs.
    :ivar memory_interval: time between two readings of the memory of a space's instance.
    :ivar crash_check_after: how long a kernel with work to do may give no sign of life before the run checks its
        process; None for never. While a cell runs, the answers to heartbeats are the signs of life. So it must be
        longer than ``heartbeat_interval``.
    :ivar unheard_limit: how long to wait for a sign that the kernel received a request.
    :ivar reconnect_timeout: how long the run tries to reconnect.
    :ivar record: whether an IPython kernel keeps a record of the run's requests and of their output.
    :ivar record_limit: how many bytes of unsaved output an IPython kernel keeps in its record; 0 for none. From
        there the run fetches output that a broken connection or the server's rate limit dropped.
    :ivar on_unknown_cell: what to do if it is unknown whether or how a cell ran: ``fail`` or ``rerun``.
    :ivar replays: whether the server keeps messages while no client is connected, for the next connection with the
        same client session id. Stock Jupyter servers do. Studio Classic probably does not, and
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
