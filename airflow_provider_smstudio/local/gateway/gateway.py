"""Studio's gateway: login, loading page and forwarding to one Jupyter server."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qs, unquote

from airflow_provider_smstudio.local.faults.requests import Faults
from airflow_provider_smstudio.local.faults.switches import Switches
from airflow_provider_smstudio.local.faults.websockets import Websockets, session_id_of, with_new_identity
from airflow_provider_smstudio.local.gateway.login import Logins
from airflow_provider_smstudio.local.server.app_lifecycle import AppLifecycle
from airflow_provider_smstudio.local.server.instance_metrics import PATH, metrics_answer
from airflow_provider_smstudio.local.transport.http import (
    Listener,
    Request,
    Stream,
    answer,
    read_body,
    read_request,
    response,
)
from airflow_provider_smstudio.local.transport.proxy import Carrier, Upstream, bad_gateway, carry, forward

_HTML = "<!DOCTYPE html><html><head><title>{0}</title></head><body><p>{0}</p></body></html>"


@dataclass(eq=False)
class Connection:
    """One client connection, which a test may disturb while the local Studio is running."""

    stream: Stream
    upstream: Upstream
    kind: str = "http"
    target: str = ""
    login: str | None = None


class Gateway:
    """The host of one space, of a Classic domain, or (without a slot) of Studio's web UI.

    :param name: the name of this gateway. Links and logins are valid for one gateway only.
    :param slot: the app behind the gateway; None for the web UI, which only has HTML pages.
    :param sign_in_url: returns the URL to which a client without a login may be redirected.
    :param faults: the faults at this gateway; None: no faults.
    """

    def __init__(
        self,
        name: str,
        slot: AppLifecycle | None,
        logins: Logins,
        switches: Switches,
        sign_in_url: Callable[[], str],
        faults: Faults | None = None,
    ) -> None:
        self.name = name
        self.slot = slot
        self.logins = logins
        self.switches = switches
        self.listener = Listener(self._serve)
        self.connections: set[Connection] = set()
        self.websockets = Websockets()
        self._sign_in_url = sign_in_url
        self._faults = faults
        self._channels = re.compile(rf"{re.escape(self.base)}/api/kernels/([^/]+)/channels")

    @property
    def base(self) -> str:
        """The base path of the app's server."""
        return self.slot.base if self.slot else ""

    @property
    def url(self) -> str:
        """The URL (scheme and host) of this gateway."""
        return f"http://127.0.0.1:{self.listener.port}"

    def cut_websockets(self) -> None:
        """End every open websocket of this gateway without a close frame."""
        for connection in self.connections:
            if connection.kind == "websocket":
                connection.stream.reset()

    async def _serve(self, stream: Stream) -> None:
        if self._faults is not None and self._faults.refuses:
            stream.reset()
            return
        connection = Connection(stream, Upstream())
        self.connections.add(connection)
        try:
            while (request := await read_request(stream.reader)) is not None:
                if not await self._handle(request, connection) or request.wants_close:
                    return
        finally:
            self.connections.discard(connection)
            connection.upstream.close()

    async def _handle(self, request: Request, connection: Connection) -> bool:
        if self._faults is not None:
            met = await self._faults.meet(request, connection.stream)
            if met is not None:
                return met
        connection.target = request.path
        connection.login = self.logins.find("; ".join(request.headers.all("cookie")), self.name)
        if self._is_app_path(request.path) and connection.login and self._port():
            if self._tells_of_instance(request):
                told = metrics_answer(self.switches.memory_percent)
                return await answer(connection.stream, request, told)
            return await self._forward(request, connection)
        return await answer(connection.stream, request, self._own_answer(request, connection.login))

    def _is_app_path(self, path: str) -> bool:
        return bool(self.base) and (path == self.base or path.startswith(self.base + "/"))

    def _tells_of_instance(self, request: Request) -> bool:
        """Return whether a server extension would answer this request. AWS adds it to the images of spaces."""
        wanted = request.method == "GET" and request.path == self.base + PATH
        return wanted and self.switches.instance_metrics and self.slot is not None and not self.slot.is_classic

    def _port(self) -> int | None:
        return self.slot.port if self.slot else None

    def _own_answer(self, request: Request, login: str | None) -> bytes:
        """Return the gateway's own response, without the Jupyter server."""
        if request.path == "/auth":
            return self._log_in(request)
        if login is None:
            return self._unauthenticated()
        if request.path == "/app" and self.slot and (self.slot.is_classic or self.switches.app_status_page):
            return response(200, self._app_status(request), "text/plain; charset=UTF-8")
        if self._is_app_path(request.path):
            return self._not_in_service()
        if self.slot is None:
            return response(200, _HTML.format("SageMaker Studio"))
        return response(404, _HTML.format("404 Not Found"))

    def _log_in(self, request: Request) -> bytes:
        token = parse_qs(request.query).get("token", [""])[0]
        redeemed = self.logins.redeem(token, self.name, single_use=self.switches.single_use_tokens)
        if redeemed is None:
            # Documented: an expired link leads to the console's sign-in page, without an error status.
            return response(302, fields=[("Location", self._sign_in_url())])
        cookie, link = redeemed
        if self.slot and self.slot.is_classic:
            self.slot.start_if_stopped()
        return response(302, fields=[("Location", link.landing), *self.logins.cookies(cookie)])

    def _unauthenticated(self) -> bytes:
        if self.switches.unauthenticated == "302":
            return response(302, fields=[("Location", self._sign_in_url())])
        if self.switches.unauthenticated == "200-html":
            return sign_in_page()
        return response(403, _HTML.format("403 Forbidden"))

    def _app_status(self, request: Request) -> str:
        assert self.slot is not None  # noqa: S101  # only the gateway of an app receives this request
        query = parse_qs(request.query)
        asked = (query.get("appType", [""])[0], query.get("appName", [""])[0])
        if asked != (self.slot.app_type, self.slot.app_name):
            return "Terminated"
        status = self.slot.status
        return status if status in ("InService", "Pending") else "Terminated"

    def _not_in_service(self) -> bytes:
        assert self.slot is not None  # noqa: S101  # only the gateway of an app calls this
        if self.slot.status == "InService":
            return bad_gateway()
        if self.switches.stopped_app == "sign-in":
            return response(302, fields=[("Location", self._sign_in_url())])
        return response(200, _HTML.format("Loading the application"))

    async def _forward(self, request: Request, connection: Connection) -> bool:
        port = self._port()
        assert port is not None  # noqa: S101  # the caller has found one
        if request.path == f"{self.base}/logout" and connection.login:
            self.logins.logins.pop(connection.login, None)
        timer = None
        carrier: Carrier = carry
        if request.is_websocket:
            connection.kind = "websocket"
            timer = self._expiry_timer(connection)
            request, carrier = self._kernel_websocket(request)
        try:
            return await forward(
                request, connection.stream, connection.upstream, port, self.logins.remember_cookie, carrier
            )
        finally:
            connection.kind = "http"
            if timer is not None:
                timer.cancel()

    def _kernel_websocket(self, request: Request) -> tuple[Request, Carrier]:
        """Return a handshake as the server must receive it, and the function that serves the websocket."""
        kernel = self._channels.fullmatch(request.path)
        if kernel is None:
            return request, carry
        seen = request if self.switches.replay else with_new_identity(request)
        return seen, partial(self.websockets.carry, unquote(kernel[1]), session_id_of(request), seen)

    def _expiry_timer(self, connection: Connection) -> asyncio.TimerHandle | None:
        login = self.logins.logins.get(connection.login or "")
        if login is None or not self.switches.cut_websockets_at_expiry:
            return None
        return asyncio.get_running_loop().call_later(login.deadline - time.monotonic(), connection.stream.reset)


def sign_in_page() -> bytes:
    """Return the console's sign-in page: HTML with status 200, on a host that is not Studio's."""
    return response(200, _HTML.format("Sign in to the console"))


class SignIn:
    """The console's sign-in host. Its name differs from that of every gateway."""

    def __init__(self) -> None:
        self.listener = Listener(self._serve)

    @property
    def url(self) -> str:
        """The URL to which clients without a login are redirected."""
        return f"http://localhost:{self.listener.port}/signin"

    async def _serve(self, stream: Stream) -> None:
        while (request := await read_request(stream.reader)) is not None:
            await read_body(stream.reader, request.headers)
            await stream.send(sign_in_page())
            if request.wants_close:
                return
