"""The local Studio as one object."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal as signals
import tempfile
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import boto3.session

from airflow_provider_smstudio.local.control_plane.api import ControlPlaneApi
from airflow_provider_smstudio.local.control_plane.domain import Domain
from airflow_provider_smstudio.local.faults.requests import BlockedRequests, Faults, OnRequest, Registration
from airflow_provider_smstudio.local.faults.websockets import Websocket
from airflow_provider_smstudio.local.gateway.gateway import Gateway, SignIn
from airflow_provider_smstudio.local.gateway.login import Logins
from airflow_provider_smstudio.local.server.apps import AppLifecycle, AppRecord
from airflow_provider_smstudio.local.server.classic_bridge import ClassicBridge
from airflow_provider_smstudio.local.server.classic_images import CLASSIC_IMAGES, ClassicImage, distribution_arn
from airflow_provider_smstudio.local.server.idle import IdleShutdown
from airflow_provider_smstudio.local.server.jupyter import JupyterProcess, Layout
from airflow_provider_smstudio.local.server.kernel_processes import kernel_pid
from airflow_provider_smstudio.local.server.server_python import find_server_python
from airflow_provider_smstudio.local.server.space_kinds import check_kind, setup_of
from airflow_provider_smstudio.local.switches import Switches
from airflow_provider_smstudio.local.threads import run_on
from airflow_provider_smstudio.local.transport.http import HttpError, fetch

T = TypeVar("T")

APP_STATUSES = ("InService", "Stopped", "Missing", "Pending", "Failed")
FLAVOURS = {"jupyterlab": "JupyterLab", "classic": "JupyterServer"}


class LocalStudio:
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

    def __init__(
        self,
        flavour: str = "jupyterlab",
        home: Path | str | None = None,
        *,
        domain_id: str = "d-localstudio",
        user_profile_name: str = "demo-user",
        space_name: str = "demo-space",
        region: str = "us-east-1",
        app_status: str = "InService",
        app_start_delay: float = 0.0,
        server_args: Sequence[str] = (),
        server_python: Path | str | None = None,
        space_kind: str = "stock",
        images: Sequence[ClassicImage] = CLASSIC_IMAGES,
        **switches: Any,
    ) -> None:
        if flavour not in FLAVOURS:
            raise ValueError(f"flavour must be one of {', '.join(FLAVOURS)}, not {flavour!r}")
        if app_status not in APP_STATUSES:
            raise ValueError(f"app_status must be one of {', '.join(APP_STATUSES)}, not {app_status!r}")
        check_kind(space_kind)
        if flavour == "classic" and (server_python is not None or space_kind != "stock"):
            raise ValueError(
                "server_python and space_kind are for the flavour jupyterlab only: Classic's server is "
                "the local Studio's own"
            )
        self.flavour = flavour
        self.space_kind = space_kind
        self.domain_id = domain_id
        self.user_profile_name = user_profile_name
        self.space_name = space_name
        self.region = region
        self.switches = Switches(app_start_delay=app_start_delay, **switches)
        self.presigned_urls_issued = 0
        self._app_status = app_status
        self._server_args = list(server_args)
        self._server_python = server_python
        self._wanted_home = Path(home).resolve() if home is not None else None
        self._images = images
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._idle_watch: asyncio.Task[None] | None = None
        self._pid = 0
        self._client: Any = None

    # ---- start and stop ----------------------------------------------------------------------------------

    def start(self) -> LocalStudio:
        """Start everything, and wait until the app has the wanted status.

        :raises JupyterMissingError: without the extra ``local``, or if ``server_python`` lacks JupyterLab or
            ipykernel.
        :raises ValueError: if ``server_python`` is not a Python that can be started.
        """
        if self._loop is not None:
            raise RuntimeError("the local Studio is already running")
        self._python = find_server_python(self._server_python)
        self._pid = os.getpid()
        root = Path(tempfile.mkdtemp(prefix="smstudio-local-")).resolve()
        self._layout = Layout(root, self._wanted_home or root / "home", remove=root)
        self._layout.make()
        self._build()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="smstudio-local", daemon=True)
        self._thread.start()
        atexit.register(self.stop)
        try:
            self._call(self._open())
        except BaseException:
            self.stop()
            raise
        return self

    def _build(self) -> None:
        classic = self.flavour == "classic"
        app_type = FLAVOURS[self.flavour]
        base = "/jupyter/default" if classic else "/jupyterlab/default"
        self._logins = Logins(self.user_profile_name)
        self._sign_in = SignIn()
        self._classic = ClassicBridge(self._layout.root / "classic", self.region, self._images, self.switches)
        spec = {"InstanceType": "system"}
        if not classic:
            spec = {"InstanceType": "ml.t3.medium", "SageMakerImageArn": distribution_arn(self.region)}

        def new_server() -> JupyterProcess:
            config = self._classic.prepare() if classic else ""
            setup = setup_of(self.space_kind, self._python.packages, self._python.image)
            return JupyterProcess(self._layout, app_type, base, self._python, setup, config, self._server_args)

        owner_key, owner = (
            ("UserProfileName", self.user_profile_name) if classic else ("SpaceName", self.space_name)
        )
        self._slot = AppLifecycle(app_type, owner_key, owner, base, self.switches, new_server, spec)
        self._faults = Faults(self.switches, base)
        self._idle = IdleShutdown(self._slot, self.switches)
        self._door = self._new_door("app", self._slot, self._faults)
        self._web_ui = self._new_door("web-ui", None)
        self._world = Domain(
            classic,
            self.region,
            self.domain_id,
            self.user_profile_name,
            self.space_name,
            self.switches,
            self._logins,
            self._slot,
            self._door,
            self._web_ui,
            self._kernel_apps,
            self._delete_kernel_app,
        )
        self._control = ControlPlaneApi(self._world, self._count_link)
        self._listeners = [part.listener for part in (self._control, self._door, self._web_ui, self._sign_in)]

    def _new_door(self, name: str, slot: AppLifecycle | None, faults: Faults | None = None) -> Gateway:
        return Gateway(name, slot, self._logins, self.switches, lambda: self._sign_in.url, faults)

    def _run_loop(self) -> None:
        assert self._loop is not None  # noqa: S101  # start() has made it
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _open(self) -> None:
        for listener in self._listeners:
            await listener.start()
        if self._app_status == "InService":
            await self._start_now()
        elif self._app_status == "Stopped":
            self._slot.put_record("Deleted")
        elif self._app_status == "Failed":
            self._slot.put_record("Failed", "InternalFailure")
        elif self._app_status == "Pending":
            self._slot.put_record("Pending")
        self._idle_watch = asyncio.get_running_loop().create_task(self._idle.run())

    async def _start_now(self) -> None:
        self._slot.create(None, delay=0.0)
        await self._slot.settled()
        record = self._slot.record
        if record is None or record.status != "InService":
            raise RuntimeError(f"the local Studio did not start: {record.failure_reason if record else ''}")

    def stop(self) -> None:
        """End everything, including every kernel, and remove the private files. Do nothing if already stopped."""
        loop, thread = self._loop, self._thread
        # In a forked child the thread does not exist, and the files belong to the parent.
        if loop is None or thread is None or os.getpid() != self._pid:
            return
        self._loop = None
        if self._client is not None:
            self._client.close()
            self._client = None
        try:
            asyncio.run_coroutine_threadsafe(self._close(), loop).result(timeout=30)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=10)
            loop.close()
            atexit.unregister(self.stop)
            shutil.rmtree(self._layout.root, ignore_errors=True)

    async def _close(self) -> None:
        if self._idle_watch is not None:
            self._idle_watch.cancel()
            await asyncio.gather(self._idle_watch, return_exceptions=True)
        await self._slot.shutdown()
        for listener in self._listeners:
            await listener.stop()
        # Transports close in callbacks, in the next rounds of the loop.
        for _ in range(3):
            await asyncio.sleep(0)

    def __enter__(self) -> LocalStudio:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _call(self, job: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            job.close()
            raise RuntimeError("the local Studio is not running")
        if threading.current_thread() is self._thread:
            job.close()
            raise RuntimeError("a callback of the local Studio cannot wait for it; do this from another thread")
        return asyncio.run_coroutine_threadsafe(job, self._loop).result()

    def _on_loop(self, function: Callable[[], T]) -> T:
        if self._loop is None:
            raise RuntimeError("the local Studio is not running")
        return run_on(self._loop, function)

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

    def _count_link(self) -> None:
        self.presigned_urls_issued += 1

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

    # ---- Classic's kernel apps ---------------------------------------------------------------------------

    def _kernel_apps(self) -> list[AppRecord]:
        if not self._world.classic or self._slot.server is None:
            return []
        return self._classic.records(self.user_profile_name)

    async def _delete_kernel_app(self, name: str) -> None:
        if self._slot.port is not None:
            await self._classic.delete_app(self._slot.port, self._slot.base, name)
