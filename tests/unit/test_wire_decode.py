"""Reading messages: what is tolerated, what is refused, and that nothing but ProtocolError comes out."""

from __future__ import annotations

import json
import sys

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tcm_sync import MessageTooLargeError, ProtocolError
from tcm_sync._secrets import Secret
from tcm_sync._wire import decode as module
from tcm_sync._wire import messages, split_json
from tcm_sync._wire.decode import (
    decode_failure,
    decode_inference,
    decode_management,
    decode_message,
    decode_stream,
    decode_value,
    peek,
)
from tcm_sync._wire.messages import (
    Alert,
    AuthOk,
    ErrorReply,
    Failure,
    InferenceReply,
    InfoReply,
    ManagementReply,
    Unknown,
)

TOKEN = "tok-4711-never-to-be-shown"
DEEP = 100_000


def message(kind, payload=None, uuid="u-1", **more):
    return json.dumps({"type": kind, "uuid": uuid, "payload": payload, **more}).encode()


# --- tolerated ---


@pytest.mark.parametrize(
    ("kind", "payload", "struct"),
    [
        ("auth.ok", {"capability": ["json"], "new": {"a": [1]}}, AuthOk(("json",))),
        ("auth.ok", {}, AuthOk()),
        ("auth.ok", None, AuthOk()),
        ("error", {"message": "m", "code": "C", "new": None}, ErrorReply("m", "C")),
        ("error", {}, ErrorReply()),
        ("info_response", {"status": "error", "error": "e", "new": 1}, InfoReply("error", error="e")),
        ("management", {"status": True, "new": [[]]}, ManagementReply(status=True)),
        ("inference", {"status": "START", "new": 1e300}, InferenceReply("START")),
    ],
)
def test_unknown_keys_are_ignored_on_every_level(kind, payload, struct):
    envelope, decoded = decode_message(message(kind, payload, _auth={"sub": None}, _correlation_id="x"))
    assert (envelope.type, envelope.uuid) == (kind, "u-1")
    assert decoded == struct


def test_unknown_keys_of_a_failure_and_of_an_alert_are_ignored():
    assert decode_failure(b'{"code": "C", "retriable": true, "new": {}}') == Failure("C", retriable=True)
    alert = b'{"type": "alert", "message": "m", "new": [], "payload": 7}'
    assert decode_message(alert)[1] == Alert("m")


@pytest.mark.parametrize("payload", [None, 1, "text", [1, {}], {"status": 7}])
def test_a_message_of_an_unknown_type_is_left_alone_whatever_it_holds(payload):
    envelope, decoded = decode_message(message("telemetry", payload))
    assert decoded == Unknown("telemetry")
    assert msgspec.json.decode(envelope.payload) == payload


def test_of_a_key_that_comes_twice_the_last_counts():
    text = b'{"type": "alert", "type": "error", "payload": {"message": "a"}, "payload": {"message": "b"}}'
    assert decode_message(text)[1] == ErrorReply("b")


def test_outputs_are_kept_as_they_came_until_somebody_reads_them():
    data = b'{"y" : [1.50, 1e2,\n null, "\\u00e9"]}'
    text = b'{"type":"inference","uuid":"u-1","payload":{"status":"COMPLETED","data":%b}}' % data
    assert bytes(decode_inference(text, "u-1").data) == data


def test_white_space_and_order_do_not_matter():
    text = b' \n{ "payload" :\t{"data":{}, "status":"COMPLETED"} , "uuid":"u-1","type" : "inference" }\r\n '
    assert decode_inference(text, "u-1") == InferenceReply("COMPLETED", data=msgspec.Raw(b"{}"))


def test_escaped_names_and_texts_are_understood():
    text = rb'{"t\u0079pe": "\u0065rror", "payload": {"messag\u0065": "\ud83d\ude00\u0000"}}'
    assert decode_message(text)[1] == ErrorReply("\U0001f600\0")


# --- refused ---

WRONG = {
    "a list": (b"[]", "Expected `object`"),
    "a number": (b"7", "Expected `object`"),
    "null": (b"null", "Expected `object`"),
    "no type": (b'{"uuid": "u", "payload": {}}', "required field `type`"),
    "type": (b'{"type": 7}', "$.type"),
    "uuid": (b'{"type": "inference", "uuid": 7, "payload": {}}', "$.uuid"),
    "no payload": (b'{"type": "error"}', "got `null`"),
    "payload": (message("error", []), "Expected `object`, got `array`"),
    "status": (message("inference", {"status": 7}), "$.status"),
    "no status": (message("inference", {"data": {}}), "required field `status`"),
    "model_name": (message("inference", {"status": "COMPLETED", "model_name": 7}), "$.model_name"),
    "management status": (message("management", {"status": "true"}), "$.status"),
    "info status": (message("info_response", {"status": None}), "$.status"),
    "job_id": (message("info_response", {"status": "success", "job_id": 7}), "$.job_id"),
    "message": (message("error", {"message": {"text": "m"}}), "$.message"),
    "code": (message("error", {"code": 413}), "$.code"),
    "dropped_type": (message("error", {"dropped_type": True}), "$.dropped_type"),
    "capability": (message("auth.ok", {"capability": "json"}), "$.capability"),
    "a capability": (message("auth.ok", {"capability": ["json", 7]}), "$.capability[1]"),
    "alert": (b'{"type": "alert", "message": 7}', "$.message"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_type_is_named_with_its_place_and_a_quote(name):
    text, place = WRONG[name]
    with pytest.raises(ProtocolError) as caught:
        decode_message(text)
    assert place in caught.value.message
    assert text.decode() in caught.value.message
    assert not caught.value.retriable


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b'{"type": "inference", "uuid": "u-1"}', "required field `payload`"),
        (b'{"type": "inference", "payload": {"status": "FAILED"}}', "required field `uuid`"),
        (message("inference", {"status": 7}), "$.payload.status"),
        (message("inference", {"status": "FAILED", "model_name": []}), "$.payload.model_name"),
        (message("inference", {"status": "DONE"}), "COMPLETED or FAILED, got DONE"),
        (message("inference", {"status": "START"}), "COMPLETED or FAILED, got START"),
        (
            message("inference", {"status": "FAILED"}, uuid="u-2"),
            "for uuid u-1, got type inference for uuid u-2",
        ),
        (message("management", {"status": "FAILED"}), "for uuid u-1, got type management"),
    ],
)
def test_an_inference_that_is_none_is_named(text, place):
    with pytest.raises(ProtocolError) as caught:
        decode_inference(text, "u-1")
    assert place in caught.value.message


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"null", "got `null`"),
        (b"[1]", "got `array`"),
        (b"{}", "required field `code`"),
        (b'{"code": 7}', "$.code"),
        (b'{"code": "C", "retriable": "no"}', "$.retriable"),
        (b'{"code": "C", "retriable": 1}', "$.retriable"),
        (b'{"code": "C", "message": null}', "$.message"),
        (b'{"code": "C", "retry_after_seconds": 1e400}', "1e400"),
        (b'{"code": "C", "retry_after_seconds": NaN}', "not valid JSON"),
    ],
)
def test_a_failure_of_another_kind_is_named(data, place):
    with pytest.raises(ProtocolError) as caught:
        decode_failure(msgspec.Raw(data))
    assert place in caught.value.message


BROKEN = {
    "nothing": b"",
    "space": b"  ",
    "truncated": b'{"type": "error", "payload": {"message": "m',
    "truncated number": b'{"type": "error", "payload": {"x": 1.',
    "NaN": b'{"type": "error", "payload": {"x": NaN}}',
    "Infinity": b'{"type": "error", "payload": {"x": -Infinity}}',
    "a comma too many": b'{"type": "error", "payload": {},}',
    "single quotes": b"{'type': 'error'}",
    "two messages": b'{"type": "alert"}{"type": "alert"}',
    "a control character": b'{"type": "ale\nrt"}',
    "half a surrogate": rb'{"type": "\ud83d"}',
    "a byte order mark": b'\xef\xbb\xbf{"type": "alert"}',
    "UTF-16": '{"type": "alert"}'.encode("utf-16"),
    "UTF-8 in the type": b'{"type": "\xff"}',
    "UTF-8 in a text": b'{"type": "error", "payload": {"message": "\xc3"}}',
    "UTF-8 in raw data": b'{"type": "inference", "uuid": "u", "payload": {"status": "x", "data": "\xff"}}',
    "UTF-8 in an unknown field": b'{"type": "alert", "new": {"x": "\xed\xa0\x80"}}',
    "UTF-8 in an unknown type": b'{"type": "new", "payload": "\xf5"}',
    "UTF-8 in a key": b'{"type": "alert", "\x80": 1}',
    "overlong UTF-8": b'{"type": "alert", "new": "\xc0\xaf"}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_json_is_refused_wherever_it_breaks(name):
    with pytest.raises(ProtocolError, match="not valid JSON") as caught:
        decode_message(BROKEN[name])
    assert caught.value.__context__ is None  # it would hold the message, and with it perhaps the token
    with pytest.raises(ProtocolError):
        decode_inference(BROKEN[name], "u")


def outcome_of(read):
    try:
        read()
    except ProtocolError as error:
        return str(error)
    return "read"


@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("key", [b"data", b"new"])
@pytest.mark.parametrize("closed", [True, False])
def test_depth_does_no_harm(begin, end, key, closed):
    nested = begin * DEEP + (b"1" + end * DEEP if closed else b"")
    text = b'{"type":"inference","uuid":"u","payload":{"status":"FAILED","%b":%b}}' % (key, nested)
    expected = ["nested too deep"]
    if sys.version_info >= (3, 14):  # it refuses what the stack does not suffice for, and no number of levels
        expected.append("read" if closed else "not valid JSON")
    for read in (
        lambda: decode_message(text),
        lambda: decode_inference(text, "u"),
        lambda: decode_failure(b'{"new":%b}' % nested),
    ):
        assert any(outcome in outcome_of(read) for outcome in expected)


# --- the token ---


@pytest.mark.parametrize("token", [TOKEN, 'a pass"word\\é\U0001f511 of words', "x" * 900])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_error_never_shows_the_token(token, ascii_only):
    secret = Secret(token)

    def check_hidden(read, text):
        with pytest.raises(ProtocolError) as caught:
            read(text)
        error = caught.value
        words = f"{error} {error!r} {vars(error)} {error.__context__}"
        for form in (token, json.dumps(token)[1:-1], json.dumps(token, ensure_ascii=False)[1:-1]):
            assert form not in words
            assert form[: len(form) // 2] not in words

    for count in (1, 3, 500):
        said = json.dumps(token * count, ensure_ascii=ascii_only).encode()
        check_hidden(decode_message, b'{"type": 7, "payload": %b}' % said)
        check_hidden(decode_message, b'{"type": "error", "payload": {"message": "m", "code": [%b]}}' % said)
        check_hidden(decode_message, b'{"type": "error", "payload": %b' % said)
        check_hidden(decode_message, b'{"type": "error", "payload": %b\xff}' % said)
        check_hidden(decode_failure, b'{"code": "C", "retriable": %b}' % said)
        wrong = b'{"type": %b, "uuid": %b, "payload": {"status": "FAILED"}}' % (said, said)
        check_hidden(lambda text: decode_inference(text, "u"), wrong)
        strange = b'{"type": "inference", "uuid": "u", "payload": {"status": %b}}' % said
        check_hidden(lambda text: decode_inference(text, "u"), strange)
    assert secret.reveal() == token


# --- peek ---


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"type":"inference","uuid":"u-1","payload":', ("inference", "u-1")),
        (b'{"uuid":"u-1","type":"inference","payload":{"x', ("inference", "u-1")),
        (b' { "type" : "inference" ,\n "uuid" : "u-1" , "payload" : {', ("inference", "u-1")),
        (b'{"type":"inference","uuid":"\xff","payload":', ("inference", "\ufffd")),
        (b'{"type":"inference","type":"error","payload":', None),
        (b'{"uuid":"a","uuid":"b","payload":', None),
        (b'{"type":"inference","payload":{},"uuid":"u-1"}', None),
        (b'{"type":"inference","uuid":"u-1"}', None),
        (b'{"type":"inference","new":1,"uuid":"u-1","payload":', None),
        (b'{"type":"in\\u0066erence","uuid":"u-1","payload":', None),
        (b'{"type":"","uuid":"u-1","payload":', None),
        (b'["type","inference","uuid"]', None),
        (b"", None),
    ],
)
def test_peek_reads_a_prefix_or_leaves_it(text, found):
    assert peek(text) == found


@given(st.binary(max_size=200))
@example(b'{"type":"' + b"\\" * 10_000)
@example(b" " * 10_000)
def test_peek_never_raises(text):
    assert peek(text) is None or len(peek(text)) == 2


@given(st.sampled_from(["inference", "error", "new"]), st.text("abc-'\"\\é\0", min_size=1), st.booleans())
def test_what_peek_finds_is_what_the_message_says(kind, uuid, ascii_only):
    for order in (("type", "uuid"), ("uuid", "type")):
        whole = {**{key: {"type": kind, "uuid": uuid}[key] for key in order}, "payload": {"status": "x"}}
        text = json.dumps(whole, ensure_ascii=ascii_only).encode()
        assert peek(text) in (None, (kind, uuid))


# --- anything at all ---

FIELDS = ["type", "uuid", "payload", "status", "data", "message", "code", "retriable", "capability", "x"]
WORDS = ["inference", "error", "alert", "auth.ok", "management", "info_response", "COMPLETED", "FAILED", "u"]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=12,
)


@st.composite
def damaged(draw):
    """Draw the text of a message, with some bytes of it exchanged or cut off."""
    text = bytearray(json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans())).encode("utf-8", "replace"))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(text)))
        text[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text)


@settings(max_examples=500)
@given(damaged() | st.binary())
def test_only_protocol_errors_come_out(text):
    errors = []
    for read in (decode_message, lambda text: decode_inference(text, "u"), decode_failure):
        try:
            read(text)
        except ProtocolError as error:
            errors.append(error.message)
    assert all(len(error) < 600 and error.isprintable() for error in errors)


@pytest.mark.parametrize(
    ("decode", "kind", "payload"),
    [
        (decode_inference, "inference", {"status": "COMPLETED", "data": {"y": [1.0]}}),
        (decode_inference, "inference", {"status": "COMPLETED", "data": {"y": [1.0] * 100_000}}),
        (decode_stream, "inference", {"status": "ONGOING", "data": "chunk"}),
        (decode_management, "management", {"status": True, "action": "create_vm", "data": None}),
    ],
    ids=["small", "large", "chunk", "job"],
)
def test_a_reply_is_that_of_the_socket_which_it_names(decode, kind, payload):
    assert decode(message(kind, payload), "u-1").status == payload["status"]
    with pytest.raises(ProtocolError, match="u-2"):
        decode(message(kind, payload, uuid="u-2"), "u-1")


# --- when memory ends ---


class OutOfMemory:
    def decode(self, _):
        raise MemoryError


@pytest.mark.parametrize("size", [10, 200_000])
def test_too_little_memory_for_a_reply_is_an_error_of_ours(monkeypatch, size):
    for name in ("_envelope", "_inference", "_failure", "_value"):
        monkeypatch.setattr(module, name, OutOfMemory())
    text = message("inference", {"status": "COMPLETED", "data": {"y": [1.5] * size}})
    for decode in (
        lambda: decode_message(text),
        lambda: decode_inference(text, "u-1"),
        lambda: decode_stream(text, "u-1"),
        lambda: decode_failure(text),
        lambda: decode_value(text),
    ):
        with pytest.raises(MessageTooLargeError, match="not enough memory") as caught:
            decode()
        assert caught.value.size == len(text)
        assert caught.value.outcome_unknown


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for each in (messages, split_json)
        for kind in vars(each).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
    ],
)
def test_no_message_can_be_changed(kind):
    """One is read by the reader's thread and by that of a call, without a lock."""
    assert kind.__struct_config__.frozen


@pytest.mark.parametrize("kind", ["info", "management", "ping"])
def test_a_large_reply_of_another_type_answers_no_inference(kind):
    payload = {"status": "COMPLETED", "model_name": "m", "data": {"y": [0.5] * 40_000}}
    text = message("inference", payload)
    assert len(text) > split_json.LARGE
    assert isinstance(decode_inference(text, "u-1").data, split_json.SplitJson)
    with pytest.raises(ProtocolError):
        decode_inference(message(kind, payload), "u-1")
