"""Switches for the local Studio: behaviours of AWS that are unknown, or that tests need to vary."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

_CHOICES: dict[str, tuple[str | bool, ...]] = {
    "unauthenticated": ("403", "302", "200-html"),
    "stopped_app": ("loading-page", "sign-in"),
    "auth_mode": ("IAM", "SSO"),
    "refuse_connections": (False, True),
    "replay": (False, True),
    "instance_metrics": (False, True),
}
_TEXTS = ("no_capacity", "no_quota", "denied")
_SECONDS = ("http_delay", "save_delay")
_COUNTS = ("http_drops", "http_errors", "websocket_refusals", "save_failures")
_STATUSES = ("http_error_status", "websocket_refusal_status", "save_failure_status")
_ERRORS = {status.value for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST}
# For every change: the loop counts a switch down while another thread may set it.
_LOCK = threading.RLock()


def _wanted(name: str, value: Any) -> str | None:
    """Return what the value of a switch must be, or None if the value is valid."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in _CHOICES and value not in _CHOICES[name]:
        return f"one of {', '.join(map(str, _CHOICES[name]))}"
    if name in _SECONDS and not (number and value >= 0):
        return "a number of seconds, 0 or more"
    if name in _COUNTS and not (number and isinstance(value, int) and value >= 0):
        return "a whole number, 0 or more"
    if name in _STATUSES and value not in _ERRORS:
        return "an HTTP status that means an error"
    if name in _TEXTS and not (isinstance(value, (tuple, list)) and all(isinstance(text, str) for text in value)):
        return "a list of texts"
    if name == "idle_timeout" and value is not None and not (number and value > 0):
        return "a number of seconds above 0, or None"
    if name == "memory_percent" and value is not None and not (number and 0 <= value <= 100):
        return "a number from 0 to 100, or None"
    return None


@dataclass
class Switches:
    """Behaviours that any thread can change while the local Studio is running.

    Each attribute takes effect at the next request. A wrong name raises an error at once, and so do most wrong
    values.
    """

    unauthenticated: str = "403"
    """The response to a request without a valid login: ``"403"``, ``"302"`` (a redirect to the sign-in host) or
    ``"200-html"`` (the sign-in page itself). The response of AWS is unknown."""

    single_use_tokens: bool = False
    """Whether a login link works only once. False: it works until it expires. The behaviour of AWS is unknown."""

    stopped_app: str = "loading-page"
    """The response to a logged-in client while the app is not InService: ``"loading-page"`` (documented while an
    app starts) or ``"sign-in"`` (users report that the link of a stopped space looks expired)."""

    auth_mode: str = "IAM"
    """``AuthMode`` of the domain. With ``"SSO"`` no login link can be created, as documented."""

    link_seconds: float | None = None
    """Seconds that a login link is valid. None: as the caller of CreatePresignedDomainUrl requests (5-300 s)."""

    login_seconds: float | None = None
    """Seconds that a login is valid. None: as the caller of CreatePresignedDomainUrl requests (1800-43200 s)."""

    cut_websockets_at_expiry: bool = False
    """Whether the end of a login also cuts its open websockets. The behaviour of AWS is unknown."""

    app_start_delay: float = 0.0
    """The shortest time that an app stays Pending, in seconds. Its server starts during this time."""

    app_stop_delay: float = 0.0
    """The shortest time that an app stays Deleting, in seconds."""

    app_start_failure: str | None = None
    """A FailureReason. New apps become Failed with it, after ``app_start_delay``."""

    no_capacity: tuple[str, ...] = ()
    """Instance types without capacity. New apps on them become Failed because of that."""

    no_quota: tuple[str, ...] = ()
    """Instance types for which the account has no quota: CreateApp is refused."""

    denied: tuple[str, ...] = ()
    """Operations of the control plane that the caller may not use, such as ``"AddTags"``."""

    app_status_page: bool = False
    """Whether space hosts answer ``GET /app?appType=..&appName=..`` with the app's status as text. Classic
    hosts always do (public clients rely on it). For space hosts it is unknown."""

    kernel_app_delay: float = 0.0
    """Classic: how long a new KernelGateway app stays Pending and blocks ``POST /api/kernels``, in seconds."""

    app_delete_delay: float = 0.0
    """Classic: how long a deleted KernelGateway app stays in the list of apps as Deleting, in seconds. Default: it
    is removed at once, as seen in 2021."""

    classic_v1_websocket: bool = False
    """Classic: whether the websocket accepts the subprotocol ``v1.kernel.websocket.jupyter.org``. Servers of
    Classic's age did not."""

    classic_bare_nudges: bool = True
    """Classic: whether the first status messages on a new websocket have an empty parent, as seen in 2021. In a
    space their parent is a request that the client never sent."""

    refuse_connections: bool = False
    """Whether the gateway resets new TCP connections at once. Open connections and the control plane continue."""

    http_delay: float = 0.0
    """How long each request, including websocket handshakes, waits at the gateway before it is handled, in
    seconds."""

    http_drops: int = 0
    """How many of the next HTTP requests to the gateway get no response. The gateway reads each of them to its end
    and then resets the connection. Websocket handshakes do not count. The switch counts down."""

    http_errors: int = 0
    """How many of the next HTTP requests to the gateway get ``http_error_status`` and an HTML page. The Jupyter
    server does not receive them. Websocket handshakes do not count. The switch counts down, but ``http_drops``
    comes first."""

    http_error_status: int = 502
    """Status for ``http_errors``."""

    websocket_refusals: int = 0
    """How many of the next websocket handshakes get ``websocket_refusal_status``. The switch counts down."""

    websocket_refusal_status: int = 502
    """Status for ``websocket_refusals``."""

    save_delay: float = 0.0
    """How long a save of a notebook waits at the gateway, in seconds. A save is a ``PUT`` below ``api/contents``
    to a name in ``.ipynb``. The server receives it late, even if its client has closed the connection."""

    save_failures: int = 0
    """How many of the next saves of notebooks get ``save_failure_status``, after ``save_delay``, and change
    nothing. The switch counts down."""

    save_failure_status: int = 500
    """Status for ``save_failures``, with a JSON body like that of the server."""

    idle_timeout: float | None = None
    """How many seconds without activity stop the app, as Studio's idle shutdown does; None: never. The server's
    own ``/api/idle`` defines what counts as activity. The app also runs at least this long after its start, and
    after this switch is set."""

    replay: bool = True
    """Whether the server sends what a client missed while its websocket was broken. False: to the server each
    websocket is a new client, as in Classic (according to its public ancestor nb2kg). Messages from the time
    between are lost, and the replies to earlier requests never arrive."""

    instance_metrics: bool = True
    """Whether a space reports on its instance, at ``aws/sagemaker/api/instance/metrics``. False: it answers with
    404, like an image without the AWS extension. Classic never reports."""

    memory_percent: float | None = None
    """The memory in use that the instance reports, 0 to 100 percent. None: the memory in use on this machine."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dataclass_fields__:
            raise AttributeError(f"no such switch: {name!r}; there are {', '.join(self.__dataclass_fields__)}")
        wanted = _wanted(name, value)
        if wanted is not None:
            raise ValueError(f"switch {name} must be {wanted}, not {value!r}")
        with _LOCK:
            object.__setattr__(self, name, value)
            on_change = self.__dict__.get("_on_change")
            if on_change is not None:
                on_change()

    def take(self, name: str) -> bool:
        """Count a switch down by one. Return whether it was above 0."""
        with _LOCK:
            left: int = getattr(self, name)
            if left > 0:
                setattr(self, name, left - 1)
            return left > 0

    def watch(self, on_change: Callable[[], None]) -> None:
        """Call a function after each change, in the thread that makes the change."""
        self.__dict__["_on_change"] = on_change
