"""Paths below the Studio home. A separate module, so that a DAG file can import it without nbformat."""

from __future__ import annotations

from airflow_provider_smstudio.studio.errors import InvalidInputError


def clean_path(path: str, what: str) -> str:
    """Normalise a path below the Studio home.

    :param path: with or without a leading slash.
    :param what: the name of the argument, for the message.
    :raises InvalidInputError: when the path is empty or leads out of the home.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\\" in path or "\x00" in path:
        raise InvalidInputError(
            f"{what} {path!r} must be a path below the Studio home, such as 'reports/daily.ipynb', without '..'"
        )
    return "/".join(parts)
