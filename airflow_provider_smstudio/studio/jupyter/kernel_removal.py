"""Removes a kernel with its Jupyter session: the one piece of code that gives anything back to a server."""

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
    """Remove a session and its kernel, in whatever way the server allows, and look whether they are gone.

    A server may refuse one way and allow the other: jupyter_server_documents 0.2 answers HTTP 500 to each try to
    remove a session whose document it has forgotten, and keeps the kernel (measured). A server that is just
    restarting a crashed kernel answers HTTP 500 as well (measured, jupyter_server 2.21); so it is asked again.

    :param server: the Jupyter server.
    :param session_id: the session; None where there is none.
    :param kernel_id: its kernel; None where it is not known.
    :param hurry: wait two seconds for each answer, and ask again once only: a task that is killed has few seconds.
    :raises StudioError: when something is still there, or when the server cannot be asked.
    """
    timeout, pauses = (2.0, _HURRIED) if hurry else (60.0, _PATIENT)
    for pause in (*pauses, None):
        try:
            refused = _try(server, session_id, kernel_id, timeout)
            left = _left(server, session_id, kernel_id, timeout) if refused or not hurry else []
            if left:
                raise refused or ServerError(f"the server still has {' and '.join(left)}", status=200)
            if refused:
                log.debug("%s; yet they are gone", refused)
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
    """Ask for both to be removed; return the first refusal.

    :raises StudioError: when the server has not answered one of them.
    """
    refused: ServerError | None = None
    unanswered: ServerError | None = None
    for ident, delete in ((session_id, server.delete_session), (kernel_id, server.delete_kernel)):
        try:
            if ident is not None:  # a session takes its kernel along, mostly
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
    """Name what the server still has.

    :raises StudioError: when it cannot be asked.
    """
    left = []
    if kernel_id is not None and server.kernel_state(kernel_id, timeout=timeout) is not None:
        left.append(f"kernel {kernel_id}")
    if session_id is not None and server.find_session(session_id, timeout=timeout) is not None:
        left.append(f"session {session_id}")
    return left
