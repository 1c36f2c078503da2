"""Notebooks in a Studio home as Airflow assets: their names in a DAG and in OpenLineage.

A notebook's URI is ``sagemaker-studio://<domain>/space/<space>/<path>``. In Studio Classic the home belongs to the
user profile, and the URI is ``sagemaker-studio://<domain>/user-profile/<user profile>/<path>``. The path is
percent-encoded.
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
    """Return the URI of a notebook in a Studio home, for ``Asset`` (Airflow 3) or ``Dataset`` (2.11).

    Airflow does not template assets: all parts must be known when the DAG is parsed.

    :param path: the path of the notebook, relative to the Studio home. Usually this is the ``output_path`` of the
        task that runs it.
    :param domain_id: the domain's ID, such as ``d-abc123``.
    :param space_name: the space that the home belongs to. For Studio Classic give the user profile instead.
    :param user_profile_name: Studio Classic only: the user profile that the home belongs to.
    :return: the URI, in plain ASCII.
    :raises InvalidInputError: if a part is missing, malformed or a template, or if the URI is too long.
    """
    if "{{" in path:
        raise InvalidInputError(
            f"{path!r} is a template, and assets are not templated: give a fixed path, or use an AssetAlias"
        )
    home = home_uri(domain_id, space_name=space_name, user_profile_name=user_profile_name)
    return uri_below(home, path)


def home_uri(domain_id: str, *, space_name: str | None, user_profile_name: str | None) -> str:
    """Return the URI of a Studio home, as in :func:`notebook_uri`.

    :raises InvalidInputError: if a part is missing or malformed.
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
    """Return the URI of a notebook.

    :param home: the URI of the Studio home.
    :param path: the path of the notebook, relative to the Studio home.
    :raises InvalidInputError: if the URI is too long for Airflow, or if the path is not inside the home.
    """
    uri = f"{home}/{quote(clean_path(path, 'path'))}"
    if len(uri) > _MAX_URI:
        raise InvalidInputError(
            f"the URI of {path!r} has {len(uri)} characters, percent-encoded, and Airflow accepts {_MAX_URI}"
        )
    return uri


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Convert a URI from a DAG to the form of :func:`notebook_uri`. Airflow calls this.

    :raises ValueError: if it is not the URI of a notebook.
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
    """Return an asset as an OpenLineage data set. Airflow's OpenLineage provider calls this.

    :param asset: an asset with a notebook's URI.
    :param lineage_context: not used.
    """
    return openlineage_dataset(asset.uri)


def openlineage_dataset(uri: str) -> Dataset:
    """Return a notebook as an OpenLineage data set. Namespace: the URI's scheme and authority. Name: its path."""
    from openlineage.client.event_v2 import Dataset

    parts = urlsplit(uri)
    return Dataset(namespace=f"{parts.scheme}://{parts.netloc}", name=parts.path.lstrip("/"))


def _check(name: str, value: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidInputError(f"{name} {value!r} is not valid in a notebook's URI: it must be a fixed name")
