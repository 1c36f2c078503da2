"""Find and remove abandoned runs of this package: runs that no process watches any more.

A run is found by the path of its Jupyter session. Sessions of users and of other programs are never touched.
"""

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
from airflow_provider_smstudio.studio.runs.remote_kernel import RemoteKernel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AbandonedRun:
    """A run that no process watches.

    :ivar path: the path of its Jupyter session.
    :ivar name: the name of its Jupyter session, which begins with the name of the run.
    :ivar kernel_id: the ID of its kernel.
    :ivar hours: how many hours ago a process last began to watch the run, or its kernel was last active. The
        later of the two moments counts.
    """

    path: str
    name: str
    kernel_id: str
    hours: float


def abandoned_runs(server: JupyterServer, older_than_hours: float) -> list[AbandonedRun]:
    """Find the runs of this package that no process watches.

    A run is abandoned if no websocket is open to its kernel and nothing has happened for the given time. In this
    time, no process has begun to watch the run, and its kernel was not active. A cell that prints is activity.

    Studio Classic does not report open websockets, and may not report activity. There, the time must be longer
    than the longest run.

    :param server: the Jupyter server.
    :param older_than_hours: how long the run must have been abandoned, in hours.
    :raises InvalidInputError: when the time is not a positive number.
    """
    hours = older_than_hours
    if isinstance(hours, bool) or not isinstance(hours, (int, float)) or not (hours > 0 and math.isfinite(hours)):
        raise InvalidInputError(f"older_than_hours must be a positive number of hours, not {hours!r}")
    runs = [_run(session) for session in server.sessions() if is_our_session(session.get("path"))]
    return [run for run in runs if run is not None and run.hours >= hours]


def remove(server: JupyterServer, runs: list[AbandonedRun]) -> None:
    """Remove the kernels of abandoned runs. In Classic, also delete their apps, unless other kernels use them.

    A run is kept if a client has connected to its kernel meanwhile. The log lists everything that was not removed.
    """
    wanted = {run.kernel_id for run in runs}
    for session in server.sessions():
        run = _run(session) if is_our_session(session.get("path")) else None
        if run is not None and run.kernel_id in wanted and run.hours > 0:
            log.info("removing the kernel of an abandoned run: %s (%.1f hours)", run.name, run.hours)
            kernel = RemoteKernel(server, timeout=60, delete_app=True, stop_reason=lambda: None)
            kernel.adopt(session)  # no matter which process watched the run
            kernel.release()


def _run(session: Mapping[str, Any]) -> AbandonedRun | None:
    """Read a session of this package. Return None if a client is connected, or if there is no kernel."""
    kernel = session.get("kernel")
    if not isinstance(kernel, Mapping) or kernel.get("connections"):
        return None
    moments = [watched_since(session.get("name")), epoch_of(kernel.get("last_activity"))]
    known = [moment for moment in moments if moment is not None]
    hours = max(time.time() - max(known, default=time.time()), 0.0) / 3600
    return AbandonedRun(str(session.get("path")), str(session.get("name")), str(kernel.get("id")), hours)


def epoch_of(text: object) -> float | None:
    """Convert a timestamp of Jupyter's REST API to seconds since the epoch. Return None if it is not one."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if isinstance(text, str) else None
    except ValueError:
        return None
