"""Makes an authenticated HTTP session from a presigned URL, and logs in again after the login has ended.

These facts about Studio's gateway are known. The presigned URL sets cookies and leads to the app. An expired URL
leads to a sign-in page on another host. While the app starts, the gateway shows a loading page instead. The answer
to a request after the end of a login is not documented. So every plausible answer counts: 401, 403, a redirect, or
HTML instead of JSON.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import requests
from requests.cookies import get_cookie_header

from airflow_provider_smstudio.studio.app_types import app_type_of
from airflow_provider_smstudio.studio.errors import (
    AppFailedError,
    AppNotReadyError,
    LoginError,
    LoginLinkExpiredError,
    NoAnswerError,
    ServerError,
    SessionExpiredError,
)
from airflow_provider_smstudio.studio.jupyter.redaction import protect_library_logs

log = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_DEAD_STATUSES = ("Terminated", "Failed", "Deleted")
_TRIES = 3
_LOGIN_PAUSES = (0.5, 2.0)
# While a kernel is starting, a Jupyter server may answer GET api/kernels with HTTP 500 (jupyter_server 2.21:
# its list then contains a kernel without last_activity). In a backfill, some kernel is often starting.
_PROOF_PAUSES = (0.2, 0.5, 1.0, 2.0)
_READ_TIMEOUT = 60.0
_HURRIED = 4.0
"""A request with a timeout of at most this number of seconds comes from a task that is being killed."""


class StudioSession:
    """An authenticated HTTP session with one Studio app.

    It logs in at first use. If the login has ended, it logs in again and repeats the request, once for each
    request. It sends cookies only to the host of the presigned URL, and does not follow redirects to another host.

    :param presign: returns a new presigned URL; called for each login.
    :param app_type: ``JupyterLab`` or ``JupyterServer``.
    :param verify: True for the system's certificates, or the path of a CA bundle. Never False.
    :param on_secret: called with every secret that the session receives, so that the caller can mask it.
    """

    def __init__(
        self,
        presign: Callable[[], str],
        app_type: str,
        *,
        verify: bool | str = True,
        on_secret: Callable[[str], None] | None = None,
    ) -> None:
        self.app = app_type_of(app_type)
        protect_library_logs()
        self.app_type = app_type
        self._presign = presign
        self._verify = verify or True
        self._on_secret = on_secret or (lambda secret: None)
        self._lock = threading.RLock()
        self._http = requests.Session()
        self._origin: str | None = None
        self._xsrf = ""
        self._logins = 0

    def __repr__(self) -> str:
        return f"<StudioSession {self.app_type} at {self._origin or 'no host yet'}>"

    @property
    def base_url(self) -> str:
        """The Jupyter server's base URL, without a trailing slash. Logs in if there was no login yet."""
        self._ensure()
        return f"{self._origin}{self.app.base_path}"

    def close(self) -> None:
        """Close the connections. The login stays valid in Studio until it expires."""
        self._http.close()

    # --- Requests

    def request(
        self,
        method: str,
        path: str,
        *,
        expect_json: bool = True,
        timeout: float = _READ_TIMEOUT,
        **kwargs: Any,
    ) -> requests.Response:
        """Send a request to the Jupyter server.

        :param method: the HTTP method.
        :param path: the path below the base URL, percent-encoded, such as ``api/kernels``.
        :param expect_json: whether HTML with a good status means that the login has ended.
        :param timeout: how long the server may be silent, in seconds.
        :return: the answer with any status. This method handles only an ended login.
        :raises SessionExpiredError: if Studio also refused the request after a new login.
        :raises ServerError: if there was no answer. A POST is sent once. Other requests are sent up to three
            times, if that may help. After a read timeout, only a GET with a timeout of more than 4 seconds is sent
            again.
        """
        self._ensure()
        seen = self._logins
        response = self._send(method, path, timeout, dict(kwargs))
        if not self._login_ended(response, expect_json):
            return response
        log.info("the Studio login has ended (HTTP %s): logging in again", response.status_code)
        self.renew(seen)
        response = self._send(method, path, timeout, dict(kwargs))
        if not self._login_ended(response, expect_json) or _is_json(response):
            return response  # Jupyter's own 403 is JSON, and names the forbidden thing
        raise SessionExpiredError(
            f"Studio refused {method} {path} with HTTP {response.status_code} right after a fresh login. "
            "Check that the role has sagemaker:CreatePresignedDomainUrl, and that its policy allows this network"
        )

    def glance(self, path: str, *, timeout: float) -> requests.Response:
        """Send a GET once, for information that the run does not need. It is not repeated, and no login follows.

        :param path: the path below the base URL, percent-encoded.
        :param timeout: how long the server may be silent, in seconds.
        :return: the answer with any status. A 401 or 403 may mean that the login has ended.
        :raises ServerError: if there was no answer, or no login yet.
        """
        if self._logins == 0:
            raise ServerError(f"GET {path} was not sent: there has been no login", method="GET", path=path)
        url = f"{self._origin}{self.app.base_path}/{path}"
        try:
            return self._http.get(url, allow_redirects=False, timeout=timeout, verify=self._verify)
        except requests.RequestException as error:
            raise ServerError(f"no answer to GET {path}: {_describe(error)}", method="GET", path=path) from None

    def websocket(self, path: str) -> tuple[str, str]:
        """Return the URL and the ``Cookie`` header for a websocket.

        :param path: the path below the base URL, with its query.
        """
        url = f"{self.base_url}/{path}"
        cookie = get_cookie_header(self._http.cookies, requests.Request("GET", url).prepare()) or ""
        return f"ws{url.removeprefix('http')}", cookie

    @property
    def verify(self) -> bool | str:
        """The certificates that TLS is verified against: True or the path of a CA bundle."""
        return self._verify

    @property
    def logins(self) -> int:
        """The number of logins so far."""
        return self._logins

    def _send(self, method: str, path: str, timeout: float, kwargs: dict[str, Any]) -> requests.Response:
        url = f"{self._origin}{self.app.base_path}/{path}"
        headers = {**kwargs.pop("headers", {}), "X-XSRFToken": self._xsrf}
        tries = 1 if method == "POST" else _TRIES
        passing = (500, 502, 503, 504) if method == "GET" else (502, 503, 504)
        for attempt in range(1, tries + 1):
            failure: str
            if hasattr(kwargs.get("data"), "seek"):
                kwargs["data"].seek(0)  # an earlier attempt may have read the file
            try:
                response = self._http.request(
                    method,
                    url,
                    allow_redirects=False,
                    timeout=(10, timeout),
                    headers=headers,
                    verify=self._verify,  # REQUESTS_CA_BUNDLE would override session.verify
                    **kwargs,
                )
                if response.status_code not in passing or attempt == tries:
                    return response
                failure = f"HTTP {response.status_code}"
            except requests.RequestException as error:
                failure = _describe(error)
                hurried = method != "GET" or timeout <= _HURRIED
                slow = isinstance(error, requests.exceptions.ReadTimeout) and hurried
                if attempt == tries or slow:  # a second request would not be faster
                    raise ServerError(
                        f"no answer to {method} {path} from the Jupyter server: {failure}",
                        method=method,
                        path=path,
                        status=None,
                    ) from None
            log.info("%s %s: %s, trying again", method, path, failure)
            time.sleep(0.5 * 2**attempt)
        raise AssertionError("unreachable")

    @staticmethod
    def _login_ended(response: requests.Response, expect_json: bool) -> bool:
        if response.status_code in (401, 403) or response.is_redirect:
            return True
        return expect_json and response.status_code == 200 and _is_html(response)

    # --- Login

    def renew(self, seen: int | None = None) -> None:
        """Log in again.

        :param seen: the number of logins that the caller knew. If there was another login since, nothing happens.
        """
        with self._lock:
            if seen is None or seen == self._logins:
                self._login()

    def _ensure(self) -> None:
        with self._lock:
            if self._logins == 0:
                self._login()

    def _login(self) -> None:
        for pause in (*_LOGIN_PAUSES, None):
            try:
                self._login_once()
                return
            except NoAnswerError as error:
                if pause is None:
                    raise
                log.info("%s, trying again", error)
                time.sleep(pause)

    def _login_once(self) -> None:
        url = self._presign()  # a new URL for each login: a used one may fail
        parts = urlsplit(url)
        for secret in (url, *(value for _, value in parse_qsl(parts.query))):
            self._on_secret(secret)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise LoginError("the presigned URL is not https, so it was not used")
        self._http.close()
        self._http = requests.Session()
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._open_link(url)
        if self.app.gateway_tells_status:
            self._check_status()
        self._fetch_xsrf()
        for cookie in self._http.cookies:
            if cookie.value and len(cookie.value) >= 8:
                self._on_secret(cookie.value)
        self._prove()
        self._logins += 1

    def _open_link(self, url: str) -> None:
        response, left = self._follow(url)
        if left == "link":
            raise LoginLinkExpiredError(
                "Studio did not accept the presigned URL and redirected to its sign-in page. The URL has expired "
                "(it is valid for at most 5 minutes), or its app is not running. Wait for the app with "
                "SageMakerStudioAppSensor"
            )
        if left == "app":
            raise LoginError("Studio accepted the presigned URL, and then asked to sign in")
        status = response.status_code
        if status >= 500:
            raise AppNotReadyError(
                f"Studio answered the login with HTTP {status}: the app may be starting. "
                "Wait for it with SageMakerStudioAppSensor",
                app_type=self.app_type,
            )
        if status >= 400:
            raise LoginLinkExpiredError(f"Studio did not accept the presigned URL (HTTP {status})")

    def _follow(self, url: str) -> tuple[requests.Response, str | None]:
        """Follow redirects on the same host, and return the last answer.

        :return: the answer, and which page redirected to another host: ``link``, ``app``, or None if none did.
        """
        at_link = True
        for _ in range(10):
            response = self._get(url)
            if not response.is_redirect:
                return response, None
            url = urljoin(url, response.headers["location"])
            parts = urlsplit(url)
            if f"{parts.scheme}://{parts.netloc}" != self._origin:
                return response, "link" if at_link else "app"
            at_link = parts.path.rstrip("/") == "/auth"
        raise LoginError("Studio's login was redirected 10 times without an end")

    def _get(self, url: str) -> requests.Response:
        try:
            return self._http.get(url, allow_redirects=False, timeout=(10, _READ_TIMEOUT), verify=self._verify)
        except requests.RequestException as error:
            # The original error contains the presigned URL.
            raise NoAnswerError(f"no answer from Studio at {self._origin}: {_describe(error)}") from None

    def _check_status(self) -> None:
        """Ask Classic's gateway for the app's status. The login itself has already started a stopped app."""
        response = self._get(f"{self._origin}/app?appType={self.app_type}&appName=default")
        status = response.text.strip().strip('"') if response.status_code == 200 else ""
        if status in _DEAD_STATUSES:
            raise AppFailedError(
                f"the {self.app_type} app is {status}", app_type=self.app_type, status=status, failure_reason=None
            )
        if status in ("Pending", "Starting", "Deleting"):
            raise AppNotReadyError(
                f"the {self.app_type} app is {status}. Wait for it with SageMakerStudioAppSensor",
                app_type=self.app_type,
                status=status,
            )

    def _fetch_xsrf(self) -> None:
        self._xsrf = self._xsrf_cookie(own=self.app.sets_own_xsrf)
        if not self._xsrf:
            _, left = self._follow(f"{self._origin}{self.app.base_path}{self.app.page}")
            if left:
                raise LoginError("Studio accepted the presigned URL, and then asked to sign in")
            self._xsrf = self._xsrf_cookie()
        if not self._xsrf:
            raise AppNotReadyError(
                f"Studio shows its loading page: the {self.app_type} app is still starting. "
                "Wait for it with SageMakerStudioAppSensor",
                app_type=self.app_type,
            )

    def _xsrf_cookie(self, *, own: bool = False) -> str:
        """Return the XSRF value for the server: the value of the cookie with the longest matching path.

        :param own: use only the Jupyter server's cookie, whose path is the base path. The gateway may set another
            one.
        """
        base = f"{self.app.base_path}/"
        fitting = [
            cookie
            for cookie in self._http.cookies
            if cookie.name == "_xsrf"
            and base.startswith(cookie.path.rstrip("/") + "/")
            and (not own or cookie.path.rstrip("/") + "/" == base)
        ]
        value = max(fitting, key=lambda cookie: len(cookie.path)).value if fitting else None
        return (value or "").strip('"')

    def _prove(self) -> None:
        """Check that Jupyter itself answers: pages of the gateway also have status 200."""
        url = f"{self._origin}{self.app.base_path}/api/kernels"
        response = self._get(url)
        for pause in _PROOF_PAUSES:
            if response.status_code != 500:
                break
            time.sleep(pause)
            response = self._get(url)
        if response.status_code == 200 and not _is_html(response):
            return
        if response.status_code in (401, 403):
            raise LoginError(
                f"Studio accepted the presigned URL, and then refused its API (HTTP {response.status_code})"
            )
        raise AppNotReadyError(
            f"the {self.app_type} app does not answer as a Jupyter server yet (HTTP {response.status_code}). "
            "Wait for it with SageMakerStudioAppSensor",
            app_type=self.app_type,
        )


def _is_html(response: requests.Response) -> bool:
    return "html" in response.headers.get("content-type", "").lower()


def _is_json(response: requests.Response) -> bool:
    return "json" in response.headers.get("content-type", "").lower()


def _describe(error: Exception) -> str:
    """Return the name of a failure without its text, which may contain the URL."""
    kinds = {
        requests.exceptions.SSLError: "the TLS certificate was not accepted",
        requests.exceptions.ConnectTimeout: "connecting took too long",
        requests.exceptions.ReadTimeout: "the answer took too long",
        requests.exceptions.ProxyError: "the proxy failed",
        requests.exceptions.ConnectionError: "the connection failed",
    }
    found = next((text for kind, text in kinds.items() if isinstance(error, kind)), None)
    return f"{found} ({type(error).__name__})" if found else type(error).__name__
