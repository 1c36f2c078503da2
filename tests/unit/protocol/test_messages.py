"""Frames against literals and against jupyter_server's own code; what is no message gives WireError alone."""

from __future__ import annotations

import json
import random
import struct
from copy import deepcopy

import pytest
from jupyter_server.services.kernels.connection.base import (
    deserialize_msg_from_ws_v1,
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)

from airflow_provider_smstudio.studio.protocol import messages
from airflow_provider_smstudio.studio.protocol.messages import V1, MessageError, decode, encode, parent_id, request
from tests.helpers import messages as m

HEADER = {
    "msg_id": "a",
    "msg_type": "x",
    "session": "s",
    "username": "u",
    "date": "2026-11-06T07:00:00Z",
    "version": "5.3",
}
EXECUTE = request("execute_request", {"code": "print('ü😀\ud800')"}, session="s")
PACK = json.dumps


def server_v1(message):
    parts = [PACK(message[key]).encode() for key in ("header", "parent_header", "metadata", "content")]
    return serialize_msg_to_ws_v1([*parts, *message["buffers"]], message["channel"])


def every_message():
    stated = [m.busy(EXECUTE), m.restarting(), m.shutdown_reply(restart=True)]
    shown = [m.stream(EXECUTE, "é\n"), m.display_data(EXECUTE, "<x>"), m.error(EXECUTE)]
    widget = m.comm_open(EXECUTE, "c", {"_model_name": "M"}, buffer_paths=[["v"], ["w"]], buffers=[b"", b"\0" * 9])
    return [*stated, *shown, widget, m.reply_ok(EXECUTE), m.kernel_info_reply(EXECUTE)]


def ids(message):
    return message["header"]["msg_type"]


def test_a_v1_frame_is_these_bytes():
    message = {
        "channel": "shell",
        "header": {"h": 1},
        "parent_header": {},
        "metadata": {},
        "content": {"c": "ü"},
        "buffers": [b"\x00\xff", b"zz"],
    }
    offsets = [72, 77, 85, 87, 89, 104, 106, 108]
    expected = (
        b"\x08\x00\x00\x00\x00\x00\x00\x00"
        + b"".join(bytes([offset, 0, 0, 0, 0, 0, 0, 0]) for offset in offsets)
        + b'shell{"h": 1}{}{}{"c": "\\u00fc"}\x00\xffzz'
    )
    assert encode(message, V1) == expected
    assert decode(expected, V1) == message


def test_a_text_frame_is_one_json_object_with_empty_buffers():
    message = request("execute_request", {"code": "1"}, session="s", msg_id="id-1")
    text = encode(message, None)
    assert isinstance(text, str)
    assert json.loads(text) == message
    assert json.loads(text)["buffers"] == []


def test_a_request_has_the_header_that_the_protocol_asks_for():
    message = request("execute_request", {"code": "1"}, session="my session", channel="control", msg_id="id-1")
    header = message["header"]
    assert message["channel"] == "control"
    assert (header["msg_id"], header["msg_type"], header["session"]) == ("id-1", "execute_request", "my session")
    assert set(header) == set(HEADER)
    assert header["version"].startswith("5.")
    assert header["date"].endswith("+00:00")
    assert message["parent_header"] == {}
    assert message["content"] == {"code": "1"}


def test_every_request_has_an_id_of_its_own():
    made = {request("kernel_info_request", {}, session="s")["header"]["msg_id"] for _ in range(100)}
    assert len(made) == 100


@pytest.mark.parametrize("message", every_message(), ids=ids)
def test_v1_brings_back_what_went_in(message):
    assert decode(encode(message, V1), V1) == message


@pytest.mark.parametrize("message", every_message(), ids=ids)
def test_v1_frames_of_the_server_are_understood(message):
    assert decode(server_v1(message), V1) == message


@pytest.mark.parametrize("message", every_message(), ids=ids)
def test_v1_frames_are_understood_by_the_server(message):
    channel, parts = deserialize_msg_from_ws_v1(encode(message, V1))
    assert channel == message["channel"]
    keys = ("header", "parent_header", "metadata", "content")
    assert [json.loads(part) for part in parts[:4]] == [message[key] for key in keys]
    assert parts[4:] == message["buffers"]


@pytest.mark.parametrize("message", every_message(), ids=ids)
def test_frames_of_the_default_protocol_are_understood(message):
    assert decode(serialize_binary_message(deepcopy(message)), None) == message
    if not message["buffers"]:
        assert decode(json.dumps(message), None) == message


def test_buffers_are_bytes_and_keep_their_borders():
    message = {**m.busy(None), "buffers": [b"", b"\0", b"ab", b"", b"c" * 100]}
    for frame, protocol in ((server_v1(message), V1), (serialize_binary_message(deepcopy(message)), None)):
        buffers = decode(frame, protocol)["buffers"]
        assert buffers == message["buffers"]
        assert all(type(buffer) is bytes for buffer in buffers)


def test_a_lone_surrogate_in_code_can_be_sent():
    for protocol in (V1, None):
        assert decode(encode(EXECUTE, protocol), protocol)["content"]["code"] == "print('ü😀\ud800')"


@pytest.mark.parametrize("protocol", [V1, None])
def test_a_number_that_json_lacks_is_refused_when_sending(protocol):
    message = request("comm_msg", {"data": float("nan")}, session="s")
    with pytest.raises(ValueError, match="JSON"):
        encode(message, protocol)


def test_every_truncation_of_a_v1_frame_is_a_wire_error():
    frame = server_v1(every_message()[6])
    for length in range(len(frame)):
        with pytest.raises(MessageError):
            decode(frame[:length], V1)


def test_every_truncation_of_a_default_frame_is_a_wire_error_or_cuts_the_last_buffer_alone():
    message = every_message()[6]
    frame = serialize_binary_message(deepcopy(message))
    survived = 0
    for length in range(len(frame)):
        try:
            cut = decode(frame[:length], None)
        except MessageError:
            continue
        survived += 1
        assert {**cut, "buffers": cut["buffers"][:1]} == {**message, "buffers": message["buffers"][:1]}
        assert message["buffers"][1].startswith(cut["buffers"][1])
    assert survived == len(message["buffers"][1])  # the format does not say where its last part ends


def test_every_truncation_of_a_text_frame_is_a_wire_error():
    text = json.dumps(m.reply_ok(EXECUTE))
    for length in range(len(text)):
        with pytest.raises(MessageError):
            decode(text[:length], None)


@pytest.mark.parametrize("protocol", [V1, None])
def test_a_damaged_frame_is_a_message_or_a_wire_error(protocol):
    chance = random.Random(20261106)
    message = every_message()[6]
    frame = server_v1(message) if protocol else serialize_binary_message(deepcopy(message))
    refused = 0
    for _ in range(3000):
        damaged = bytearray(frame)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.choice([0, 0x22, 0x7B, 0xFF, chance.randrange(256)])
        try:
            decoded = decode(bytes(damaged), protocol)
        except MessageError:
            refused += 1
        else:
            assert set(decoded) >= set(message)
            parent_id(decoded)
    assert 0 < refused < 3000


@pytest.mark.parametrize("protocol", [V1, None])
def test_random_bytes_are_a_wire_error(protocol):
    chance = random.Random(5)
    for length in range(300):
        with pytest.raises(MessageError):
            decode(chance.randbytes(length), protocol)


NO_MESSAGES = {
    "empty": "",
    "null": "null",
    "number": "7",
    "text": '"x"',
    "list": "[]",
    "no header": '{"content": {}}',
    "header null": '{"header": null}',
    "header list": '{"header": []}',
    "parent a list": '{"header": {}, "parent_header": [1]}',
    "content a text": '{"header": {}, "content": "x"}',
    "metadata a number": '{"header": {}, "metadata": 1}',
    "deep": "[" * 100_000,
    "huge number": '{"header": {"n": ' + "1" * 5000 + "}}",
}


@pytest.mark.parametrize("text", NO_MESSAGES.values(), ids=NO_MESSAGES.keys())
def test_text_that_is_no_message_is_a_wire_error(text):
    binary = text.encode()
    with pytest.raises(MessageError):
        decode(text, None)
    with pytest.raises(MessageError):
        decode(struct.pack(">II", 1, 8) + binary, None)


def test_text_whose_buffers_are_no_list_is_a_wire_error():
    with pytest.raises(MessageError):
        decode('{"header": {}, "buffers": {}}', None)


@pytest.mark.parametrize("key", ["header", "parent_header", "metadata", "content"])
@pytest.mark.parametrize(
    "part", [b"[]", b"1", b'"x"', b"", b"{", b"\xff", b"[" * 100_000], ids=lambda part: part[:3]
)
def test_a_v1_part_that_is_no_object_is_a_wire_error(key, part):
    names = ("header", "parent_header", "metadata", "content")
    frame = serialize_msg_to_ws_v1([part if name == key else b"{}" for name in names], "iopub")
    with pytest.raises(MessageError):
        decode(frame, V1)


@pytest.mark.parametrize("count", [0, 1, 5, 2**32, 2**61, 2**64 - 1])
def test_a_v1_frame_with_an_impossible_number_of_offsets_is_a_wire_error(count):
    with pytest.raises(MessageError):
        decode(struct.pack("<Q", count) + b"\0" * 200, V1)


def test_v1_offsets_beyond_the_frame_or_backwards_are_a_wire_error():
    frame = server_v1({**m.busy(None), "buffers": [b"abc", b"de"]})
    offsets = list(struct.unpack_from("<8Q", frame, 8))
    beyond = [*offsets[:7], len(frame) + 1]
    backwards = [*offsets[:6], offsets[7], offsets[6]]
    for wrong in (beyond, backwards):
        with pytest.raises(MessageError):
            decode(frame[:8] + struct.pack("<8Q", *wrong) + frame[72:], V1)


def test_parts_that_may_be_left_out_are_put_in():
    decoded = decode('{"header": {"msg_id": "a"}, "content": null}', None)
    empty: dict[str, object] = {"channel": None, "parent_header": {}, "metadata": {}, "content": {}, "buffers": []}
    assert decoded == {"header": {"msg_id": "a"}, **empty}


def test_parts_put_in_belong_to_one_message_only():
    first, second = decode('{"header": {}}', None), decode('{"header": {}}', None)
    first["content"]["x"] = 1
    first["buffers"].append(b"")
    assert second["content"] == {}
    assert second["buffers"] == []


@pytest.mark.parametrize(
    ("parent", "expected"),
    [({"msg_id": "a"}, "a"), ({}, None), ({"msg_id": ""}, None), ({"msg_id": 7}, None), ({"msg_id": None}, None)],
)
def test_the_parents_id_is_a_text_or_none(parent, expected):
    assert parent_id({**m.busy(None), "parent_header": parent}) == expected


def test_a_wire_error_is_a_value_error_and_tells_the_size():
    with pytest.raises(ValueError, match="3 characters or bytes") as caught:
        decode(b"abc", V1)
    assert type(caught.value) is messages.MessageError
