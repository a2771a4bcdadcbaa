"""Convert array-likes to numpy arrays of one plain dtype, or to object arrays of `str`.

The elements of lists are checked before numpy converts them, since numpy reads ``[1, "a"]`` as text,
``[True, 2]`` as integers, ``[2**63, -1]`` as floats, and drops the NULs at the end of a string.
"""

from __future__ import annotations

import array as _array
import datetime
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._handlers import is_of_callee
from tcm_sync._tensors.datatypes import TensorError
from tcm_sync._tensors.foreign import advice_on, as_list, check_dtype, check_unchanged

if TYPE_CHECKING:
    import numpy.typing as npt

#: numpy 1.26's limit.
MAX_DIMENSIONS = 32

_ARRAY_PROTOCOLS = ("__array__", "__array_interface__", "__array_struct__")
_BUFFERS = (memoryview, _array.array)
_TIMES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)
_EXACT_IN_FLOAT = 2**53
_KINDS = {bool: "bool", int: "int", float: "float", str: "text", bytes: "text"}


def as_array(data: object, *, scalars: bool = False) -> npt.NDArray[Any]:
    """Return the data as a numpy array, without a copy where possible.

    Parameters
    ----------
    data : array-like
        A numpy array, something with ``__array__`` (a pandas Series or DataFrame, a tensor of a framework)
        or its older forms, with ``__dlpack__``, a buffer, or nested lists of bool, int, float, str, bytes
        or equal arrays.
    scalars : bool
        Whether a bare bool, number or text is allowed, as a 0-d array.

    Returns
    -------
    ndarray
        Text in any form is an object array of `str`; the rest keeps its dtype. Lists have numpy's: float64,
        int64 (uint64 where needed), bool, and the dtype of their elements if all are numpy scalars of one
        type. An empty list is float64.

    Raises
    ------
    TensorError
        It is not array-like, or is ragged, mixed or masked; or no datatype can carry its elements; or its
        library changed numbers when it made the array. What its ``__array__`` raises is not caught.
    """
    if isinstance(data, (list, tuple)):
        return _from_lists(data)
    if isinstance(data, np.ndarray):
        return _plain(data)
    if _is_array_like(type(data)):
        return _through_protocol(data)
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes, bytearray)):
        return _from_lists(data)
    if isinstance(data, (bool, int, float, complex, str, bytes, bytearray, np.generic)):
        if scalars:
            return _from_elements([data], (), {type(data)})
        raise TensorError(
            f"a bare {type(data).__name__} is 0-d, which the wire cannot carry; make a list of it"
        )
    if hasattr(data, "set_data_from_numpy"):
        raise TensorError(f"{type(data).__name__} is an input of tritonclient: pass the array itself")
    raise TensorError(f"{type(data).__name__} is not array-like; pass a numpy array or nested lists")


def _is_array_like(kind: type) -> bool:
    """Return whether values of a type convert to numpy arrays; numpy's scalars do not count."""
    if issubclass(kind, np.generic):
        return False
    return _is_known_to_numpy(kind) or hasattr(kind, "__dlpack__")


def _is_known_to_numpy(kind: type) -> bool:
    return issubclass(kind, _BUFFERS) or any(hasattr(kind, protocol) for protocol in _ARRAY_PROTOCOLS)


def _through_protocol(data: Any) -> npt.NDArray[Any]:
    kind = type(data)
    check_dtype(data)
    try:
        array = np.asarray(data) if _is_known_to_numpy(kind) else np.from_dlpack(data)
    except Exception as error:
        if advice := advice_on(data):
            raise TensorError(advice) from error
        if is_of_callee(error):
            raise  # raised by the user's code or by the library that the array is from
        raise TensorError(f"{kind.__name__} did not become a numpy array: {error}") from error
    if array.dtype == object and array.ndim == 0:
        raise TensorError(f"{kind.__name__} did not become a numpy array")
    if array.size and array.dtype.kind in "US" and (texts := as_list(data)) is not None:
        return _from_lists(texts)  # numpy's own texts lose the NULs at their end
    made = _plain(array)
    if _is_converted(kind):
        check_unchanged(data, made)
    return made


def without_repeats(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the part of an array that is in memory once: the axes along which it is repeated have length 1.

    `np.broadcast_to` makes arrays of any size out of little memory. What examines every element uses this.
    """
    if 0 not in array.strides:
        return array
    return array[tuple([slice(None) if stride else slice(0, 1) for stride in array.strides])]


def _is_converted(kind: type) -> bool:
    """Return whether the type's own library makes the array, and so may convert the elements."""
    return hasattr(kind, "__array__")


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array as a plain ndarray, with texts of every kind as `str`."""
    if type(array) is not np.ndarray:
        if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
            raise TensorError("masked elements have no form in JSON; .filled() replaces them with a value")
        array = np.asarray(array)
    if array.dtype.kind not in "OUST":
        return array
    if array.size == 0:
        return np.empty(array.shape, dtype=object)
    try:
        elements = array.ravel().tolist()
    except (SystemError, ValueError) as error:  # numpy itself does not look at the code points in a buffer
        raise TensorError(f"its bytes are no text: {error}") from error
    return _from_elements(elements, array.shape, set(map(type, elements)))


def _from_lists(data: Iterable[Any]) -> npt.NDArray[Any]:
    """Flatten nested lists level by level, without recursion, so that their depth does not matter."""
    level = list(data)
    shape = [len(level)]
    types = set(map(type, level))
    while types and all(issubclass(kind, (list, tuple)) for kind in types):
        lengths = set(map(len, level))
        if len(lengths) > 1:
            few = ", ".join(map(str, sorted(lengths)[:4]))
            raise TensorError(
                f"ragged: dimension {len(shape)} has lists of lengths {few}; pad them to one length"
            )
        shape.append(lengths.pop())
        if len(shape) > MAX_DIMENSIONS:
            raise TensorError(f"nested more than {MAX_DIMENSIONS} deep")
        level = list(chain.from_iterable(level))
        types = set(map(type, level))
    return _from_elements(level, tuple(shape), types)


def _from_elements(elements: list[Any], shape: tuple[int, ...], types: set[type]) -> npt.NDArray[Any]:
    kinds = {_KINDS.get(kind) or _kind_of(kind) for kind in types}
    if len(kinds) > 1 and kinds != {"int", "float"}:
        names = " and ".join(sorted(kind.__name__ for kind in types))
        missing = "; a NaN among texts is a missing one: fill it" if kinds == {"float", "text"} else ""
        raise TensorError(f"mixes {names}; all elements must be of one kind{missing}")
    if kinds == {"array"}:
        return _stack(elements, shape)
    if not kinds:
        flat: npt.NDArray[Any] = np.empty(0)
    elif kinds == {"text"}:
        flat = np.array(_checked_text(elements, types), dtype=object)
    elif len(types) == 1 and issubclass(next(iter(types)), np.generic):
        flat = np.array(elements)
    elif kinds == {"bool"}:
        flat = np.array(elements, dtype=bool)
    elif kinds == {"int"}:
        flat = _integers(elements, types)
    else:
        if "int" in kinds:
            _check_exact(elements)
        flat = np.array(elements, dtype=np.float64)
    return flat.reshape(shape)


def _kind_of(kind: type) -> str:
    """Return the kind of an element whose type is not in `_KINDS`."""
    if issubclass(kind, _TIMES):
        raise TensorError(f"{kind.__name__} has no datatype; send times as integers of a stated unit")
    if issubclass(kind, (complex, np.complexfloating)):
        raise TensorError(f"{kind.__name__} has no datatype; send real and imaginary parts as two tensors")
    if issubclass(kind, np.longdouble):
        raise TensorError("longdouble has no datatype; make the numbers float")
    if kind is type(None) or kind.__name__ == "NAType":  # of pandas
        missing = "None" if kind is type(None) else "NA"
        raise TensorError(f"{missing} is not a value; a missing float is float('nan')")
    if issubclass(kind, (list, tuple)):
        raise TensorError(
            "ragged: lists beside elements, or in an object array; nest all elements equally deep"
        )
    for bases, name in (
        ((str, bytes), "text"),
        (np.bool_, "bool"),
        ((int, np.integer), "int"),
        ((float, np.floating), "float"),
    ):
        if issubclass(kind, bases):
            return name
    if _is_array_like(kind):
        return "array"
    raise TensorError(f"{kind.__name__} has no datatype; elements are bool, int, float, str or bytes")


def _stack(elements: list[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Join equal arrays in a list along a new axis."""
    arrays = [as_array(element) for element in elements]
    first = arrays[0]
    for other in arrays:
        if other.shape != first.shape:
            raise TensorError(f"ragged: arrays of shapes {first.shape} and {other.shape}; pad them to one")
        if other.dtype != first.dtype:
            raise TensorError(f"mixes arrays of {first.dtype} and {other.dtype}; .astype() them to one dtype")
    if len(shape) + first.ndim > MAX_DIMENSIONS:
        raise TensorError(f"nested more than {MAX_DIMENSIONS} deep")
    return np.stack(arrays).reshape(shape + first.shape)


def _integers(elements: list[Any], types: set[type]) -> npt.NDArray[Any]:
    if types != {int}:
        elements = list(map(int, elements))  # numpy's own would wrap or become floats
    try:
        return np.array(elements, dtype=np.int64)
    except OverflowError:
        low, high = min(elements), max(elements)
    if low < 0 or high.bit_length() > 64:
        raise TensorError("the integers fit neither INT64 nor UINT64; send floats, or split them")
    return np.array(elements, dtype=np.uint64)


def _check_exact(elements: list[Any]) -> None:
    """Refuse integers among floats that are too large for float64 to hold every integer."""
    for number in elements:
        if not isinstance(number, (float, np.floating)) and abs(int(number)) > _EXACT_IN_FLOAT:
            raise TensorError(
                "an integer among the floats may have no exact float64; make it a float yourself"
            )


def _checked_text(elements: list[Any], types: set[type]) -> list[str]:
    """Return the elements as plain `str`; refuse a text that the model would not receive unchanged.

    The manager drops NULs at the end of a string, and JSON is UTF-8 (docs/wire.rst, "What cannot be
    carried").
    """
    if types != {str}:
        elements = [_as_str(element) for element in elements]
    joined = "".join(elements)
    if "\0" in joined and any(element.endswith("\0") for element in elements):
        raise TensorError(
            "text that ends in NUL loses it on the way; strip it, or end it with another character"
        )
    if not joined.isascii():
        try:
            joined.encode()
        except UnicodeEncodeError:
            raise TensorError("text with a lone surrogate is not UTF-8; BYTES carries UTF-8 only") from None
    return elements


def _as_str(element: str | bytes) -> str:
    if isinstance(element, str):
        return str.__str__(element)  # a subclass may have a __str__ of its own
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise TensorError(
            f"bytes that are not UTF-8 ({error.reason} at byte {error.start}) have no form in JSON; "
            "send them as UINT8, or as text in base64 if the model reads that"
        ) from None
