"""Streams as a terminal leaves them, displays, clearing, rate limits and widgets, from literal messages."""

from __future__ import annotations

import random
from copy import deepcopy

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, output_from_msg

from airflow_provider_smstudio.studio.notebook.outputs import (
    WIDGET_STATE,
    CellOutputs,
    Displays,
    StreamText,
    WidgetStates,
    rate_limit_notice,
)
from airflow_provider_smstudio.studio.protocol.messages import request
from tests.helpers import messages as m

REQUEST = request("execute_request", {"code": "1"}, session="s")


def terminal(text):
    """The rules once more, one character at a time: what StreamText must come to."""
    finished, line, returned = "", "", False
    for character in text:
        if character == "\n":
            finished, line, returned = finished + line + ("\r\n" if returned else "\n"), "", False
        elif character == "\r":
            returned = True
        elif character == "\b":
            line = line if returned else line[:-1]
        else:
            line, returned = ("" if returned else line) + character, False
    return finished + line + ("\r" if returned else "")


def written(*pieces):
    stream = StreamText()
    for piece in pieces:
        stream.append(piece)
    return stream.text


def collected(*messages):
    cell = CellOutputs(Displays())
    for message in messages:
        cell.receive(message)
    return cell.collect()


def streams(*messages):
    return [(output["name"], output["text"]) for output in collected(*messages)]


def shown(outputs):
    return [output["data"]["text/plain"] for output in outputs]


# --- The text of a stream


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a\nb", "a\nb"),
        ("10%\r20%\r30%", "30%"),
        ("10%\r20%\n", "20%\n"),
        ("long line\rxy\n", "xy\n"),
        ("first\nsecond\rthird", "first\nthird"),
        ("windows\r\nlines\r\n", "windows\r\nlines\r\n"),
        ("twice\r\r\n", "twice\r\n"),
        ("waiting\r", "waiting\r"),
        ("\rx", "x"),
        ("\r", "\r"),
        ("abc\b\bX", "aX"),
        ("abc\b\b\b\b\bX", "X"),
        ("\bX", "X"),
        ("a\n\b\bX", "a\nX"),
        ("ab\rc\bd", "d"),
        ("ab\rc\b", ""),
        ("ab\r\bc", "c"),
        ("ab\r\b\n", "ab\r\n"),
        ("ü😀\b!", "ü!"),
        ("a\x0bb\x0cc\u2028d\x85e", "a\x0bb\x0cc\u2028d\x85e"),
    ],
)
def test_control_characters_act_as_in_a_terminal(text, expected):
    assert written(text) == expected
    assert terminal(text) == expected
    for at in range(len(text) + 1):
        assert written(text[:at], text[at:]) == expected
    assert written(*text) == expected


def test_any_text_in_any_pieces_gives_what_one_character_at_a_time_gives():
    chance = random.Random(20261106)
    for _ in range(4000):
        text = "".join(chance.choices("ab\n\r\b", weights=(4, 4, 2, 2, 2), k=chance.randint(0, 24)))
        cuts = sorted(chance.choices(range(len(text) + 1), k=chance.randint(0, 5)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert written(*pieces) == terminal(text), (text, pieces)


def test_text_may_be_read_between_the_pieces():
    chance = random.Random(7)
    for _ in range(500):
        stream, so_far = StreamText(), ""
        for _ in range(chance.randint(1, 8)):
            piece = "".join(chance.choices("ab\n\r\b", k=chance.randint(0, 4)))
            stream.append(piece)
            so_far += piece
            assert stream.text == terminal(so_far)


def test_long_lines_and_many_backspaces():
    for count in (1, 4095, 4096, 4097, 9000, 20_000):
        text = "x" * 6000 + "y" * 6000
        assert written(text, *["\b"] * count, "Z") == text[: max(12_000 - count, 0)] + "Z"
        assert written("x" * 6000, "y" * 6000, "\b" * count, "Z") == text[: max(12_000 - count, 0)] + "Z"


def test_backspaces_one_by_one_do_not_copy_a_long_line_each_time():
    stream = StreamText()
    stream.append("x" * 1_000_000)
    stream.append("\b")
    head = stream._line[0]
    for _ in range(2000):
        stream.append("\b")
        assert stream._line[0] is head
        assert sum(map(len, stream._line[1:])) <= 4096
    assert stream.text == "x" * 997_999


def held(stream):
    return sum(map(len, stream._line))


def test_an_unfinished_line_is_kept_in_pieces_and_not_joined_at_each_piece():
    stream = StreamText()
    for number in range(1000):
        stream.append("x")
        assert len(stream._line) == number + 1
    stream.append("\rnew")
    assert held(stream) == 3  # what a carriage return overwrote is not kept


def test_progress_bars_are_not_kept_line_by_line():
    stream = StreamText()
    for percent in range(1000):
        stream.append(f"\r{percent / 10:5.1f} %")
        assert held(stream) == 7
    assert stream.text == " 99.9 %"


# --- Streams in a cell


def test_pieces_of_one_stream_are_one_output():
    pieces = [m.stream(REQUEST, text) for text in ("L0", "\n", "L1\nL", "2")]
    assert streams(*pieces) == [("stdout", "L0\nL1\nL2")]


def test_another_stream_or_output_between_makes_a_new_output():
    out, err = m.stream(REQUEST, "o"), m.stream(REQUEST, "e", "stderr")
    assert streams(out, err, err, out) == [("stdout", "o"), ("stderr", "ee"), ("stdout", "o")]
    outputs = collected(out, out, m.display_data(REQUEST, "x"), out, out, out)
    assert [output["output_type"] for output in outputs] == ["stream", "display_data", "stream"]
    assert [output.get("text") for output in outputs] == ["oo", None, "ooo"]


def test_an_update_of_a_display_does_not_part_a_stream():
    update = m.update_display_data(REQUEST, "new", "d")
    assert streams(m.stream(REQUEST, "a"), update, m.stream(REQUEST, "b")) == [("stdout", "ab")]


def test_carriage_returns_act_across_messages_but_not_across_outputs():
    first, second = m.stream(REQUEST, "10%"), m.stream(REQUEST, "\r20%")
    assert streams(first, second) == [("stdout", "20%")]
    between = m.display_data(REQUEST, "x")
    assert [output.get("text") for output in collected(first, between, second)] == ["10%", None, "20%"]


def test_collecting_again_gives_what_came_since():
    cell = CellOutputs(Displays())
    cell.receive(m.stream(REQUEST, "a"))
    assert cell.collect()[0]["text"] == "a"
    cell.receive(m.stream(REQUEST, "b\rc"))
    assert [output["text"] for output in cell.collect()] == ["c"]


def test_a_received_piece_is_told_as_it_came():
    cell = CellOutputs(Displays())
    first = cell.receive(m.stream(REQUEST, "a"))
    piece = cell.receive(m.stream(REQUEST, "\rb"))
    cell.receive(m.stream(REQUEST, "c"))
    cell.collect()
    assert first == {"output_type": "stream", "name": "stdout", "text": "a"}
    assert piece == {"output_type": "stream", "name": "stdout", "text": "\rb"}


def test_every_output_is_valid_in_a_notebook():
    outputs = collected(
        m.stream(REQUEST, "o"),
        m.display_data(REQUEST, "d", "id", {"isolated": True}),
        m.execute_result(REQUEST, "r", 7, "id2"),
        m.error(REQUEST),
        m.update_display_data(REQUEST, "D", "id", {"isolated": False}),
    )
    assert outputs[1] == {
        "output_type": "display_data",
        "data": {"text/plain": "D"},
        "metadata": {"isolated": False},
    }
    assert outputs[2]["execution_count"] == 7
    assert outputs[3] == {
        "output_type": "error",
        "ename": "ZeroDivisionError",
        "evalue": "division by zero",
        "traceback": m.TRACEBACK,
    }
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=outputs)])
    nbformat.validate(notebook)


@pytest.mark.parametrize("msg_type", ["stream", "display_data", "execute_result", "error"])
def test_a_kernel_that_leaves_fields_out_does_not_end_the_run(msg_type):
    outputs = collected(m.message(msg_type, {}, REQUEST))
    nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=outputs)]))
    assert [output["output_type"] for output in outputs] == [msg_type]


@pytest.mark.parametrize("msg_type", ["status", "execute_input", "iopub_welcome", "debug_event", "inspect_reply"])
def test_what_is_no_output_leaves_the_outputs_alone(msg_type):
    cell = CellOutputs(Displays())
    cell.receive(m.stream(REQUEST, "a"))
    assert cell.receive(m.message(msg_type, {"execution_state": "idle"}, REQUEST)) is None
    cell.receive(m.stream(REQUEST, "b"))
    assert [output["text"] for output in cell.collect()] == ["ab"]


# --- Displays


def test_an_update_reaches_every_output_of_its_id_in_every_cell():
    displays = Displays()
    first, second = CellOutputs(displays), CellOutputs(displays)
    first.receive(m.display_data(REQUEST, "old", "a"))
    first.receive(m.display_data(REQUEST, "other", "b"))
    before = first.collect()
    second.receive(m.execute_result(REQUEST, "old", display_id="a"))
    assert second.receive(m.update_display_data(REQUEST, "new", "a")) is None
    assert shown(before) == ["new", "other"]  # also in a notebook that already holds the outputs
    assert shown(second.collect()) == ["new"]


@pytest.mark.parametrize(
    "again", [m.display_data(REQUEST, "2", "a"), m.execute_result(REQUEST, "2", display_id="a")]
)
def test_showing_an_id_again_updates_where_it_was_shown(again):
    assert shown(collected(m.display_data(REQUEST, "1", "a"), again)) == ["2", "2"]


def test_an_update_of_an_unknown_id_shows_nothing():
    cell = CellOutputs(Displays())
    assert cell.receive(m.update_display_data(REQUEST, "x", "never shown")) is None
    assert cell.collect() == []


def test_outputs_of_one_id_share_no_data():
    outputs = collected(m.display_data(REQUEST, "1", "a"), m.display_data(REQUEST, "2", "a"))
    outputs[0]["data"]["text/plain"] = "changed"
    assert shown(outputs) == ["changed", "2"]


def test_cleared_outputs_are_not_updated_but_others_of_their_id_are():
    displays = Displays()
    kept, cleared = CellOutputs(displays), CellOutputs(displays)
    kept.receive(m.display_data(REQUEST, "1", "a"))
    cleared.receive(m.display_data(REQUEST, "1", "a"))
    gone = cleared.collect()
    cleared.receive(m.clear_output(REQUEST))
    cleared.receive(m.update_display_data(REQUEST, "2", "a"))
    assert shown(gone) == ["1"]
    assert cleared.collect() == []
    assert shown(kept.collect()) == ["2"]


# --- Clearing


def test_clearing_removes_at_once_without_wait():
    assert streams(m.stream(REQUEST, "a"), m.clear_output(REQUEST)) == []
    assert streams(m.stream(REQUEST, "a"), m.clear_output(REQUEST), m.stream(REQUEST, "b")) == [("stdout", "b")]


def test_clearing_with_wait_clears_when_the_next_output_comes():
    old, wait = m.stream(REQUEST, "old"), m.clear_output(REQUEST, wait=True)
    assert streams(old, wait) == [("stdout", "old")]
    for new in (m.stream(REQUEST, "new"), m.display_data(REQUEST, "new"), m.error(REQUEST)):
        assert len(collected(old, wait, new)) == 1
        assert collected(old, wait, new) == collected(new)
    assert streams(old, wait, m.stream(REQUEST, "1"), m.stream(REQUEST, "2")) == [("stdout", "12")]


def test_an_update_does_not_trigger_a_waiting_clear():
    outputs = collected(
        m.display_data(REQUEST, "1", "a"),
        m.clear_output(REQUEST, wait=True),
        m.update_display_data(REQUEST, "2", "a"),
    )
    assert shown(outputs) == ["2"]


def test_clearing_at_once_takes_a_waiting_clear_along():
    messages = [m.clear_output(REQUEST, wait=True), m.clear_output(REQUEST)]
    messages += [m.stream(REQUEST, "a"), m.display_data(REQUEST, "b")]
    assert [output["output_type"] for output in collected(*messages)] == ["stream", "display_data"]


# --- Rate limits


@pytest.mark.parametrize("what", ["data", "message"])
@pytest.mark.parametrize("server", ["Jupyter", "notebook"])
def test_the_servers_notice_tells_what_was_exceeded_and_is_kept(what, server):
    notice = m.rate_notice(REQUEST, what, server)
    assert rate_limit_notice(notice) == f"{what} rate"
    assert streams(notice) == [("stderr", notice["content"]["text"])]


NOTICE = m.rate_notice(REQUEST)["content"]["text"]


@pytest.mark.parametrize(
    "message",
    [
        m.stream(REQUEST, NOTICE),
        m.stream(REQUEST, f"the log says: {NOTICE}", "stderr"),
        m.stream(REQUEST, f"the log says\n{NOTICE}", "stderr"),
        m.stream(REQUEST, "IOPub data rate exceeded. Or was it?", "stderr"),
        m.stream(REQUEST, "IOPub request rate exceeded.\n", "stderr"),
        m.display_data(REQUEST, NOTICE),
        m.error(REQUEST, evalue=NOTICE),
        m.execute_result(REQUEST, NOTICE),
        m.idle(REQUEST),
    ],
    ids=lambda message: message["header"]["msg_type"],
)
def test_what_a_notebook_shows_about_rates_is_no_notice(message):
    assert rate_limit_notice(message) is None


# --- Widgets


SLIDER = {
    "_model_name": "IntSliderModel",
    "_model_module": "@jupyter-widgets/controls",
    "_model_module_version": "2.0.0",
    "value": 1,
}


def widgets(*messages):
    states = WidgetStates()
    for message in messages:
        states.receive(message)
    return states.metadata()


def test_widget_states_are_what_their_last_updates_left():
    metadata = widgets(
        m.comm_open(REQUEST, "c1", SLIDER),
        m.comm_msg(REQUEST, "c1", {"value": 7}),
        m.comm_open(REQUEST, "plot", {"value": 1}, target="somebody else's"),
        m.message("comm_msg", {"comm_id": "c1", "data": {"method": "custom", "content": {}}}, REQUEST),
        m.message("comm_msg", {"comm_id": "c1", "data": ["no state"]}, REQUEST),
        m.message("comm_msg", {"comm_id": "c1"}, REQUEST),
    )
    model = {
        "model_name": "IntSliderModel",
        "model_module": "@jupyter-widgets/controls",
        "model_module_version": "2.0.0",
        "state": {**SLIDER, "value": 7},
    }
    assert metadata == {WIDGET_STATE: {"state": {"c1": model}, "version_major": 2, "version_minor": 0}}


def test_a_notebook_without_widgets_gets_no_widget_metadata():
    assert widgets() is None
    assert widgets(m.comm_open(REQUEST, "c", {"value": 1})) is None


def buffers(*messages):
    return widgets(*messages)[WIDGET_STATE]["state"]["c"].get("buffers", [])


def test_binary_state_is_kept_with_its_place_in_base64():
    opened = m.comm_open(
        REQUEST, "c", SLIDER, buffer_paths=[["value"], ["list", 0]], buffers=[b"\0\xff", memoryview(b"ab")]
    )
    assert buffers(opened) == [
        {"path": ["value"], "data": "AP8=", "encoding": "base64"},
        {"path": ["list", 0], "data": "YWI=", "encoding": "base64"},
    ]


def test_a_new_value_replaces_the_binary_one_of_its_place():
    opened = m.comm_open(REQUEST, "c", SLIDER, buffer_paths=[["value"], ["other", 0]], buffers=[b"a", b"b"])
    other = {"path": ["other", 0], "data": "Yg==", "encoding": "base64"}
    binary = m.comm_msg(REQUEST, "c", {}, buffer_paths=[["value"]], buffers=[b"c"])
    assert buffers(opened, binary) == [{"path": ["value"], "data": "Yw==", "encoding": "base64"}, other]
    assert buffers(opened, m.comm_msg(REQUEST, "c", {"value": None})) == [other]


def test_a_message_is_not_changed_by_being_received():
    for message in (
        m.stream(REQUEST, "a\rb"),
        m.display_data(REQUEST, "x", "a"),
        m.update_display_data(REQUEST, "y", "a"),
        m.comm_open(REQUEST, "c", dict(SLIDER)),
    ):
        before = deepcopy(message)
        cell, states = CellOutputs(Displays()), WidgetStates()
        for receiver in (cell, states):
            receiver.receive(message)
            receiver.receive(message)
        assert message == before


@pytest.mark.parametrize(
    ("msg_type", "content"),
    [
        ("stream", {"name": "stdout", "text": "a\n"}),
        ("stream", {"name": "stderr", "text": ""}),
        ("display_data", {"data": {"text/plain": "p", "image/png": "iVBO"}, "metadata": {"image/png": {"w": 1}}}),
        ("display_data", {"data": {}, "metadata": {}}),
        ("display_data", {"data": {"application/json": {"a": [1, None]}}, "metadata": {}}),
        ("execute_result", {"data": {"text/plain": "p"}, "metadata": {}, "execution_count": 3}),
        ("error", {"ename": "E", "evalue": "v", "traceback": ["a", "b"]}),
    ],
)
def test_outputs_made_without_validation_are_those_of_nbformat(msg_type, content):
    made = CellOutputs(Displays()).receive(m.message(msg_type, content, REQUEST))
    expected = output_from_msg({"header": {"msg_type": msg_type}, "content": content})
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    ("msg_type", "content"),
    [
        ("stream", {"name": "stdlog", "text": 5}),
        ("display_data", {"data": {"image/png": 5, "text/html": None}, "metadata": []}),
        ("display_data", {"data": "no dict", "metadata": {}}),
        ("execute_result", {"data": {"text/plain": ["a", 1]}, "metadata": {}, "execution_count": "x"}),
        ("error", {"ename": 1, "evalue": None, "traceback": "one text"}),
    ],
)
def test_outputs_that_break_the_format_are_kept_as_text(msg_type, content):
    made = CellOutputs(Displays()).receive(m.message(msg_type, content, REQUEST))
    nbformat.validate(new_notebook(cells=[new_code_cell(outputs=[made])]))


# --- Going on with what a saved notebook holds


def test_a_seeded_cell_goes_on_where_the_saved_one_stopped():
    saved = [NotebookNode(output_type="stream", name="stdout", text="one\ntw")]
    outputs = CellOutputs(Displays())
    outputs.seed(saved)
    assert outputs.collect() == saved
    outputs.receive(m.stream(m.foreign_request(), "o\n"))
    assert [output["text"] for output in outputs.collect()] == ["one\ntwo\n"]


def test_another_stream_after_a_seeded_one_is_another_output():
    outputs = CellOutputs(Displays())
    outputs.seed([NotebookNode(output_type="stream", name="stdout", text="out")])
    outputs.receive(m.stream(m.foreign_request(), "err", name="stderr"))
    outputs.receive(m.stream(m.foreign_request(), "out"))
    assert [(output["name"], output["text"]) for output in outputs.collect()] == [
        ("stdout", "out"),
        ("stderr", "err"),
        ("stdout", "out"),
    ]


def test_a_stream_after_a_seeded_display_begins_anew():
    outputs = CellOutputs(Displays())
    display = NotebookNode(output_type="display_data", data={"text/plain": "x"}, metadata={})
    outputs.seed([NotebookNode(output_type="stream", name="stdout", text="1"), display])
    outputs.receive(m.stream(m.foreign_request(), "2"))
    assert [output.get("text") for output in outputs.collect()] == ["1", None, "2"]


def test_seeded_outputs_are_cleared_like_others():
    outputs = CellOutputs(Displays())
    outputs.seed([NotebookNode(output_type="stream", name="stdout", text="old")])
    outputs.receive(m.clear_output(m.foreign_request(), wait=True))
    assert [output["text"] for output in outputs.collect()] == ["old"]
    outputs.receive(m.stream(m.foreign_request(), "new"))
    assert [output["text"] for output in outputs.collect()] == ["new"]


def test_a_carriage_return_acts_on_the_seeded_line():
    outputs = CellOutputs(Displays())
    outputs.seed([NotebookNode(output_type="stream", name="stdout", text="done\n10 %")])
    outputs.receive(m.stream(m.foreign_request(), "\r20 %"))
    assert outputs.collect()[0]["text"] == "done\n20 %"


def test_an_empty_seed_is_none():
    outputs = CellOutputs(Displays())
    outputs.seed([])
    assert outputs.collect() == []


def test_seeded_widgets_go_on_with_their_states_and_buffers():
    before = WidgetStates()
    request = m.foreign_request()
    before.receive(m.comm_open(request, "c", {"_model_name": "M", "a": 1}, buffer_paths=[["b"]], buffers=[b"x"]))
    after = WidgetStates()
    seed = before.metadata()
    assert seed is not None
    after.seed(seed)
    assert after.metadata() == before.metadata()
    after.receive(m.comm_msg(request, "c", {"a": 2}))
    found = after.metadata()
    assert found is not None
    state = found[WIDGET_STATE]["state"]["c"]
    assert state["state"]["a"] == 2
    again = before.metadata()
    assert again is not None
    assert state["buffers"] == again[WIDGET_STATE]["state"]["c"]["buffers"]
    after.seed({})
