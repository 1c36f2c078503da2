"""Whose a run is: the process that the Jupyter session's name says, and whose notebook may be written."""

from __future__ import annotations

import contextlib
import logging

from airflow_provider_smstudio.studio.errors import InvalidInputError, RunTakenOverError, ServerError, StudioError
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.runs import saved_run
from airflow_provider_smstudio.studio.runs.identity import owner_of

log = logging.getLogger(__name__)


class RunOwnership:
    """Tells whether this process still watches the run, or another one has taken it over.

    :param server: the Jupyter server.
    :param owner: names this process in the Jupyter session's name; None for one that takes kernels that no process
        watches.
    """

    def __init__(self, server: JupyterServer, owner: str | None) -> None:
        self.session_id: str | None = None
        """The Jupyter session's ID, None while there is none."""
        self.taken_over: RunTakenOverError | None = None
        """Set once it was found out, in whatever thread, that another process watches over the run."""
        self._server = server
        self._owner = owner
        self._names = {owner}  # who in the session's name means this process
        self._writers = {owner}  # whose notebook is this process's to write
        self._in_vain = False

    def adopt(self, session_id: str, name: object) -> None:
        """Count a session that is there already as this process's own, until it is renamed.

        :param session_id: its ID.
        :param name: its name.
        """
        self.session_id = session_id
        former = owner_of(name)[0]
        self._names.add(former)
        self._writers.add(former)

    def is_ours(self, *, timeout: float = 15) -> bool:
        """Ask the server for the session: is it there, and does this process still watch over it?

        :param timeout: limit for the answer, in seconds.
        :return: False when the server has forgotten the session, and so ended its kernel.
        :raises RunTakenOverError: when another process watches over the run now; from then on, always.
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
            self.taken_over = RunTakenOverError("another process has taken over this run; it goes on there")
            raise self.taken_over
        return True

    def accept_writer(self, writer: str | None) -> None:
        """Count an earlier process's notebook, which is gone on with, as this process's own."""
        self._writers.add(writer)

    def require_ours(self, path: str, *, hurry: bool = False) -> None:
        """See that this process still watches over the run, before it saves or removes anything of it.

        Where the session is gone, another process may have ended the run, or begun it once more: then the executed
        notebook is another's. A server may keep two websockets of a run open, so that who was given up is not told
        (jupyter_server_documents, measured).

        :param path: the executed notebook.
        :param hurry: wait four seconds for an answer, and never again in vain.
        :raises RunTakenOverError: when another process watches over the run, or has done so since.
        :raises StudioError: when the server cannot be asked.
        """
        if self.taken_over is None and (self.session_id is None or self.ask(hurry)):
            return
        if self.taken_over is None and not hurry:
            with contextlib.suppress(InvalidInputError):  # nothing there, or no notebook: nobody's
                saved = self._server.read_notebook(path)
                writer = saved_run.writer_of(saved)
                # One that was continued, and lived: it has ended the run since its notebook was taken over.
                ended = writer != self._owner and saved_run.state_of(saved) in ("completed", "stopped")
                if writer is not None and (writer not in self._writers or ended):
                    self.taken_over = RunTakenOverError(
                        "another process has taken over this run, and has ended it"
                    )
        if self.taken_over is not None:
            raise self.taken_over

    def ask(self, hurry: bool) -> bool:
        """Ask :meth:`is_ours`; in a hurry not once more where there was no answer.

        :raises StudioError: when there is no answer.
        """
        if hurry and self._in_vain:
            raise ServerError("the server was asked in vain a moment ago", status=None)
        try:
            return self.is_ours(timeout=4.0 if hurry else 15.0)
        except ServerError:
            self._in_vain = hurry
            raise

    def rename(self, name: str) -> bool:
        """Name the session anew.

        :return: whether the server allowed it.
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
