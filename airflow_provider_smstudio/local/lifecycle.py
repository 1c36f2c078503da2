"""The parts of the local Studio: how they are built, started and stopped."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from airflow_provider_smstudio.local.control_plane.api import ControlPlaneApi
from airflow_provider_smstudio.local.control_plane.state import Domain
from airflow_provider_smstudio.local.faults.requests import Faults
from airflow_provider_smstudio.local.faults.switches import Switches
from airflow_provider_smstudio.local.gateway.gateway import Gateway, SignIn
from airflow_provider_smstudio.local.gateway.login import Logins
from airflow_provider_smstudio.local.server.app_lifecycle import AppLifecycle, AppRecord
from airflow_provider_smstudio.local.server.classic_bridge import ClassicBridge
from airflow_provider_smstudio.local.server.classic_images import CLASSIC_IMAGES, ClassicImage, distribution_arn
from airflow_provider_smstudio.local.server.idle import IdleShutdown
from airflow_provider_smstudio.local.server.jupyter import JupyterProcess, Layout
from airflow_provider_smstudio.local.server.server_python import find_server_python
from airflow_provider_smstudio.local.server.space_settings import check_kind, setup_of
from airflow_provider_smstudio.local.threads import run_on

T = TypeVar("T")
Self = TypeVar("Self", bound="Assembly")

APP_STATUSES = ("InService", "Stopped", "Missing", "Pending", "Failed")
FLAVOURS = {"jupyterlab": "JupyterLab", "classic": "JupyterServer"}


class Assembly:
    """Builds the control plane, the gateways and the app of a local Studio, and runs them in one thread.

    :class:`~airflow_provider_smstudio.local.studio.LocalStudio` describes the arguments.
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

    def start(self: Self) -> Self:
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

    def __enter__(self: Self) -> Self:
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

    def _count_link(self) -> None:
        self.presigned_urls_issued += 1

    def _kernel_apps(self) -> list[AppRecord]:
        if not self._world.classic or self._slot.server is None:
            return []
        return self._classic.records(self.user_profile_name)

    async def _delete_kernel_app(self, name: str) -> None:
        if self._slot.port is not None:
            await self._classic.delete_app(self._slot.port, self._slot.base, name)
