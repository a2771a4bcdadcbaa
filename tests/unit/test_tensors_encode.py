"""The JSON text of tensors, and the recorded exchanges of a real manager."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tcm_sync import Route
from tcm_sync._calls.options import CallOptions
from tcm_sync._calls.request import _text_around_inputs, encode_request
from tcm_sync._deadline import Deadline
from tcm_sync._tensors import (
    DATATYPES,
    InferenceInput,
    check_inputs,
    check_output_dtypes,
    decode_outputs,
    encode,
    encode_inputs,
    encode_small,
    minimum_json_bytes,
)
from tcm_sync._tensors.inputs import Tensor
from tcm_sync._wire.messages import InputTensor
from tcm_sync.errors import CallTimeoutError, InputError

TRANSCRIPTS = Path(__file__).parents[1] / "wire" / "transcripts.jsonl"


def encoded_inputs(tensors: tuple[Tensor, ...]) -> list[InputTensor]:
    """Read what was written of some tensors, but for their data."""
    return msgspec.json.decode(b"[%b]" % b"".join(encode_inputs(tensors)), type=list[InputTensor])


def text(data: Any, datatype: str) -> str:
    (tensor,) = encoded_inputs(check_inputs([InferenceInput("x", np.shape(data), datatype, data)]))
    return bytes(tensor.data).decode()


@pytest.mark.parametrize(
    ("data", "datatype", "expected"),
    [
        ([[True, False]], "BOOL", "[[true,false]]"),
        ([-128, 127], "INT8", "[-128,127]"),
        ([-(2**15)], "INT16", "[-32768]"),
        ([-(2**31)], "INT32", "[-2147483648]"),
        ([-(2**63), 2**63 - 1], "INT64", "[-9223372036854775808,9223372036854775807]"),
        ([255], "UINT8", "[255]"),
        ([65535], "UINT16", "[65535]"),
        ([2**32 - 1], "UINT32", "[4294967295]"),
        ([2**64 - 1, 0], "UINT64", "[18446744073709551615,0]"),
        ([1.5, float("nan"), -0.0], "FP16", "[1.5,null,-0.0]"),
        ([0.1, float("nan"), 1], "FP32", "[0.1,null,1.0]"),
        ([0.1, float("nan"), 5e-324], "FP64", "[0.1,null,5e-324]"),
        ([[["é", 'b"\n']], [["", "\0c"]]], "BYTES", '[[["é","b\\"\\n"]],[["","\\u0000c"]]]'),
        ([[[], []]], "FP32", "[[[],[]]]"),
        ([[[], []]], "BYTES", "[[[],[]]]"),
        (np.arange(8, dtype="i4").reshape(2, 2, 2).T, "INT32", "[[[0,4],[2,6]],[[1,5],[3,7]]]"),
    ],
)
def test_the_text_is_nested_as_the_shape_says(data: Any, datatype: str, expected: str) -> None:
    assert text(data, datatype) == expected


def test_what_is_encoded_is_the_wires_input() -> None:
    tensors = check_inputs({"a": np.zeros((1, 2), "f4"), "b": [["x"]]})
    encoded = encoded_inputs(tensors)
    assert msgspec.json.decode(msgspec.json.encode(encoded)) == [
        {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [[0.0, 0.0]]},
        {"name": "b", "shape": [1, 1], "datatype": "BYTES", "data": [["x"]]},
    ]


def test_the_text_does_not_change_with_the_array() -> None:
    data = np.zeros(2, "f4")
    encoded = encoded_inputs(check_inputs({"x": data}))
    data[:] = 7
    assert bytes(encoded[0].data) == b"[0.0,0.0]"


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1, 1), (2, 3, 4), (1, 0), (0,), (1, 4, 0)])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_the_lower_bound_is_one_and_comes_near(shape: tuple[int, ...], datatype: str) -> None:
    shortest = {"BYTES": "", "BOOL": True}.get(datatype, 0)
    tensors = check_inputs([InferenceInput("x", shape, datatype, np.full(shape, shortest).tolist())])
    size = len(bytes(encoded_inputs(tensors)[0].data))
    bound = minimum_json_bytes(tensors)
    assert bound <= size
    assert bound >= 2 * np.prod(shape)
    brackets = 2 * len(shape) * (1 + np.prod(shape[:-1], dtype=int))
    assert size <= bound + brackets + np.prod(shape, dtype=int)


def test_the_lower_bound_counts_text_and_adds_tensors_up() -> None:
    one = check_inputs({"x": ["a" * 1000, "é" * 500]})
    assert 1500 <= minimum_json_bytes(one) <= len(bytes(encoded_inputs(one)[0].data))
    two = check_inputs({"x": ["a" * 1000, "é" * 500], "y": np.zeros(100)})
    assert minimum_json_bytes(two) == minimum_json_bytes(one) + minimum_json_bytes(two[1:])


@pytest.mark.parametrize("shape", [(0,), (1, 0), (3, 0), (2, 3, 0), (3, 1, 2, 0)])
@pytest.mark.parametrize("datatype", ["FP32", "BOOL", "BYTES"])
def test_rows_without_elements_are_counted_to_the_byte(shape: tuple[int, ...], datatype: str) -> None:
    tensors = check_inputs([InferenceInput("x", shape, datatype, [])])
    data = bytes(encoded_inputs(tensors)[0].data)
    assert json.loads(data) == np.zeros(shape).tolist()
    assert minimum_json_bytes(tensors) == len(data)


def test_any_number_of_rows_without_elements_is_counted_at_once() -> None:
    tensors = check_inputs([InferenceInput("x", (1000, 10**9, 0), "FP32", [])])
    assert minimum_json_bytes(tensors) > 3 * 10**12


@pytest.mark.parametrize("shape", [(41,), (1, 41), (3, 1, 17), (7, 5), (1, 2, 3, 11), (40, 1)])
@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BYTES"])
def test_what_is_written_in_pieces_is_the_text_of_the_whole(
    shape: tuple[int, ...], datatype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    array = data.astype(str).astype(object) if datatype == "BYTES" else data.astype(DATATYPES[datatype].dtype)
    tensors = check_inputs({"x": array})
    whole = encode_inputs(tensors)
    monkeypatch.setattr(encode, "_PIECE", 10)
    pieces = encode_inputs(tensors)
    assert b"".join(pieces) == b"".join(whole)
    assert len(pieces) > len(whole)
    assert max(map(len, pieces[1:-1])) <= 100


@pytest.mark.parametrize("size", [5, encode._FEW + 1, 2000])
@pytest.mark.parametrize("place", [0, -1])
def test_an_infinity_is_refused_however_the_text_is_written(
    size: int, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every caller has looked for it before."""
    monkeypatch.setattr(encode, "_PIECE", 1000)
    array = np.ones(size, np.float32)
    array[place] = -np.inf
    with pytest.raises(InputError, match='input "x"'):
        encode_inputs((Tensor("x", "FP32", array.shape, array),))


class Counted(Deadline):
    """A deadline that passes after so many looks at it."""

    def __init__(self, looks: int) -> None:
        super().__init__(None)
        self.looks = looks

    def expired(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_a_long_text_is_given_up_when_the_deadline_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_PIECE", 10)
    tensors = check_inputs({"x": np.zeros((100, 5)), "y": np.zeros(5)})
    deadline = Counted(20)
    with pytest.raises(CallTimeoutError, match="being encoded; nothing was sent") as caught:
        encode_inputs(tensors, deadline)
    assert not caught.value.outcome_unknown
    assert deadline.looks == -1
    assert encode_inputs(tensors, Counted(1000)) == encode_inputs(tensors)


def test_a_short_text_is_written_without_a_look_at_the_deadline() -> None:
    deadline = Counted(0)
    encode_inputs(check_inputs({"x": np.zeros((100, 5))}), deadline)
    assert deadline.looks == 0


def test_what_is_remembered_of_requests_is_bounded() -> None:
    """Names and shapes may be new with every call, for months."""
    for number in range(3000):
        encode_inputs(check_inputs({f"x{number}": np.zeros((1, number + 1), "f4")}))
        encode_request(CallOptions(f"m{number}", Route("c"), False, None, None, None), [])  # type: ignore[arg-type]
    assert encode._head.cache_info().currsize <= 1024
    assert _text_around_inputs.cache_info().currsize <= 256


# --- the recorded exchanges ---


def recorded() -> dict[str, list[dict[str, Any]]]:
    """Map each case to its exchange."""
    lines = TRANSCRIPTS.read_text(encoding="utf-8").splitlines()
    return {case["case"]: case["exchange"] for case in map(json.loads, lines) if "exchange" in case}


def requests(case: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the inferences of a case, each with the payload or the error that answered it."""
    exchange = [step for step in recorded()[case] if {"client", "server"} & set(step)]
    found = []
    for sent, got in itertools.pairwise(exchange):
        message = sent.get("client")
        if isinstance(message, str):  # written as it was sent, being no JSON that an encoder would make
            message = json.loads(message.removeprefix("(verbatim) "))
        if message and message["type"] == "inference":
            found.append((message["payload"]["request"], got["server"]["payload"]))
    assert found
    return found


SAME = [
    "inference.sdk_shape",
    "inference.manager_shape",
    "inference.output.FP16",
    "inference.output.FP64",
    "inference.output.BOOL",
    "inference.output.BYTES",
    "inference.output.BYTES.single",
    "inference.output.UINT64",
    "inference.output.INT64",
    "inference.output.UINT8",
    "tensors.empty_and_scalar.1_4_0",
    "tensors.empty_and_scalar.1_0",
    "tensors.empty_and_scalar.bytes_1_0_1",
    "tensors.float_out_of_range.u64_max",
]


@pytest.mark.parametrize("case", SAME)
def test_recorded_inputs_are_what_is_sent_for_them(case: str) -> None:
    for request, _ in requests(case):
        encoded = encoded_inputs(check_inputs(request["inputs"]))
        for tensor, item in zip(encoded, request["inputs"], strict=True):
            assert tensor.name == item["name"]
            assert list(tensor.shape) == item.get("shape", item.get("dims"))
            assert tensor.datatype == item.get("datatype", item.get("type")).removeprefix("TYPE_")
            sent, written = msgspec.json.decode(tensor.data), item.get("data", item.get("value"))
            dtype = DATATYPES[tensor.datatype].dtype  # of FP16 the digits may differ, and not the value
            assert np.array(sent, dtype).tolist() == np.array(written, dtype).tolist()


@pytest.mark.parametrize("case", [name for name in SAME if not name.endswith("_shape")])
def test_recorded_outputs_of_an_identity_are_the_inputs(case: str) -> None:
    for request, payload in requests(case):
        (tensor, *_) = check_inputs(request["inputs"])
        outputs = decode_outputs(
            json.dumps(payload["data"]).encode(), check_output_dtypes(tensor.array.dtype)
        )
        (output, *_) = outputs.values()
        assert output.dtype == tensor.array.dtype
        assert output.ravel().tolist() == tensor.array.ravel().tolist()
        if tensor.datatype != "BYTES":
            assert output.shape == tensor.shape


def test_nan_travels_as_the_null_that_was_recorded() -> None:
    (sent, answered), (literal, refused) = requests("inference.not_finite")
    item = sent["inputs"][0]
    data = [[[float("nan"), 1.5]]]
    (encoded,) = encoded_inputs(check_inputs([{**item, "data": data}]))
    assert msgspec.json.decode(encoded.data) == item["data"]
    output = decode_outputs(json.dumps(answered["data"]).encode(), check_output_dtypes("f4"))["OUTPUT__0"]
    assert np.array_equal(output, data, equal_nan=True)
    assert np.isnan(literal["inputs"][0]["data"][0][0][0])
    assert refused["message"] == "Invalid JSON format"


REFUSED = [
    "inference.flat_data",
    "inference.413",
    "tensors.empty_and_scalar.scalar",
    "tensors.empty_and_scalar.scalar_shape1",
    "tensors.empty_and_scalar.scalar_111",
    "tensors.empty_and_scalar.0_4",
    "tensors.empty_and_scalar.1_0_4",
    "tensors.empty_and_scalar.0_4_add_sub",
    "tensors.empty_and_scalar.bytes_scalar",
    "tensors.bytes_trailing_nul",
    "tensors.bytes_trailing_nul.inner",
    "tensors.bytes_mixed_number",
    "tensors.float_out_of_range.1e39",
    "tensors.float_out_of_range.minus_1e39",
    "tensors.float_out_of_range.1e400",
    "tensors.float_out_of_range.f64_1e400",
    "tensors.float_out_of_range.f16_1e5",
    "tensors.float_out_of_range.i8_300",
    "tensors.float_out_of_range.i8_minus_1_u8",
    "tensors.float_out_of_range.i32_1.5",
    "tensors.float_out_of_range.u64_over",
]


@pytest.mark.parametrize("case", [name for name in REFUSED if name != "inference.flat_data"])
def test_what_the_manager_refused_or_changed_is_refused_before_it_is_sent(case: str) -> None:
    for request, _ in requests(case):
        with pytest.raises(InputError, match=f'input "{request["inputs"][0]["name"]}": '):
            check_inputs(request["inputs"])


def test_flat_data_that_the_manager_refuses_is_sent_nested() -> None:
    ((request, payload),) = requests("inference.flat_data")
    assert payload["data"]["code"] == "TRITON_SHAPE_MISMATCH"
    encoded = encoded_inputs(check_inputs(request["inputs"]))
    assert msgspec.json.decode(encoded[0].data) == [[1, 2, 3, 4]]


def test_every_recorded_case_about_tensors_is_tested_here() -> None:
    about = {name for name in recorded() if name.startswith(("tensors.", "inference.output."))}
    assert about <= {*SAME, *REFUSED}


# --- what is checked and written in one go ---


@given(
    st.dictionaries(
        st.text(max_size=3),
        hnp.arrays(
            st.sampled_from(
                [each.dtype for each in DATATYPES.values() if each.dtype.kind != "O"] + [np.dtype(">f4")]
            ),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=8),
        ),
        max_size=3,
    )
)
@settings(max_examples=400)
def test_what_is_written_in_one_go_is_the_same_text(inputs):
    small = encode_small(inputs)
    if small is not None:
        assert small == encode_inputs(check_inputs(inputs))


USUAL = np.array([[1.5, -0.25]], np.float32)


@pytest.mark.parametrize(
    "dtype", [each.dtype for each in DATATYPES.values() if each.dtype.kind != "O"], ids=str
)
def test_small_arrays_are_written_in_one_go(dtype):
    inputs = {"x": np.ones((2, 3), dtype), "y": np.zeros(250, dtype)}
    assert encode_small(inputs) == encode_inputs(check_inputs(inputs)) is not None


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        USUAL,
        [USUAL],
        {"x": [1.5]},
        {"": USUAL},
        {"é": USUAL},
        {1: USUAL},
        {"x": USUAL[0, 0]},
        {"x": np.array(1.5)},
        {"x": USUAL.astype(">f4")},
        {"x": np.ones((4, 4), "f4").T[1:]},
        {"x": USUAL.view(np.matrix)},
        {"x": np.ones((1, 0), "f4")},
        {"x": np.array(["text"])},
        {"x": np.array([1j])},
        {"x": USUAL, "y": np.array([np.nan], "f4")},
        {"x": USUAL, "y": np.array([-np.inf])},
        {"x": np.zeros(257, "i1")},
        {"x": np.zeros((1, 257), "i1")},
        {f"x{number}": np.zeros(33) for number in range(8)},
        type("Inputs", (dict,), {})(x=USUAL),
    ],
)
def test_whatever_is_unusual_or_much_has_a_closer_look(inputs):
    assert encode_small(inputs) is None


SHORT_OF_MEMORY = """
import os, resource
import numpy as np
from tcm_sync._tensors.encode import encode_inputs
from tcm_sync._tensors.inputs import Tensor

tensor = Tensor("x", "FP64", (2**20,), np.random.default_rng(1).normal(size=2**20) * 1e-300)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
ends = []
for extra in (2, 4, 6, 8, 16, 512):
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_AS, (used + extra * 2**20,) * 2)
        try:
            encode_inputs([tensor])
            os._exit(0)
        except MemoryError:
            os._exit(1)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(ends)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_memory_that_ends_while_a_tensor_is_written_is_an_error_and_not_the_end_of_the_process():
    command = [sys.executable, "-c", SHORT_OF_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.stdout, done.stderr) == ("[1, 1, 1, 1, 1, 0]\n", "")
