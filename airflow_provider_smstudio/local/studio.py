"""The local Studio as one object."""

from __future__ import annotations

import asyncio
import os
import signal as signals
from pathlib import Path
from typing import Any

import boto3.session

from airflow_provider_smstudio.local.faults.requests import BlockedRequests, OnRequest, Registration
from airflow_provider_smstudio.local.faults.websockets import Websocket
from airflow_provider_smstudio.local.lifecycle import Assembly
from airflow_provider_smstudio.local.server.kernel_processes import kernel_pid
from airflow_provider_smstudio.local.transport.http import HttpError, fetch


class LocalStudio(Assembly):
    """The local Studio: a control plane, gateways and real Jupyter servers on this machine.

    All parts listen on the loopback interface only, and end with the ``with`` block. One thread of this process
    serves the control plane and the gateways. Each Jupyter server is a process of its own.

    :param flavour: ``"jupyterlab"`` (new Studio: one space with a JupyterLab app) or ``"classic"`` (one
        user profile with a JupyterServer app).
    :param home: folder to serve as the Studio home. Default: a new folder, removed at the end.
    :param app_status: the app's status at the start: ``"InService"`` (its server answers), ``"Stopped"`` (an
        app that was deleted and is still listed), ``"Missing"`` (there never was an app), ``"Pending"`` (forever)
        or ``"Failed"``.
    :param app_start_delay: the shortest time that a new app stays Pending, in seconds. It does not apply to the
        start of this object itself.
    :param server_args: arguments to add to the Jupyter server's command line, such as
        ``"--ZMQChannelsWebsocketConnection.limit_rate=False"``.
    :param server_python: the interpreter for the Jupyter server and its kernels, with its installed packages. It
        may belong to another environment, such as a copy of an image of SageMaker Distribution. Default: the
        interpreter of this process. Not for Classic.
    :param space_kind: ``"stock"`` (Jupyter's own server, without collaboration), ``"private"`` or ``"shared"``. It
        decides what an image's start script switches on and off. Not for Classic.
    :param images: the images of a Classic domain. The first one is the default.
    :param switches: initial values for :class:`Switches`.
    """

    # ---- settings for clients ----------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        """The folder that is served as the Studio home."""
        return self._layout.home

    @property
    def endpoint_url(self) -> str:
        """The control plane's URL."""
        return f"http://127.0.0.1:{self._control.listener.port}"

    @property
    def door_url(self) -> str:
        """The URL (scheme and host) of the gateway of the space or of the Classic domain."""
        return self._door.url

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead an unmodified boto3, and this project's examples, to this Studio."""
        variables = {
            "AWS_ENDPOINT_URL_SAGEMAKER": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "local-studio",
            "AWS_SECRET_ACCESS_KEY": "local-studio",
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "SMSTUDIO_DOMAIN_ID": self.domain_id,
            "SMSTUDIO_USER_PROFILE_NAME": self.user_profile_name,
            "SMSTUDIO_HOME": str(self.home),
            "SMSTUDIO_APP_TYPE": self._slot.app_type,
        }
        if not self._world.classic:
            variables["SMSTUDIO_SPACE_NAME"] = self.space_name
        return variables

    def client(self) -> Any:
        """Return the boto3 client for this control plane, the same on each call. :meth:`stop` closes it."""
        if self._client is None:
            key = self.environment["AWS_SECRET_ACCESS_KEY"]
            session = boto3.session.Session(key, key, region_name=self.region)
            self._client = session.client("sagemaker", endpoint_url=self.endpoint_url)
        return self._client

    # ---- the state behind the gateway --------------------------------------------------------------------

    @property
    def server_url(self) -> str:
        """The Jupyter server's own URL with its base path. It needs no login.

        :raises RuntimeError: while no server is running.
        """
        server = self._slot.server
        if server is None:
            raise RuntimeError(f"no Jupyter server is running; the app is {self.app_status}")
        return server.url

    @property
    def server_log(self) -> str:
        """The log of the app's servers so far."""
        path = self._layout.root / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def kernels(self) -> list[dict[str, Any]]:
        """Return the kernels, from the server and not through the gateway; empty while no server is running."""
        return self._call(self._list("kernels"))

    def sessions(self) -> list[dict[str, Any]]:
        """Return the sessions, from the server and not through the gateway; empty while no server is running."""
        return self._call(self._list("sessions"))

    async def _list(self, what: str) -> list[dict[str, Any]]:
        # While a kernel starts, a Jupyter server may answer with HTTP 500.
        for _ in range(100):
            port = self._slot.port
            if port is None:
                return []
            try:
                status, answer = await fetch(port, "GET", f"{self._slot.base}/api/{what}")
            except (OSError, HttpError):
                return []
            if status == 200:
                return list(answer or [])
            await asyncio.sleep(0.05)
        raise RuntimeError(f"the server does not list its {what}: HTTP {status}")

    @property
    def app_status(self) -> str:
        """The status of the space's JupyterLab app or of Classic's JupyterServer; empty if there is none."""
        return self._slot.status

    def apps(self) -> list[dict[str, Any]]:
        """Return every app that the control plane knows, including Classic's KernelGateway apps."""
        return self._call(self._apps())

    async def _apps(self) -> list[dict[str, Any]]:
        return [record.summary() for record in self._world.records()]

    def secrets(self) -> list[str]:
        """Return every token, login cookie and XSRF value that was ever issued, and the start of every token."""
        return list(self._logins.handed_out)

    @property
    def api_calls(self) -> dict[str, int]:
        """How many times each operation of the control plane was called so far."""
        return dict(self._control.calls)

    @property
    def app_starts(self) -> int:
        """How many times the app was started so far, for any reason."""
        return self._slot.starts

    @property
    def app_tags(self) -> dict[str, str]:
        """The app's tags, as they are now."""
        record = self._slot.record
        return dict(record.tags) if record else {}

    # ---- events in the life of an app --------------------------------------------------------------------

    def start_app(self) -> None:
        """Start the app without a delay, and wait until it is InService. Do nothing if it is already InService."""
        self._call(self._start_app())

    async def _start_app(self) -> None:
        if self._slot.status != "InService":
            await self._start_now()

    def stop_app(self) -> None:
        """Delete the app as an idle shutdown does, and wait until it is Deleted."""
        self._call(self._stop_app())

    async def _stop_app(self) -> None:
        if self._slot.record is not None and self._slot.status != "Deleted":
            self._slot.delete()
            await self._slot.settled()

    def fail_app(self, reason: str) -> None:
        """Kill the app's server, and set the app to Failed with this FailureReason."""
        self._call(self._slot.fail(reason))

    def expire_logins(self) -> None:
        """End every login at once. With ``cut_websockets_at_expiry`` also cut the open websockets."""
        self._call(self._expire_logins())

    async def _expire_logins(self) -> None:
        self._logins.expire_all()
        if self.switches.cut_websockets_at_expiry:
            self._door.cut_websockets()

    # ---- faults of a connection, a request or a process ----------------------------------------------------

    def websockets(self) -> list[Websocket]:
        """Return the open websockets of kernels, oldest first. Each one has a method ``cut``."""
        return self._on_loop(self._door.websockets.listed)

    def cut_websockets(self, how: str = "reset", *, kernel_id: str | None = None) -> int:
        """Break the open websockets of kernels. The fault is active when this method returns.

        :param how: ``"close"``, ``"reset"``, ``"half-open"`` or ``"deaf"``: see :meth:`Websocket.cut`.
        :param kernel_id: break only the websockets of this kernel.
        :return: how many websockets have changed.
        """
        return self._on_loop(lambda: self._door.websockets.cut(how, kernel_id))

    def on_request(self, callback: OnRequest) -> Registration:
        """Call ``callback(method, path)`` for each request at the gateway, before the gateway handles it.

        The callback runs in the thread that serves everything, so it must be quick. It may use only those methods
        of this object that cause faults and do not wait. An exception in it breaks the request's connection.

        :return: the registration. To unregister, call it or leave its ``with`` block.
        """
        return self._on_loop(lambda: self._faults.on_request(callback))

    def hold(self, method: str, path_part: str) -> BlockedRequests:
        """Let requests wait at the gateway while a ``with`` block is active::

            with studio.hold("PUT", "api/contents/") as held:
                ...
                held.wait(10)  # until one has arrived

        :param method: the HTTP method of these requests.
        :param path_part: a text that their path contains.
        """
        return self._on_loop(lambda: self._faults.hold(method, path_part))

    def kernel_pid(self, kernel_id: str) -> int:
        """Return the process ID of a kernel. On Linux only.

        :raises LookupError: if no such kernel is running, perhaps not yet or no longer.
        """
        return kernel_pid(self._layout.connection_file(kernel_id))

    def kill_kernel(self, kernel_id: str, signal: int = signals.SIGKILL) -> None:
        """Send a signal to a kernel's process, but not to its children. On Linux only.

        :raises LookupError: if no such kernel is running.
        """
        os.kill(self.kernel_pid(kernel_id), signal)

    def restart_server(self) -> None:
        """Kill the app's server with its kernels, start a new server, and wait until it answers.

        During this time the app stays InService, logins stay valid, and the gateway answers 502.
        """
        self._call(self._slot.restart_server())
