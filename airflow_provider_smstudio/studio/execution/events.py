"""What a run tells its driver and its observers; see :mod:`airflow_provider_smstudio.studio.execution.run`."""

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
    """Ask the server whether the kernel still exists, and tell :meth:`NotebookRun.kernel_state`."""


@dataclass(frozen=True)
class CheckProcess:
    """Look from beside the kernel whether its process still runs, and tell :meth:`NotebookRun.process_found`.

    Asked for where the kernel has given no sign of life for long, which the server may have no word for, and where
    it does not read what it is sent: the look wakes it up.

    :ivar process: names the process, where it is known; see :func:`kernel_probe_source.this_process`.
    :ivar silence: for how long it has given no sign, in seconds.
    """

    process: str | None
    silence: float


@dataclass(frozen=True)
class Save:
    """Save :meth:`NotebookRun.snapshot`; ``required`` says that a failure may not be passed over."""

    required: bool


@dataclass(frozen=True)
class Announce:
    """Write down on Studio, before going on, that this cell's request may have been made.

    Asked for where the kernel itself keeps no record of its requests.
    """

    cell: CodeCell


@dataclass(frozen=True)
class Reconnect:
    """Open the websocket anew and tell :meth:`NotebookRun.reconnected` or :meth:`NotebookRun.disconnected`.

    :ivar orderly: close the one that is open first, in order and without losing a message of it.
    :ivar fresh: open it under another client session's id, as a stranger to the server; then it is no orderly one.
    """

    orderly: bool
    fresh: bool = False


@dataclass(frozen=True)
class Reattached:
    """A later process goes on with the run; ``done`` cells of ``total`` are known to have run."""

    done: int
    total: int


@dataclass(frozen=True)
class CellHadRun:
    """A cell had run to its end before this process began; ``outputs`` are those of the executed notebook."""

    cell: CodeCell
    total: int
    seconds: float
    outputs: Sequence[NotebookNode]


@dataclass(frozen=True)
class Disconnected:
    """The connection to the kernel is lost, or could again not be made; ``retry_in`` seconds is the next try."""

    reason: str
    retry_in: float


@dataclass(frozen=True)
class Reconnected:
    """The connection is there again after ``seconds``."""

    seconds: float


@dataclass(frozen=True)
class OutputRecovered:
    """The kernel's own record of a cell was fetched: ``messages`` had not arrived."""

    cell: CodeCell
    messages: int


@dataclass(frozen=True)
class RecordEnded:
    """The kernel keeps no record of the run, or none any more; ``reason`` says why."""

    reason: str


@dataclass(frozen=True)
class CellSentAgain:
    """A cell's request is made once more; ``reason`` says why that is sound."""

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
    """A cell, perhaps one that has finished, brought a piece of output."""

    cell: CodeCell
    output: NotebookNode


@dataclass(frozen=True)
class OutputLost:
    """Output of a cell is missing for good; ``reason`` says why."""

    cell: CodeCell
    reason: str


@dataclass(frozen=True)
class CellFinished:
    """A cell ended; ``error`` is what it raised, even where the run goes on, or why it was interrupted."""

    cell: CodeCell
    total: int
    seconds: float
    error: StudioError | None


@dataclass(frozen=True)
class InstanceMemory:
    """How full the memory of the machine is that the kernel shares with others.

    :ivar change: why it is told: ``instance.FIRST``, ``RISE`` (to a threshold: a warning) or ``FALL``.
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
