"""Starts an app: one step at a time, so that a thread or an event loop can wait in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_smstudio.studio.errors import AppFailedError, ControlPlaneError, InvalidInputError
from airflow_provider_smstudio.studio.sagemaker import app_tags
from airflow_provider_smstudio.studio.sagemaker.control_plane import (
    IN_SERVICE,
    RESOURCE_SPEC_KEYS,
    AppState,
    ControlPlane,
)
from airflow_provider_smstudio.studio.sagemaker.readiness import may_pass

log = logging.getLogger(__name__)

_POLL = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 300.0
_PASSING_STARTS = 3
# Seen reasons that pass: "EC2InsufficientCapacityError: Instance type ... is temporarily unavailable ...".
_CAPACITY = ("InsufficientCapacity", "InsufficientInstanceCapacity")
_PASSING = ("InternalFailure", "InternalError", "UnknownError", "InternalServerError")
_IMAGE_KEYS = ("SageMakerImageArn", "SageMakerImageVersionArn", "SageMakerImageVersionAlias")


@dataclass(frozen=True)
class Step:
    """What a step came to.

    :ivar text: how things stand.
    :ivar wait: seconds until the next step, None when there is none.
    """

    text: str
    wait: float | None = None


@dataclass(frozen=True)
class StartRequest:
    """How an app is to be started.

    :ivar holder: on whose behalf, the same text for its start and its stop.
    :ivar resource_spec: what goes before the space's own ``DefaultResourceSpec``.
    :ivar fallback_instance_types: tried in turn where there is no capacity for the first.
    :ivar hold_hours: after so many hours the hold counts no more, whatever became of the holder.
    """

    holder: str
    resource_spec: Mapping[str, str] = field(default_factory=dict)
    fallback_instance_types: Sequence[str] = ()
    hold_hours: float = 24.0


class AppStarter:
    """Brings one app into service.

    :param control: the control plane.
    :param request: how.
    :param asked: when an earlier process on the same behalf has started it, in seconds since the epoch; None if it
        has not.
    :raises InvalidInputError: for a resource spec that CreateApp does not know.
    """

    def __init__(self, control: ControlPlane, request: StartRequest, *, asked: float | None = None) -> None:
        unknown = sorted(set(request.resource_spec) - set(RESOURCE_SPEC_KEYS))
        if unknown:
            raise InvalidInputError(
                f"resource_spec has no field {unknown[0]!r}; CreateApp takes {', '.join(RESOURCE_SPEC_KEYS)}"
            )
        self.asked = asked
        """When this run asked the service to start the app; None if it has not."""
        self._control, self._request = control, request
        self._spec: dict[str, str] | None = None
        self._choice = self._rounds = self._starts = 0
        self._not_before = 0.0
        self._held: tuple[float | None] | None = None  # the app, by its creation: a hold goes with it
        self._tags = True

    def step(self) -> Step:
        """Look how the app is, and do what brings it nearer to service.

        :raises AppFailedError: when it cannot be started; the message has the service's own words.
        :raises ControlPlaneError: when the service refuses.
        """
        state = self._control.describe_app()
        title = self._control.title
        if state.status == IN_SERVICE:
            closer = self._hold(state)
            return Step(f"{title} is about to be stopped by {closer}", 5.0) if closer else Step(f"{title} runs")
        if state.status == "Pending":
            self._hold(state)
            return Step(f"{title} is starting", _POLL)
        if state.status == "Deleting":
            return Step(f"{title} is being stopped; it is started when it has", _POLL)
        if state.status == "Failed" and self.asked is not None:
            self._judge(state)
        return self._create()

    def result(self, last: Step) -> dict[str, Any]:
        """Tell how it ended, in plain values."""
        instance_type = self._control.describe_app().instance_type
        return {"text": last.text, "started": self.asked is not None, "instance_type": instance_type}

    def _judge(self, state: AppState) -> None:
        """Decide whether an app that failed to start is worth another try.

        :raises AppFailedError: if not.
        """
        reason = state.failure_reason or "the service gives no reason"
        self.asked = None
        if any(word in reason for word in _CAPACITY):
            self._no_capacity()
        elif any(word in reason for word in _PASSING) and self._starts < _PASSING_STARTS:
            log.warning("%s has failed: %s; starting it again", self._control.title, reason)
        else:
            raise AppFailedError(
                f"{self._control.title} has failed to start: {reason}",
                app_type=self._control.app_type,
                status=state.status,
                failure_reason=state.failure_reason,
            )

    def _no_capacity(self) -> None:
        """Go on with the next instance type; after the last, with the first after a pause."""
        lacking = self._types()[self._choice] or "its instance type"
        self._choice += 1
        if self._choice < len(self._types()):
            log.warning("no capacity for %s: trying %s", lacking, self._types()[self._choice])
            return
        self._choice = 0
        pause = min(_FIRST_PAUSE * 2**self._rounds, _LONGEST_PAUSE)
        self._rounds += 1
        self._not_before = time.monotonic() + pause
        log.warning("no capacity for %s: trying again in %.0f s", lacking, pause)

    def _types(self) -> list[str | None]:
        spec = self._spec or {}
        return [spec.get("InstanceType"), *self._request.fallback_instance_types]

    def _create(self) -> Step:
        title = self._control.title
        left = self._not_before - time.monotonic()
        if left > 0:
            return Step(f"{title} waits for capacity", min(left, _POLL))
        if self._spec is None:
            self._spec = self._chosen_spec()
        instance_type = self._types()[self._choice]
        spec = {**self._spec, **({"InstanceType": instance_type} if instance_type else {})}
        now = time.time()
        holder = self._request.holder
        tags = {**app_tags.started(holder, now), **app_tags.hold(holder, self._until(now))} if self._tags else {}
        try:
            self._control.create_app(spec, tags)
        except ControlPlaneError as error:
            return self._refused(error)
        self.asked = now
        self._starts += 1
        return Step(f"{title} is starting{f' on {instance_type}' if instance_type else ''}", _POLL)

    def _refused(self, error: ControlPlaneError) -> Step:
        """Take it that CreateApp was refused.

        :raises AppFailedError: for a quota, or a specification that the service does not take.
        """
        text = str(error)
        if error.code == "ResourceInUse":
            return Step(f"{self._control.title} is being started by somebody else", _POLL)
        if any(word in text for word in _CAPACITY):
            self._no_capacity()
            return Step(text, 1.0)
        if self._tags and "AddTags" in text:
            self._without_tags(error)
            return Step(text, 1.0)
        if error.code == "ResourceLimitExceeded" or error.code == "ValidationException":
            remedy = ""
            if "Image ARN is required" in text:
                remedy = ". The space names no image: give SageMakerImageArn in resource_spec"
            raise AppFailedError(
                f"{self._control.title} cannot be started: {text}{remedy}",
                app_type=self._control.app_type,
                failure_reason=text,
            ) from error
        raise error

    def _chosen_spec(self) -> dict[str, str]:
        wanted = {key: value for key, value in self._request.resource_spec.items() if value}
        spec = self._control.default_resource_spec()
        if any(key in wanted for key in _IMAGE_KEYS):  # parts of two images do not go together
            spec = {key: value for key, value in spec.items() if key not in _IMAGE_KEYS}
        return {**spec, **wanted}

    def _until(self, now: float) -> float:
        return now + 3600 * self._request.hold_hours

    def _hold(self, state: AppState) -> str | None:
        """Put our hold on the app; return who is about to stop it, if anybody.

        Whoever stops an app first says so and then looks for holds, and we hold it first and then look for him: so
        one of the two sees the other.
        """
        if not self._tags or state.arn is None:
            return None
        now, holder = time.time(), self._request.holder
        try:
            if self._held != (state.created,):
                self._control.add_tags(state.arn, app_tags.hold(holder, self._until(now)))
                self._held = (state.created,)
            if state.status != IN_SERVICE:
                return None
            marks = app_tags.read(self._control.tags(state.arn), created=state.created, now=now, but=holder)
        except ControlPlaneError as error:
            if may_pass(error):
                raise
            self._without_tags(error)
            return None
        return next(iter(marks.closing.values()), None)

    def _without_tags(self, error: ControlPlaneError) -> None:
        self._tags = False
        log.warning("%s. Without tags nobody can see that the app is in use here, and it may be stopped", error)
