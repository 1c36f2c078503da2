"""Kernels in KernelGateway apps. The Jupyter server of Studio Classic loads this module.

It works as Classic's own server did: other classes for the kernelspec manager and the kernel manager, and another
handler.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_core.utils import ensure_async
from jupyter_server.base.call_context import CallContext
from jupyter_server.base.handlers import APIHandler
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from jupyter_server.utils import url_path_join
from tornado import web

_MODULE = "airflow_provider_smstudio.local.server.classic_kernels"
# Recognizes the server's own requests to kernels: their IDs end with its process ID and a number.
_OWN_REQUEST = re.compile(rf"_{os.getpid()}_\d+$")


@dataclass
class KernelApp:
    """A KernelGateway app: one image on one instance type, with any number of kernels."""

    app_name: str
    environment_arn: str
    instance_type: str
    status: str = "Pending"
    created: float = 0.0


class Shared:
    """The data that all classes here share. It is set on the class, because the server creates their objects.

    The server and the local Studio's own process exchange images, switches and apps through files.
    """

    folder = Path()
    images: dict[str, dict[str, Any]] = {}
    apps: list[KernelApp] = []
    starting: dict[str, asyncio.Task[None]] = {}

    @classmethod
    def switch(cls, name: str) -> Any:
        """Return the current value of a switch."""
        return json.loads((cls.folder / "switches.json").read_text())[name]

    @classmethod
    def tell(cls) -> None:
        """Report the apps to the control plane."""
        new = cls.folder / "apps.json.new"
        new.write_text(json.dumps([asdict(app) for app in cls.apps]))
        new.replace(cls.folder / "apps.json")

    @classmethod
    async def ensure_app(cls, environment_arn: str, instance_type: str) -> KernelApp:
        """Return the app for an image and an instance type. Start it if necessary, and wait until InService."""
        for app in cls.apps:
            same = (app.environment_arn, app.instance_type) == (environment_arn, instance_type)
            if same and app.status in ("Pending", "InService"):
                break
        else:
            app = KernelApp(_app_name(environment_arn, instance_type), environment_arn, instance_type)
            app.created = time.time()
            cls.apps.append(app)
            cls.starting[app.app_name] = asyncio.create_task(cls._start(app))
        await asyncio.shield(cls.starting[app.app_name])
        if app.status != "InService":  # it was deleted during the wait; Classic's own answer is unknown
            raise web.HTTPError(500, f"KernelGateway app {app.app_name} is {app.status}")
        return app

    @classmethod
    async def _start(cls, app: KernelApp) -> None:
        cls.tell()
        await asyncio.sleep(cls.switch("kernel_app_delay"))
        if app.status == "Pending":
            app.status = "InService"
            cls.tell()

    @classmethod
    def delete_app(cls, app: KernelApp) -> None:
        """Delete an app. It stays listed as Deleting for the time of ``app_delete_delay``."""
        app.status = "Deleting"
        delay = cls.switch("app_delete_delay")
        if delay > 0:
            asyncio.get_running_loop().call_later(delay, cls._deleted, app)
            cls.tell()
        else:
            cls._deleted(app)

    @classmethod
    def _deleted(cls, app: KernelApp) -> None:
        app.status = "Deleted"
        cls.tell()


def _app_name(environment_arn: str, instance_type: str) -> str:
    """Return a name such as ``datascience-1-0-ml-t3-medium-`` and 28 hexadecimal digits: at most 63 characters."""
    image = re.sub(r"\W", "-", environment_arn.partition("/")[2])
    tail = f"-{re.sub(r'[^a-z0-9]', '-', instance_type)}-{secrets.token_hex(14)}"
    return image[: 63 - len(tail)].rstrip("-") + tail


class StudioKernelSpecManager(KernelSpecManager):
    """Provides one kernelspec per image, and no other."""

    def find_kernel_specs(self) -> dict[str, str]:
        """Return the names and the (empty) resource folders."""
        return dict.fromkeys(Shared.images, "")

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return the spec that really starts a kernel. For each image it is ipykernel of this environment."""
        image = Shared.images.get(kernel_name)
        if image is None:
            raise NoSuchKernel(kernel_name)
        shown = self._shown(image)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(**{**shown, "argv": argv})

    def get_all_specs(self) -> dict[str, Any]:
        """Return the models of the REST API, as seen in Classic."""
        return {
            name: {
                "name": name,
                "spec": self._shown(image),
                "resources": {size: f"/kernelspecs/python3/{size}.png" for size in ("logo-64x64", "logo-32x32")},
            }
            for name, image in Shared.images.items()
        }

    def _shown(self, image: dict[str, Any]) -> dict[str, Any]:
        return {
            "argv": ["python3", "-m", "IPython.kernel", "-f", "{connection_file}"],
            "display_name": f"{image['kernel_display_name']} ({image['display_name']})",
            "language": "python",
            "metadata": {
                "sme_metadata": {
                    "environment_arn": image["arn"],
                    "display_name": image["display_name"],
                    "description": image["description"],
                    "gpu_optimized": image["gpu_optimized"],
                    "is_template": not image["custom"],
                },
                "instance_type": image["instance_type"],
            },
        }


class StudioKernelManager(AsyncMappingKernelManager):
    """Starts kernels that belong to apps."""

    app_of: dict[str, KernelApp] = {}

    def start_kernel(self, *args: Any, **kwargs: Any) -> Any:
        """Start the app that a kernel needs, and then the kernel."""
        return self._start_in_app(super().start_kernel, *args, **kwargs)

    async def _start_in_app(self, start: Any, *args: Any, **kwargs: Any) -> str:
        name = kwargs.get("kernel_name") or self.default_kernel_name
        image = Shared.images.get(name)
        if image is None:
            raise NoSuchKernel(name)
        app = await Shared.ensure_app(image["arn"], _asked_instance_type() or image["instance_type"])
        kernel_id: str = await start(*args, **kwargs)
        self.app_of[kernel_id] = app
        return kernel_id

    def kernel_model(self, kernel_id: str) -> dict[str, Any]:
        """Return the REST model. In Classic its state and its number of connections never changed."""
        stock: Any = super()
        model = stock.kernel_model(kernel_id)
        app = self.app_of[kernel_id]
        return {
            **model,
            "execution_state": "starting",
            "connections": 0,
            "instance_type": app.instance_type,
            "app_name": app.app_name,
        }


def _asked_instance_type() -> str | None:
    """Return ``instance_type`` from the body of the current request. Stock handlers ignore it."""
    handler = CallContext.get(CallContext.JUPYTER_HANDLER)
    body = handler.get_json_body() if handler is not None else None
    if not isinstance(body, dict):
        return None
    kernel = body.get("kernel")
    return body.get("instance_type") or (kernel.get("instance_type") if isinstance(kernel, dict) else None)


class StudioWebsocket(ZMQChannelsWebsocketConnection):
    """The kernel websocket, as clients of Classic saw it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_ws_protocol = None if Shared.switch("classic_v1_websocket") else ""
        self._bare_nudges = Shared.switch("classic_bare_nudges")

    def _on_zmq_reply(self, stream: Any, msg_list: Any) -> None:
        """Send a message to the client: a dict for JSON clients, the message's parts for v1 clients."""
        stock: Any = super()
        is_json = isinstance(msg_list, dict)
        header = stock.get_part("header", msg_list["header"] if is_json else None, msg_list)
        # Kernels of Classic's age had no welcome message.
        if header["msg_type"] == "iopub_welcome":
            return
        parent = stock.get_part("parent_header", msg_list["parent_header"] if is_json else None, msg_list)
        if self._bare_nudges and _OWN_REQUEST.search(parent.get("msg_id", "")):
            msg_list["parent_header" if is_json else 1] = {} if is_json else b"{}"
        stock._on_zmq_reply(stream, msg_list)


class AppsHandler(APIHandler):
    """``/sagemaker/api/apps``: the KernelGateway apps."""

    @web.authenticated
    async def get(self) -> None:
        """List the apps."""
        shown = [asdict(app) for app in Shared.apps if app.status != "Deleted"]
        self.finish(json.dumps([{k: v for k, v in app.items() if k != "created"} for app in shown]))


class AppHandler(APIHandler):
    """``/sagemaker/api/apps/<app_name>``: one app."""

    @web.authenticated
    async def delete(self, app_name: str) -> None:
        """Delete the app and its kernels."""
        manager: Any = self.kernel_manager
        for app in Shared.apps:
            if app.app_name == app_name and app.status in ("Pending", "InService"):
                break
        else:
            raise web.HTTPError(404, f"App does not exist: {app_name}")
        for kernel_id in list(manager.list_kernel_ids()):
            if manager.app_of.get(kernel_id) is app:
                await ensure_async(manager.shutdown_kernel(kernel_id, now=True))
        Shared.delete_app(app)
        self.set_status(204)
        self.finish()


def configure(c: Any, folder: str) -> None:
    """Configure the server as a Classic server. Its configuration file calls this."""
    Shared.folder = Path(folder)
    images = json.loads((Shared.folder / "images.json").read_text())
    Shared.images = {image["name"]: image for image in images}
    c.ServerApp.kernel_spec_manager_class = StudioKernelSpecManager
    c.ServerApp.kernel_manager_class = StudioKernelManager
    c.ServerApp.kernel_websocket_connection_class = StudioWebsocket
    c.ServerApp.jpserver_extensions.update({_MODULE: True})
    # Servers of Classic's age set the cookie on the whole host.
    c.ServerApp.tornado_settings = {"compress_response": True, "xsrf_cookie_kwargs": {"path": "/"}}
    c.AsyncMappingKernelManager.default_kernel_name = images[0]["name"]


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": _MODULE}]


def _load_jupyter_server_extension(app: Any) -> None:
    root = url_path_join(app.web_app.settings["base_url"], "sagemaker/api/apps")
    app.web_app.add_handlers(".*$", [(root, AppsHandler), (root + r"/([^/]+)", AppHandler)])
