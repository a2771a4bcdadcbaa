"""The table of datatypes, and what is said about dtypes that have none."""

from __future__ import annotations

import numpy as np
import pytest

from tcm_sync._tensors.datatypes import DATATYPES, TensorError, datatype_named, datatype_of

# Triton's own sizes, written out so that the table is not compared with itself.
SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": None,
}
DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}


def test_the_table_has_every_datatype_of_the_wire_with_tritons_size() -> None:
    assert {name: datatype.itemsize for name, datatype in DATATYPES.items()} == SIZES
    assert {name: datatype.dtype.name for name, datatype in DATATYPES.items()} == DTYPES
    assert all(datatype.name == name for name, datatype in DATATYPES.items())


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_leads_to_its_datatype_in_either_byte_order(name: str) -> None:
    dtype = np.dtype(DTYPES[name])
    assert datatype_of(dtype) is DATATYPES[name]
    assert datatype_of(dtype.newbyteorder()) is DATATYPES[name]
    assert datatype_named(name) is DATATYPES[name]
    assert datatype_named(f"TYPE_{name}") is DATATYPES[name]


def test_model_configurations_call_bytes_string() -> None:
    assert datatype_named("TYPE_STRING") is DATATYPES["BYTES"]


@pytest.mark.parametrize("name", ["fp32", "float32", "STRING", "", "TYPE_", None, 32, ["FP32"]])
def test_an_unknown_name_is_answered_with_the_names_there_are(name: object) -> None:
    with pytest.raises(TensorError, match=r"is not a datatype; the datatypes are BOOL, .*FP32.*BYTES"):
        datatype_named(name)


@pytest.mark.parametrize("name", ["BF16", "TYPE_BF16"])
def test_bf16_is_refused_with_what_to_use(name: str) -> None:
    with pytest.raises(TensorError, match=r"BF16 has no form in JSON.*FP32"):
        datatype_named(name)


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (np.dtype("complex64"), "complex64 .*send .real and .imag as two tensors"),
        (np.dtype("datetime64[s]"), r"datetime64\[s\] .*send integers"),
        (np.dtype("timedelta64[ms]"), r"timedelta64\[ms\] .*send integers"),
        (np.dtype([("x", "f4"), ("y", "i4")]), "structured; send each field"),
        (np.dtype("V4"), "use .astype"),
        (np.dtype("U3"), "has no datatype"),
    ],
)
def test_a_dtype_without_a_datatype_is_refused_with_what_would_be_right(dtype: np.dtype, advice: str) -> None:
    with pytest.raises(TensorError, match=advice):
        datatype_of(dtype)


def test_the_small_floats_of_frameworks_are_refused_with_what_would_be_right() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(TensorError, match=r"BF16.*send .astype\('float32'\)"):
        datatype_of(np.dtype(ml_dtypes.bfloat16))
    with pytest.raises(TensorError, match=r"float8_e5m2.*has no datatype"):
        datatype_of(np.dtype(ml_dtypes.float8_e5m2))


@pytest.mark.skipif(np.dtype("longdouble").itemsize == 8, reason="longdouble is float64 here")
def test_longdouble_is_refused() -> None:
    with pytest.raises(TensorError, match=r"longdouble.*send .astype\('float64'\)"):
        datatype_of(np.dtype("longdouble"))
