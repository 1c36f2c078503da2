"""The part of SageMaker's API that Studio needs: JSON 1.1 over HTTP, for an unmodified boto3."""

from __future__ import annotations

import inspect
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from airflow_provider_smstudio.local.control_plane.errors import (
    AccessDeniedError,
    ResourceInUseError,
    ResourceLimitExceededError,
    ResourceNotFoundError,
    ServiceError,
    ValidationError,
)
from airflow_provider_smstudio.local.control_plane.landing_uri import make_link
from airflow_provider_smstudio.local.control_plane.state import ACCOUNT, Domain
from airflow_provider_smstudio.local.server.app_lifecycle import ALIVE, AppRecord
from airflow_provider_smstudio.local.transport.http import (
    Listener,
    Request,
    Stream,
    read_body,
    read_request,
    response,
)

_MOST_TAGS = 50
_CONTENT_TYPE = "application/x-amz-json-1.1"
_APP_TYPES = (
    *("JupyterServer", "KernelGateway", "DetailedProfiler", "TensorBoard", "CodeEditor", "JupyterLab"),
    *("RStudioServerPro", "RSessionGateway", "Canvas"),
)
_NAME = r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"
_PATTERNS = {
    "DomainId": r"d-(-*[a-z0-9]){1,61}",
    "UserProfileName": _NAME,
    "SpaceName": _NAME,
    "AppName": _NAME,
}


class ControlPlaneApi:
    """The endpoint of the API. The methods with a capital first letter are its operations."""

    def __init__(self, world: Domain, on_link: Callable[[], None]) -> None:
        self.world = world
        self.listener = Listener(self._serve)
        self.calls: Counter[str] = Counter()
        self._on_link = on_link

    async def _serve(self, stream: Stream) -> None:
        while (request := await read_request(stream.reader)) is not None:
            body = await read_body(stream.reader, request.headers)
            status, answer = await self._answer(request, body)
            fields = [("x-amzn-RequestId", secrets.token_hex(16))]
            data = b"" if answer is None else json.dumps(answer).encode()
            await stream.send(response(status, data, _CONTENT_TYPE, fields))
            if request.wants_close:
                return

    async def _answer(self, request: Request, body: bytes) -> tuple[int, dict[str, Any] | None]:
        service, _, operation = request.headers.get("x-amz-target").partition(".")
        method = getattr(self, operation, None) if service == "SageMaker" and operation[:1].isupper() else None
        if method is None:
            return _error("UnknownOperationException", f"no such operation: {operation}")
        if not request.headers.get("authorization").startswith("AWS4-HMAC-SHA256 "):
            return _error("MissingAuthenticationTokenException", "Missing Authentication Token")
        self.calls[operation] += 1
        try:
            if operation in self.world.switches.denied:
                raise AccessDeniedError(
                    f"User: arn:aws:iam::{ACCOUNT}:role/local is not authorized to perform: sagemaker:{operation}"
                )
            params = json.loads(body or b"{}")
            _check_patterns(params)
            answer = method(params)
            return 200, await answer if inspect.isawaitable(answer) else answer
        except ServiceError as error:
            return _error(error.code, str(error))

    # ---- domain, user profile and space ------------------------------------------------------------------

    def _check_domain(self, params: dict[str, Any]) -> None:
        if params.get("DomainId") != self.world.domain_id:
            raise ResourceNotFoundError(f"Domain [{params.get('DomainId')}] does not exist")

    def _check_profile(self, params: dict[str, Any]) -> None:
        if params.get("UserProfileName") != self.world.user_profile_name:
            raise ResourceNotFoundError(f"UserProfile [{params.get('UserProfileName')}] does not exist")

    def _check_space(self, params: dict[str, Any]) -> None:
        if self.world.classic or params.get("SpaceName") != self.world.space_name:
            raise ResourceNotFoundError(f"Space [{params.get('SpaceName')}] does not exist")

    def DescribeDomain(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the only domain."""
        self._check_domain(params)
        world = self.world
        landing = "app:JupyterServer:" if world.classic else "studio::"
        portal = "DISABLED" if world.classic else "ENABLED"
        return {
            "DomainArn": world.arn("domain"),
            "DomainId": world.domain_id,
            "DomainName": "local",
            "Status": "InService",
            "CreationTime": world.created,
            "LastModifiedTime": world.created,
            "AuthMode": world.switches.auth_mode,
            "AppNetworkAccessType": "PublicInternetOnly",
            "DefaultUserSettings": {"DefaultLandingUri": landing, "StudioWebPortal": portal},
            "Url": (world.door if world.classic else world.web_ui).url,
        }

    def DescribeUserProfile(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the only user profile."""
        self._check_domain(params)
        self._check_profile(params)
        world = self.world
        return {
            "DomainId": world.domain_id,
            "UserProfileArn": world.arn("user-profile", world.user_profile_name),
            "UserProfileName": world.user_profile_name,
            "HomeEfsFileSystemUid": "200005",
            "Status": "InService",
            "CreationTime": world.created,
            "LastModifiedTime": world.created,
            "UserSettings": {},
        }

    def DescribeSpace(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the only space. As documented, its status does not depend on its app."""
        self._check_domain(params)
        self._check_space(params)
        world = self.world
        return {
            **self._space_summary(),
            "SpaceArn": world.arn("space", world.space_name),
            "HomeEfsFileSystemUid": "200005",
            "SpaceSettings": {
                "AppType": "JupyterLab",
                "JupyterLabAppSettings": {"DefaultResourceSpec": world.slot.default_resource_spec},
                "SpaceStorageSettings": {"EbsStorageSettings": {"EbsVolumeSizeInGb": 5}},
            },
            "OwnershipSettings": {"OwnerUserProfileName": world.user_profile_name},
            "SpaceSharingSettings": {"SharingType": "Private"},
            "Url": f"{world.web_ui.url}/?space={world.space_name}",
        }

    def _space_summary(self) -> dict[str, Any]:
        return {
            "DomainId": self.world.domain_id,
            "SpaceName": self.world.space_name,
            "Status": "InService",
            "CreationTime": self.world.created,
            "LastModifiedTime": self.world.created,
        }

    def ListSpaces(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the only space of new Studio; none for Classic."""
        world = self.world
        shown = not world.classic and params.get("DomainIdEquals", world.domain_id) == world.domain_id
        shown = shown and params.get("SpaceNameContains", "") in world.space_name
        summary = {
            **self._space_summary(),
            "SpaceSettingsSummary": {"AppType": "JupyterLab"},
            "SpaceSharingSettingsSummary": {"SharingType": "Private"},
            "OwnershipSettingsSummary": {"OwnerUserProfileName": world.user_profile_name},
        }
        return {"Spaces": [summary] if shown else []}

    # ---- apps --------------------------------------------------------------------------------------------

    def _owner(self, params: dict[str, Any]) -> tuple[str, str]:
        self._check_domain(params)
        if bool(params.get("UserProfileName")) == bool(params.get("SpaceName")):
            raise ValidationError("Exactly one of UserProfileName or SpaceName must be provided")
        if params.get("SpaceName"):
            self._check_space(params)
            return "SpaceName", params["SpaceName"]
        self._check_profile(params)
        return "UserProfileName", params["UserProfileName"]

    def _find_app(self, params: dict[str, Any]) -> AppRecord:
        _check_app_type(params)
        owner_key, owner = self._owner(params)
        wanted = (owner_key, owner, params.get("AppType"), params.get("AppName"))
        for record in self.world.records():
            if (record.owner_key, record.owner, record.app_type, record.app_name) == wanted:
                return record
        raise ResourceNotFoundError(f"App [{'/'.join(str(word) for word in wanted[1:])}] does not exist")

    def CreateApp(self, params: dict[str, Any]) -> dict[str, Any]:
        """Start the app of the space, or Classic's JupyterServer app."""
        _check_app_type(params)
        owner_key, _ = self._owner(params)
        slot = self.world.slot
        app_type = params["AppType"]
        # Seen on AWS since 2025 for KernelGateway. A domain of new Studio cannot run JupyterServer either.
        if app_type == "KernelGateway" or (app_type == "JupyterServer" and not self.world.classic):
            raise ValidationError(
                f"Invalid request provided: Invalid AppType [{app_type}]. This AppType has been deprecated."
            )
        if (app_type, owner_key) != (slot.app_type, slot.owner_key):
            raise ValidationError(f"App type [{app_type}] cannot be created for a {owner_key} here")
        if params.get("AppName") != "default":
            raise ValidationError(f"App name must be default for App with type [{app_type}]")
        spec = params.get("ResourceSpec") or {}
        if app_type == "JupyterLab" and not (
            spec.get("SageMakerImageArn") or spec.get("SageMakerImageVersionArn")
        ):
            raise ValidationError("SageMaker Image ARN is required for App with type [JupyterLab]")
        if slot.status in ALIVE:
            raise ResourceInUseError(f"App [{self._slot_arn()}] already exists")
        instance_type = spec.get("InstanceType")
        if instance_type in self.world.switches.no_quota:
            raise ResourceLimitExceededError(
                f"The account-level service limit 'Studio JupyterLab Apps running on {instance_type} instance' is "
                "0 Apps, with current utilization of 0 Apps and a request delta of 1 Apps. Please use AWS Service "
                "Quotas to request an increase for this quota."
            )
        record = slot.create(spec, params.get("RecoveryMode"))
        record.tags = _tags(params)
        return {"AppArn": self.world.app_arn(record)}

    def _slot_arn(self) -> str:
        assert self.world.slot.record is not None  # noqa: S101  # only called for an app that exists
        return self.world.app_arn(self.world.slot.record)

    def DescribeApp(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return an app. Deleted apps stay listed, as on AWS for about a day."""
        record = self._find_app(params)
        answer = {
            **record.summary(),
            "AppArn": self.world.app_arn(record),
            "DomainId": self.world.domain_id,
        }
        if record.recovery_mode is not None:
            answer["RecoveryMode"] = record.recovery_mode
        if record.failure_reason:
            answer["FailureReason"] = record.failure_reason
        if record.status == "InService":
            # As users report, the two are equal, so neither shows whether a user is active.
            answer["LastHealthCheckTimestamp"] = answer["LastUserActivityTimestamp"] = time.time()
        return answer

    async def DeleteApp(self, params: dict[str, Any]) -> dict[str, Any] | None:
        """Stop an app."""
        record = self._find_app(params)
        arn = self.world.app_arn(record)
        if record.status == "Deleted":
            raise ValidationError(f"App [{arn}] has already been deleted")
        if record.status == "Failed":
            raise ValidationError(f"App [{arn}] previously failed and was automatically deleted")
        if record.status == "Deleting":
            raise ResourceInUseError(f"App [{arn}] is being deleted")
        if record is self.world.slot.record:
            self.world.slot.delete()
        else:
            await self.world.delete_kernel_app(record.app_name)
        return None

    def ListApps(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return every app, in pages."""
        shown = [
            {"DomainId": self.world.domain_id, **record.summary()}
            for record in sorted(self.world.records(), key=lambda record: record.created)
        ]
        for name in ("DomainId", "UserProfileName", "SpaceName"):
            wanted = params.get(f"{name}Equals")
            shown = [app for app in shown if not wanted or app.get(name) == wanted]
        if params.get("SortOrder") == "Descending":
            shown.reverse()
        size = _bounded(params, "MaxResults", 1, 100, 10)
        start = _page_start(params)
        answer: dict[str, Any] = {"Apps": shown[start : start + size]}
        if len(shown) > start + size:
            answer["NextToken"] = f"page-{start + size}"
        return answer

    # ---- tags --------------------------------------------------------------------------------------------

    def _tagged(self, params: dict[str, Any]) -> AppRecord:
        for record in self.world.records():
            if self.world.app_arn(record) == params.get("ResourceArn") and record.status != "Deleted":
                return record
        raise ValidationError(f"Resource [{params.get('ResourceArn')}] does not exist")

    def AddTags(self, params: dict[str, Any]) -> dict[str, Any]:
        """Add or replace tags of an app. It can have 50 tags at most, like every resource on AWS."""
        record = self._tagged(params)
        tags = {**record.tags, **_tags(params)}
        if len(tags) > _MOST_TAGS:
            raise ResourceLimitExceededError(f"A resource cannot have more than {_MOST_TAGS} tags")
        record.tags = tags
        return {"Tags": _shown_tags(record)}

    def ListTags(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return an app's tags."""
        return {"Tags": _shown_tags(self._tagged(params))}

    def DeleteTags(self, params: dict[str, Any]) -> dict[str, Any]:
        """Remove tags of an app. A tag that it does not have is not an error."""
        record = self._tagged(params)
        record.tags = {key: value for key, value in record.tags.items() if key not in params.get("TagKeys", ())}
        return {}

    # ---- login -------------------------------------------------------------------------------------------

    def CreatePresignedDomainUrl(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return a new login link, even if the app is stopped, as users report."""
        link_seconds = _bounded(params, "ExpiresInSeconds", 5, 300, 300)
        login_seconds = _bounded(params, "SessionExpirationDurationInSeconds", 1800, 43200, 43200)
        self._check_domain(params)
        self._check_profile(params)
        if params.get("SpaceName"):
            self._check_space(params)
        url = make_link(self.world, params.get("SpaceName"), params.get("LandingUri"), link_seconds, login_seconds)
        self._on_link()
        return {"AuthorizedUrl": url}


def _check_app_type(params: dict[str, Any]) -> None:
    if params.get("AppType") not in _APP_TYPES:
        raise ValidationError(
            f"1 validation error detected: Value '{params.get('AppType')}' at 'appType' failed to satisfy "
            f"constraint: Member must satisfy enum value set: [{', '.join(_APP_TYPES)}]"
        )


def _check_patterns(params: dict[str, Any]) -> None:
    for name, pattern in _PATTERNS.items():
        value = params.get(name)
        if value is not None and (len(value) > 63 or not re.fullmatch(pattern, value)):
            raise ValidationError(
                f"1 validation error detected: Value '{value}' at '{name[0].lower()}{name[1:]}' failed to "
                f"satisfy constraint: Member must satisfy regular expression pattern: {pattern}"
            )


def _tags(params: dict[str, Any]) -> dict[str, str]:
    tags = {tag["Key"]: tag["Value"] for tag in params.get("Tags") or []}
    for text in (*tags, *tags.values()):
        if not re.fullmatch(r"[\w\s.:/=+\-@]*", text):
            raise ValidationError(
                f"1 validation error detected: Value '{text}' at 'tags' failed to satisfy constraint"
            )
    return tags


def _shown_tags(record: AppRecord) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in record.tags.items()]


def _bounded(params: dict[str, Any], name: str, least: int, most: int, default: int) -> int:
    value = params.get(name, default)
    if isinstance(value, int) and least <= value <= most:
        return value
    bound = f"greater than or equal to {least}" if value < least else f"less than or equal to {most}"
    raise ValidationError(
        f"1 validation error detected: Value '{value}' at '{name[0].lower()}{name[1:]}' failed to satisfy "
        f"constraint: Member must have value {bound}"
    )


def _page_start(params: dict[str, Any]) -> int:
    token = params.get("NextToken")
    if not token:
        return 0
    if not re.fullmatch(r"page-\d+", token):
        raise ValidationError("Invalid NextToken")
    return int(token[5:])


def _error(code: str, message: str) -> tuple[int, dict[str, Any]]:
    # Both spellings of the key occur in AWS services with this protocol.
    return 400, {"__type": code, "message": message, "Message": message}
