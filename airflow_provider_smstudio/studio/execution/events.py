"""The events of a run, for its driver and its observers; see
:mod:`airflow_provider_smstudio.studio.execution.run`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import StudioError
from airflow_provider_smstudio.studio.notebook.document import CodeCell
from airflow_provider_smstudio.studio.protocol.instance_metrics import Reading
from airflow_provider_smstudio.studio.protocol.messages import Message


@dataclass(frozen=True)
class Send:
    """Send this message to the kernel."""

    message: Message


@dataclass(frozen=True)
class Interrupt:
    """Interrupt the kernel through the server's REST API."""


@dataclass(frozen=True)
class CheckKernel:
    """Ask the server whether the kernel still exists, and pass the answer to :meth:`NotebookRun.kernel_state`."""


@dataclass(frozen=True)
class CheckProcess:
    """Check from a second kernel whether the kernel's process still runs.

    Pass the result to :meth:`NotebookRun.process_found`. A run asks for this check in two cases. The kernel has
    given no sign of life for a long time, which the server may not report. Or the kernel does not read its
    messages; then the check wakes it up.

    :ivar process: the name of the process, if it is known; see :func:`kernel_probe_source.this_process`.
    :ivar silence: how long the kernel has given no sign of life, in seconds.
    """

    process: str | None
    silence: float


@dataclass(frozen=True)
class Save:
    """Save :meth:`NotebookRun.snapshot`. If ``required``, the driver must not ignore a failure."""

    required: bool


@dataclass(frozen=True)
class Announce:
    """Record on Studio that this cell's request may have been sent, before the driver continues.

    A run asks for this if the kernel keeps no record of its requests.
    """

    cell: CodeCell


@dataclass(frozen=True)
class Reconnect:
    """Open a new websocket, then call :meth:`NotebookRun.reconnected` or :meth:`NotebookRun.disconnected`.

    :ivar orderly: whether to close the open websocket first, in order and without losing one of its messages.
    :ivar fresh: whether to use a new client session id, which the server does not know. Then the reconnection does
        not count as orderly.
    """

    orderly: bool
    fresh: bool = False


@dataclass(frozen=True)
class Reattached:
    """A later process continues the run; ``done`` cells of ``total`` are known to have run."""

    done: int
    total: int


@dataclass(frozen=True)
class CellHadRun:
    """A cell ran to its end before this process began; ``outputs`` are those of the executed notebook."""

    cell: CodeCell
    total: int
    seconds: float
    outputs: Sequence[NotebookNode]


@dataclass(frozen=True)
class Disconnected:
    """The connection to the kernel is lost, or a reconnection failed; the next one is in ``retry_in`` seconds."""

    reason: str
    retry_in: float


@dataclass(frozen=True)
class Reconnected:
    """The run is connected again after ``seconds``."""

    seconds: float


@dataclass(frozen=True)
class OutputRecovered:
    """The run fetched a cell's messages from the kernel record; ``messages`` of them had not arrived."""

    cell: CodeCell
    messages: int


@dataclass(frozen=True)
class RecordEnded:
    """The kernel keeps no record of the run, or no longer keeps one; ``reason`` says why."""

    reason: str


@dataclass(frozen=True)
class CellSentAgain:
    """The run sends a cell's request again; ``reason`` says why this is allowed."""

    cell: CodeCell
    reason: str


@dataclass(frozen=True)
class KernelReady:
    """The kernel has answered; ``info`` is its ``kernel_info_reply``."""

    info: Mapping[str, Any]


@dataclass(frozen=True)
class CellStarted:
    """A cell's request was made."""

    cell: CodeCell
    total: int


@dataclass(frozen=True)
class CellOutput:
    """A piece of output of a cell arrived. The cell may have finished before."""

    cell: CodeCell
    output: NotebookNode


@dataclass(frozen=True)
class OutputLost:
    """Output of a cell is lost and cannot be fetched; ``reason`` says why."""

    cell: CodeCell
    reason: str


@dataclass(frozen=True)
class CellFinished:
    """A cell ended; ``error`` is its error, even if the run continues, or the reason for its interrupt."""

    cell: CodeCell
    total: int
    seconds: float
    error: StudioError | None


@dataclass(frozen=True)
class InstanceMemory:
    """The memory use of the instance on which the kernel and other kernels run.

    :ivar reading: the reading.
    :ivar change: why it is reported: ``memory.FIRST``, ``RISE`` (to a threshold: a warning) or ``FALL``.
    """

    reading: Reading
    change: str


@dataclass(frozen=True)
class Finished:
    """The run is over; ``error`` is None after success."""

    error: StudioError | None


Event: TypeAlias = (
    Send
    | Interrupt
    | CheckKernel
    | CheckProcess
    | Save
    | KernelReady
    | CellStarted
    | CellOutput
    | OutputLost
    | CellFinished
    | Finished
    | Announce
    | Reconnect
    | Reattached
    | CellHadRun
    | Disconnected
    | Reconnected
    | OutputRecovered
    | RecordEnded
    | CellSentAgain
    | InstanceMemory
)
