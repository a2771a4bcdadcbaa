"""Arrays from the JSON of a reply: numpy's reading, the dtypes asked for, and everything that is neither."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcm_sync._tensors import check_output_dtypes, decode_outputs, lists, outputs
from tcm_sync.errors import InputError, MessageTooLargeError, ProtocolError

MODEST = settings(max_examples=400, database=None)


def read(text: str | bytes, output_dtypes: Any = None) -> np.ndarray:
    """Decode one output called ``y``."""
    text = text.encode() if isinstance(text, str) else text
    (array,) = decode_outputs(b'{"y": %b}' % text, check_output_dtypes(output_dtypes)).values()
    assert type(array) is np.ndarray
    assert array.flags.owndata
    assert array.flags.writeable
    assert array.flags.c_contiguous
    return array


def refused(text: str | bytes, output_dtypes: Any = None, *, match: str) -> None:
    with pytest.raises(ProtocolError, match=rf'^output "y": .*{match}'):
        read(text, output_dtypes)


# --- numpy's reading ---


@pytest.mark.parametrize(
    ("text", "dtype", "values"),
    [
        ("[[1.5, 2]]", "float64", [[1.5, 2.0]]),
        ("[1, 2.5]", "float64", [1.0, 2.5]),
        ("[1E2]", "float64", [100.0]),
        ("[1e2]", "float64", [100.0]),
        ("[1, 2]", "int64", [1, 2]),
        ("[-9223372036854775808, 9223372036854775807]", "int64", [-(2**63), 2**63 - 1]),
        ("[[[18446744073709551615, 0]]]", "uint64", [[[2**64 - 1, 0]]]),
        ("[true, false]", "bool", [True, False]),
        ("[false]", "bool", [False]),
        ('["a", "\\u00e9", ""]', "object", ["a", "é", ""]),
        ('[["a"], ["b"]]', "object", [["a"], ["b"]]),
        ('"one"', "object", ["one"]),
        ('""', "object", [""]),
        ('"[1.5"', "object", ["[1.5"]),
        ("1.5", "float64", [1.5]),
        ("-7", "int64", [-7]),
        ("true", "bool", [True]),
        ("[]", "float64", []),
        ("[[[], []]]", "float64", [[[], []]]),
        ("[[], []]", "float64", [[], []]),
        (" [\t[ 1 ,\r\n 2 ] ] ", "int64", [[1, 2]]),
        ("[" * 32 + "1" + "]" * 32, "int64", np.ones((1,) * 32, int).tolist()),
    ],
)
def test_without_a_dtype_the_json_decides(text: str, dtype: str, values: list[Any]) -> None:
    array = read(text)
    assert array.dtype == dtype
    assert array.shape == np.shape(values)
    assert array.tolist() == values
    assert all(type(element) is str for element in array.ravel() if dtype == "object")


@pytest.mark.parametrize(
    ("text", "values"),
    [("[[null, 1.5]]", [[math.nan, 1.5]]), ("[null]", [math.nan]), ("[1, null]", [1.0, math.nan])],
)
def test_null_is_nan(text: str, values: list[Any]) -> None:
    for dtype in (None, "float64", "float32", "float16"):
        array = read(text, dtype)
        assert array.dtype == (dtype or "float64")
        assert np.array_equal(array, values, equal_nan=True)


def test_empty_lists_keep_their_nested_shape_in_every_dtype() -> None:
    for dtype in ("float32", "uint64", "bool", "object", str, bytes):
        array = read("[[[], []]]", dtype)
        assert array.shape == (1, 2, 0)
        assert array.dtype == (object if dtype in (str, bytes) else dtype)


def test_outputs_keep_their_names_and_order() -> None:
    arrays = decode_outputs(b'{"b": [1], "a": [1.5], "\\u00e9": ["x"]}', check_output_dtypes({"a": "f4"}))
    assert {name: (array.dtype.name, array.tolist()) for name, array in arrays.items()} == {
        "b": ("int64", [1]),
        "a": ("float32", [1.5]),
        "é": ("object", ["x"]),
    }
    assert list(arrays) == ["b", "a", "é"]


def test_no_outputs_are_no_arrays() -> None:
    assert decode_outputs(b"{}") == {}


def test_raw_json_is_read_like_bytes() -> None:
    envelope = msgspec.json.decode(b'{"data": {"y": [1, 2]}}', type=dict[str, msgspec.Raw])
    assert decode_outputs(envelope["data"])["y"].tolist() == [1, 2]


# --- the dtypes asked for ---


@pytest.mark.parametrize(
    ("text", "dtype", "values"),
    [
        ("[1.5, 0.0999755859375]", np.float16, [1.5, 0.0999755859375]),
        ("[0.1, 3.4028235e38, 1e-45]", np.float32, np.array([0.1, 3.4028235e38, 1e-45], "f4").tolist()),
        ("[0.10000000149011612]", "f4", [float(np.float32(0.1))]),
        ("[1, 2]", float, [1.0, 2.0]),
        ("[0.1]", ">f4", [float(np.float32(0.1))]),
        ("[0.5]", ">f8", [0.5]),
        ("[-128, 127]", "int8", [-128, 127]),
        ("[0, 255]", np.uint8, [0, 255]),
        ("[18446744073709551615, 0]", np.uint64, [2**64 - 1, 0]),
        ("[1, 0]", np.uint64, [1, 0]),
        ("[-9223372036854775808]", int, [-(2**63)]),
        ("[true]", bool, [True]),
        ('["a", "\\u00e9"]', object, ["a", "é"]),
        ('["a", "\\u00e9"]', str, ["a", "é"]),
        ('["a", "\\u00e9"]', bytes, [b"a", "é".encode()]),
        ('[["a"], ["b\\u0000c"]]', bytes, [[b"a"], [b"b\0c"]]),
        ('"one"', bytes, [b"one"]),
        ("7", np.int16, [7]),
    ],
)
def test_a_dtype_asked_for_is_exact(text: str, dtype: Any, values: list[Any]) -> None:
    array = read(text, dtype)
    assert array.dtype == (object if dtype in (str, bytes) else np.dtype(dtype))
    assert array.tolist() == values
    assert read(text, {"y": dtype}).tolist() == values


@pytest.mark.parametrize(
    ("text", "dtype", "match"),
    [
        ("[300]", "int8", "300 is out of range for int8"),
        ("[0, -1]", "uint8", "-1 is out of range for uint8"),
        ("[-1]", "uint64", "-1 is out of range for uint64"),
        ("[18446744073709551615]", "int64", "out of range for int64"),
        ("[18446744073709551616]", "uint64", "fit neither int64 nor uint64"),
        ("[1.5]", "int32", "hold only integers"),
        ("[1, null]", "int32", "hold only integers"),
        ("[1e39]", "float32", r"1e\+39 is out of range for float32"),
        ("[[65520.0]]", "float16", "65520.0 is out of range for float16"),
        ("[true]", "float32", "hold only null or numbers"),
        ("[1]", "bool", "hold only bools"),
        ('["1"]', "float32", "hold only null or numbers"),
        ('["true"]', "bool", "hold only bools"),
        ("[1]", "object", "hold only text"),
        ("[null]", str, "hold only text"),
        ("[1.5]", bytes, "hold only text"),
    ],
)
def test_what_does_not_fit_the_dtype_asked_for_is_refused(text: str, dtype: Any, match: str) -> None:
    refused(text, dtype, match=match)
    refused(text, {"y": dtype}, match=match)


def test_one_dtype_is_for_every_output() -> None:
    arrays = decode_outputs(b'{"a": [1], "b": [2.5]}', check_output_dtypes("f2"))
    assert [array.dtype.name for array in arrays.values()] == ["float16", "float16"]


def test_a_dtype_for_an_output_that_is_not_there_is_the_callers_mistake() -> None:
    wanted = check_output_dtypes({"a": "f4", "z": "f4"})
    with pytest.raises(InputError, match='there is no output "z"; there are: "a", "b"'):
        decode_outputs(b'{"a": [1], "b": [2]}', wanted)
    with pytest.raises(InputError, match='there is no output "a"; there are: none'):
        decode_outputs(b"{}", wanted)


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        ("complex64", "complex64.*two tensors"),
        ("datetime64[s]", "datetime64.*integers"),
        ("nonsense", "nonsense.*cannot be the dtype of an output"),
        ("U5", "U5.*cannot be the dtype of an output"),
        ("S5", "S5.*cannot be the dtype of an output"),
        ("V4", "V4.*cannot be the dtype of an output"),
        ([("a", "f4")], "structured"),
        (object(), "cannot be the dtype of an output"),
        (5, "5 cannot be the dtype of an output"),
        ("FP32", "FP32 is a datatype of the wire; the numpy dtype is float32"),
        ("BYTES", "BYTES is a datatype of the wire; the numpy dtype is str"),
    ],
)
def test_a_dtype_that_no_output_can_have_is_refused_before_sending(wanted: Any, match: str) -> None:
    with pytest.raises(InputError, match=rf"^output_dtypes: .*{match}"):
        check_output_dtypes(wanted)
    with pytest.raises(InputError, match=rf'^output_dtypes\["y"\]: .*{match}'):
        check_output_dtypes({"x": "f4", "y": wanted})


def test_none_is_not_read_as_float64_as_numpy_does() -> None:
    with pytest.raises(InputError, match=r'output_dtypes\["y"\]: None is not a dtype'):
        check_output_dtypes({"y": None})


def test_the_name_of_an_output_is_text() -> None:
    with pytest.raises(InputError, match="the name of an output must be a str, not 0"):
        check_output_dtypes({0: "f4"})  # type: ignore[dict-item]


# --- what is no tensor ---


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1, true]", "hold only null or numbers"),
        ("[true, 1]", "hold only bools"),
        ("[true, null]", "hold only bools"),
        ('["a", 1]', "hold only text"),
        ('["a", null]', "hold only text"),
        ('[1, "a"]', "hold only integers"),
        ('[1.5, "a"]', "hold only null or numbers"),
        ("[null, true]", "hold only null or numbers"),
        ("[[1, 2], [3]]", "ragged lists"),
        ("[[1.5], [2.5, 3.5]]", "ragged lists"),
        ("[[true], []]", "ragged lists"),
        ('[["a"], ["b", "c"]]', "ragged lists"),
        ("[[], [1]]", "ragged lists"),
        ("[[[]], []]", "ragged lists"),
        ("[1, [2]]", "lists nested 1 deep"),
        ("[[1], 2]", "lists nested 2 deep"),
        ("[[], [[]]]", "lists nested 2 deep"),
        ("{}", "must be lists"),
        ('[{"a": 1}]', "hold only integers"),
        ("null", "null in place of a tensor"),
        ("[18446744073709551616]", "fit neither int64 nor uint64"),
        ("[18446744073709551615, -1]", "fit neither int64 nor uint64"),
        ("[-9223372036854775809]", "fit neither int64 nor uint64"),
        ("[1" + "0" * 400 + "]", "fit neither int64 nor uint64"),
        ("[1" + "0" * 5000 + "]", "integers that fit int64 or uint64"),
        ("[1e400]", "in the range of float64"),
        ("[1" + "0" * 400 + ", 0.5]", "in the range of float64"),
        (b'["\xff"]', "not UTF-8"),
        (b'["\xed\xa0\x80"]', "not UTF-8"),
        ("[" * 33 + "1" + "]" * 33, "nested more than 32 deep"),
        ("[" * 500 + "]" * 500, "nested more than 32 deep"),
        ("[1, " + "[" * 500 + "]" * 501, "lists nested 1 deep"),
    ],
)
def test_what_is_no_tensor_is_refused_with_the_outputs_name(text: str | bytes, match: str) -> None:
    refused(text, match=match)


@pytest.mark.parametrize("dtype", ["f4", "i4", "?", str, bytes])
def test_what_is_ragged_is_so_with_a_dtype_too(dtype: Any) -> None:
    element = {"f4": "1.5", "i4": "1", "?": "true"}.get(dtype, '"a"')
    refused(f"[[{element}], [{element}, {element}]]", dtype, match="ragged lists")
    refused(f"[[{element}], []]", dtype, match="ragged lists")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"1.5",
        b'"text"',
        b'{"y": [1]',
        b'{"y": [1 2]}',
        b'{"y": [NaN]}',
        b'{"y": [Infinity]}',
        b'{"y": [01]}',
        b'{"y": ["\\ud800"]}',
        b'{"\xff": [1]}',
        b'{"y": [1]} trailing',
        b"[" * 100_000,
    ],
    ids=lambda data: data[:20].decode("latin-1"),
)
def test_data_that_is_no_object_of_outputs_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="the outputs of the inference cannot be read"):
        decode_outputs(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"y": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"y": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
    ids=["lists", "objects"],
)
def test_depth_is_refused(data: bytes) -> None:
    # Python 3.14 reads what there is stack for, so that it is refused as an output.
    with pytest.raises(ProtocolError, match=r'the outputs of the inference cannot be read|output "y":'):
        decode_outputs(data)


def test_the_name_of_an_output_is_escaped_and_shortened_in_messages() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_outputs(json.dumps({"\n" + "y" * 100_000: None}).encode())
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


# --- whatever comes ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
DTYPES = st.sampled_from([None, "f2", "f4", "f8", "i1", "i8", "u1", "u8", "?", "O", str, bytes])


def survives(data: bytes, dtype: Any) -> None:
    """Decode; arrays or ProtocolError may come of it, and nothing else."""
    try:
        arrays = decode_outputs(data, check_output_dtypes(dtype))
    except ProtocolError:
        return
    assert all(type(array) is np.ndarray and array.ndim for array in arrays.values())


@MODEST
@given(st.binary(max_size=60), DTYPES)
def test_arbitrary_bytes_are_read_or_refused(data: bytes, dtype: Any) -> None:
    survives(data, dtype)
    survives(b'{"y": ' + data + b"}", dtype)


@MODEST
@given(st.text(alphabet='[]{}",:0123456789.eE+-truefalsn \\u\x00é', max_size=40), DTYPES)
def test_what_looks_like_json_is_read_or_refused(text: str, dtype: Any) -> None:
    survives(b'{"y": ' + text.encode() + b"}", dtype)
    survives(b'{"y": [' + text.encode() + b"]}", dtype)


@MODEST
@given(JSON, DTYPES)
def test_arbitrary_json_is_read_or_refused(value: Any, dtype: Any) -> None:
    survives(json.dumps(value).encode(), dtype)
    survives(json.dumps({"y": value}).encode(), dtype)


ELEMENTS = {
    "bool": st.booleans(),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(allow_nan=False, allow_infinity=False),
    "object": st.text(max_size=4),
}


@MODEST
@given(st.data())
def test_what_numpy_reads_of_a_regular_list_is_what_comes_out(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(sorted(ELEMENTS)))
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    count = math.prod(shape)
    elements = data.draw(st.lists(ELEMENTS[dtype], min_size=count, max_size=count))
    expected = np.array(elements, dtype=dtype).reshape(shape)
    for text in (json.dumps({"y": expected.tolist()}), json.dumps({"y": expected.tolist()}, indent=1)):
        (array,) = decode_outputs(text.encode()).values()
        assert array.dtype == expected.dtype
        assert array.shape == shape
        assert array.tolist() == expected.tolist()


@pytest.mark.parametrize("state", ["ignore", "raise", "warn"])
@pytest.mark.parametrize("in_context", [True, False])
def test_the_callers_own_error_state_changes_nothing(state: str, in_context: bool, monkeypatch: Any) -> None:
    if in_context and not lists._STATE_IN_CONTEXT:
        pytest.skip("numpy 1 keeps its error state elsewhere")
    monkeypatch.setattr(lists, "_STATE_IN_CONTEXT", in_context)
    with np.errstate(all=state):  # type: ignore[call-overload]
        assert read("[1e-60]", "float32").tolist() == [0.0]
        refused("[1e39]", "float32", match=r"1e\+39 is out of range for float32")
        assert set(np.geterr().values()) == {state}


def test_many_threads_read_at_once() -> None:
    def reads(number: int) -> None:
        for _ in range(200):
            assert read(f"[{number}.5]", "float32").tolist() == [number + 0.5]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reads, range(8)))


def test_too_little_memory_for_an_array_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(outputs, "decode_lists", out_of_memory)
    with pytest.raises(MessageTooLargeError, match="not enough memory") as caught:
        decode_outputs(b'{"y": [1.5]}')
    assert caught.value.size == len(b'{"y": [1.5]}')
