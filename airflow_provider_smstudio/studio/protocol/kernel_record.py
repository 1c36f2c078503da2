"""The record that an IPython kernel keeps of what it did for a run: requests to it and their answers; pure.

Output sent into a broken websocket, or held back by jupyter_server's rate limiter, never reaches the client.
So the kernel itself keeps what it sent (:mod:`~airflow_provider_smstudio.studio.protocol.kernel_record_source`),
and the client
fetches it when it suspects a gap. The record is the ledger as well: which requests the kernel has taken and how
each ended, so that a worker which takes over runs nothing twice.

Every request here is a silent, empty ``execute_request`` with one user expression; the answer comes back in the
``execute_reply``, on the shell channel, which no rate limit touches. It leaves no name, history or output.
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
"""Part of the ``msg_id`` of every request to the record; the record takes no notice of such requests."""

VERSION = kernel_record_source.VERSION
"""Version of the kernel's side and of its answers."""

KEPT_TYPES = kernel_record_source.KEPT_TYPES
"""Types of the messages on iopub that a record keeps; of a status it notes the time."""

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""How long an answer may be by default, unless it is a single message."""

_EXPRESSION = "smstudio"
_MODULE = repr(kernel_record_source.MODULE)


@dataclass(frozen=True)
class Installed:
    """Answer to :func:`install_request`.

    :ivar ok: whether the kernel records the run from now on.
    :ivar reason: why it does not.
    :ivar resumed: whether it had a record of this run already.
    :ivar process: names the kernel's process, see
    :func:`kernel_probe_source.this_process`; None where it does not say.
    """

    ok: bool
    reason: str | None
    resumed: bool
    process: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Recorded:
    """One request of the run, as the kernel knows it.

    :ivar msg_id: the request's id.
    :ivar began: when the kernel began with it, in seconds since the epoch by the kernel's clock. A request that
        was put aside began as well; its reply is ``aborted``.
    :ivar ended: when its reply was sent; None until then.
    :ivar idle: when the kernel was done with it; None until then.
    :ivar kept: how many messages :func:`fetch_request` can get.
    :ivar kept_bytes: their size on the wire.
    :ivar dropped: how many messages were not kept, because of the limit; saving does not lower it.
    :ivar dropped_bytes: their size on the wire.
    :ivar reply: content of its ``execute_reply``; None until then.
    :ivar reply_header: header of that reply.
    :ivar reply_cut: whether the reply was huge; then only what tells how the request ended is left of it.
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
    :ivar broken: why the kernel stopped recording; what follows may then lack anything since.
    :ivar count: the execution count that the next cell gets.
    :ivar requests: the run's requests from index ``since`` on, in order of arrival.
    :ivar since: index of the first of them.
    :ivar total: how many requests there are in all.
    :ivar next: the ``since`` to go on with if the answer would have been too long; None if it is complete.
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

    :ivar messages: messages as they went over iopub, in order.
    :ivar next: the ``start`` to go on with; None if these were the last so far.
    :ivar dropped: how many messages of this request were not kept.
    """

    messages: list[Message]
    next: int | None
    dropped: int


def supported(kernel_info: Mapping[str, Any]) -> bool:
    """Tell from a ``kernel_info_reply``'s content whether the kernel may be able to keep a record."""
    language = kernel_info.get("language_info")
    name = language.get("name") if isinstance(language, Mapping) else None
    return kernel_info.get("implementation") == "ipython" and name == "python"


def install_request(session_id: str, msg_id: str, run_key: str, limit: int) -> Message:
    """Ask the kernel to record a run, or to go on recording it.

    :param session_id: the client session of this request and of the run's to come. A record takes the requests
        of every session that asked for this run.
    :param msg_id: contains :data:`HOUSEKEEPING`.
    :param run_key: names the run; the record of another run is thrown away.
    :param limit: how many bytes of messages the kernel may keep; with 0 it keeps the ledger alone.
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
    """Ask which requests the kernel has taken.

    :param session_id: the client session of this request.
    :param msg_id: contains :data:`HOUSEKEEPING`.
    :param since: index of the first request to tell about.
    :param max_bytes: how long the answer may be, unless it is a single entry.
    """
    return _question(session_id, msg_id, _call("state", int(since), int(max_bytes)))


def fetch_request(session_id: str, msg_id: str, of: str, start: int, max_bytes: int = MAX_ANSWER_BYTES) -> Message:
    """Ask for what the kernel sent for a request.

    :param session_id: the client session of this request.
    :param msg_id: contains :data:`HOUSEKEEPING`.
    :param of: ``msg_id`` of the request whose messages are wanted.
    :param start: index of the first message wanted.
    :param max_bytes: how long the answer may be, unless it is a single message.
    """
    return _question(session_id, msg_id, _call("fetch", of, int(start), int(max_bytes)))


def forget_request(session_id: str, msg_id: str, saved: Iterable[str]) -> Message:
    """Tell the kernel that the outputs of requests are saved; :func:`saved_metadata` needs no extra request.

    :param session_id: the client session of this request.
    :param msg_id: contains :data:`HOUSEKEEPING`.
    :param saved: ids of the requests.
    """
    return _question(session_id, msg_id, _call("forget", [str(item) for item in saved]))


def refuse_request(session_id: str, msg_id: str, of: str) -> Message:
    """Ask the kernel to put a request aside if it comes after all, so that it can be made anew under another id.

    A request that was sent into a connection that broke may still be on its way.

    :param session_id: the client session of this request.
    :param msg_id: contains :data:`HOUSEKEEPING`.
    :param of: ``msg_id`` of the request that shall not run any more.
    """
    return _question(session_id, msg_id, _call("refuse", of))


def saved_metadata(saved: Iterable[str]) -> dict[str, Any]:
    """Make the metadata by which the run's next ``execute_request`` tells what is saved.

    :param saved: ids of the requests whose outputs the kernel need not keep any longer.
    """
    return {kernel_record_source.METADATA_KEY: {"saved": list(saved)}}


def read_installed(reply: Mapping[str, Any]) -> Installed:
    """Read the content of the reply to :func:`install_request`.

    :raises WireError: when it is no such reply, or the request was put aside.
    """
    answer = _answer(reply)
    if answer is None:
        raise MessageError("the kernel's record answered nothing")
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
    :return: None when the kernel has no record of this run: it was started again, or serves another run.
    :raises WireError: when it is no such reply, or the request was put aside.
    """
    answer = _answer(reply)
    if answer is None or _take(answer, "run", str) != run_key:
        return None
    if _take(answer, "version", int) != VERSION:
        raise MessageError(f"the kernel's record is of version {answer['version']}, not {VERSION}")
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

    :return: None when the kernel has no record, or knows nothing of the request.
    :raises WireError: when it is no such reply, or the request was put aside.
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

    :return: how many messages the kernel has dropped; None when it has no record.
    :raises WireError: when it is no such reply, or the request was put aside.
    """
    answer = _answer(reply)
    return None if answer is None else _take(answer, "forgot", int)


def read_refused(reply: Mapping[str, Any]) -> bool:
    """Read the content of the reply to :func:`refuse_request`.

    :return: whether the request had not come, and will not run; False when it has come meanwhile.
    :raises WireError: when it is no such reply, the request was put aside, or the kernel has no record.
    """
    answer = _answer(reply)
    if answer is None:
        raise MessageError("the kernel's record is gone")
    refused: bool = _take(answer, "refused", bool)
    return refused


@cache
def _source() -> str:
    return Path(kernel_record_source.__file__).read_text(encoding="utf-8")


def _call(operation: str, *arguments: Any) -> str:
    """Write an expression that asks the record, and is None without one: an exception would leave traces."""
    written = ", ".join(ascii(argument) for argument in (operation, *arguments))
    found = f'__import__("sys").modules.get({_MODULE})'
    return f"(lambda m: None if m is None else m.answer({written}))({found})"


def _question(session_id: str, msg_id: str, expression: str) -> Message:
    if HOUSEKEEPING not in msg_id:
        raise ValueError(f"a request to the kernel's record needs {HOUSEKEEPING!r} in its msg_id, not {msg_id!r}")
    content = {
        "code": "",  # an expression passes by the notebook's hooks and transformers, code does not
        "silent": True,
        "store_history": False,
        "user_expressions": {_EXPRESSION: expression},
        "allow_stdin": False,
        "stop_on_error": False,
    }
    return request("execute_request", content, session=session_id, msg_id=msg_id)


def _answer(reply: Mapping[str, Any]) -> dict[str, Any] | None:
    """Find the record's answer in a reply; None if there is no record."""
    if reply.get("status") != "ok":
        raise MessageError(f"the kernel put the request to its record aside: {reply.get('status')!r}")
    value = _take(_take(reply, "user_expressions", dict), _EXPRESSION, dict)
    if value.get("status") != "ok":
        raise MessageError(f"the kernel's record raised {value.get('ename')}: {str(value.get('evalue'))[:500]}")
    text = _take(_take(value, "data", dict), "text/plain", str)
    try:
        answer = json.loads("null" if text == "None" else text)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"the kernel's record answered no JSON ({len(text)} characters): {error}") from error
    if answer is None:
        return None
    if not isinstance(answer, dict):
        raise MessageError(f"the kernel's record answered a {type(answer).__name__}")
    if "failed" in answer:
        raise MessageError(f"the kernel's record failed: {str(answer['failed'])[:500]}")
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
        raise MessageError(f"the kernel's record answered a bad buffer: {error}") from error
    return message


def _take(fields: Any, key: str, kind: type[Any]) -> Any:
    """Take a field that has to be there, of this type."""
    value = _take_or_none(fields, key, kind)
    if value is None:
        raise MessageError(f"the kernel's record answered without {key}")
    return value


def _take_or_none(fields: Any, key: str, kind: type[Any]) -> Any:
    if not isinstance(fields, Mapping):
        raise MessageError(f"the kernel's record answered a {type(fields).__name__} with no {key}")
    value = fields.get(key)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise MessageError(f"the kernel's record answered a {key} of type {type(value).__name__}")
    return value
