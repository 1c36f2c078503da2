"""Jupyter messages and their websocket frames. No I/O.

Two formats exist. ``v1.kernel.websocket.jupyter.org`` (jupyter_server since 1.13, when both sides agree on
it) sends every message as one binary frame. Without a subprotocol, a message is a text frame with JSON, or a
binary frame with JSON and raw buffers. jupyter_server's documentation describes both formats, in "WebSocket kernel
wire protocols".
"""

from __future__ import annotations

import json
import struct
import uuid
from datetime import datetime, timezone
from itertools import pairwise
from typing import Any

V1 = "v1.kernel.websocket.jupyter.org"
"""Name of the binary subprotocol in ``Sec-WebSocket-Protocol``, in the offer and in the answer."""

MAX_REQUEST_BYTES = 10 * 1024 * 1024
"""The server closes the connection after a longer frame (tornado's default limit; measured)."""

_PARTS = (
    ("header", dict, False),
    ("parent_header", dict, True),
    ("metadata", dict, True),
    ("content", dict, True),
    ("buffers", list, True),
)

Message = dict[str, Any]
"""A Jupyter message: channel, header, parent_header, metadata, content, buffers."""


class MessageError(ValueError):
    """A frame that is not a Jupyter message, or an answer of the kernel record that has the wrong form."""


def request(
    msg_type: str,
    content: dict[str, Any],
    *,
    session: str,
    channel: str = "shell",
    msg_id: str | None = None,
) -> Message:
    """Make a request to a kernel.

    :param msg_type: such as ``execute_request``.
    :param content: the request's content.
    :param session: the client session's id. The server sends the replies to the websocket with this id.
    :param channel: ``shell``, ``control`` or ``stdin``.
    :param msg_id: the message's id. Replies and outputs name their parent by it. Random by default.
    """
    header = {
        "msg_id": msg_id or uuid.uuid4().hex,
        "msg_type": msg_type,
        "session": session,
        "username": "airflow",
        "date": datetime.now(timezone.utc).isoformat(),
        "version": "5.3",
    }
    return {
        "channel": channel,
        "header": header,
        "parent_header": {},
        "metadata": {},
        "content": content,
        "buffers": [],
    }


def encode(message: Message, subprotocol: str | None) -> bytes | str:
    """Turn a message into a frame's payload: bytes for a binary frame, str for a text frame.

    :param message: a message as :func:`request` makes it. Its buffers must be empty without a subprotocol.
    :param subprotocol: the subprotocol in the server's answer, :data:`V1` or None.
    """
    if subprotocol == V1:
        return _encode_v1(message)
    body = {key: message[key] for key in ("channel", "header", "parent_header", "metadata", "content")}
    return json.dumps({**body, "buffers": []}, allow_nan=False)


def decode(payload: bytes | str, subprotocol: str | None) -> Message:
    """Turn a frame's payload into a message.

    :param payload: str of a text frame, or bytes of a binary frame.
    :param subprotocol: the subprotocol in the server's answer, :data:`V1` or None.
    :raises MessageError: when it is not a Jupyter message.
    """
    try:
        if isinstance(payload, str):
            message = json.loads(payload)
        elif subprotocol == V1:
            message = _decode_v1(payload)
        else:
            message = _decode_default_binary(payload)
        return _complete(message)
    except (ValueError, KeyError, TypeError, IndexError, struct.error, RecursionError) as error:
        raise MessageError(f"not a Jupyter message ({len(payload)} characters or bytes): {error}") from error


def _complete(message: Any) -> Message:
    """Check the parts that every message must have, and add the optional parts that are missing."""
    for key, kind, optional in _PARTS:
        part = message[key] if not optional else message.get(key)
        if part is None and optional:
            part = message[key] = kind()
        if not isinstance(part, kind):
            raise TypeError(f"its {key} is of type {type(part).__name__}")
    message.setdefault("channel", None)
    return message  # type: ignore[no-any-return]  # checked above, json gives Any


def parent_id(message: Message) -> str | None:
    """Return the id of the request that a message answers (its parent's ``msg_id``), or None."""
    parent = message["parent_header"].get("msg_id")
    return parent if isinstance(parent, str) and parent else None


def _encode_v1(message: Message) -> bytes:
    parts = [message["channel"].encode()]
    parts += [
        json.dumps(message[key], allow_nan=False).encode()
        for key in ("header", "parent_header", "metadata", "content")
    ]
    parts += [bytes(buffer) for buffer in message["buffers"]]
    count = len(parts) + 1
    offsets = [8 * (count + 1)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return b"".join([struct.pack(f"<{count + 1}Q", count, *offsets), *parts])


def _decode_v1(payload: bytes) -> Message:
    (count,) = struct.unpack_from("<Q", payload)
    if not 6 <= count <= len(payload) // 8:
        raise ValueError(f"{count} offsets")
    offsets = struct.unpack_from(f"<{count}Q", payload, 8)
    if list(offsets) != sorted(offsets) or offsets[-1] > len(payload):
        raise ValueError("offsets out of order")
    view = memoryview(payload)
    parts = [view[start:end] for start, end in pairwise(offsets)]
    # A cell can print bytes that are not UTF-8.
    header, parent_header, metadata, content = (json.loads(str(part, "utf-8", "replace")) for part in parts[1:5])
    return {
        "channel": bytes(parts[0]).decode(),
        "header": header,
        "parent_header": parent_header,
        "metadata": metadata,
        "content": content,
        "buffers": [bytes(part) for part in parts[5:]],
    }


def _decode_default_binary(payload: bytes) -> Message:
    (count,) = struct.unpack_from(">I", payload)
    if not 1 <= count <= len(payload) // 4:
        raise ValueError(f"{count} parts")
    offsets = [*struct.unpack_from(f">{count}I", payload, 4), len(payload)]
    if offsets != sorted(offsets):
        raise ValueError("offsets out of order")
    parts = [payload[start:end] for start, end in pairwise(offsets)]
    message: Message = json.loads(parts[0])
    message["buffers"] = parts[1:]
    return message
