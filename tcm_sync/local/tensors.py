"""Decode tensors from JSON, and encode them (docs/wire.rst, "What cannot be carried").

`tcm_sync._tensors` is not used here, so that a mistake in it does not go unnoticed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
_TEXT_BYTES = 1  # the size of a text when payloads are estimated from shapes and datatypes


@dataclass(frozen=True)
class Tensor:
    """An input as it was sent."""

    name: str
    shape: list[int]
    datatype: str
    data: Any

    @property
    def estimated_bytes(self) -> int:
        """Its size, estimated from shape and datatype."""
        itemsize = _TEXT_BYTES if self.datatype == "BYTES" else _DTYPES[self.datatype].itemsize
        return math.prod(self.shape) * itemsize


def encoded_bytes(tensor: Tensor) -> int:
    """Return the size of an input in Triton's binary form, where 4 bytes of length precede a text."""
    array = to_array(tensor.data, tensor.shape, tensor.datatype)
    if tensor.datatype != "BYTES":
        return int(array.nbytes)
    return sum(4 + len(text.encode()) for text in array.flat)


def is_datatype(name: str) -> bool:
    """Return whether a name is that of a Triton datatype with a JSON form."""
    return name in _DTYPES


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of a Triton datatype that has a JSON form."""
    return _DTYPES[name]


def nesting(data: object) -> list[int]:
    """Return the shape of nested lists by their first elements; a bare value counts as a list of one."""
    if not isinstance(data, list):
        return [1]
    shape = []
    while isinstance(data, list):
        shape.append(len(data))
        data = data[0] if data else None
    return shape


def to_array(data: Any, shape: list[int], datatype: str) -> NDArray[Any]:
    """Make an array of the JSON of one input, with the casts and losses of the recorded manager.

    Parameters
    ----------
    data : nested lists, or a bare value for shape [1]
        Nested as `shape` says, as far as the first elements show it.
    shape : list of int
    datatype : str
        A Triton datatype that has a JSON form.

    Raises
    ------
    ValueError, TypeError, OverflowError
        If a value cannot be what the datatype says.
    """
    if not isinstance(data, list):
        data = [data]
    dtype = _DTYPES[datatype]
    if datatype == "BYTES":
        return _texts(data, shape)
    if dtype.kind in "iu":
        return _integers(data, dtype)
    with np.errstate(over="ignore"):  # what overflows becomes infinite without a warning
        return np.array(data, dtype=dtype)


def _integers(data: list[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Cut floats to integers, and refuse what is out of range: numpy 1 would wrap it."""
    unsigned = dtype == np.uint64
    wide: NDArray[Any] = np.array(data, dtype=np.object_ if unsigned else np.int64)
    bounds = np.iinfo(dtype)
    if unsigned:
        outside = [int(value) for value in wide.flat if isinstance(value, int | float) and value < 0]
    else:
        outside = wide[(wide < bounds.min) | (wide > bounds.max)].tolist()
    if outside:
        raise OverflowError(f"Python integer {outside[0]} out of bounds for {dtype.name}")
    return wide.astype(dtype)


def _texts(data: list[Any], shape: list[int]) -> NDArray[Any]:
    """Make an array of str: anything else becomes its text, and trailing NULs are lost."""
    found = np.array(data, dtype=np.object_)
    if list(found.shape) != shape:
        raise ValueError("setting an array element with a sequence: the lists are not of equal length")
    texts = np.empty(found.size, dtype=np.object_)
    texts[:] = [str(value).rstrip("\0") for value in found.flat]
    return texts.reshape(shape)


def to_json(array: NDArray[Any]) -> Any:
    """Encode an output for JSON, with the losses of the recorded manager.

    Texts lose their shape, and a single text its list; FP16 is widened; what is not finite becomes null.

    Raises
    ------
    TypeError, UnicodeDecodeError
        If the output has no JSON form.
    """
    if array.dtype.kind in "OSU":
        texts = [_text(value) for value in array.ravel()]
        if not texts:
            return array.tolist()
        return texts[0] if len(texts) == 1 else texts
    if array.dtype.newbyteorder("=") not in _DTYPES.values():
        raise TypeError(f"an output of dtype {array.dtype} has no JSON form")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        values = array.astype(np.object_)
        values[~np.isfinite(array)] = None
        return values.tolist()
    return array.tolist()


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"an output that holds a {type(value).__name__} has no JSON form")
