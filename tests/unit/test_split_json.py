"""Large messages without their long arrays: split or whole, they are read as the same."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcm_sync import ProtocolError
from tcm_sync._tensors import check_output_dtypes, decode_outputs
from tcm_sync._wire import split_json as module
from tcm_sync._wire.decode import decode_failure, decode_inference
from tcm_sync._wire.split_json import SplitJson, split_off_arrays

LONG = [[float(row), row + 0.5, -1e-3] for row in range(10_000)]


def message(data, status="COMPLETED", **more):
    payload = {"data": data, "status": status, "model_name": "m"}
    return json.dumps({"type": "inference", "uuid": "u-1", "payload": payload, **more}).encode()


def both(data, dtype=None, **more):
    """Return the outputs of a large message, split and as they are."""
    text = message(data, **more)
    reply = decode_inference(text, "u-1")
    whole = json.dumps(data).encode()
    assert bytes(reply.data) == whole, "the text as it came"
    dtypes = check_output_dtypes(dtype)
    return reply, decode_outputs(reply.data, dtypes), decode_outputs(whole, dtypes)


def equal(ours, theirs):
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert array.shape == theirs[name].shape
        np.testing.assert_array_equal(array, theirs[name])
        assert array.flags.writeable


@pytest.mark.parametrize("dtype", [None, np.float32, np.float64])
def test_a_long_array_is_read_from_the_split_message_alone(dtype):
    reply, ours, theirs = both({"y": LONG}, dtype)
    assert isinstance(reply.data, SplitJson)
    assert len(reply.data.text) < 200
    equal(ours, theirs)


@pytest.mark.parametrize(
    "data",
    [
        {"y": LONG, "z": LONG[::-1]},
        {"y": LONG, "z": [1, 2], "t": ["a", "b"]},
        {"z": 7, "y": LONG, "t": "text"},
        {"y": list(range(100_000)), "b": [True] * 20_000},
        {"y": [[None, 1.5]] * 10_000},
        {"y [1, 2]": LONG, "[": LONG, "]": [1]},
        {"t": ["x" * 40_000, "[1, 2"], "y": LONG},
        {"t": ["[" * 40_000 + "]" * 40_000], "y": LONG},
    ],
)
def test_every_mixture_of_outputs_is_what_it_is_when_read_whole(data):
    _, ours, theirs = both(data)
    equal(ours, theirs)


TRICKS = ["a],", ":b]", '"', "\\", '\\"]}', "]}", '],"x":', "], ", "", "é", "[", 'x\\\\"']
NAMES = ["t", 'n"],\\', "[", "]}", "é:[", ":", 'a:["']
HOWS = [{}, {"separators": (",", ":"), "ensure_ascii": False}, {"indent": 1}]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("scan", [7, 97, 2**20])
def test_arrays_of_strings_are_cut_out_whatever_they_and_the_names_have_in_them(name, how, scan, monkeypatch):
    monkeypatch.setattr("tcm_sync._wire.text_ends._SHORT", 3)
    monkeypatch.setattr("tcm_sync._wire.text_ends._SCAN", scan)
    monkeypatch.setattr("tcm_sync._wire.split_json._LONG", 50)
    monkeypatch.setattr("tcm_sync._wire.decode.LARGE", 0)
    data = {"a": [[text] for text in TRICKS], name: TRICKS * 3, f"b{name}": LONG[:20], f"c{name}": ["b"] * 20}
    text = message(data) if how == {} else json.dumps(json.loads(message(data)), **how).encode()
    reply = decode_inference(text, "u-1")
    equal(decode_outputs(reply.data), decode_outputs(json.dumps(data).encode()))
    if ":" not in name:  # else a part of the name may look like the beginning of an array
        assert isinstance(reply.data, SplitJson)
        assert len(reply.data.arrays) == 4


def test_a_long_array_of_strings_is_not_decoded_with_the_message(monkeypatch):
    monkeypatch.setattr("tcm_sync._wire.decode._reply_for", None)
    data = {"t": TRICKS * 800, "y": LONG, "u": [[["a", "b"]]] * 20_000, "v": ["c"]}
    reply, ours, theirs = both(data)
    assert len(reply.data.text) < 300
    equal(ours, theirs)


@pytest.mark.parametrize(
    "texts",
    [
        [*TRICKS * 800, 1],
        [*TRICKS * 800, ["a"]],
        [*TRICKS * 800, None],
        [*TRICKS * 800, {"a": ["b"], "c": ["d"]}],
        [["a"], {"a": [*TRICKS], "c": TRICKS * 800}],
    ],
)
def test_what_is_among_strings_is_refused_or_read_as_when_read_whole(texts):
    data = {"t": texts, "u": TRICKS * 800}
    with pytest.raises(ProtocolError):
        decode_outputs(json.dumps(data).encode())
    with pytest.raises(ProtocolError):
        decode_outputs(decode_inference(message(data), "u-1").data)
    failure = decode_failure(
        decode_inference(message({"code": "C", "message": "no", **data}, "FAILED"), "u-1").data
    )
    assert failure.message == "no"


@pytest.mark.parametrize(
    ("old", "new"), [(b'"b", ', b'"b" '), (b'"b"', b'"b\\"'), (b'"b"', b'"\xff"'), (b"]", b"")]
)
def test_what_is_broken_in_an_array_of_strings_is_a_protocol_error(old, new):
    text = message({"t": ["a", "b", *["c"] * 30_000], "u": ["d"]})
    decode_outputs(decode_inference(text, "u-1").data)
    with pytest.raises(ProtocolError):
        decode_outputs(decode_inference(text.replace(old, new, 1), "u-1").data)


def test_text_that_looks_like_an_array_is_left_where_it_is():
    fake = str(list(range(20_000)))
    _, ours, theirs = both({"t": [fake], "u": [fake]})
    equal(ours, theirs)
    assert ours["t"].tolist() == [fake]


def test_a_failure_with_a_long_array_in_it_is_read_too():
    data = {"code": "TRITON_ERROR", "message": "no " + str(list(range(30_000))), "extra": LONG}
    reply = decode_inference(message(data, "FAILED"), "u-1")
    failure = decode_failure(reply.data)
    assert (failure.code, failure.message) == ("TRITON_ERROR", data["message"])


def test_numbers_beside_the_outputs_are_no_output():
    reply, ours, theirs = both({"y": [1.5]}, extra=LONG)
    equal(ours, theirs)
    assert bytes(reply.data) == b'{"y": [1.5]}'


@pytest.mark.parametrize("broken", [b"[1.0, , 1.5", b"[" * 2000])
def test_an_array_in_a_field_of_nobody_has_to_be_json_too(broken):
    text = message({"y": LONG}, extra=LONG)
    head, found, tail = text.rpartition(b'"extra": [[')
    assert found
    decode_inference(text, "u-1")
    with pytest.raises(ProtocolError):
        decode_inference(head + b'"extra": [' + broken + tail, "u-1")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"1.0, 1.5", b"1.0, , 1.5"),
        (b"1.0, 1.5", b"1.0 1.5"),
        (b"1.0, 1.5", b"[1.0, 1.5"),
        (b"]]", b"]"),
        (b"]]", b"]]]"),
    ],
)
def test_what_is_broken_in_an_array_is_a_protocol_error(old, new):
    text = message({"y": LONG}).replace(old, new, 1)
    with pytest.raises(ProtocolError):
        decode_outputs(decode_inference(text, "u-1").data)


def test_bytes_that_are_no_utf_8_in_an_array_are_a_protocol_error():
    text = message({"y": LONG}).replace(b"1.0, 1.5", b"1.0, \xff", 1)
    with pytest.raises(ProtocolError):
        decode_outputs(decode_inference(text, "u-1").data)


@pytest.mark.parametrize(
    "broken", [b"[" * 70_000, b"[" * 100_000 + b"]" * 100_000, b'{"a": [' + b"1," * 50_000]
)
def test_large_nonsense_is_a_protocol_error(broken):
    with pytest.raises(ProtocolError):
        decode_outputs(decode_inference(broken, "u-1").data)


@pytest.mark.parametrize(
    "rows",
    [
        [*LONG, ["a", 1.0, 2.0]],
        [*LONG, "a"],
        [[LONG, LONG], [LONG, [["a"]]]],
        [[1], *LONG, [["a"], 1], *LONG, "b", *LONG],
    ],
)
def test_text_among_numbers_is_refused_without_reading_all_of_it(rows, monkeypatch):
    monkeypatch.setattr("tcm_sync._wire.decode._reply_for", None)
    monkeypatch.setattr("tcm_sync._tensors.outputs._arrays", None)
    reply = decode_inference(message({"x": LONG, "y": rows, "z": ["a"]}), "u-1")
    assert bytes(reply.data) == json.dumps({"x": LONG, "y": rows, "z": ["a"]}).encode()
    with pytest.raises(ProtocolError, match='output "y": it has text among numbers'):
        decode_outputs(reply.data)


def test_text_among_numbers_beside_the_outputs_and_in_a_failure_is_read():
    mixed = [*LONG, ["a"]]
    _, ours, theirs = both({"y": LONG}, extra=mixed)
    equal(ours, theirs)
    failure = decode_failure(
        decode_inference(message({"code": "C", "message": "no", "extra": mixed}, "FAILED"), "u-1").data
    )
    assert failure.message == "no"


def test_a_reply_for_another_socket_is_refused():
    with pytest.raises(ProtocolError, match="u-2"):
        decode_inference(message({"y": LONG}), "u-2")


def test_small_arrays_and_no_arrays_are_not_split():
    assert split_off_arrays(message({"y": [1.5] * 100})) is None
    assert split_off_arrays(b"") is None
    assert split_off_arrays(b'{"a": "[[[["}') is None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('[]\\"a'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('[]"'), inner),
)


@given(JSON, st.booleans())
@example([[{"": None}, []], []], True)  # behind the object an array ends that began before it
@example([[{"": None}, []], [[1, 2], "text"]], True)  # and another begins
def test_any_json_is_itself_again(value, sequences):
    """With every array of numbers or strings cut out, however short."""
    text = json.dumps({"a": value, "b": [[1, 2], [3]]}).encode()
    longest, module._LONG = module._LONG, 1
    try:
        found = split_off_arrays(text, sequences=sequences)
    finally:
        module._LONG = longest
    assert found is not None
    assert bytes(found) == text
    try:
        rest = msgspec.json.decode(found.text)
    except msgspec.DecodeError:
        return  # then the message is read whole
    assert set(rest) == {"a", "b"}
    if not sequences:  # what they are is never decoded
        for array in found.arrays:
            assert isinstance(msgspec.json.decode(bytes(array)), list)


def test_the_text_of_thousands_of_arrays_is_put_together_in_one_go():
    """Copying all of it once for each array would take minutes."""
    data = {f"y{number}": [1.5] * 4_000 for number in range(1_500)}
    reply, ours, _ = both(data)
    assert len(reply.data.arrays) == len(ours) == 1_500


def test_a_million_texts_with_brackets_are_not_looked_at_one_by_one(monkeypatch):
    looks = []

    class Message(bytes):
        def find(self, *what):
            looks.append(what)
            return super().find(*what)

    assert split_off_arrays(Message(b'["[", ' * 100_000)) is None
    assert len(looks) < 30_000
