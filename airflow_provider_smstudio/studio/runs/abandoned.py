"""Runs that nobody came back for: their kernels, found by our sessions' paths, and nobody else's."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_provider_smstudio.studio.errors import InvalidInputError
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.runs.identity import is_our_session, watched_since
from airflow_provider_smstudio.studio.runs.kernel import RemoteKernel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AbandonedRun:
    """A run that nobody watches over.

    :ivar path: its Jupyter session's path.
    :ivar name: its Jupyter session's name, which begins with the run's.
    :ivar kernel_id: its kernel.
    :ivar hours: for how long nobody has come to it and nothing has happened in it.
    """

    path: str
    name: str
    kernel_id: str
    hours: float


def abandoned_runs(server: JupyterServer, older_than_hours: float) -> list[AbandonedRun]:
    """Find runs of ours that nobody watches over.

    A run counts when no websocket is open to its kernel, and for so long neither has a process come to it nor has
    anything happened in it; a cell that goes on printing keeps it. Studio Classic does not tell of open websockets
    and may not tell of what happens: there the time must be longer than the longest run takes.

    :param server: the Jupyter server.
    :param older_than_hours: for how long, in hours.
    :raises InvalidInputError: when that is no positive number.
    """
    hours = older_than_hours
    if isinstance(hours, bool) or not isinstance(hours, (int, float)) or not (hours > 0 and math.isfinite(hours)):
        raise InvalidInputError(f"older_than_hours must be a positive number of hours, not {hours!r}")
    runs = [_run(session) for session in server.sessions() if is_our_session(session.get("path"))]
    return [run for run in runs if run is not None and run.hours >= hours]


def remove(server: JupyterServer, runs: list[AbandonedRun]) -> None:
    """Remove the kernels of abandoned runs, and in Classic their apps unless other kernels use them.

    A run that somebody has come back to meanwhile is left alone. What could not be removed is logged.
    """
    wanted = {run.kernel_id for run in runs}
    for session in server.sessions():
        run = _run(session) if is_our_session(session.get("path")) else None
        if run is not None and run.kernel_id in wanted and run.hours > 0:
            log.info("removing the kernel of an abandoned run: %s (%.1f hours)", run.name, run.hours)
            kernel = RemoteKernel(server, timeout=60, delete_app=True, stop_reason=lambda: None)
            kernel.adopt(session)  # whoever has watched over it
            kernel.release()


def _run(session: Mapping[str, Any]) -> AbandonedRun | None:
    """Read a session of ours; None while somebody is connected to its kernel, or for one without a kernel."""
    kernel = session.get("kernel")
    if not isinstance(kernel, Mapping) or kernel.get("connections"):
        return None
    moments = [watched_since(session.get("name")), epoch_of(kernel.get("last_activity"))]
    known = [moment for moment in moments if moment is not None]
    hours = max(time.time() - max(known, default=time.time()), 0.0) / 3600
    return AbandonedRun(str(session.get("path")), str(session.get("name")), str(kernel.get("id")), hours)


def epoch_of(text: object) -> float | None:
    """Read a moment of Jupyter's REST API, in seconds since the epoch; None for what is none."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if isinstance(text, str) else None
    except ValueError:
        return None
