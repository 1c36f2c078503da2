"""Removes a kernel with its Jupyter session. Only this module removes kernels and sessions from a server."""

from __future__ import annotations

import logging
import time

from airflow_provider_smstudio.studio.errors import ServerError, StudioError
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer

log = logging.getLogger(__name__)

_PATIENT, _HURRIED = (0.5, 1.0, 2.0, 4.0), (0.3,)


def remove_kernel(
    server: JupyterServer, session_id: str | None, kernel_id: str | None, *, hurry: bool = False
) -> None:
    """Remove a session and its kernel, by each way that the server allows, and check that they are gone.

    A server may refuse one way and allow the other. jupyter_server_documents 0.2 may have forgotten the document
    of a session. It then answers HTTP 500 to each request to remove the session, and keeps the kernel (measured).
    A server that is restarting a crashed kernel also answers HTTP 500 (measured, jupyter_server 2.21). So the
    requests are sent again after a pause.

    :param server: the Jupyter server.
    :param session_id: the session; None if there is none.
    :param kernel_id: its kernel; None if it is not known.
    :param hurry: wait two seconds for each answer, and repeat only once. A killed task has only a few seconds.
    :raises StudioError: if the session or the kernel still exists, or if the server cannot be asked.
    """
    timeout, pauses = (2.0, _HURRIED) if hurry else (60.0, _PATIENT)
    for pause in (*pauses, None):
        try:
            refused = _try(server, session_id, kernel_id, timeout)
            left = _left(server, session_id, kernel_id, timeout) if refused or not hurry else []
            if left:
                raise refused or ServerError(f"the server still has {' and '.join(left)}", status=200)
            if refused:
                log.debug("%s; but the session and the kernel are gone", refused)
            return
        except StudioError as error:
            unanswered = isinstance(error, ServerError) and error.status is None
            if pause is None or unanswered:
                raise
            log.info("%s; asking again", error)
            time.sleep(pause)


def _try(
    server: JupyterServer, session_id: str | None, kernel_id: str | None, timeout: float
) -> ServerError | None:
    """Ask the server to remove both, and return its first refusal.

    :raises StudioError: if the server did not answer one of the requests.
    """
    refused: ServerError | None = None
    unanswered: ServerError | None = None
    for ident, delete in ((session_id, server.delete_session), (kernel_id, server.delete_kernel)):
        try:
            if ident is not None:  # usually, the server removes the kernel with it
                delete(ident, timeout=timeout)
        except ServerError as error:
            if error.status is None:
                unanswered = unanswered or error
            else:
                refused = refused or error
    if unanswered is not None:
        raise unanswered
    return refused


def _left(server: JupyterServer, session_id: str | None, kernel_id: str | None, timeout: float) -> list[str]:
    """Return the names of the kernel and of the session, as far as the server still has them.

    :raises StudioError: if the server cannot be asked.
    """
    left = []
    if kernel_id is not None and server.kernel_state(kernel_id, timeout=timeout) is not None:
        left.append(f"kernel {kernel_id}")
    if session_id is not None and server.find_session(session_id, timeout=timeout) is not None:
        left.append(f"session {session_id}")
    return left
