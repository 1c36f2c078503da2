"""The types of Studio app that have a Jupyter server, and the form of IDs and names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from airflow_provider_smstudio.studio.errors import InvalidInputError


@dataclass(frozen=True)
class AppType:
    """All that differs between the types of app. A new type is a new entry in :data:`APP_TYPES`.

    :ivar name: the ``AppType`` of SageMaker's API.
    :ivar base_path: the path where the app serves Jupyter, on the host of the presigned URL.
    :ivar needs_space: whether the app belongs to a space. Otherwise it belongs to a user profile.
    :ivar sets_own_xsrf: whether the Jupyter server sets an XSRF cookie of its own at the login, for its base path.
    :ivar page: the page, below the base path, that sets the XSRF cookie if the login has not set one.
    :ivar gateway_tells_status: whether the gateway reports the app's status to a browser that is logged in.
    :ivar kernels_in_apps: whether each kernel runs in a KernelGateway app of its own.
    :ivar session_type: the type of the Jupyter sessions that the client creates.
    :ivar has_metrics: whether the server reports how full the instance's memory is.
    """

    name: str
    base_path: str
    needs_space: bool
    sets_own_xsrf: bool
    page: str
    gateway_tells_status: bool
    kernels_in_apps: bool
    session_type: str
    has_metrics: bool

    def title(self, space_name: str | None, user_profile_name: str) -> str:
        """Return the app's name in messages."""
        owner = f"space {space_name!r}" if self.needs_space else f"user profile {user_profile_name!r}"
        return f"the {self.name} app of {owner}"


JUPYTER_LAB = "JupyterLab"
"""The ``AppType`` of a space's app, in today's Studio."""
JUPYTER_SERVER = "JupyterServer"
"""The ``AppType`` of Studio Classic's app."""

APP_TYPES = {
    JUPYTER_LAB: AppType(
        name=JUPYTER_LAB,
        base_path="/jupyterlab/default",
        needs_space=True,
        sets_own_xsrf=True,
        page="/lab",
        gateway_tells_status=False,
        kernels_in_apps=False,
        session_type="console",
        has_metrics=True,
    ),
    JUPYTER_SERVER: AppType(
        name=JUPYTER_SERVER,
        base_path="/jupyter/default",
        needs_space=False,
        sets_own_xsrf=False,
        page="",
        gateway_tells_status=True,
        kernels_in_apps=True,
        session_type="notebook",
        has_metrics=False,
    ),
}
"""All types, by name."""

DOMAIN_ID = re.compile(r"d-(-*[a-z0-9]){1,61}")
"""A domain's ID; at most 63 characters."""

NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
"""The name of a space or of a user profile; at most 63 characters."""


def app_type_of(name: str) -> AppType:
    """Return the type of app with a name.

    :raises InvalidInputError: if there is no such type.
    """
    if name not in APP_TYPES:
        raise InvalidInputError(f"app_type must be one of {', '.join(APP_TYPES)}, not {name!r}")
    return APP_TYPES[name]
