"""Collect the outputs of a cell from messages, as a notebook front end does. No I/O.

The rules are those of JupyterLab and nbclient:

- Consecutive pieces of one stream become one output. Carriage returns and backspaces in it have their effect.
- ``clear_output(wait=True)`` clears the outputs when the next output comes.
- A new value for a ``display_id`` changes all outputs with this id, also in cells that have finished.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import output_from_msg

from airflow_provider_smstudio.studio.protocol.messages import Message

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
"""Key of the widgets' state in a notebook, below ``metadata.widgets``."""

_RATE_NOTICE = re.compile(r"IOPub (data|message) rate exceeded\.\n")
_TERMINAL_PART = re.compile(r"[^\n\r\x08]+|[\n\r]|\x08+")


# Fields that a kernel may leave out. The output is kept, with these values instead.
_ABSENT: dict[str, Any] = {
    "name": "stdout",
    "text": "",
    "data": {},
    "metadata": {},
    "execution_count": None,
    "ename": "",
    "evalue": "",
    "traceback": [],
}


def rate_limit_notice(message: Message) -> str | None:
    """Return which rate limit was exceeded, if the server reports in this message that it dropped output.

    jupyter_server drops the output of a kernel that exceeds its rate limits. Instead it sends one text on stderr,
    in a separate message that begins with this text.

    :return: the exceeded limit, ``data rate`` or ``message rate``, or None for an ordinary message.
    """
    content = message["content"]
    if message["header"].get("msg_type") != "stream" or content.get("name") != "stderr":
        return None
    found = _RATE_NOTICE.match(content.get("text", ""))
    return f"{found.group(1)} rate" if found else None


def _node(msg_type: str, content: dict[str, Any]) -> NotebookNode:
    """Make an output as nbformat does, but without its validation if the types already prove it valid.

    Validation takes far longer than all other steps: 60 µs for each output and a millisecond for each megabyte.
    """
    node = NotebookNode(output_type=msg_type)
    if msg_type == "stream" and isinstance(content["name"], str) and isinstance(content["text"], str):
        node["name"], node["text"] = content["name"], content["text"]
        return node
    data, metadata = content["data"], content["metadata"]
    if msg_type == "display_data" and isinstance(data, dict) and isinstance(metadata, dict) and _all_text(data):
        node["metadata"], node["data"] = metadata, data
        return node
    try:
        validated: NotebookNode = output_from_msg({"header": {"msg_type": msg_type}, "content": content})
    except Exception:  # nbformat raises many types of errors for an output that breaks its rules
        return _mended(node, content)
    return validated


def _mended(node: NotebookNode, content: dict[str, Any]) -> NotebookNode:
    """Return an output that breaks nbformat's rules as text: an invalid output must not end a run."""
    if node["output_type"] == "stream":
        node["name"], node["text"] = "stdout" if content["name"] != "stderr" else "stderr", _text(content["text"])
    elif node["output_type"] == "error":
        lines = content["traceback"]
        node["ename"], node["evalue"] = _text(content["ename"]), _text(content["evalue"])
        node["traceback"] = [_text(line) for line in lines] if isinstance(lines, list) else [_text(lines)]
    else:
        data = content["data"] if isinstance(content["data"], dict) else {"text/plain": content["data"]}
        node["data"] = NotebookNode({mime: _text(value) for mime, value in data.items()})
        node["metadata"] = NotebookNode()
        if node["output_type"] == "execute_result":
            count = content.get("execution_count")
            node["execution_count"] = count if isinstance(count, int) else None
    return node


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _all_text(data: dict[str, Any]) -> bool:
    return all(isinstance(value, str) for value in data.values())


class StreamText:
    """The text of a stream as a terminal shows it at the end, built in linear time from pieces.

    Text after a carriage return replaces its line; if a newline follows instead, the line stays. A backspace
    removes one character of its line. Finished lines never change again.
    """

    def __init__(self) -> None:
        self._finished: list[str] = []
        self._line: list[str] = []
        self._returned = False

    def append(self, text: str) -> None:
        """Add the next piece."""
        if self._returned or "\r" in text or "\b" in text:
            for part in _TERMINAL_PART.findall(text):
                self._act(part)
            return
        finished, newline, line = text.rpartition("\n")
        if newline:
            self._finished += [*self._line, finished, newline]
            self._line = []
        if line:
            self._line.append(line)

    @property
    def text(self) -> str:
        """All text so far. Parts that were joined before are not joined again."""
        if len(self._finished) > 1:
            self._finished = ["".join(self._finished)]
        return "".join([*self._finished, *self._line, "\r" if self._returned else ""])

    def _act(self, part: str) -> None:
        """Apply one part: plain characters, a newline, a carriage return, or one or more backspaces."""
        if part == "\r":
            self._returned = True
        elif part == "\n":
            self._finished += [*self._line, "\r\n" if self._returned else "\n"]
            self._line, self._returned = [], False
        elif part[0] != "\b":
            if self._returned:
                self._line, self._returned = [], False
            self._line.append(part)
        elif not self._returned:  # at the line's start there is no character to remove
            self._take_away(len(part))

    def _take_away(self, count: int) -> None:
        while self._line and count >= len(self._line[-1]):
            count -= len(self._line.pop())
        if self._line and count:
            last = self._line.pop()
            # Cut long pieces in two, so that a series of backspaces does not copy them each time.
            start = max(len(last) - count - 4096, 0)
            self._line += [piece for piece in (last[:start], last[start : len(last) - count]) if piece]


class Displays:
    """The outputs of each ``display_id``, over all cells of a run."""

    def __init__(self) -> None:
        self._shown: dict[str, list[NotebookNode]] = {}

    def update(self, display_id: str, content: dict[str, Any]) -> bool:
        """Put new data into every output that shows this id.

        :return: whether at least one output shows it.
        """
        outputs = self._shown.get(display_id, [])
        for output in outputs:
            output["data"] = content.get("data") or {}
            output["metadata"] = content.get("metadata") or {}
        return bool(outputs)

    def show(self, display_id: str, output: NotebookNode) -> None:
        """Record that this output shows this id."""
        self._shown.setdefault(display_id, []).append(output)

    def shows_any(self, outputs: list[NotebookNode]) -> bool:
        """Return whether one of these outputs may still be updated."""
        shown = {id(output) for found in self._shown.values() for output in found}
        return bool(shown) and any(id(output) in shown for output in outputs)

    def forget(self, outputs: list[NotebookNode]) -> None:
        """Forget outputs that were cleared."""
        gone = {id(output) for output in outputs}
        for display_id, shown in self._shown.items():
            self._shown[display_id] = [output for output in shown if id(output) not in gone]


class CellOutputs:
    """The outputs of one cell.

    :param displays: the run's display ids, shared by all its cells.
    """

    def __init__(self, displays: Displays) -> None:
        self._displays = displays
        self._outputs: list[NotebookNode] = []
        self._stream: tuple[NotebookNode, StreamText] | None = None
        self._clear_before_next = False
        self._fetch: Callable[[], list[NotebookNode]] | None = None

    def seed(self, outputs: list[NotebookNode]) -> None:
        """Start with the outputs of a saved notebook. If the last is a stream, the next piece continues it."""
        self._outputs = list(outputs)
        if outputs and outputs[-1].get("output_type") == "stream":
            stream = StreamText()
            stream.append(outputs[-1]["text"])
            self._stream = (outputs[-1], stream)

    def receive(self, message: Message) -> NotebookNode | None:
        """Process an iopub message whose parent is the cell's request.

        :return: the piece of output in the message, or None if it has none (statuses, updates, clearing).
        """
        msg_type, content = message["header"].get("msg_type"), message["content"]
        if msg_type == "clear_output":
            if content.get("wait"):
                self._clear_before_next = True
            else:
                self.clear()
            return None
        display_id = (content.get("transient") or {}).get("display_id")
        if display_id and msg_type in ("display_data", "update_display_data", "execute_result"):
            self._displays.update(display_id, content)
        if msg_type not in ("stream", "display_data", "execute_result", "error"):
            return None
        output = _node(msg_type, {**_ABSENT, **content})
        if self._clear_before_next:
            self.clear()
        self._append(output, display_id)
        return output

    def clear(self) -> None:
        """Remove all outputs."""
        self._displays.forget(self._outputs)
        self._outputs = []
        self._stream = None
        self._clear_before_next = False
        self._fetch = None

    def collect(self) -> list[NotebookNode]:
        """Return the current outputs, for a notebook."""
        self._take_back()
        self._settle_stream()
        return list(self._outputs)

    def put_away(self, fetch: Callable[[], list[NotebookNode]]) -> bool:
        """Free the memory of the outputs, which the caller has stored, until more output comes.

        :param fetch: returns the stored outputs.
        :return: False if the outputs must stay in memory, because another cell may still update one of them.
        """
        if self._displays.shows_any(self._outputs):
            return False
        self._fetch, self._outputs, self._stream = fetch, [], None
        return True

    def _take_back(self) -> None:
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            self.seed(fetch())

    def _append(self, output: NotebookNode, display_id: str | None) -> None:
        self._take_back()
        if output["output_type"] == "stream":
            if self._stream is None or self._stream[0]["name"] != output["name"]:
                self._settle_stream()
                self._stream = (NotebookNode(output), StreamText())
                self._outputs.append(self._stream[0])
            self._stream[1].append(output["text"])
            return
        self._settle_stream()
        self._stream = None
        self._outputs.append(output)
        if display_id:
            self._displays.show(display_id, output)

    def _settle_stream(self) -> None:
        if self._stream is not None:
            node, stream = self._stream
            node["text"] = stream.text


class WidgetStates:
    """The states of a notebook's widgets, so that the saved notebook can show them.

    In a front end the ``Output`` widget captures output. Here such output stays with its cell.
    """

    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}
        self._buffers: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {}

    def seed(self, widgets: Mapping[str, Any]) -> None:
        """Start with the states that a saved notebook has below ``metadata.widgets``."""
        models = (widgets.get(WIDGET_STATE) or {}).get("state") or {}
        for comm_id, model in models.items():
            self._states[comm_id] = dict(model.get("state") or {})
            self._buffers[comm_id] = {tuple(item["path"]): item for item in model.get("buffers") or []}

    def receive(self, message: Message) -> None:
        """Process a ``comm_open`` or ``comm_msg`` message."""
        content = message["content"]
        data, comm_id = content.get("data"), content.get("comm_id")
        if not isinstance(data, dict) or not isinstance(data.get("state"), dict) or not comm_id:
            return
        self._states.setdefault(comm_id, {}).update(data["state"])
        buffers = self._buffers.setdefault(comm_id, {})
        for path in [path for path in buffers if path and path[0] in data["state"]]:
            del buffers[path]  # the new state has a new value there
        for path, buffer in zip(data.get("buffer_paths") or [], message["buffers"], strict=False):
            encoded = base64.b64encode(bytes(buffer)).decode()
            buffers[tuple(path)] = {"data": encoded, "encoding": "base64", "path": path}

    def metadata(self) -> dict[str, Any] | None:
        """Return the content of the notebook's ``metadata.widgets``, or None if there are no widgets."""
        models: dict[str, Any] = {}
        for comm_id, state in self._states.items():
            if "_model_name" not in state:
                continue
            models[comm_id] = {
                "model_name": state.get("_model_name"),
                "model_module": state.get("_model_module"),
                "model_module_version": state.get("_model_module_version"),
                "state": state,
            }
            if self._buffers[comm_id]:
                models[comm_id]["buffers"] = list(self._buffers[comm_id].values())
        if not models:
            return None
        return {WIDGET_STATE: {"state": models, "version_major": 2, "version_minor": 0}}
