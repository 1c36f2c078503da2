"""How the local Studio behaves where the service's behaviour is unknown or worth varying."""

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
# For every change: the loop counts down what another thread may be setting.
_LOCK = threading.RLock()


def _wanted(name: str, value: Any) -> str | None:
    """What a switch's value must be, if it is not."""
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
    """Behaviours that can be changed while the local Studio runs, from any thread.

    Each attribute takes effect at the next request. A wrong name or value raises at once.
    """

    unauthenticated: str = "403"
    """Answer to a request without a valid login (unknown for the real one): ``"403"``, ``"302"`` (redirect
    to the sign-in host) or ``"200-html"`` (the sign-in page itself)."""

    single_use_tokens: bool = False
    """Whether a login link works once only. Unknown for the real one; default: until it expires."""

    stopped_app: str = "loading-page"
    """What a logged-in client sees while the app is not InService: ``"loading-page"`` (documented while an app
    starts) or ``"sign-in"`` (users report that the link of a stopped space looks expired)."""

    auth_mode: str = "IAM"
    """``AuthMode`` of the domain. With ``"SSO"`` no login link can be made, as documented."""

    link_seconds: float | None = None
    """Life of a login link; None: what the caller of CreatePresignedDomainUrl asked for (5-300 s)."""

    login_seconds: float | None = None
    """Life of a login; None: what the caller of CreatePresignedDomainUrl asked for (1800-43200 s)."""

    cut_websockets_at_expiry: bool = False
    """Whether the end of a login also cuts its open websockets. Unknown for the real one."""

    app_start_delay: float = 0.0
    """Seconds for which an app stays Pending, at least; its server is being started meanwhile."""

    app_stop_delay: float = 0.0
    """Seconds for which an app stays Deleting, at least."""

    app_start_failure: str | None = None
    """A FailureReason: apps that are created now end as Failed with it, after ``app_start_delay``."""

    no_capacity: tuple[str, ...] = ()
    """Instance types of which there are none: apps that are created on them end as Failed for want of capacity."""

    no_quota: tuple[str, ...] = ()
    """Instance types for which the account has no quota: CreateApp is refused."""

    denied: tuple[str, ...] = ()
    """Operations of the control plane that the caller may not use, such as ``"AddTags"``."""

    app_status_page: bool = False
    """Whether space hosts answer ``GET /app?appType=..&appName=..`` with the app's status as text. Classic
    hosts always do (public clients rely on it); unknown for space hosts."""

    kernel_app_delay: float = 0.0
    """Classic: seconds for which a new KernelGateway app stays Pending, blocking ``POST /api/kernels``."""

    app_delete_delay: float = 0.0
    """Classic: seconds for which a deleted KernelGateway app stays in the list of apps, as Deleting.
    Default: gone at once, as seen in 2021."""

    classic_v1_websocket: bool = False
    """Classic: whether the websocket accepts the subprotocol ``v1.kernel.websocket.jupyter.org``. Servers of
    Classic's age did not."""

    classic_bare_nudges: bool = True
    """Classic: whether the status messages that greet a new websocket have an empty parent, as seen in 2021
    (a space's name a request that the client never sent)."""

    refuse_connections: bool = False
    """Whether new TCP connections to the door are reset at once. Open ones, and the control plane, go on."""

    http_delay: float = 0.0
    """Seconds for which each request waits at the door before anything happens to it, handshakes of websockets
    included."""

    http_drops: int = 0
    """So many of the next HTTP requests of the door (handshakes of websockets do not count) get no answer: each
    is read to its end, and then its connection reset. Counted down."""

    http_errors: int = 0
    """So many of the next HTTP requests of the door (handshakes do not count) get ``http_error_status`` and a
    page for people; the server behind does not see them. Counted down, after ``http_drops``."""

    http_error_status: int = 502
    """Status for ``http_errors``."""

    websocket_refusals: int = 0
    """So many of the next handshakes of websockets get ``websocket_refusal_status``. Counted down."""

    websocket_refusal_status: int = 502
    """Status for ``websocket_refusals``."""

    save_delay: float = 0.0
    """Seconds for which a save of a notebook (``PUT`` below ``api/contents`` to a name in ``.ipynb``) waits at
    the door. One whose client leaves meanwhile is passed on all the same, late."""

    save_failures: int = 0
    """So many of the next saves of notebooks get ``save_failure_status``, after ``save_delay``, and change
    nothing. Counted down."""

    save_failure_status: int = 500
    """Status for ``save_failures``, with a JSON body like that of the server."""

    idle_timeout: float | None = None
    """Seconds without activity after which the app is stopped, as by Studio's idle shutdown; None: never. The
    server's own ``/api/idle`` tells what counts as activity. At least so long after the app's start, and after
    this was set."""

    replay: bool = True
    """Whether the server hands over what a client missed while its websocket was broken. False: each websocket
    is a new client to the server. So it was in Classic, as far as its public ancestor nb2kg tells: what came
    meanwhile is lost, and the replies to earlier requests never come."""

    instance_metrics: bool = True
    """Whether a space tells of its instance, at ``aws/sagemaker/api/instance/metrics``; False: 404, as where an
    image lacks the extension by AWS. Classic never does."""

    memory_percent: float | None = None
    """How much of the instance's memory it tells to be in use, 0 to 100; None: as much of this machine's as is."""

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
        """Count a switch down by one; return whether there was anything to count down."""
        with _LOCK:
            left: int = getattr(self, name)
            if left > 0:
                setattr(self, name, left - 1)
            return left > 0

    def watch(self, on_change: Callable[[], None]) -> None:
        """Have a function called after each change, from the changing thread."""
        self.__dict__["_on_change"] = on_change
