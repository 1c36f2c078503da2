"""Jupyter's REST API in Studio: contents, kernelspecs, kernels, sessions, and Classic's own endpoints."""

from __future__ import annotations

import json
import posixpath
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlsplit

import requests
from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import (
    NotANotebookError,
    NotebookNotFoundError,
    OutputPathError,
    SaveError,
    ServerError,
)
from airflow_provider_smstudio.studio.jupyter.auth import StudioSession
from airflow_provider_smstudio.studio.jupyter.instance_meter import InstanceMeter
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.protocol.kernelspecs import KernelChoice, KernelSpecs

_T = TypeVar("_T")


class JupyterServer:
    """The Jupyter server of one Studio app.

    Its methods raise :class:`ServerError` for unexpected answers, and the errors of ``session``.

    :param session: the authenticated session.
    :ivar meter: reads how full the memory of a space's instance is; it raises no error.
    :ivar one_look: a lock, held while a second kernel checks another kernel; see :mod:`kernel_probe`.
    """

    def __init__(self, session: StudioSession) -> None:
        self.session = session
        self.meter = InstanceMeter(session)
        self.one_look = threading.Lock()

    @property
    def classic(self) -> bool:
        """Whether this is Studio Classic's server, whose kernels run in apps of their own."""
        return self.session.app.kernels_in_apps

    def output_url(self, path: str) -> str:
        """Return the URL of a file for a browser that is logged in to Studio. It contains no secret."""
        return f"{self.session.base_url}/lab/tree/{quote(path)}"

    # --- Contents

    def content_type(self, path: str) -> str | None:
        """Return ``notebook``, ``file`` or ``directory``, or None if the path does not exist."""
        response = self._call("GET", _contents(path), params={"content": "0"}, ok=(200, 404))
        return None if response.status_code == 404 else str(_parsed(response, dict).get("type"))

    def read_notebook(self, path: str) -> NotebookNode:
        """Read a notebook.

        :raises NotebookNotFoundError: if the path does not exist; the message lists notebooks in the folder.
        :raises NotANotebookError: for a folder, another file, or an invalid notebook.
        """
        kind = self.content_type(path)
        if kind is None:
            raise NotebookNotFoundError(self._nothing_at(path), path=path)
        if kind != "notebook":
            raise NotANotebookError(f"{path!r} is a {kind}, not a notebook", path=path)
        params = {"content": "1", "type": "notebook"}
        response = self._call("GET", _contents(path), params=params, ok=(200, 400, 500))
        if response.status_code != 200:
            raise NotANotebookError(f"{path!r} is not a valid notebook: {_message(response)}", path=path)
        return nb.read(_parsed(response, dict).get("content"), path)

    def read_executed(self, path: str) -> NotebookNode:
        """Read a notebook that another process may be writing. The server may return a half-written file.

        :raises NotebookNotFoundError: if the path does not exist.
        :raises NotANotebookError: if the notebook stays invalid for a few seconds.
        """
        for pause in (0.2, 0.5, 1.0, 2.0):
            try:
                return self.read_notebook(path)
            except NotANotebookError:
                time.sleep(pause)
        return self.read_notebook(path)

    def modified(self, path: str) -> str | None:
        """Return when a file was last changed, in the server's format; None if the path does not exist."""
        response = self._call("GET", _contents(path), params={"content": "0"}, ok=(200, 404), timeout=15)
        found = _parsed(response, dict).get("last_modified") if response.status_code == 200 else None
        return found if isinstance(found, str) else None

    def write_notebook(self, path: str, body: bytes | BinaryIO, *, timeout: float = 300) -> str | None:
        """Write a notebook. An existing file is replaced.

        :param path: the target path.
        :param body: the request's body, as :func:`save_request` returns it, or an open file that contains it.
        :param timeout: limit for the answer, in seconds.
        :return: the file's new :meth:`modified` time; None if the answer does not contain it.
        :raises SaveError: if the server did not accept the notebook.
        """
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._call("PUT", _contents(path), data=body, headers=headers, ok=(200, 201), timeout=timeout)
        except ServerError as error:
            raise SaveError(f"the notebook could not be saved at {path!r}: {error}", **error.fields) from error
        try:
            found = answer.json().get("last_modified")
        except (ValueError, AttributeError):  # the notebook was saved, even if the answer is odd
            return None
        return found if isinstance(found, str) else None

    def make_folders(self, path: str) -> None:
        """Create a folder and its parent folders, if they are missing.

        :raises OutputPathError: if one of the paths exists and is not a folder.
        """
        parts = [part for part in path.split("/") if part]
        for count in range(1, len(parts) + 1):
            folder = "/".join(parts[:count])
            kind = self.content_type(folder)
            if kind is None:
                try:
                    self._call("PUT", _contents(folder), json={"type": "directory"}, ok=(200, 201))
                except ServerError:
                    if self.content_type(folder) != "directory":  # otherwise another run has created it
                        raise
            elif kind != "directory":
                raise OutputPathError(f"{folder!r} is a {kind}, so no folder can be made there", path=folder)

    def _nothing_at(self, path: str) -> str:
        folder, name = posixpath.split(path)
        place = f"the folder {folder!r}" if folder else "the Studio home"
        response = self._call("GET", _contents(folder), ok=(200, 404))
        if response.status_code == 404:
            return f"there is no notebook {path!r}: {place} does not exist"
        entries = _parsed(response, dict).get("content") or []
        names = sorted(str(entry.get("name")) for entry in entries if entry.get("type") == "notebook")
        there = ", ".join(map(repr, names[:20])) + (" and more" if len(names) > 20 else "")
        return f"there is no notebook {name!r} in {place}; " + (f"it has {there}" if names else "it has none")

    # --- Kernels

    def kernelspecs(self) -> KernelSpecs:
        """Return the kernelspecs of the kernels that can be started."""
        found = _parsed(self._call("GET", "api/kernelspecs"), dict)
        return KernelSpecs(found.get("default"), found.get("kernelspecs") or {})

    def kernels(self, *, timeout: float = 60) -> list[dict[str, Any]]:
        """Return the running kernels."""
        return _objects(self._call("GET", "api/kernels", timeout=timeout))

    def sessions(self, *, timeout: float = 60) -> list[dict[str, Any]]:
        """Return the Jupyter sessions, each with its ``path``, ``name`` and ``kernel``."""
        return _objects(self._call("GET", "api/sessions", timeout=timeout))

    def find_session(self, session_id: str, *, timeout: float = 15) -> dict[str, Any] | None:
        """Return one session, or None if the server knows no such session and so has ended its kernel.

        :raises ServerError: for any other answer, also for a 404 that is not from the Jupyter server itself.
        """
        response = self._call("GET", f"api/sessions/{quote(session_id)}", ok=(200, 404), timeout=timeout)
        found = _parsed(response, dict)
        return None if response.status_code == 404 else found

    def rename_session(self, session_id: str, name: str, *, timeout: float = 15) -> None:
        """Give a session another name."""
        self._call("PATCH", f"api/sessions/{quote(session_id)}", json={"name": name}, timeout=timeout)

    def start_session(self, kernel: dict[str, str], path: str, name: str, *, timeout: float) -> dict[str, Any]:
        """Create a session. A session makes the work visible to Studio's idle shutdown.

        In a space, the session's type is ``console``. Collaboration extensions treat a session of type
        ``notebook`` as an open document. jupyter_server_documents 0.2 then waits forever if the document does not
        exist (measured). In Studio Classic, only the type ``notebook`` has been seen.

        :param kernel: ``{"name": …}`` to start a new kernel, or ``{"id": …}`` for a running kernel.
        :param path: the session's path, which must be new. Its folder is the kernel's working directory.
        :param name: the session's name.
        :param timeout: limit for the answer, in seconds.
        :return: the session, with its ``id`` and ``kernel``.
        """
        body = {"path": path, "name": name, "type": self.session.app.session_type, "kernel": kernel}
        response = self._call("POST", "api/sessions", json=body, ok=(201,), timeout=timeout)
        return _with_id(response, ("id",), ("kernel", "id"))

    def start_classic_kernel(self, choice: KernelChoice, path: str, *, timeout: float) -> dict[str, Any]:
        """Start a kernel in Classic. The answer comes after minutes, when its KernelGateway app runs.

        :param choice: the kernel.
        :param path: the path that the kernel is started for.
        :param timeout: limit for the answer, in seconds.
        :return: the kernel, with its ``id`` and ``app_name``.
        """
        body = {"name": choice.name, "path": path}
        if choice.instance_type:
            body["instance_type"] = choice.instance_type
        return _with_id(self._call("POST", "api/kernels", json=body, ok=(201,), timeout=timeout), ("id",))

    def kernel(self, kernel_id: str, *, timeout: float = 15) -> dict[str, Any] | None:
        """Return the server's description of a kernel, or None if the server knows no such kernel.

        :return: a dict with ``execution_state``, ``last_activity`` and ``connections``, as far as the server sends
            them.
        :raises ServerError: for any other answer, also for a 404 that is not from the Jupyter server itself.
        """
        response = self._call("GET", f"api/kernels/{quote(kernel_id)}", ok=(200, 404), timeout=timeout)
        found = _parsed(response, dict)
        return None if response.status_code == 404 else found

    def kernel_state(self, kernel_id: str, *, timeout: float = 15) -> str | None:
        """Return a kernel's ``execution_state``, or None if the server knows no such kernel.

        :raises ServerError: as :meth:`kernel` does.
        """
        found = self.kernel(kernel_id, timeout=timeout)
        return None if found is None else str(found.get("execution_state"))

    def keeps_messages(self, kernel_id: str) -> bool:
        """Return whether the server keeps a kernel's messages while its websocket is closed.

        Call this method while a websocket is open. A standard Jupyter server counts the websockets of a kernel,
        and keeps its messages after the last one has closed. jupyter_server_documents does neither (measured with
        0.2.0 to 0.3.3). For Studio Classic the result is False, because the client does not rely on it.
        """
        if self.classic:
            return False
        return counts_websockets(self.kernel(kernel_id) or {})

    def interrupt(self, kernel_id: str, *, timeout: float = 10) -> None:
        """Interrupt a kernel, as the stop button does."""
        self._call("POST", f"api/kernels/{quote(kernel_id)}/interrupt", ok=(200, 204), timeout=timeout)

    def delete_session(self, session_id: str, *, timeout: float = 60) -> None:
        """Remove a session with its kernel. A missing session is no error. See :mod:`kernel_removal`."""
        self._call("DELETE", f"api/sessions/{quote(session_id)}", ok=(200, 204, 404, 410), timeout=timeout)

    def delete_kernel(self, kernel_id: str, *, timeout: float = 60) -> None:
        """Remove a kernel. A missing kernel is no error. See :mod:`kernel_removal`."""
        self._call("DELETE", f"api/kernels/{quote(kernel_id)}", ok=(200, 204, 404), timeout=timeout)

    # --- Studio's idle shutdown

    def idle_since(self) -> str | None:
        """Return the time of the last activity as Studio's idle shutdown reads it; None if there is no such time.

        :raises ServerError: if the server has no such endpoint, as on images of version 1.
        """
        # The extension sends its JSON as text/html (0.3.1 and 0.3.2), like a login page.
        found = _parsed(self._call("GET", "api/idle", timeout=15, html=True), dict).get("lastActiveTimestamp")
        return found if isinstance(found, str) else None

    def make_terminal(self) -> str:
        """Open a terminal, and return its name."""
        response = self._call("POST", "api/terminals", ok=(200, 201), timeout=15)
        return str(_with_id(response, ("name",))["name"])

    def delete_terminal(self, name: str) -> None:
        """Close a terminal. A missing terminal is no error."""
        self._call("DELETE", f"api/terminals/{quote(name)}", ok=(200, 204, 404), timeout=15)

    # --- Classic's KernelGateway apps

    def apps(self, *, timeout: float = 60) -> list[dict[str, Any]]:
        """Return Classic's KernelGateway apps."""
        return _objects(self._call("GET", "sagemaker/api/apps", timeout=timeout))

    def delete_app(self, app_name: str, *, timeout: float = 60) -> None:
        """Delete one of Classic's KernelGateway apps. A missing app is no error."""
        self._call("DELETE", f"sagemaker/api/apps/{quote(app_name)}", ok=(200, 204, 404), timeout=timeout)

    # --- All requests

    def _call(
        self,
        method: str,
        path: str,
        *,
        ok: tuple[int, ...] = (200,),
        timeout: float = 60,
        html: bool = False,
        **kwargs: Any,
    ) -> requests.Response:
        response = self.session.request(method, path, timeout=timeout, expect_json=not html, **kwargs)
        if response.status_code in ok:
            return response
        raise ServerError(
            f"the Jupyter server answered {method} {path} with HTTP {response.status_code}: {_message(response)}",
            status=response.status_code,
            method=method,
            path=path,
        )


def counts_websockets(kernel: Mapping[str, Any]) -> bool:
    """Return whether the server counts the websockets of a kernel.

    :param kernel: the description from :meth:`JupyterServer.kernel`, read while a websocket was open.
    """
    connections = kernel.get("connections")
    return isinstance(connections, int) and connections > 0


def save_request(notebook: NotebookNode) -> bytes:
    """Return the body of the request that saves a notebook.

    Half a surrogate pair, which a cell can print, becomes ``?``, because a file cannot contain it.
    """
    body = json.dumps({"type": "notebook", "format": "json", "content": notebook}, ensure_ascii=False)
    return body.encode("utf-8", "replace")


def _contents(path: str) -> str:
    return f"api/contents/{quote(path)}" if path else "api/contents"


def _parsed(response: requests.Response, kind: type[_T]) -> _T:
    """Return an answer's JSON.

    :raises ServerError: if it is not JSON, or not of this type. Then it is not an answer of a Jupyter server.
    """
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, kind):
        path = urlsplit(response.url).path
        raise ServerError(
            f"the Jupyter server answered {path} with HTTP {response.status_code} and an unexpected body",
            status=response.status_code,
            method=response.request.method,
            path=path,
        )
    return found


def _objects(response: requests.Response) -> list[dict[str, Any]]:
    return [item for item in _parsed(response, list) if isinstance(item, dict)]


def _with_id(response: requests.Response, *keys: tuple[str, ...]) -> dict[str, Any]:
    """Return an object that has these fields. Without them, the client could not remove it again."""
    found = _parsed(response, dict)
    for path in keys:
        value: Any = found
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, str):
            raise ServerError(
                f"the Jupyter server's answer has no {'.'.join(path)}",
                status=response.status_code,
                path=response.url,
            )
    return found


def _message(response: requests.Response) -> str:
    """Return the message of an error answer, 500 characters at most."""
    text: object = None
    parse: Callable[[], Any] = response.json
    try:
        body = parse()
        text = (body.get("message") or body.get("reason")) if isinstance(body, dict) else None
    except ValueError:
        text = None
    return str(text or response.reason or "no reason given").strip()[:500]
