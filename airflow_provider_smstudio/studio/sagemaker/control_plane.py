"""The SageMaker API (the control plane): presigned URLs, and the state of the Studio app."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from airflow_provider_smstudio.studio.app_types import app_type_of
from airflow_provider_smstudio.studio.errors import (
    AppFailedError,
    AppNotReadyError,
    ControlPlaneError,
    InvalidInputError,
    ResourceNotFoundError,
)

IN_SERVICE = "InService"
NOT_FOUND = "NotFound"
"""The package's status for an app that SageMaker does not know: never started, or stopped more than a day ago."""

RESOURCE_SPEC_KEYS = (
    "InstanceType",
    "SageMakerImageArn",
    "SageMakerImageVersionArn",
    "SageMakerImageVersionAlias",
    "LifecycleConfigArn",
    "TrainingPlanArn",
)
"""The fields that CreateApp accepts in a ``ResourceSpec``."""

_NOT_FOUND_CODES = ("ResourceNotFound", "ResourceNotFoundException")
_DENIED_CODES = ("AccessDeniedException", "AccessDenied", "UnauthorizedOperation")
_SENSOR = "Wait for it with SageMakerStudioAppSensor"


@dataclass(frozen=True)
class AppState:
    """The state of an app.

    :ivar status: SageMaker's status ``Pending``, ``InService``, ``Deleting``, ``Deleted`` or ``Failed``;
        ``NotFound`` if SageMaker knows no such app.
    :ivar failure_reason: SageMaker's reason for a failure, if it gave one.
    :ivar instance_type: the instance type that the app runs on, if SageMaker reported it.
    :ivar arn: the app's ARN. All apps of a space have the same ARN, one after the other.
    :ivar created: when the app was created, in seconds since the epoch, if SageMaker reported it.
    """

    status: str
    failure_reason: str | None = None
    instance_type: str | None = None
    arn: str | None = None
    created: float | None = None


class ControlPlane:
    """The SageMaker API for one user's Studio app.

    :param client: a boto3 client for ``sagemaker``.
    :param domain_id: the domain's id, such as ``d-abcdefghijkl``.
    :param user_profile_name: the user profile. A space needs one as well.
    :param space_name: the space; None for Studio Classic.
    :param app_type: ``JupyterLab`` for a space, ``JupyterServer`` for Studio Classic.
    :raises InvalidInputError: if the space and the app type do not match.
    """

    def __init__(
        self, client: Any, *, domain_id: str, user_profile_name: str, space_name: str | None, app_type: str
    ) -> None:
        app = app_type_of(app_type)
        if app.needs_space and not space_name:
            raise InvalidInputError(f"space_name is missing: a {app_type} app always belongs to a space")
        if space_name and not app.needs_space:
            raise InvalidInputError(f"space_name must be left out: a {app_type} app has no space")
        self._client = client
        self._domain = {"DomainId": domain_id}
        self._profile = {**self._domain, "UserProfileName": user_profile_name}
        self._space = {**self._domain, "SpaceName": space_name} if space_name else None
        self.app_type = app_type
        self.title = app.title(space_name, user_profile_name)
        """The app's name in messages."""

    def presigned_url(self, session_seconds: int = 43200) -> str:
        """Return a new presigned URL, which logs in. The URL is a secret.

        :param session_seconds: lifetime of the login, 1800 to 43200 seconds.
        :raises ResourceNotFoundError: for an unknown domain, user profile or space.
        :raises ControlPlaneError: for any other error.
        """
        request: dict[str, Any] = {**self._profile, "SessionExpirationDurationInSeconds": session_seconds}
        # Without a landing URI, the URL leads to the domain's default landing page: the new Studio's own page.
        request["LandingUri"] = f"app:{self.app_type}:"
        request |= self._space or {}
        try:
            return str(self._call("create_presigned_domain_url", request)["AuthorizedUrl"])
        except ControlPlaneError as error:
            if error.code in _NOT_FOUND_CODES:
                self.describe()  # raises an error that names the missing resource
            if self._uses_sso():
                raise ControlPlaneError(
                    f"{error}. The domain uses IAM Identity Center, for which SageMaker makes no presigned URLs: "
                    "only domains with AuthMode IAM can be used",
                    **error.fields,
                ) from error
            raise

    def describe_app(self) -> AppState:
        """Return the app's state.

        :raises ResourceNotFoundError: for an unknown domain, user profile or space.
        :raises ControlPlaneError: for any other error.
        """
        try:
            found = self._call("describe_app", self._app)
        except ControlPlaneError as error:
            if error.code not in _NOT_FOUND_CODES:
                raise
            self.describe()  # raises an error if more than the app is missing
            return AppState(NOT_FOUND)
        instance_type = (found.get("ResourceSpec") or {}).get("InstanceType")
        created = found.get("CreationTime")
        return AppState(
            str(found["Status"]),
            found.get("FailureReason"),
            instance_type,
            found.get("AppArn"),
            created.timestamp() if isinstance(created, datetime) else None,
        )

    @property
    def _app(self) -> dict[str, str]:
        return {**(self._space or self._profile), "AppType": self.app_type, "AppName": "default"}

    def create_app(self, resource_spec: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Start the app.

        :param resource_spec: the ``ResourceSpec`` for CreateApp. For missing fields, SageMaker does *not* use the
            values of the space, but its own defaults.
        :param tags: the app's tags.
        :raises ControlPlaneError: if SageMaker refuses the request. ``code`` is ``ResourceInUse`` if the app
            already exists.
        """
        request: dict[str, Any] = {**self._app}
        if resource_spec:
            request["ResourceSpec"] = dict(resource_spec)
        if tags:
            request["Tags"] = _tag_list(tags)
        self._call("create_app", request)

    def delete_app(self) -> None:
        """Stop the app. An app that is already stopped, or is being stopped, is no error.

        :raises ControlPlaneError: if SageMaker refuses the request.
        """
        try:
            self._call("delete_app", self._app)
        except ControlPlaneError as error:
            # Texts seen in ValidationException: "has already been deleted", "was automatically deleted".
            gone = error.code == "ValidationException" and "deleted" in str(error)
            if not gone and error.code not in (*_NOT_FOUND_CODES, "ResourceInUse"):
                raise

    def default_resource_spec(self) -> dict[str, str]:
        """Return the space's own ``DefaultResourceSpec`` for the app, with only the fields that CreateApp accepts.

        SageMaker does not use it by itself. Studio Classic has none.

        :raises ControlPlaneError: if SageMaker refuses the request.
        """
        if self._space is None:
            return {}
        settings = self._call("describe_space", self._space).get("SpaceSettings") or {}
        spec = (settings.get(f"{self.app_type}AppSettings") or {}).get("DefaultResourceSpec") or {}
        # DescribeSpace may return more fields, such as EnvironmentArn, which CreateApp refuses.
        return {key: str(spec[key]) for key in RESOURCE_SPEC_KEYS if spec.get(key)}

    def tags(self, arn: str) -> dict[str, str]:
        """Return an app's tags.

        :raises ControlPlaneError: if SageMaker refuses the request.
        """
        found: dict[str, str] = {}
        request = {"ResourceArn": arn}
        while True:
            page = self._call("list_tags", request)
            found |= {tag["Key"]: tag["Value"] for tag in page.get("Tags") or []}
            if not page.get("NextToken"):
                return found
            request["NextToken"] = page["NextToken"]

    def add_tags(self, arn: str, tags: Mapping[str, str]) -> None:
        """Add or replace tags of an app.

        :raises ControlPlaneError: if SageMaker refuses the request.
        """
        self._call("add_tags", {"ResourceArn": arn, "Tags": _tag_list(tags)})

    def remove_tags(self, arn: str, keys: Sequence[str]) -> None:
        """Remove tags of an app. A tag that the app does not have is no error.

        :raises ControlPlaneError: if SageMaker refuses the request.
        """
        if keys:
            self._call("delete_tags", {"ResourceArn": arn, "TagKeys": list(keys)})

    def require_running(self) -> AppState | None:
        """Check that the app runs.

        :return: the app's state, or None if the role may not read it.
        :raises AppNotReadyError: if the app does not run; ``status`` is its status.
        :raises AppFailedError: if the app has failed; the message contains SageMaker's ``FailureReason``.
        """
        try:
            state = self.describe_app()
        except ControlPlaneError as error:
            if error.code in _DENIED_CODES:
                return None  # a run needs only the presigned URL
            raise
        if state.status == IN_SERVICE:
            return state
        if state.status == "Failed":
            raise AppFailedError(
                f"{self.title} has failed: {state.failure_reason or 'SageMaker gave no reason'}",
                app_type=self.app_type,
                status=state.status,
                failure_reason=state.failure_reason,
            )
        words = {
            NOT_FOUND: "is not running. Start it, and wait for it with SageMakerStudioAppSensor",
            "Deleted": "is stopped. Start it, and wait for it with SageMakerStudioAppSensor",
            "Deleting": f"is being stopped. {_SENSOR}",
        }
        text = words.get(state.status, f"is {state.status}, not ready yet. {_SENSOR}")
        raise AppNotReadyError(f"{self.title} {text}", app_type=self.app_type, status=state.status)

    def describe(self) -> dict[str, str]:
        """Return the status of domain, user profile and space, as far as the role may read them.

        :return: for ``domain``, ``user profile`` and ``space`` the status, or ``not visible`` with the error code.
        :raises ResourceNotFoundError: for the first one that does not exist.
        """
        found = {}
        for what, operation, request in self._resources():
            try:
                found[what] = str(self._call(operation, request).get("Status"))
            except ControlPlaneError as error:
                if error.code in _NOT_FOUND_CODES:
                    raise self._missing(what, request, error) from error
                found[what] = f"not visible ({error.code})"
        return found

    def _resources(self) -> list[tuple[str, str, dict[str, str]]]:
        resources = [
            ("domain", "describe_domain", self._domain),
            ("user profile", "describe_user_profile", self._profile),
        ]
        return [*resources, ("space", "describe_space", self._space)] if self._space else resources

    def _missing(self, what: str, request: dict[str, str], error: ControlPlaneError) -> ResourceNotFoundError:
        name = list(request.values())[-1]
        place = "" if what == "domain" else f" in domain {self._domain['DomainId']!r}"
        return ResourceNotFoundError(
            f"there is no {what} {name!r}{place} in this AWS account and region", **error.fields, resource=what
        )

    def _uses_sso(self) -> bool:
        try:
            return self._call("describe_domain", self._domain).get("AuthMode") == "SSO"
        except ControlPlaneError:
            return False

    def _call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        name = "".join(part.capitalize() for part in operation.split("_"))
        try:
            return dict(getattr(self._client, operation)(**request))
        except ClientError as error:
            detail = error.response.get("Error", {})
            code, message = detail.get("Code", "Unknown"), detail.get("Message", "")
            remedy = f". The role needs sagemaker:{name}" if code in _DENIED_CODES else ""
            raise ControlPlaneError(
                f"SageMaker refused {name}: {code}: {message}{remedy}", operation=name, code=code
            ) from None
        except BotoCoreError as error:
            raise ControlPlaneError(f"{name} failed: {error}", operation=name, code=type(error).__name__) from None


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
