"""The identity of a run, so that a later process can find and continue the run; pure.

The key of a run is the same for each try. It determines the path of the Jupyter session and the client session ID
of the websocket. The client session ID determines the ID of every cell's request.

The progress of the run is recorded in the executed notebook (:mod:`run_metadata`) and in the kernel record
(:mod:`kernel_record`). For kernels without a record, it is in the name of the Jupyter session. This name also
contains the owner: the process that watches the run.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import uuid
from dataclasses import dataclass

from airflow_provider_smstudio.studio.notebook import document as nb

SESSION_PREFIX = "smstudio-"
"""Prefix of the file names in the paths of the package's Jupyter sessions."""

_OUR_SESSION = re.compile(rf"(?:^|/){SESSION_PREFIX}[0-9a-f]{{32}}-[^/]*$")
_MARK = re.compile(r" \[smstudio ([0-9a-f]+)(?: since (\d+))?(?: cell (\d+))?\]$")


@dataclass(frozen=True)
class Identity:
    """The identity of a run.

    :ivar key: 32 hexadecimal digits, the same for each try.
    :ivar name: the name that people see.
    """

    key: str
    name: str

    @property
    def client_session(self) -> str:
        """The client session ID of the websocket. A later client with the same ID receives missed messages."""
        return hashlib.sha256(f"{self.key}/websocket".encode()).hexdigest()[:32]

    def session_path(self, notebook_path: str) -> str:
        """Return the path of the Jupyter session, in the notebook's folder because the kernel works there."""
        folder, name = posixpath.split(notebook_path)
        stem = nb.safe_name(name.removesuffix(".ipynb"))
        return posixpath.join(folder, f"{SESSION_PREFIX}{self.key}-{stem}.ipynb")

    def probe_path(self, notebook_path: str) -> str:
        """Return the session path of a second kernel that checks the run's kernel; see :mod:`kernel_probe`."""
        return posixpath.join(posixpath.dirname(notebook_path), f"{SESSION_PREFIX}{self.key}-probe")

    def session_name(self, owner: str, cell: int | None = None, *, since: int | None = None) -> str:
        """Return the Jupyter session's name.

        :param owner: the process that watches the run.
        :param cell: index of the cell whose request may have been sent last.
        :param since: when that process began to watch the run, in whole seconds since the epoch.
        """
        came = "" if since is None else f" since {since}"
        mark = "" if cell is None else f" cell {cell}"
        return f"{self.name} [smstudio {owner}{came}{mark}]"


def identity_of(run_key: str | None, name: str) -> Identity:
    """Create the identity of a run.

    :param run_key: the same text for each try of one run; None for a run that no later try continues.
    :param name: the name that people see.
    """
    return Identity(
        hashlib.sha256(run_key.encode("utf-8", "surrogatepass")).hexdigest()[:32] if run_key else uuid.uuid4().hex,
        name,
    )


def is_our_session(path: object) -> bool:
    """Return whether a path is the path of one of the package's own Jupyter sessions."""
    return isinstance(path, str) and bool(_OUR_SESSION.search(path))


def owner_of(name: object) -> tuple[str | None, int | None]:
    """Return the owner of the run, and the index of the cell announced last, from a session's name."""
    found = _MARK.search(name) if isinstance(name, str) else None
    if found is None:
        return None, None
    return found.group(1), int(found.group(3)) if found.group(3) else None


def watched_since(name: object) -> int | None:
    """Return when the owner began to watch, in seconds since the epoch, from a session's name; None if unknown."""
    found = _MARK.search(name) if isinstance(name, str) else None
    return int(found.group(2)) if found and found.group(2) else None
