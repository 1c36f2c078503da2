"""The kernel record, which an IPython kernel keeps for a run: the requests to it and their answers. No I/O.

Output that the kernel sends into a broken websocket never reaches the client. The same is true for output that
jupyter_server's rate limiter drops. So the kernel itself keeps the messages that it sent
(:mod:`~airflow_provider_smstudio.studio.protocol.kernel_record_source`). The client fetches them when it suspects
a gap. The record also lists the requests that the kernel received, and how each of them ended. So a worker that
takes over the run runs nothing twice.

Every request here is a silent, empty ``execute_request`` with one user expression. The answer comes back in the
``execute_reply``, on the shell channel, which has no rate limit. The request leaves no name, history or output.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from airflow_provider_smstudio.studio.protocol import kernel_record_source
from airflow_provider_smstudio.studio.protocol.messages import Message, MessageError, request

HOUSEKEEPING = kernel_record_source.HOUSEKEEPING
"""Part of the ``msg_id`` of every request to the record. The record does not list these requests."""

VERSION = kernel_record_source.VERSION
"""Version of the code in the kernel and of its answers."""

KEPT_TYPES = kernel_record_source.KEPT_TYPES
"""Types of the iopub messages that a record keeps. From a status it keeps only the time."""

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Default maximum length of an answer. An answer with a single message may be longer."""

_EXPRESSION = "smstudio"
_MODULE = repr(kernel_record_source.MODULE)


@dataclass(frozen=True)
class Installed:
    """Answer to :func:`install_request`.

    :ivar ok: whether the kernel records the run from now on.
    :ivar reason: why the kernel does not record the run.
    :ivar resumed: whether the kernel already had a record of this run.
    :ivar process: the name of the kernel's process, see
        :func:`kernel_probe_source.this_process`; None if the kernel does not report it.
    """

    ok: bool
    reason: str | None
    resumed: bool
    process: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Recorded:
    """One request of the run, as the kernel record lists it.

    :ivar msg_id: the request's id.
    :ivar began: when the kernel began the request, in seconds since the epoch, by the kernel's clock. An aborted
        request has this time as well; its reply is ``aborted``.
    :ivar ended: when the kernel sent the reply; None until then.
    :ivar idle: when the kernel reported ``idle`` for it; None until then.
    :ivar kept: how many messages :func:`fetch_request` can get.
    :ivar kept_bytes: the size of these messages on the wire.
    :ivar dropped: how many messages the kernel did not keep, because of the limit. A save does not lower it.
    :ivar dropped_bytes: the size of the dropped messages on the wire.
    :ivar reply: content of its ``execute_reply``; None until then.
    :ivar reply_header: header of that reply.
    :ivar reply_cut: whether the reply was huge. Then it has only the fields that say how the request ended.
    """

    msg_id: str
    began: float | None
    ended: float | None
    idle: float | None
    kept: int
    kept_bytes: int
    dropped: int
    dropped_bytes: int
    reply: dict[str, Any] | None
    reply_header: dict[str, Any] | None
    reply_cut: bool


@dataclass(frozen=True)
class RecordState:
    """Answer to :func:`state_request`.

    :ivar run: key of the run.
    :ivar broken: why the kernel stopped recording, or None. After a stop, requests and messages may be missing.
    :ivar count: the execution count that the next cell gets.
    :ivar requests: the run's requests from index ``since`` on, in order of arrival.
    :ivar since: index of the first of them.
    :ivar total: how many requests the record lists in total.
    :ivar next: the ``since`` to continue with if this answer is incomplete, because of its length; else None.
    """

    run: str
    broken: str | None
    count: int
    requests: list[Recorded]
    since: int
    total: int
    next: int | None


@dataclass(frozen=True)
class Fetched:
    """Answer to :func:`fetch_request`.

    :ivar messages: messages as the kernel sent them on iopub, in order.
    :ivar next: the ``start`` to continue with; None if these were the last messages so far.
    :ivar dropped: how many messages of this request the kernel did not keep.
    """

    messages: list[Message]
    next: int | None
    dropped: int


def supported(kernel_info: Mapping[str, Any]) -> bool:
    """Return whether the kernel may be able to keep a record, from a ``kernel_info_reply``'s content."""
    language = kernel_info.get("language_info")
    name = language.get("name") if isinstance(language, Mapping) else None
    return kernel_info.get("implementation") == "ipython" and name == "python"


def install_request(session_id: str, msg_id: str, run_key: str, limit: int) -> Message:
    """Make a request to record a run, or to continue to record it.

    :param session_id: the client session of this request and of the run's later requests. A record lists the
        requests of every session that sent this request for the run.
    :param msg_id: contains :data:`HOUSEKEEPING`.
    :param run_key: names the run. The kernel deletes the record of another run.
    :param limit: how many bytes of messages the kernel may keep. With 0 it keeps only the list of requests.
    """
    known = f"old is not None and old.VERSION == {VERSION}"
    made = f'(b.exec(b.compile({_source()!a}, "<smstudio>", "exec", 0, True), new.__dict__), new)[1]'
    expression = (
        f"(lambda m: m.install(m, {run_key!a}, {session_id!a}, {int(limit)}))"
        f"((lambda old, new, b: old if {known} else {made})"
        f'(__import__("sys").modules.get({_MODULE}), __import__("types").ModuleType({_MODULE}), '
        '__import__("builtins")))'
    )
    return _question(session_id, msg_id, expression)


def state_request(session_id: str, msg_id: str, since: int = 0, max_bytes: int = MAX_ANSWER_BYTES) -> Message:
    """Make a request for the list of requests that the kernel received.

    :param session_id: the client session of this request.
    :param msg_id: contains :data:`HOUSEKEEPING`.
    :param since: index of the first request to return.
    :param max_bytes: maximum length of the answer. An answer with a single entry may be longer.
    """
    return _question(session_id, msg_id, _call("state", int(since), int(max_bytes)))


def fetch_request(session_id: str, msg_id: str, of: str, start: int, max_bytes: int = MAX_ANSWER_BYTES) -> Message:
    """Make a request for the messages that the kernel sent for one request.

    :param session_id: the client session of this request.
    :param msg_id: contains :data:`HOUSEKEEPING`.
    :param of: ``msg_id`` of the request whose messages are wanted.
    :param start: index of the first message to return.
    :param max_bytes: maximum length of the answer. An answer with a single message may be longer.
    """
    return _question(session_id, msg_id, _call("fetch", of, int(start), int(max_bytes)))


def forget_request(session_id: str, msg_id: str, saved: Iterable[str]) -> Message:
    """Make a request that says which outputs are saved. :func:`saved_metadata` needs no extra request.

    :param session_id: the client session of this request.
    :param msg_id: contains :data:`HOUSEKEEPING`.
    :param saved: ids of the requests whose outputs are saved.
    """
    return _question(session_id, msg_id, _call("forget", [str(item) for item in saved]))


def refuse_request(session_id: str, msg_id: str, of: str) -> Message:
    """Make a request to skip another request if that one still arrives. Then it can be sent under another id.

    A request that was sent just before the connection broke may still be on its way.

    :param session_id: the client session of this request.
    :param msg_id: contains :data:`HOUSEKEEPING`.
    :param of: ``msg_id`` of the request that the kernel must not run.
    """
    return _question(session_id, msg_id, _call("refuse", of))


def saved_metadata(saved: Iterable[str]) -> dict[str, Any]:
    """Return the metadata for the run's next ``execute_request`` that says which outputs are saved.

    :param saved: ids of the requests whose outputs the kernel no longer needs to keep.
    """
    return {kernel_record_source.METADATA_KEY: {"saved": list(saved)}}


def read_installed(reply: Mapping[str, Any]) -> Installed:
    """Read the content of the reply to :func:`install_request`.

    :raises MessageError: when it is not such a reply, or the kernel did not run the request.
    """
    answer = _answer(reply)
    if answer is None:
        raise MessageError("the kernel record returned no answer")
    return Installed(
        ok=_take(answer, "ok", bool),
        reason=_take_or_none(answer, "reason", str),
        resumed=_take(answer, "resumed", bool),
        process=_take_or_none(answer, "process", str),
    )


def read_state(reply: Mapping[str, Any], run_key: str) -> RecordState | None:
    """Read the content of the reply to :func:`state_request`.

    :param reply: the reply's content.
    :param run_key: names the run.
    :return: None when the kernel has no record of this run: it was restarted, or serves another run.
    :raises MessageError: when it is not such a reply, or the kernel did not run the request.
    """
    answer = _answer(reply)
    if answer is None or _take(answer, "run", str) != run_key:
        return None
    if _take(answer, "version", int) != VERSION:
        raise MessageError(f"the kernel record has version {answer['version']}, not {VERSION}")
    return RecordState(
        run=run_key,
        broken=_take_or_none(answer, "broken", str),
        count=_take(answer, "count", int),
        requests=[_recorded(item) for item in _take(answer, "requests", list)],
        since=_take(answer, "since", int),
        total=_take(answer, "total", int),
        next=_take_or_none(answer, "next", int),
    )


def read_fetched(reply: Mapping[str, Any]) -> Fetched | None:
    """Read the content of the reply to :func:`fetch_request`.

    :return: None when the kernel has no record, or its record does not list the request.
    :raises MessageError: when it is not such a reply, or the kernel did not run the request.
    """
    answer = _answer(reply)
    if answer is None:
        return None
    return Fetched(
        messages=[_message(item) for item in _take(answer, "messages", list)],
        next=_take_or_none(answer, "next", int),
        dropped=_take(answer, "dropped", int),
    )


def read_forgotten(reply: Mapping[str, Any]) -> int | None:
    """Read the content of the reply to :func:`forget_request`.

    :return: how many messages the kernel has deleted; None when it has no record.
    :raises MessageError: when it is not such a reply, or the kernel did not run the request.
    """
    answer = _answer(reply)
    return None if answer is None else _take(answer, "forgot", int)


def read_refused(reply: Mapping[str, Any]) -> bool:
    """Read the content of the reply to :func:`refuse_request`.

    :return: True when the request had not arrived, so it will not run; False when it has arrived.
    :raises MessageError: when it is not such a reply, the kernel did not run the request, or it has no record.
    """
    answer = _answer(reply)
    if answer is None:
        raise MessageError("the kernel no longer has its record")
    refused: bool = _take(answer, "refused", bool)
    return refused


@cache
def _source() -> str:
    return Path(kernel_record_source.__file__).read_text(encoding="utf-8")


def _call(operation: str, *arguments: Any) -> str:
    """Return an expression that calls the record. Without a record it is None: an exception would leave traces."""
    written = ", ".join(ascii(argument) for argument in (operation, *arguments))
    found = f'__import__("sys").modules.get({_MODULE})'
    return f"(lambda m: None if m is None else m.answer({written}))({found})"


def _question(session_id: str, msg_id: str, expression: str) -> Message:
    if HOUSEKEEPING not in msg_id:
        raise ValueError(f"a request to the kernel record needs {HOUSEKEEPING!r} in its msg_id, not {msg_id!r}")
    content = {
        "code": "",  # code would run the notebook's hooks and transformers; an expression does not
        "silent": True,
        "store_history": False,
        "user_expressions": {_EXPRESSION: expression},
        "allow_stdin": False,
        "stop_on_error": False,
    }
    return request("execute_request", content, session=session_id, msg_id=msg_id)


def _answer(reply: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record's answer from a reply, or None if there is no record."""
    if reply.get("status") != "ok":
        raise MessageError(f"the kernel did not run the request to its record: {reply.get('status')!r}")
    value = _take(_take(reply, "user_expressions", dict), _EXPRESSION, dict)
    if value.get("status") != "ok":
        raise MessageError(f"the kernel record raised {value.get('ename')}: {str(value.get('evalue'))[:500]}")
    text = _take(_take(value, "data", dict), "text/plain", str)
    try:
        answer = json.loads("null" if text == "None" else text)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"the kernel record's answer is not JSON ({len(text)} characters): {error}") from error
    if answer is None:
        return None
    if not isinstance(answer, dict):
        raise MessageError(f"the kernel record's answer is a {type(answer).__name__}, not an object")
    if "failed" in answer:
        raise MessageError(f"the kernel record failed: {str(answer['failed'])[:500]}")
    return answer


def _recorded(item: Any) -> Recorded:
    return Recorded(
        msg_id=_take(item, "id", str),
        began=_take_or_none(item, "began", float),
        ended=_take_or_none(item, "ended", float),
        idle=_take_or_none(item, "idle", float),
        kept=_take(item, "kept", int),
        kept_bytes=_take(item, "bytes", int),
        dropped=_take(item, "dropped", int),
        dropped_bytes=_take(item, "dropped_bytes", int),
        reply=_take_or_none(item, "reply", dict),
        reply_header=_take_or_none(item, "reply_header", dict),
        reply_cut=_take(item, "reply_cut", bool),
    )


def _message(item: Any) -> Message:
    message: Message = {"channel": "iopub"}
    for key in ("header", "parent_header", "metadata", "content"):
        message[key] = _take(item, key, dict)
    try:
        message["buffers"] = [base64.b64decode(text, validate=True) for text in _take(item, "buffers", list)]
    except (ValueError, TypeError) as error:
        raise MessageError(f"the kernel record's answer has an invalid buffer: {error}") from error
    return message


def _take(fields: Any, key: str, kind: type[Any]) -> Any:
    """Return a required field of this type."""
    value = _take_or_none(fields, key, kind)
    if value is None:
        raise MessageError(f"the kernel record's answer has no {key}")
    return value


def _take_or_none(fields: Any, key: str, kind: type[Any]) -> Any:
    if not isinstance(fields, Mapping):
        raise MessageError(f"the kernel record's answer has a {type(fields).__name__} without {key}")
    value = fields.get(key)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise MessageError(f"the kernel record's answer has a {key} of type {type(value).__name__}")
    return value
