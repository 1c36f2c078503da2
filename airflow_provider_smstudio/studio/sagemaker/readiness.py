"""Checks once whether a Studio app is ready, and whether a task should wait for it."""

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
    """The result of a check.

    :ivar ready: whether a notebook can run now.
    :ivar text: why it cannot run yet.
    :ivar failed: whether the check itself failed, with an error that may pass.
    """

    ready: bool
    text: str = ""
    failed: bool = False


def look(check: Callable[[], object], *, title: str, wait_for_start: bool, patient: bool) -> Readiness:
    """Check once whether the app is ready.

    :param check: :meth:`Studio.check_ready`, which logs in if the app runs.
    :param title: the app's name in messages.
    :param wait_for_start: whether to wait for an app that is stopped or was never started.
    :param patient: whether to wait after an error that may pass (throttling, a network error).
    :raises StudioError: if waiting cannot help, or if the check failed.
    """
    try:
        check()
    except AppNotReadyError as error:
        finding = f"{title} is {error.status}" if error.status else str(error)
        if error.status in _STOPPED and not wait_for_start:
            raise _not_waiting(finding, error) from error
        return Readiness(False, finding)
    except LoginLinkExpiredError as error:
        # The presigned URL is new, so it has not expired. The app does not run yet, and the role may not describe
        # apps.
        return Readiness(False, str(error))
    except (ControlPlaneError, ServerError, LoginError) as error:
        if not patient or not may_pass(error):
            raise
        return Readiness(False, str(error), failed=True)
    return Readiness(True)


def may_pass(error: ControlPlaneError | ServerError | LoginError) -> bool:
    """Return whether an error may be gone at the next check: a throttled request, or a network error."""
    if isinstance(error, ControlPlaneError):
        return any(word in str(error.code) for word in _PASSING)
    return isinstance(error, (ServerError, NoAnswerError))


def _not_waiting(finding: str, error: AppNotReadyError) -> AppNotReadyError:
    return AppNotReadyError(
        f"{finding}, and the sensor starts no app: start it before this task, or set wait_for_start=True if "
        "another task or user starts it meanwhile",
        **error.fields,
    )
