"""Starts an app, one step at a time. A thread or an event loop can wait between two steps."""

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
# A temporary reason, as seen: "EC2InsufficientCapacityError: Instance type ... is temporarily unavailable ...".
_CAPACITY = ("InsufficientCapacity", "InsufficientInstanceCapacity")
_PASSING = ("InternalFailure", "InternalError", "UnknownError", "InternalServerError")
_IMAGE_KEYS = ("SageMakerImageArn", "SageMakerImageVersionArn", "SageMakerImageVersionAlias")


@dataclass(frozen=True)
class Step:
    """The result of a step.

    :ivar text: the app's state after the step, for the log.
    :ivar wait: seconds until the next step; None if this was the last one.
    """

    text: str
    wait: float | None = None


@dataclass(frozen=True)
class StartRequest:
    """How to start an app.

    :ivar holder: the name under which the app is held, such as the DAG run's; the same text for start and stop.
    :ivar resource_spec: fields that take precedence over the space's own ``DefaultResourceSpec``.
    :ivar fallback_instance_types: instance types to try in turn if there is no capacity for the first one.
    :ivar hold_hours: hours after which the hold expires, even if the holder has never released it.
    """

    holder: str
    resource_spec: Mapping[str, str] = field(default_factory=dict)
    fallback_instance_types: Sequence[str] = ()
    hold_hours: float = 24.0


class AppStarter:
    """Starts one app, until it is in service.

    :param control: the control plane.
    :param request: how to start the app.
    :param requested_at: when an earlier process started the app for the same holder, in seconds since the epoch;
        None if none did.
    :raises InvalidInputError: if ``resource_spec`` has a field that CreateApp does not accept.
    """

    def __init__(self, control: ControlPlane, request: StartRequest, *, requested_at: float | None = None) -> None:
        unknown = sorted(set(request.resource_spec) - set(RESOURCE_SPEC_KEYS))
        if unknown:
            raise InvalidInputError(
                f"resource_spec has no field {unknown[0]!r}; CreateApp takes {', '.join(RESOURCE_SPEC_KEYS)}"
            )
        self.requested_at = requested_at
        """When this run asked SageMaker to start the app, in seconds since the epoch; None if it did not."""
        self._control, self._request = control, request
        self._spec: dict[str, str] | None = None
        self._choice = self._rounds = self._starts = 0
        self._not_before = 0.0
        self._held: tuple[float | None] | None = None  # creation time of the held app: a new app needs a new hold
        self._tags = True

    def step(self) -> Step:
        """Check the app's state, and take the next step to start it.

        :raises AppFailedError: if the app cannot be started; the message quotes SageMaker.
        :raises ControlPlaneError: if SageMaker refuses a request.
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
            return Step(f"{title} is being stopped. It will be started after that", _POLL)
        if state.status == "Failed" and self.requested_at is not None:
            self._judge(state)
        return self._create()

    def result(self, last: Step) -> dict[str, Any]:
        """Return the result as plain values."""
        instance_type = self._control.describe_app().instance_type
        return {"text": last.text, "started": self.requested_at is not None, "instance_type": instance_type}

    def _judge(self, state: AppState) -> None:
        """Decide whether to start a failed app again.

        :raises AppFailedError: if it must not be started again.
        """
        reason = state.failure_reason or "SageMaker gave no reason"
        self.requested_at = None
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
        """Choose the next instance type. After the last one, choose the first one again, after a pause."""
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
        self.requested_at = now
        self._starts += 1
        return Step(f"{title} is starting{f' on {instance_type}' if instance_type else ''}", _POLL)

    def _refused(self, error: ControlPlaneError) -> Step:
        """Handle a CreateApp request that SageMaker refused.

        :raises AppFailedError: for an exceeded quota, or for a ``ResourceSpec`` that SageMaker does not accept.
        :raises ControlPlaneError: for any other refusal.
        """
        text = str(error)
        if error.code == "ResourceInUse":
            return Step(f"{self._control.title} is being started by another process or user", _POLL)
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
        if any(key in wanted for key in _IMAGE_KEYS):  # do not mix the fields of two images
            spec = {key: value for key, value in spec.items() if key not in _IMAGE_KEYS}
        return {**spec, **wanted}

    def _until(self, now: float) -> float:
        return now + 3600 * self._request.hold_hours

    def _hold(self, state: AppState) -> str | None:
        """Put this run's hold on the app. Return the holder that is about to stop the app, or None.

        Before a run stops the app, it adds its closing mark, and then reads the holds. When a run starts the app,
        it adds its hold, and then reads the closing marks. So at least one of the two sees the other.
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
        log.warning("%s. Without tags, other runs cannot see that the app is in use, and they may stop it", error)
