"""Data held to a stated datatype: what is converted, and what is refused with the value named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcm_sync._tensors import DATATYPES, InferenceInput, check_inputs
from tcm_sync.errors import InputError

INTEGERS = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]
FLOATS = {"FP16": 11, "FP32": 24, "FP64": 53}  # the bits of the significand


def cast(data: Any, datatype: str) -> np.ndarray:
    (tensor,) = check_inputs([InferenceInput("x", np.shape(data), datatype, data)])
    assert tensor.datatype == datatype
    assert tensor.array.dtype == DATATYPES[datatype].dtype
    assert tensor.array.dtype.isnative
    return tensor.array


def refused(data: Any, datatype: str, match: str) -> None:
    with pytest.raises(InputError, match=rf'^input "x": .*{match}'):
        check_inputs([InferenceInput("x", np.shape(data), datatype, data)])


# --- integers ---


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_pass_up_to_the_limits_and_not_over_them(datatype: str) -> None:
    limits = np.iinfo(DATATYPES[datatype].dtype)
    assert cast([limits.min, limits.max], datatype).tolist() == [limits.min, limits.max]
    as_objects = np.array([limits.min, limits.max], object)
    assert cast(as_objects, datatype).tolist() == [limits.min, limits.max]
    for value in (limits.min - 1, limits.max + 1):
        if -(2**63) <= value < 2**64:
            refused([value], datatype, f"{value} is out of range for {datatype} ")
            refused([value, 0, 1], datatype, f"{value} is out of range for {datatype} ")
        else:
            refused([value], datatype, "neither INT64 nor UINT64")


@pytest.mark.parametrize(
    ("data", "datatype", "value"),
    [
        (np.array([5, 300], "i2"), "INT8", 300),
        (np.array([5, -1], "i1"), "UINT8", -1),
        (np.array([5, -1], "i1"), "UINT64", -1),
        (np.array([2**63], "u8"), "INT64", 2**63),
        (np.array([2**32, 0], ">i8"), "UINT32", 2**32),
    ],
)
def test_integer_arrays_are_not_wrapped(data: np.ndarray, datatype: str, value: int) -> None:
    refused(data, datatype, f"{value} is out of range for {datatype}")


@pytest.mark.parametrize("datatype", FLOATS)
def test_integers_become_floats_where_that_is_exact(datatype: str) -> None:
    reach = 2 ** FLOATS[datatype]
    assert cast([reach, -reach, 0], datatype).tolist() == [reach, -reach, 0]
    assert cast([2 * reach - 2, 5], datatype)[0] == 2 * reach - 2
    for value in (reach + 1, -reach - 1):
        refused([1, value], datatype, f"{value} has no exact {datatype}; if rounding is meant")
    assert cast(np.array([reach], "u8"), datatype).tolist() == [reach]
    refused(np.array([reach + 1], "u8"), datatype, f"{reach + 1} has no exact {datatype}")


def test_an_integer_over_the_range_of_a_float_is_refused() -> None:
    refused([65504, 65536], "FP16", "65536 has no exact FP16")
    refused(np.array([-(2**63)], "i8"), "FP16", f"{-(2**63)} has no exact FP16")


# --- floats ---


def test_floats_are_rounded_to_the_nearest() -> None:
    assert cast([0.1, -1e-50, 65519.0], "FP32").tolist() == [float(np.float32(0.1)), -0.0, 65519.0]
    assert cast([0.1, 65519.9], "FP16").tolist() == [float(np.float16(0.1)), 65504.0]
    assert cast(np.array([0.1], "f4"), "FP64").tolist() == [float(np.float32(0.1))]
    assert cast(np.array([0.1], ">f8"), "FP32").tolist() == [float(np.float32(0.1))]


@pytest.mark.parametrize(
    ("value", "datatype"),
    [
        (1e39, "FP32"),
        (-1e39, "FP32"),
        (3.4028236e38, "FP32"),
        (1e5, "FP16"),
        (65520.0, "FP16"),
        (1e300, "FP16"),
    ],
)
def test_floats_that_would_become_infinite_are_refused(value: float, datatype: str) -> None:
    refused([0.5, value], datatype, f"{value} is out of range for {datatype}".replace("+", r"\+"))


@pytest.mark.parametrize("datatype", FLOATS)
def test_an_infinity_is_called_one_whatever_the_datatype(datatype: str) -> None:
    refused([0.5, float("inf")], datatype, "holds an infinity")
    refused(np.array([-np.inf], "f4"), datatype, "holds an infinity")


@pytest.mark.parametrize("datatype", FLOATS)
def test_nan_passes_as_a_float(datatype: str) -> None:
    assert np.isnan(cast([float("nan"), 1.0], datatype)).tolist() == [True, False]


@pytest.mark.parametrize("datatype", INTEGERS)
def test_floats_become_integers_where_nothing_is_cut(datatype: str) -> None:
    assert cast([1.0, 2.0, -0.0], datatype).tolist() == [1, 2, 0]
    assert cast(np.array([1.0, 100.0], "f2"), datatype).tolist() == [1, 100]
    for value in (1.5, float("nan"), float("inf"), 1e30):
        shown = str(value).replace("+", r"\+")
        refused([1.0, value], datatype, rf"{shown} is not an integer of {datatype} \(.*\); \.round\(\)")


@pytest.mark.parametrize("datatype", INTEGERS)
def test_floats_over_the_range_of_integers_are_refused(datatype: str) -> None:
    limits = np.iinfo(DATATYPES[datatype].dtype)
    refused([float(limits.max + 1)], datatype, "is not an integer of")
    refused([float(limits.min) * 2 - 1.0], datatype, "is not an integer of")
    assert cast([float(limits.min)], datatype).tolist() == [limits.min]


# --- kinds ---


@pytest.mark.parametrize("datatype", DATATYPES)
def test_bool_numbers_and_text_are_not_each_other(datatype: str) -> None:
    samples = {"bool": [True], "integers": [1], "floats": [1.0], "text": ["1"]}
    takes = {"BOOL": {"bool"}, "BYTES": {"text"}}.get(datatype, {"integers", "floats"})
    for kind, data in samples.items():
        if kind in takes:
            cast(data, datatype)
            cast(np.array(data), datatype)
        else:
            refused(data, datatype, f"{kind} given for {datatype}, which takes ")
            refused(np.array(data), datatype, f"{kind} given for {datatype}, which takes ")


@pytest.mark.parametrize("datatype", DATATYPES)
def test_what_no_datatype_carries_is_refused_with_its_own_advice(datatype: str) -> None:
    refused(np.zeros(2, "complex64"), datatype, "send .real and .imag")
    refused(np.zeros(2, "datetime64[s]"), datatype, "send integers")


def test_the_callers_array_is_never_changed() -> None:
    for data in (np.array([1, 2], "i8"), np.array([0.1, np.nan]), np.array(["a"]), np.array(["a"], object)):
        before = data.copy()
        for datatype in DATATYPES:
            try:
                check_inputs([InferenceInput("x", (data.size,), datatype, data)])
            except InputError:
                continue
        assert data.dtype == before.dtype
        assert data.tobytes() == before.tobytes() or data.dtype == object


def test_no_numpy_error_setting_of_the_caller_gets_in() -> None:
    with np.errstate(all="raise"):
        assert cast([1e-300, float("nan")], "FP16").tolist()[0] == 0.0
        refused([1e39], "FP32", "out of range")
        refused([float("nan")], "INT8", "is not an integer")
        refused([2**62 + 1], "FP16", "no exact FP16")
