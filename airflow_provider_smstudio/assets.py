"""Notebooks in a Studio home as Airflow's assets: how they are named, in a DAG and towards OpenLineage.

A notebook's URI is ``sagemaker-studio://<domain>/space/<space>/<path>``; in Studio Classic, where the home is the
user profile's, ``sagemaker-studio://<domain>/user-profile/<user profile>/<path>``. Its path is percent-encoded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from airflow_provider_smstudio.studio.app_types import DOMAIN_ID, NAME
from airflow_provider_smstudio.studio.errors import InvalidInputError
from airflow_provider_smstudio.studio.notebook.paths import clean_path

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from openlineage.client.event_v2 import Dataset

SCHEME = "sagemaker-studio"

_MAX_URI = 1500  # Airflow 3's limit
_PATH = re.compile(rf"/(space|user-profile)/({NAME.pattern})/(.*)", re.S)


def notebook_uri(
    path: str,
    *,
    domain_id: str,
    space_name: str | None = None,
    user_profile_name: str | None = None,
) -> str:
    """Write the URI of a notebook in a Studio home, for ``Asset`` (Airflow 3) or ``Dataset`` (2.11).

    Assets are not templated: all parts must be known when the DAG is parsed.

    :param path: the notebook, below the Studio home; mostly the ``output_path`` of the task that runs it.
    :param domain_id: the domain's ID, such as ``d-abc123``.
    :param space_name: the space whose home it is in; for Studio Classic give the user profile in its place.
    :param user_profile_name: Studio Classic: the user profile whose home it is in.
    :return: the URI; plain ASCII.
    :raises InvalidInputError: when a part is missing, malformed or a template, or the URI is too long.
    """
    if "{{" in path:
        raise InvalidInputError(
            f"{path!r} is a template, and assets are not templated: give a fixed path, or use an AssetAlias"
        )
    home = home_uri(domain_id, space_name=space_name, user_profile_name=user_profile_name)
    return uri_below(home, path)


def home_uri(domain_id: str, *, space_name: str | None, user_profile_name: str | None) -> str:
    """Write the URI of a Studio home, as in :func:`notebook_uri`.

    :raises InvalidInputError: when a part is missing or malformed.
    """
    if (space_name is None) == (user_profile_name is None):
        raise InvalidInputError(
            "a notebook's URI needs space_name, or user_profile_name for Studio Classic, and not both"
        )
    _check("domain_id", domain_id, DOMAIN_ID)
    if space_name is not None:
        _check("space_name", space_name, NAME)
        return f"{SCHEME}://{domain_id}/space/{space_name}"
    _check("user_profile_name", user_profile_name, NAME)
    return f"{SCHEME}://{domain_id}/user-profile/{user_profile_name}"


def uri_below(home: str, path: str) -> str:
    """Write a notebook's URI.

    :param home: the URI of the Studio home.
    :param path: the notebook, below the Studio home.
    :raises InvalidInputError: when it is too long for Airflow, or no path below the home.
    """
    uri = f"{home}/{quote(clean_path(path, 'path'))}"
    if len(uri) > _MAX_URI:
        raise InvalidInputError(
            f"the URI of {path!r} has {len(uri)} characters, percent-encoded, and Airflow takes {_MAX_URI}"
        )
    return uri


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Bring a URI that somebody wrote by hand into the form of :func:`notebook_uri`; Airflow calls this.

    :raises ValueError: when it is no notebook's URI.
    """
    match = _PATH.fullmatch(uri.path)
    if not match or not match[4] or not DOMAIN_ID.fullmatch(uri.netloc) or uri.query:
        raise ValueError(
            f"{uri.geturl()!r} must look like {SCHEME}://d-abc123/space/my-space/reports/daily.ipynb "
            f"(or /user-profile/jane-doe/ in place of /space/my-space/), percent-encoded"
        )
    path = quote(clean_path(unquote(match[4], errors="strict"), "path"))
    return uri._replace(path=f"/{match[1]}/{match[2]}/{path}")


def convert_asset_to_openlineage(asset: Any, lineage_context: object) -> Dataset:
    """Name an asset as OpenLineage does; Airflow's OpenLineage provider calls this.

    :param asset: an asset with a notebook's URI.
    :param lineage_context: not used.
    """
    return openlineage_dataset(asset.uri)


def openlineage_dataset(uri: str) -> Dataset:
    """Name a notebook as OpenLineage does: the namespace is the URI's authority, the name its path."""
    from openlineage.client.event_v2 import Dataset

    parts = urlsplit(uri)
    return Dataset(namespace=f"{parts.scheme}://{parts.netloc}", name=parts.path.lstrip("/"))


def _check(name: str, value: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidInputError(f"{name} {value!r} is not valid in a notebook's URI: it must be a fixed name")
