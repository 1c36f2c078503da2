"""Writes the executed notebook only while this process may, and says when somebody else has changed it."""

from __future__ import annotations

import logging
import time
from typing import BinaryIO

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import RunTakenOverError, SaveError, StudioError
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.runs.ownership import RunOwnership

log = logging.getLogger(__name__)

_COMPARISONS = 3
"""So often is the notebook read to find that only its file was written again, as collaboration extensions do."""


class OutputGuard:
    """Stands between a run and its executed notebook.

    A process that was given up may not know it: before each save it asks whether the run is still its own. A
    person may have the notebook open in a shared space: what the run saves replaces what is there, and where that
    was changed since the last save, the log says so, once.

    :param server: the Jupyter server.
    :param path: the executed notebook's path, below the Studio home.
    :param notebook: what the run saves; only the sources of its cells are compared, which no run changes.
    :param ownership: knows whether the run is still this process's.
    :param pause: seconds between two looks whether somebody has changed the notebook, at least.
    """

    def __init__(
        self,
        server: JupyterServer,
        path: str,
        notebook: NotebookNode,
        ownership: RunOwnership,
        pause: float = 0.0,
    ) -> None:
        self.path = path
        self._server = server
        self._ownership = ownership
        self._pause, self._looked_at = pause, 0.0
        self._sources = _sources(notebook)
        self._written: str | None = None
        self._comparisons = 0 if server.classic else _COMPARISONS

    def check(self, *, hurry: bool = False) -> None:
        """Raise when the run is another process's, or when the server does not answer whose it is.

        :param hurry: wait four seconds for the answer.
        :raises RunTakenOverError: when it is another's, and from then on.
        :raises SaveError: when there is no answer.
        """
        try:
            self._ownership.require_ours(self.path, hurry=hurry)
        except RunTakenOverError:
            raise
        except StudioError as error:
            if getattr(error, "status", None) is None:
                raise SaveError(
                    f"whether another process has taken over this run could not be asked for: {error}", status=None
                ) from error
            log.info("whether another process has taken over this run is not known: %s", error)

    def write(self, body: bytes | BinaryIO, *, hurry: bool = False) -> None:
        """Write the notebook.

        :param body: see :meth:`JupyterServer.write_notebook`.
        :param hurry: wait for each answer a few seconds only.
        :raises RunTakenOverError: when the run is another process's; then nothing was written.
        :raises SaveError: when the server did not take it, or does not answer whose the run is.
        """
        self.check(hurry=hurry)
        due = time.monotonic() >= self._looked_at + self._pause
        if self._written is not None and self._comparisons and due and not hurry:
            self._looked_at = time.monotonic()
            self._look()
        self._written = self._server.write_notebook(self.path, body, timeout=3.0 if hurry else 300.0)

    def _look(self) -> None:
        """Look whether the notebook was changed since it was last saved."""
        try:
            modified = self._server.modified(self.path)
            if modified in (None, self._written):
                return
            self._comparisons -= 1
            if _sources(self._server.read_notebook(self.path)) == self._sources:
                return
        except StudioError:  # nobody has to know
            return
        self._comparisons = 0
        log.warning(
            "somebody has changed the executed notebook %s while the run writes it; what the run saves replaces "
            "these changes",
            self.path,
        )


def _sources(notebook: NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]
