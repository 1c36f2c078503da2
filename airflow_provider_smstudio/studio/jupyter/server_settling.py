"""Waits until a server has finished the start of a kernel, if the first request must not come earlier."""

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
    """Wait until the server has finished its own requests to a kernel whose websocket was just opened.

    jupyter_server_documents 0.2 asks a kernel for its name ten times a second until the kernel is idle. If a reply
    arrives at the same moment as the run's own request, it is never read, and the run hangs (measured, 0.2.6: four
    of a hundred starts). So the run sends nothing on the shell channel before the REST API has reported the kernel
    as idle for half a second. Version 0.3 reports a kernel as starting until a client has sent something. In that
    case, this function returns two seconds after the kernel's reply on the control channel. These servers are
    recognized because they do not count websockets. On any other server, this function returns at once. The wait
    takes 30 seconds at most.

    :param server: the Jupyter server.
    :param kernel_id: the kernel. The run has not sent it anything yet.
    :param websocket: its websocket. Messages that arrive during the wait are dropped.
    :param check: called during the wait. An error that it raises ends the wait.
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
            return  # the run will notice the broken websocket
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
