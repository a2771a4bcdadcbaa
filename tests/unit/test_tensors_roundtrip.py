"""Properties: what is accepted comes back bit for bit from a manager whose model is the identity."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tcm_sync._tensors import (
    DATATYPES,
    InferenceInput,
    Tensor,
    check_inputs,
    check_output_dtypes,
    decode_outputs,
    encode_inputs,
)
from tcm_sync._wire.messages import InputTensor
from tcm_sync.errors import InputError

MODEST = settings(max_examples=300, database=None)
NUMBERS = [name for name in DATATYPES if name != "BYTES"]


def no_such_literal(literal: str) -> None:
    raise AssertionError(f"{literal} is not JSON")


def identity(inputs: Any) -> bytes:
    """Do with inputs what the manager and an identity model do (docs/wire.rst, "Inference")."""
    outputs = {}
    for tensor in msgspec.json.decode(b"[%b]" % b"".join(inputs), type=list[InputTensor]):
        value = json.loads(bytes(tensor.data), parse_constant=no_such_literal)
        dtype = {"BYTES": str}.get(tensor.datatype, DATATYPES[tensor.datatype].dtype)
        array = np.array(value, dtype=dtype)
        assert array.shape == tensor.shape, "TRITON_SHAPE_MISMATCH"
        outputs[tensor.name] = answered(array)
    return json.dumps(outputs, allow_nan=False).encode()


def answered(array: np.ndarray) -> Any:
    if array.dtype.kind == "U" and array.size:
        flat = array.ravel().tolist()
        return flat[0] if len(flat) == 1 else flat
    if array.dtype.kind == "f":
        return np.where(np.isfinite(array), array.astype(np.float64), None).tolist()
    return array.tolist()


def checked_or_refused(inputs: Any) -> tuple[tuple[Tensor, ...], str]:
    try:
        return check_inputs(inputs), ""
    except InputError as error:
        return (), str(error)


def there_and_back(inputs: Any, dtypes: Any) -> dict[str, np.ndarray]:
    return decode_outputs(identity(encode_inputs(check_inputs(inputs))), check_output_dtypes(dtypes))


def assert_same_bits(result: np.ndarray, expected: np.ndarray) -> None:
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    assert result.flags.owndata
    assert result.flags.writeable
    if expected.dtype.kind == "f":
        missing = np.isnan(expected)
        assert np.array_equal(np.isnan(result), missing)
        result, expected = result[~missing], expected[~missing]
    assert result.tobytes() == expected.tobytes()


# An empty tensor may have its zero in the last dimension only; the zeros elsewhere are tested by name.
SHAPES = st.builds(
    lambda sizes, last: (*sizes, last), st.lists(st.integers(1, 3), max_size=3), st.integers(0, 5)
)
LAYOUTS = {
    "as it is": lambda a: a,
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: a[..., ::-1].copy()[..., ::-1],
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "lists": lambda a: a.tolist(),
    "objects": lambda a: a.astype(object),
}


@st.composite
def numeric(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    datatype = draw(st.sampled_from(NUMBERS))
    dtype = DATATYPES[datatype].dtype
    shape = draw(SHAPES)
    if dtype.kind == "f":
        elements = hnp.from_dtype(dtype, allow_infinity=False, allow_nan=True, allow_subnormal=True)
    else:
        elements = hnp.from_dtype(dtype)
    return datatype, draw(hnp.arrays(dtype, shape, elements=elements))


@MODEST
@given(numeric(), st.sampled_from(sorted(LAYOUTS)))
def test_numbers_come_back_bit_for_bit(tensor: tuple[str, np.ndarray], layout: str) -> None:
    datatype, array = tensor
    if array.size == 0 and layout == "misaligned":
        layout = "as it is"
    data = LAYOUTS[layout](array)
    result = there_and_back([InferenceInput("x", array.shape, datatype, data)], {"x": array.dtype})["x"]
    assert_same_bits(result, array)
    if layout not in ("lists", "objects"):
        assert_same_bits(there_and_back({"x": data}, array.dtype)["x"], array)
        assert_same_bits(
            there_and_back([InferenceInput("x", array.shape, datatype, array.ravel())], array.dtype)["x"],
            array,
        )


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda s: not s.endswith("\0"))


@MODEST
@given(SHAPES, st.data())
def test_text_comes_back_flat(shape: tuple[int, ...], data: st.DataObject) -> None:
    count = math.prod(shape)
    flat = data.draw(st.lists(TEXT, min_size=count, max_size=count))
    array = np.array(flat, dtype=object).reshape(shape)
    forms: dict[str, Any] = {
        "objects": array,
        "lists": array.tolist(),
        "bytes": np.array([element.encode() for element in flat], dtype=object).reshape(shape),
        "numpy's text": array.astype(str),
        "Fortran": np.asfortranarray(array),
    }
    form = forms[data.draw(st.sampled_from(sorted(forms)))]
    inputs = [InferenceInput("x", shape, "BYTES", form)]
    result = there_and_back(inputs, str)["x"]
    assert result.dtype == object
    assert result.ravel().tolist() == flat
    assert result.shape == ((count,) if count else shape)
    as_bytes = there_and_back(inputs, bytes)["x"]
    assert as_bytes.ravel().tolist() == [element.encode() for element in flat]


def test_every_half_float_comes_back() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    array = every[~np.isinf(every)].reshape(1, -1)
    assert_same_bits(there_and_back({"x": array}, "f2")["x"], array)


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_random_bit_patterns_of_floats_come_back(datatype: str) -> None:
    dtype = DATATYPES[datatype].dtype
    patterns = np.random.default_rng(7).bytes(100_000 * dtype.itemsize)
    array = np.frombuffer(patterns, dtype)
    array = array[np.isfinite(array)].reshape(1, -1)
    assert_same_bits(there_and_back({"x": array}, dtype)["x"], array)


@MODEST
@given(numeric(), st.sampled_from(NUMBERS))
def test_a_stated_datatype_has_the_same_values_or_is_refused(
    tensor: tuple[str, np.ndarray], stated: str
) -> None:
    """What is accepted differs by no more than the rounding to a narrower float."""
    _, array = tensor
    target = DATATYPES[stated].dtype
    tensors, refusal = checked_or_refused([InferenceInput("x", array.shape, stated, array)])
    if refusal:
        assert refusal.startswith('input "x": ')
        assert array.size
        return
    (checked,) = tensors
    assert checked.array.dtype == target
    before, after = array.ravel().tolist(), checked.array.ravel().tolist()
    for old, new in zip(before, after, strict=True):
        if isinstance(old, float) and math.isnan(old):
            assert math.isnan(new)
        elif array.dtype.kind == target.kind == "f":
            assert new == float(target.type(old))
            assert math.isfinite(new)
        else:
            assert old == new


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.complex_numbers(max_magnitude=9)
    | st.sampled_from([np.float16(1), np.int8(-1), np.uint64(2**64 - 1), np.str_("s"), np.bool_(True)])
)


@MODEST
@given(
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner), max_leaves=10),
    st.sampled_from([None, *DATATYPES]),
)
def test_whatever_is_passed_is_sent_as_it_is_or_refused_by_name(data: Any, datatype: str | None) -> None:
    try:
        shape = np.shape(data) if datatype else ()
    except (ValueError, OverflowError):  # ragged
        shape = (1,)
    inputs = [InferenceInput("x", shape, datatype, data)] if datatype else {"x": data}
    tensors, refusal = checked_or_refused(inputs)
    if refusal:
        assert refusal.startswith('input "x": ')
        return
    (output,) = decode_outputs(
        identity(encode_inputs(tensors)), check_output_dtypes(tensors[0].array.dtype)
    ).values()
    assert output.size == tensors[0].array.size
