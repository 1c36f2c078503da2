"""Who a run is, so that a later process finds it and goes on with it, and when it may; pure.

A run's key is the same for every try. From it follow the path of its Jupyter session, the id of its side of
the websocket and, with them, the id of every cell's request. How far the run is stands in the executed
notebook (:mod:`run_metadata`), in the kernel's own record (:mod:`kernel_record`), and, for kernels without one, in
the session's name, which also names the process that watches over the run.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import uuid
from dataclasses import dataclass

from airflow_provider_smstudio.studio.notebook import document as nb

SESSION_PREFIX = "smstudio-"
"""How the file names of our sessions' paths begin."""

_OUR_SESSION = re.compile(rf"(?:^|/){SESSION_PREFIX}[0-9a-f]{{32}}-[^/]*$")
_MARK = re.compile(r" \[smstudio ([0-9a-f]+)(?: since (\d+))?(?: cell (\d+))?\]$")


@dataclass(frozen=True)
class Identity:
    """Who a run is.

    :ivar key: 32 hexadecimal digits, the same for every try.
    :ivar name: what people call it.
    """

    key: str
    name: str

    @property
    def client_session(self) -> str:
        """The id of our side of the websocket; with the same id the server hands over what was missed."""
        return hashlib.sha256(f"{self.key}/websocket".encode()).hexdigest()[:32]

    def session_path(self, notebook_path: str) -> str:
        """Return the path of the Jupyter session: in the notebook's folder, because there the kernel works."""
        folder, name = posixpath.split(notebook_path)
        stem = nb.safe_name(name.removesuffix(".ipynb"))
        return posixpath.join(folder, f"{SESSION_PREFIX}{self.key}-{stem}.ipynb")

    def look_path(self, notebook_path: str) -> str:
        """Return the path of the session of a second kernel that looks for the run's; see :mod:`kernel_probe`."""
        return posixpath.join(posixpath.dirname(notebook_path), f"{SESSION_PREFIX}{self.key}-look")

    def session_name(self, owner: str, cell: int | None = None, *, since: int | None = None) -> str:
        """Return the Jupyter session's name.

        :param owner: the process that watches over the run.
        :param cell: index of the cell that may have been requested last.
        :param since: when that process came, in whole seconds since the epoch.
        """
        came = "" if since is None else f" since {since}"
        mark = "" if cell is None else f" cell {cell}"
        return f"{self.name} [smstudio {owner}{came}{mark}]"


def identity_of(run_key: str | None, name: str) -> Identity:
    """Make a run's identity.

    :param run_key: the same text for every try of one run; None for a run that nobody comes back to.
    :param name: what people call it.
    """
    return Identity(
        hashlib.sha256(run_key.encode("utf-8", "surrogatepass")).hexdigest()[:32] if run_key else uuid.uuid4().hex,
        name,
    )


def is_our_session(path: object) -> bool:
    """Tell whether a Jupyter session is one of ours, by its path."""
    return isinstance(path, str) and bool(_OUR_SESSION.search(path))


def owner_of(name: object) -> tuple[str | None, int | None]:
    """Read a session's name: which process watches over the run, and the cell announced last."""
    found = _MARK.search(name) if isinstance(name, str) else None
    if found is None:
        return None, None
    return found.group(1), int(found.group(3)) if found.group(3) else None


def watched_since(name: object) -> int | None:
    """Read a session's name: when its process came, in seconds since the epoch; None where it does not say."""
    found = _MARK.search(name) if isinstance(name, str) else None
    return int(found.group(2)) if found and found.group(2) else None
