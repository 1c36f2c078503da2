"""Write the executed notebook only while this process owns the run, and log when another user has changed it."""

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
"""How often the notebook is read at most, to look for changes of its cells.

Collaboration extensions write the file again without such changes. The limit avoids useless reads.
"""


class OutputGuard:
    """Checks every save of the executed notebook.

    A process that has lost the run may not know it. So the guard asks the server before each save which process
    owns the run.

    In a shared space, another user may have the notebook open. Each save of the run replaces the file. If the file
    was changed since the last save, the log says so, once.

    :param server: the Jupyter server.
    :param path: the executed notebook's path, below the Studio home.
    :param notebook: the notebook that the run saves. Only the sources of its cells are compared, because no run
        changes them.
    :param ownership: knows whether this process still owns the run.
    :param pause: at least this many seconds pass between two checks for changes of the notebook.
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
        """Raise an error if another process owns the run, or if the server does not answer which process does.

        :param hurry: wait four seconds for the answer.
        :raises RunTakenOverError: when another process owns the run. From then on, every call raises it.
        :raises SaveError: when there is no answer.
        """
        try:
            self._ownership.require_ours(self.path, hurry=hurry)
        except RunTakenOverError:
            raise
        except StudioError as error:
            if getattr(error, "status", None) is None:
                raise SaveError(
                    f"the server did not say whether another process has taken over this run: {error}", status=None
                ) from error
            log.info("it is not known whether another process has taken over this run: %s", error)

    def write(self, body: bytes | BinaryIO, *, hurry: bool = False) -> None:
        """Write the notebook.

        :param body: see :meth:`JupyterServer.write_notebook`.
        :param hurry: wait only a few seconds for each answer.
        :raises RunTakenOverError: when another process owns the run. Then nothing was written.
        :raises SaveError: when the save failed, or the server does not answer which process owns the run.
        """
        self.check(hurry=hurry)
        due = time.monotonic() >= self._looked_at + self._pause
        if self._written is not None and self._comparisons and due and not hurry:
            self._looked_at = time.monotonic()
            self._look()
        self._written = self._server.write_notebook(self.path, body, timeout=3.0 if hurry else 300.0)

    def _look(self) -> None:
        """Check whether the notebook was changed since the last save. If so, log it."""
        try:
            modified = self._server.modified(self.path)
            if modified in (None, self._written):
                return
            self._comparisons -= 1
            if _sources(self._server.read_notebook(self.path)) == self._sources:
                return
        except StudioError:  # the check only informs
            return
        self._comparisons = 0
        log.warning(
            "another user or program has changed the executed notebook %s while the run writes it. The run "
            "replaces these changes",
            self.path,
        )


def _sources(notebook: NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]
