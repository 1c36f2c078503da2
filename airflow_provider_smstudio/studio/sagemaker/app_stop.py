"""Stops an app that is no longer needed, one step at a time, as :mod:`app_start` starts it."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_smstudio.studio.errors import AppInUseError, ControlPlaneError, StudioError
from airflow_provider_smstudio.studio.jupyter.kernel_probe import notes_activity
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.runs.abandoned import epoch_of
from airflow_provider_smstudio.studio.runs.identity import SESSION_PREFIX
from airflow_provider_smstudio.studio.sagemaker import app_tags
from airflow_provider_smstudio.studio.sagemaker.app_start import Step
from airflow_provider_smstudio.studio.sagemaker.app_tags import AppTags
from airflow_provider_smstudio.studio.sagemaker.control_plane import IN_SERVICE, NOT_FOUND, AppState, ControlPlane
from airflow_provider_smstudio.studio.sagemaker.readiness import may_pass

log = logging.getLogger(__name__)

IF_BUSY = ("leave", "wait", "fail", "stop")
STARTED_BY = ("airflow", "anyone")
_POLL = 10.0


@dataclass(frozen=True)
class StopRequest:
    """When to stop an app.

    :ivar holder: the name under which the app is held; the same text as for its start.
    :ivar started_by: ``airflow``: stop the app only if this provider started it. ``anyone``: stop it no matter how
        it was started.
    :ivar if_busy: the action while other sessions are busy: ``leave`` the app running, ``wait``, ``fail``, or
        ``stop`` it anyway.
    :ivar idle_minutes: how long a session counts as busy after its last activity, in minutes.
    :ivar linger: how long to wait for other runs of the same DAG that may still need the app, in seconds.
    :ivar wait_for_completion: whether to wait until the app is stopped.
    """

    holder: str
    started_by: str = "airflow"
    if_busy: str = "leave"
    idle_minutes: float = 15.0
    linger: float = 120.0
    wait_for_completion: bool = True


class AppStopper:
    """Releases a hold on an app, and stops the app if that was the last hold.

    :param control: the control plane.
    :param server: the app's Jupyter server, which lists the sessions.
    :param request: when to stop the app.
    :param other_runs: returns how many other runs of the same DAG are queued, and how many are running.
    """

    def __init__(
        self,
        control: ControlPlane,
        server: JupyterServer,
        request: StopRequest,
        *,
        other_runs: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.stopped = False
        """Whether the app is stopped or being stopped, by this run or by another user or process."""
        self._control, self._server, self._request = control, server, request
        self._other_runs = other_runs
        self._linger_until: float | None = None
        self._notes_activity: bool | None = None

    def step(self) -> Step:
        """Check whether the app is needed, and stop it if not.

        :raises AppInUseError: if the app is in use and ``if_busy`` is ``fail``, or if its tags cannot be read.
        :raises StudioError: if SageMaker or the app's Jupyter server cannot be asked.
        """
        state, title = self._control.describe_app(), self._control.title
        self.stopped = state.status in ("Deleted", NOT_FOUND, "Deleting", "Failed")
        if state.status == "Deleting" and self._request.wait_for_completion:
            return Step(f"{title} is being stopped", _POLL)
        if self.stopped:
            return Step(f"{title} is {'being stopped' if state.status == 'Deleting' else 'stopped'}")
        marks = self._release(state)
        needed = self._needed(marks)
        if needed:
            self._forget(state)
            return Step(f"{title} is left running: {needed}")
        return self._coming(state, marks) or self._busy(state) or self._stop(state, marks)

    def result(self, last: Step) -> dict[str, Any]:
        """Return the result as plain values."""
        return {"text": last.text, "stopped": self.stopped}

    def _needed(self, marks: AppTags | None) -> str:
        """Return why the app must keep running, or an empty text."""
        if marks is None:
            return ""
        if self._request.started_by != "anyone" and not marks.started_here:
            return "it was not started by this provider (set started_by='anyone' to stop it anyway)"
        if marks.holds:
            return f"it is used by {_some(list(marks.holds.values()))}"
        return ""

    def _coming(self, state: AppState, marks: AppTags | None) -> Step | None:
        """Leave the app to other runs of this DAG, or wait until it is clear whether they need it.

        Queued runs will start and stop the app themselves. A running run may have released its hold already, or
        may not have put its hold on the app yet. So one of the runs waits, for all of them.
        """
        title = self._control.title
        queued, running = self._other_runs()
        if queued:
            self._forget(state)
            return Step(f"{title} is left running: {queued} more runs of this DAG are queued")
        now = time.time()
        if self._linger_until is None:
            self._linger_until = now + self._request.linger
        if not running or now >= self._linger_until:
            return None
        if marks is not None and state.arn is not None:
            first = min(marks.waiting, default=None)
            if first is not None and first < app_tags.key_of(self._request.holder):
                self._forget(state)
                return Step(f"{title} is left to {marks.waiting[first]}, which waits for other runs")
            self._control.add_tags(state.arn, app_tags.waiting(self._request.holder, now))
        left = self._linger_until - now
        text = f"{title} waits up to {left:.0f} s more for {running} other runs of this DAG"
        return Step(text, min(left, _POLL))

    def _busy(self, state: AppState) -> Step | None:
        if self._request.if_busy == "stop" or state.status != IN_SERVICE:
            return None
        busy = busy_sessions(self._server, 60 * self._request.idle_minutes, self._activity_is_noted)
        if not busy:
            return None
        text = f"{self._control.title} is in use: {_some(busy)}"
        if self._request.if_busy == "wait":
            return Step(text, _POLL)
        self._forget(state)
        if self._request.if_busy == "fail":
            raise AppInUseError(
                f"{text}. Wait for it with if_busy='wait'", app_type=self._control.app_type, used_by=busy
            )
        return Step(f"{text}; it is left running")

    def _activity_is_noted(self) -> bool:
        """Return whether the server reports when its kernels were last used. Test it once, and warn if not."""
        if self._notes_activity is None:
            try:
                self._notes_activity = notes_activity(self._server, f"{SESSION_PREFIX}{uuid.uuid4().hex}-probe")
                reason = "this app's Jupyter server does not report when its kernels were last used"
            except StudioError as error:
                self._notes_activity = False
                reason = f"the client could not test whether this app's Jupyter server reports activity ({error})"
            if not self._notes_activity:
                log.warning(
                    "%s, so every kernel counts as used. Shut down the kernels that are not needed, or set "
                    "if_busy='stop'",
                    reason,
                )
        return self._notes_activity

    def _stop(self, state: AppState, marks: AppTags | None) -> Step:
        title = self._control.title
        if state.arn is not None and marks is not None:
            holder = self._request.holder
            self._control.add_tags(state.arn, app_tags.closing(holder, time.time()))
            marks = self._marks(state)
            if marks is not None and marks.holds:
                self._forget(state)
                return Step(f"{title} is left running: it is used by {_some(list(marks.holds.values()))}")
        self._control.delete_app()
        self.stopped = True
        return Step(f"{title} is being stopped", _POLL if self._request.wait_for_completion else None)

    # --- Marks

    def _release(self, state: AppState) -> AppTags | None:
        """Release this run's hold. Return the marks of the other holders, or None if they cannot be read.

        :raises AppInUseError: if they cannot be read and ``started_by`` is not ``anyone``.
        """
        if state.arn is None:
            return None
        try:
            self._control.remove_tags(state.arn, app_tags.keys_of(self._request.holder)[:1])
            return self._marks(state)
        except ControlPlaneError as error:
            if may_pass(error):
                raise
            if self._request.started_by == "anyone":
                log.warning("%s. It is not known whether another run uses the app", error)
                return None
            raise AppInUseError(
                f"{self._control.title} is left running, because its starter and its users are not known: "
                f"{error}. Allow it, or set started_by='anyone'",
                app_type=self._control.app_type,
            ) from error

    def _marks(self, state: AppState) -> AppTags | None:
        tags = self._control.tags(state.arn or "")
        return app_tags.read(tags, created=state.created, now=time.time(), but=self._request.holder)

    def _forget(self, state: AppState) -> None:
        """Remove all marks of this run."""
        if state.arn is None:
            return
        try:
            self._control.remove_tags(state.arn, app_tags.keys_of(self._request.holder))
        except ControlPlaneError as error:
            log.warning("%s", error)


def busy_sessions(server: JupyterServer, idle_seconds: float, activity_is_noted: Callable[[], bool]) -> list[str]:
    """Return the names of the used sessions, and of the used kernels that have no session.

    A kernel is used while it is busy, and for some time after its last activity. It always counts as used in
    Studio Classic, whose server reports neither. It also counts as used if the server does not report activity.
    Before all kernels count as idle, one more kernel tests that (jupyter_server_documents 0.2.0 does not report
    activity; measured). If ``idle_seconds`` is 0, the last activity does not matter.

    :param idle_seconds: how long a kernel counts as used after its last activity, in seconds.
    :param activity_is_noted: returns whether the server reports activity.
    """
    kernels: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for kernel in server.kernels():
        kernels[str(kernel.get("id"))] = (f"kernel {kernel.get('name')}", kernel)
    for session in server.sessions():
        found = session.get("kernel")
        if isinstance(found, Mapping):
            name = str(session.get("name") or session.get("path"))
            kernels[str(found.get("id"))] = (name, kernels.get(str(found.get("id")), ("", found))[1])
    recently = time.time() - idle_seconds

    def is_used(kernel: Mapping[str, Any]) -> bool:
        active = epoch_of(kernel.get("last_activity")) or 0.0
        return server.classic or kernel.get("execution_state") == "busy" or active > recently

    used = [name for name, kernel in kernels.values() if is_used(kernel)]
    if used or not kernels or idle_seconds <= 0 or activity_is_noted():
        return used
    return [name for name, _ in kernels.values()]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
