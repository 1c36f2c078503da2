"""Waits until a server has done with a kernel's start, where the first request must not come earlier."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from airflow_provider_smstudio.studio.errors import ConnectionLostError, StudioError
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer, counts_websockets
from airflow_provider_smstudio.studio.jupyter.websocket import KernelWebSocket
from airflow_provider_smstudio.studio.protocol.messages import request

log = logging.getLogger(__name__)

_IDLE_SECONDS = 0.5
_ANSWERED_SECONDS = 2.0
_LIMIT = 30.0


def wait_until_settled(
    server: JupyterServer, kernel_id: str, websocket: KernelWebSocket, check: Callable[[], None]
) -> None:
    """Wait until the server has ended its own questions to a kernel whose websocket has just been opened.

    jupyter_server_documents 0.2 asks a kernel for its name ten times a second until it is idle. A reply that comes
    in the moment of a request of ours is never read then, and the run hangs (measured, 0.2.6: four of a hundred
    starts). So nothing is sent on the shell channel before REST has called the kernel idle for half a second. 0.3
    calls it starting until somebody has sent something: there the kernel's answer on the control channel must do.
    These servers are known by not counting websockets; for any other one nothing is waited for.

    :param server: the Jupyter server.
    :param kernel_id: the kernel, which has been sent nothing yet.
    :param websocket: its websocket; what comes meanwhile is nobody's.
    :param check: called meanwhile; what it raises ends the waiting.
    """
    if server.classic:
        return
    until = time.monotonic() + _LIMIT
    idle_since = answered_at = asked_at = None
    session = uuid.uuid4().hex
    while (now := time.monotonic()) < until:
        check()
        try:
            kernel = server.kernel(kernel_id)
            if kernel is None or counts_websockets(kernel):
                return
            if answered_at is None and (asked_at is None or now >= asked_at + 1):
                asked_at = now
                websocket.send(request("kernel_info_request", {}, session=session, channel="control"))
            message = websocket.receive(0.1)
        except ConnectionLostError:
            return  # the run will notice
        except StudioError as error:
            log.info("the server could not be asked for the kernel: %s", error)
            return
        if message is not None and _answers(message, session):
            answered_at = answered_at or now
        idle_since = None if kernel.get("execution_state") != "idle" else idle_since or now
        if idle_since is not None and now >= idle_since + _IDLE_SECONDS:
            return
        if answered_at is not None and now >= answered_at + _ANSWERED_SECONDS:
            return


def _answers(message: dict[str, Any], session: str) -> bool:
    is_reply = message["header"].get("msg_type") == "kernel_info_reply"
    return bool(is_reply and message["parent_header"].get("session") == session)
