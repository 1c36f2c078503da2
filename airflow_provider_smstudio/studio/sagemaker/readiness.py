"""One look at whether a Studio app is ready, and what it means for somebody who waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_smstudio.studio.errors import (
    AppNotReadyError,
    ControlPlaneError,
    LoginError,
    LoginLinkExpiredError,
    NoAnswerError,
    ServerError,
)

_STOPPED = ("Deleted", "NotFound")
_PASSING = (
    "Throttl",
    "TooManyRequests",
    "RequestLimit",
    "ServiceUnavailable",
    "InternalFailure",
    "Timeout",
    "Connection",
)


@dataclass(frozen=True)
class Readiness:
    """What was seen.

    :ivar ready: a notebook can be run now.
    :ivar text: why not yet.
    :ivar failed: the look itself failed, by an error that may pass.
    """

    ready: bool
    text: str = ""
    failed: bool = False


def look(check: Callable[[], object], *, title: str, wait_for_start: bool, patient: bool) -> Readiness:
    """Look once.

    :param check: :meth:`Studio.check_ready`, which logs in when the app runs.
    :param title: names the app in messages.
    :param wait_for_start: whether a stopped or never started app is worth waiting for.
    :param patient: take errors that may pass (throttling, a fault of the network) for a reason to wait.
    :raises StudioError: when waiting cannot help, or when the look failed.
    """
    try:
        check()
    except AppNotReadyError as error:
        finding = f"{title} is {error.status}" if error.status else str(error)
        if error.status in _STOPPED and not wait_for_start:
            raise _not_waiting(finding, error) from error
        return Readiness(False, finding)
    except LoginLinkExpiredError as error:
        # The link was made a moment ago, so this is an app that does not run yet, seen by a role that may not
        # describe apps.
        return Readiness(False, str(error))
    except (ControlPlaneError, ServerError, LoginError) as error:
        if not patient or not may_pass(error):
            raise
        return Readiness(False, str(error), failed=True)
    return Readiness(True)


def may_pass(error: ControlPlaneError | ServerError | LoginError) -> bool:
    """Tell whether an error may be gone at the next look: a throttled call, a fault of the network."""
    if isinstance(error, ControlPlaneError):
        return any(word in str(error.code) for word in _PASSING)
    return isinstance(error, (ServerError, NoAnswerError))


def _not_waiting(finding: str, error: AppNotReadyError) -> AppNotReadyError:
    return AppNotReadyError(
        f"{finding}, and the sensor starts no app: start it before this task, or set wait_for_start=True if "
        "something else starts it meanwhile",
        **error.fields,
    )
