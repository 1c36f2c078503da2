"""The checks of the Test button in the connection form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_provider_smstudio._compat import AirflowNotFoundException
from airflow_provider_smstudio.studio.app_types import APP_TYPES, JUPYTER_LAB
from airflow_provider_smstudio.studio.errors import ControlPlaneError, StudioError

if TYPE_CHECKING:
    from airflow_provider_smstudio.hooks.studio import SageMakerStudioHook, StudioSettings

_DENIED = ("AccessDenied", "AccessDeniedException")


class _Unfit(Exception):  # noqa: N818 - an answer, not an error of this program
    """A reason why notebooks cannot run there. Its text is the result of the test."""


def check_connection(hook: SageMakerStudioHook) -> tuple[bool, str]:
    """Check a connection without starting anything and without logging in.

    Never raises an error, and never returns a secret.

    :param hook: the hook whose connection is tested.
    :return: True if no check has failed, and all findings as one text.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    findings: list[str] = []
    try:
        settings = hook.settings
        for check in (_domain, _user_profile, _space, _app):
            finding = check(hook, settings)
            if finding:
                findings.append(finding)
    except (_Unfit, StudioError, AirflowNotFoundException, BotoCoreError, ClientError) as err:
        # From the second line on, AWS repeats a badly signed request, including its session token.
        return False, ". ".join([*findings, str(err).splitlines()[0]])
    except Exception as err:
        # The text of an unknown error may contain anything, so only its class is shown.
        hook.log.warning("Testing the connection failed", exc_info=True)
        return False, ". ".join([*findings, f"Unexpected {type(err).__name__}; the log has the details"])
    return True, ". ".join(findings)


def _describe(what: str, call: Callable[..., dict[str, Any]], **ids: str) -> dict[str, Any] | None:
    """Return the SageMaker API's description of a resource; None if the credentials do not permit the call.

    :raises _Unfit: if the resource does not exist or is not in service.
    :raises ClientError: if AWS does not accept the credentials, or if the call failed for another reason.
    """
    from botocore.exceptions import ClientError

    try:
        answer = call(**ids)
    except ClientError as err:
        code = err.response.get("Error", {}).get("Code", "")
        if code in _DENIED:
            return None
        if code in ("ResourceNotFound", "ResourceNotFoundException"):
            raise _Unfit(f"{what} does not exist in this account and region") from err
        raise
    status = answer.get("Status")
    if status != "InService":
        raise _Unfit(f"{what} is {status}: {answer.get('FailureReason') or 'no reason given'}")
    return answer


def _not_permitted(what: str, action: str) -> str:
    return f"{what}: not checked, the credentials lack sagemaker:{action}"


def _domain(hook: SageMakerStudioHook, settings: StudioSettings) -> str:
    what = f"Domain {settings.domain_id}"
    domain = _describe(what, hook.sagemaker_client.describe_domain, DomainId=settings.domain_id)
    if domain is None:
        return _not_permitted(what, "DescribeDomain")
    if domain.get("AuthMode") == "SSO":
        raise _Unfit(
            f"{what} logs in with IAM Identity Center, for which AWS creates no presigned URLs; "
            "use a domain with AuthMode IAM"
        )
    return f"{what} is in service"


def _user_profile(hook: SageMakerStudioHook, settings: StudioSettings) -> str:
    what = f"User profile {settings.user_profile_name}"
    profile = _describe(
        what,
        hook.sagemaker_client.describe_user_profile,
        DomainId=settings.domain_id,
        UserProfileName=settings.user_profile_name,
    )
    if profile is None:
        return _not_permitted(what, "DescribeUserProfile")
    return f"{what} is in service"


def _space(hook: SageMakerStudioHook, settings: StudioSettings) -> str:
    if settings.space_name is None:
        return ""
    what = f"Space {settings.space_name}"
    space = _describe(
        what,
        hook.sagemaker_client.describe_space,
        DomainId=settings.domain_id,
        SpaceName=settings.space_name,
    )
    if space is None:
        return _not_permitted(what, "DescribeSpace")
    app_type = space.get("SpaceSettings", {}).get("AppType") or JUPYTER_LAB
    if app_type != settings.app_type:
        raise _Unfit(f"{what} is made for {app_type}, not for {settings.app_type}")
    private = space.get("SpaceSharingSettings", {}).get("SharingType") == "Private"
    owner = space.get("OwnershipSettings", {}).get("OwnerUserProfileName")
    if private and owner and owner != settings.user_profile_name:
        raise _Unfit(f"{what} is private to the user profile {owner}, not to {settings.user_profile_name}")
    return f"{what} is in service"


def _app(hook: SageMakerStudioHook, settings: StudioSettings) -> str:
    owner = "The space's" if APP_TYPES[settings.app_type].needs_space else "The"
    what = f"{owner} {settings.app_type} app"
    try:
        state = hook.get_studio().describe_app()
    except ControlPlaneError as err:
        if err.code in _DENIED:
            return _not_permitted(what, "DescribeApp")
        raise
    if state.status in ("Deleted", "NotFound"):
        return f"{what} is stopped; start it before a run"
    reason = f" ({state.failure_reason})" if state.failure_reason else ""
    return f"{what} is {state.status}{reason}"
