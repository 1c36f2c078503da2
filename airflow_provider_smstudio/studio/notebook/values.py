"""Named values that a notebook publishes by displaying them. No I/O.

Any kernel can display JSON with metadata. The package's own form is ``application/json`` with the metadata
``{"smstudio": {"name": ...}}``. This module also understands scrapbook's ``glue`` and papermill's old ``record``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from airflow_provider_smstudio.studio.errors import HandedValueError
from airflow_provider_smstudio.studio.notebook.document import METADATA_KEY

MOST_BYTES = 48 * 1024
"""Maximum size of all values of a run together, as JSON. Airflow keeps them in its database."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_TAKEN = ("return_value", "skipmixin_key")
_SCRAPS = ("application/scrapbook.scrap.json+json", "application/scrapbook.scrap.text+json")
_RECORD = "application/papermill.record+json"


def values_of(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that an output publishes, by name. Most outputs publish none."""
    if output.get("output_type") not in ("display_data", "execute_result"):
        return {}
    data, metadata = output.get("data") or {}, output.get("metadata") or {}
    own = metadata.get(METADATA_KEY)
    if isinstance(own, Mapping) and "name" in own and "application/json" in data:
        return {str(own["name"]): data["application/json"]}
    for mime in _SCRAPS:
        scrap = data.get(mime)
        if isinstance(scrap, Mapping) and "name" in scrap and "data" in scrap:
            return {str(scrap["name"]): scrap["data"]}
    record = data.get(_RECORD)
    return {str(name): value for name, value in record.items()} if isinstance(record, Mapping) else {}


def add(known: Mapping[str, Any], new: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return all values of a run together. If two have the same name, the later one counts.

    :param known: the values so far.
    :param new: the new values.
    :param where: names the cell, for messages.
    :raises HandedValueError: when a name cannot be an XCom key, a value is not JSON, or the values are too large.
    """
    for name in new:
        if not _NAME.fullmatch(name) or name in _TAKEN or name.startswith("_link_"):
            raise HandedValueError(
                f"{where} publishes a value under the name {name!r}, which is not allowed: use at most 128 "
                "letters, digits, '_', '.' and '-', and not 'return_value'",
                value_name=name,
            )
    together = {**known, **new}
    try:
        size = len(json.dumps(together, allow_nan=False).encode())
    except ValueError as error:
        name = ", ".join(new)
        raise HandedValueError(
            f"{where} publishes {name!r}, which is not JSON: {error}", value_name=name
        ) from None
    if size > MOST_BYTES:
        name = ", ".join(new)
        raise HandedValueError(
            f"with {name!r} of {where}, the values that the notebook publishes have {size / 1024:.0f} KiB; the "
            f"limit is {MOST_BYTES // 1024} KiB. Write it to a file or to S3, and publish the path instead",
            value_name=name,
        )
    return together
