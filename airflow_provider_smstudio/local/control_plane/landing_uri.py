"""The target of a login link: the rules for ``LandingUri``."""

from __future__ import annotations

import time

from airflow_provider_smstudio.local.control_plane.errors import ValidationError
from airflow_provider_smstudio.local.control_plane.state import Domain
from airflow_provider_smstudio.local.gateway.gateway import Gateway
from airflow_provider_smstudio.local.gateway.login import LoginLink


def make_link(
    world: Domain, space_name: str | None, landing_uri: str | None, link_seconds: float, login_seconds: float
) -> str:
    """Return a new presigned URL, for CreatePresignedDomainUrl.

    :raises ValidationError: if the domain uses IAM Identity Center, or if the landing URI is not valid here.
    """
    if world.switches.auth_mode != "IAM":
        # Documented as not available. AWS's own message is unknown.
        raise ValidationError("CreatePresignedDomainUrl is not supported for domains whose AuthMode is SSO")
    scheme, app_type, deep_link = _split(landing_uri)
    door, landing = _destination(world, space_name, scheme, app_type, deep_link)
    switches = world.switches
    if switches.link_seconds is not None:
        link_seconds = switches.link_seconds
    if switches.login_seconds is not None:
        login_seconds = switches.login_seconds
    claims: dict[str, object] = {
        "sub": world.domain_id,
        "userProfileName": world.user_profile_name,
        "spaceName": space_name,
        "landingUriScheme": scheme or "app",
        "landingUriAppType": app_type or world.slot.app_type,
        "landingUriDeepLink": deep_link,
        "partnerAppUserIdentitySource": "IamSessionName",
        "partnerAppUserIdentity": "local",
    }
    link = LoginLink(door.name, landing, time.monotonic() + link_seconds, login_seconds)
    return f"{door.url}/auth?token={world.logins.new_link(link, claims)}"


def _split(landing_uri: str | None) -> tuple[str, str, str]:
    """Return scheme, app type and deep link of ``app:<type>:<path>`` or ``studio::<path>``."""
    if not landing_uri:
        return "", "", ""
    scheme, _, rest = landing_uri.partition(":")
    app_type, colon, deep_link = rest.partition(":")
    if scheme not in ("app", "studio") or not colon or len(landing_uri) > 1023:
        raise ValidationError(f"Invalid landing uri [{landing_uri}]")
    return scheme, app_type, deep_link


def _destination(
    world: Domain, space_name: str | None, scheme: str, app_type: str, deep_link: str
) -> tuple[Gateway, str]:
    own = world.slot.app_type
    if scheme == "app" and not space_name and app_type != "JupyterServer":
        # Seen on AWS in 2026 for JupyterLab.
        raise ValidationError(
            f"Provided app type {app_type} is invalid for provided url type app for personal apps"
        )
    if scheme == "app" and app_type != own:
        raise ValidationError(f"Provided app type {app_type} is invalid here, where {own} is")
    to_app = world.classic or bool(space_name)
    if scheme == "studio" or not to_app:
        return world.web_ui, "/" + deep_link.lstrip("/")
    path = deep_link.lstrip("/") or "lab"
    return world.door, f"{world.slot.base}/{path}"
