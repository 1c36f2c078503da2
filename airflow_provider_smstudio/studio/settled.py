"""Waits until a server has done with a kernel's start, where the first request must not come earlier."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from airflow_provider_smstudio.studio.errors import StudioError
from airflow_provider_smstudio.studio.server import JupyterServer, counts_websockets

log = logging.getLogger(__name__)

_IDLE_SECONDS = 0.5
_LIMIT = 30.0


def wait_until_settled(server: JupyterServer, kernel_id: str, check: Callable[[], None]) -> None:
    """Wait until a kernel whose websocket is open has been idle for half a second.

    jupyter_server_documents asks a kernel for its name ten times a second until it is idle. A reply that comes in
    the moment of a request of ours is never read then, and the run hangs (measured, 0.2.6: four of a hundred
    starts). That server is known by not counting websockets; for any other one nothing is waited for.

    :param server: the Jupyter server.
    :param kernel_id: the kernel, which has been sent nothing yet.
    :param check: called meanwhile; what it raises ends the waiting.
    """
    until = time.monotonic() + _LIMIT
    idle_since: float | None = None
    while not server.classic and time.monotonic() < until:
        check()
        try:
            kernel = server.kernel(kernel_id)
        except StudioError as error:
            log.info("the server could not be asked for the kernel: %s", error)
            return
        if kernel is None or counts_websockets(kernel):
            return
        now = time.monotonic()
        if kernel.get("execution_state") != "idle":
            idle_since = None
        elif idle_since is None:
            idle_since = now
        elif now >= idle_since + _IDLE_SECONDS:
            return
        time.sleep(0.1)
