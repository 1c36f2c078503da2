"""Which process owns a run. The name of the Jupyter session says so, and only the owner may save the notebook."""

from __future__ import annotations

import contextlib
import logging

from airflow_provider_smstudio.studio.errors import InvalidInputError, RunTakenOverError, ServerError, StudioError
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.runs import saved_run
from airflow_provider_smstudio.studio.runs.identity import owner_of

log = logging.getLogger(__name__)


class RunOwnership:
    """Knows whether this process still owns the run, or another process has taken it over.

    :param server: the Jupyter server.
    :param owner: the name of this process in the Jupyter session's name. None for a process that takes a kernel
        without an owner, to remove it.
    """

    def __init__(self, server: JupyterServer, owner: str | None) -> None:
        self.session_id: str | None = None
        """The ID of the Jupyter session; None while there is no session."""
        self.taken_over: RunTakenOverError | None = None
        """The error to raise, once any thread has found that another process watches the run; else None."""
        self._server = server
        self._owner = owner
        self._names = {owner}  # the names in the session's name that mean this process
        self._writers = {owner}  # the processes whose notebook this process may overwrite
        self._in_vain = False

    def adopt(self, session_id: str, name: object) -> None:
        """Treat an existing session as this process's own, until it is renamed.

        :param session_id: its ID.
        :param name: its name.
        """
        self.session_id = session_id
        former = owner_of(name)[0]
        self._names.add(former)
        self._writers.add(former)

    def is_ours(self, *, timeout: float = 15) -> bool:
        """Ask the server whether the session exists, and whether this process still owns the run.

        :param timeout: limit for the answer, in seconds.
        :return: False if there is no session, or if the server has forgotten it and so ended its kernel.
        :raises RunTakenOverError: when another process watches the run now. From then on, every call raises it.
        """
        session_id = self.session_id
        if self.taken_over is not None:
            raise self.taken_over
        if session_id is None:
            return False
        session = self._server.find_session(session_id, timeout=timeout)
        if session is None:
            return False
        other, _ = owner_of(session.get("name"))
        if other is not None and other not in self._names:
            self.taken_over = RunTakenOverError("another process has taken over this run; the run continues there")
            raise self.taken_over
        return True

    def accept_writer(self, writer: str | None) -> None:
        """Treat the notebook of an earlier process as this process's own, because this process continues it."""
        self._writers.add(writer)

    def require_ours(self, path: str, *, hurry: bool = False) -> None:
        """Check that this process still owns the run, before it saves or removes anything of the run.

        If the session is gone, another process may have ended the run, or started it again. Then the executed
        notebook belongs to that process. A server may keep two websockets of a run open. Then the process that has
        lost the run does not notice it (jupyter_server_documents, measured).

        :param path: the executed notebook.
        :param hurry: wait four seconds for an answer. If there was none, do not ask again.
        :raises RunTakenOverError: when another process owns the run, or has owned it since.
        :raises StudioError: when the request to the server failed.
        """
        if self.taken_over is None and (self.session_id is None or self.ask(hurry)):
            return
        if self.taken_over is None and not hurry:
            with contextlib.suppress(InvalidInputError):  # no notebook there: it belongs to no process
                saved = self._server.read_notebook(path)
                writer = saved_run.writer_of(saved)
                # The earlier process still lived: it has ended the run after this process took over its notebook.
                ended = writer != self._owner and saved_run.state_of(saved) in ("completed", "stopped")
                if writer is not None and (writer not in self._writers or ended):
                    self.taken_over = RunTakenOverError(
                        "another process has taken over this run, and has ended it"
                    )
        if self.taken_over is not None:
            raise self.taken_over

    def ask(self, hurry: bool) -> bool:
        """Call :meth:`is_ours`. In a hurry, do not ask again if the last request had no answer.

        :raises StudioError: when there is no answer.
        """
        if hurry and self._in_vain:
            raise ServerError("the server did not answer a moment ago", status=None)
        try:
            return self.is_ours(timeout=4.0 if hurry else 15.0)
        except ServerError:
            self._in_vain = hurry
            raise

    def rename(self, name: str) -> bool:
        """Give the session a new name, with this process as the owner.

        :return: whether the server accepted the new name.
        """
        if self.session_id is None:
            return False
        try:
            self._server.rename_session(self.session_id, name)
        except StudioError as error:
            log.info("the session could not be renamed: %s", error)
            return False
        self._names = {self._owner}
        return True
