"""Text as BYTES: `str`, bytes and numpy's text arrays, and what would not survive the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcm_sync._tensors import InferenceInput, check_inputs
from tcm_sync.errors import InputError


def text(data: object) -> np.ndarray:
    (tensor,) = check_inputs({"x": data})
    assert tensor.datatype == "BYTES"
    assert tensor.array.dtype == object
    assert tensor.array.flags.c_contiguous
    return tensor.array


def refused(data: object, match: str) -> None:
    with pytest.raises(InputError, match=rf'^input "x": .*{match}'):
        check_inputs({"x": data})


def test_text_becomes_plain_str() -> None:
    class Fancy(str):
        def __str__(self) -> str:
            return "another"

    for data in ([Fancy("a"), "é"], np.array(["a", "é"]), np.array(["a", "é".encode()], object)):
        result = text(data)
        assert [type(element) for element in result] == [str, str]
        assert result.tolist() == ["a", "é"]


def test_text_arrays_of_either_byte_order_and_any_stride_are_read() -> None:
    grid = np.array([["a", "bc"], ["é", ""]])
    for data in (grid, grid.T.copy().T, grid.astype(grid.dtype.newbyteorder()), grid.astype(object)):
        assert text(data).tolist() == [["a", "bc"], ["é", ""]]
    assert text(np.char.encode(grid, "utf-8")).tolist() == [["a", "bc"], ["é", ""]]


@pytest.mark.skipif(not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"), reason="numpy 1.26")
def test_string_dtype_arrays_are_read() -> None:
    assert text(np.array(["a", "é"], np.dtypes.StringDType())).tolist() == ["a", "é"]
    missing = np.array(["a", None], np.dtypes.StringDType(na_object=None))
    refused(missing, "None is not a value")
    refused(np.array(["a\0"], np.dtypes.StringDType()), "ends in NUL")


def test_text_whose_length_matters_to_nobody_passes() -> None:
    assert text(["", "a\0b", "x" * 100_000]).tolist() == ["", "a\0b", "x" * 100_000]


@pytest.mark.parametrize(
    "data", [["a\0"], ["ok", "\0"], [b"a\0"], [["a", "b\0\0"]], np.array(["a\0"], object)]
)
def test_text_that_ends_in_nul_is_refused(data: Any) -> None:
    refused(data, "text that ends in NUL loses it on the way")
    with pytest.raises(InputError, match='input "x": text that ends in NUL'):
        check_inputs([InferenceInput("x", np.shape(data), "BYTES", data)])


@pytest.mark.parametrize("data", [["\ud800"], ["é", "a\udfff"], np.array(["\ud800"])])
def test_text_with_a_lone_surrogate_is_refused(data: Any) -> None:
    refused(data, "lone surrogate is not UTF-8")


@pytest.mark.parametrize(
    "data", [[b"\xff"], [b"ok", b"a\xe9"], np.array([b"\xff"]), np.array([b"\xff"], object)]
)
def test_bytes_that_are_not_utf8_are_refused(data: Any) -> None:
    refused(data, r"bytes that are not UTF-8 \(.* at byte \d\) have no form in JSON; send them as UINT8")


@pytest.mark.parametrize("dtype", ["U3", "S3", "object"])
def test_an_empty_array_of_text_is_bytes(dtype: str) -> None:
    assert text(np.empty((1, 0), dtype)).shape == (1, 0)
