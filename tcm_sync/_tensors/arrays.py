"""Whatever users call an array, as a numpy array: of one plain dtype, or an object array of `str`.

Lists are looked at element by element before numpy sees them, since numpy reads ``[1, "a"]`` as text,
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
from tcm_sync._tensors.datatypes import Unfit
from tcm_sync._tensors.foreign import check_kept

if TYPE_CHECKING:
    import numpy.typing as npt

#: What numpy 1.26 can hold; nobody's model has more.
MAX_DIMENSIONS = 32

_ARRAY_PROTOCOLS = ("__array__", "__array_interface__", "__array_struct__")
_BUFFERS = (memoryview, _array.array)
_TIMES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)
_EXACT_IN_FLOAT = 2**53
_KINDS = {bool: "bool", int: "int", float: "float", str: "text", bytes: "text"}


def as_array(data: object, *, scalars: bool = False) -> npt.NDArray[Any]:
    """Return a numpy array of the data, which is not copied where it need not be.

    Parameters
    ----------
    data : array-like
        A numpy array, something with ``__array__`` (a pandas Series or DataFrame, a tensor of a framework)
        or its older forms, with ``__dlpack__``, a buffer, or nested lists of bool, int, float, str, bytes
        or equal arrays.
    scalars : bool
        Whether a bare bool, number or text will do, as a 0-d array.

    Returns
    -------
    ndarray
        Text in any form is an object array of `str`; the rest keeps its dtype. Lists have numpy's: float64,
        int64 (uint64 where needed), bool, and the dtype of their elements if all are numpy scalars of one
        type. An empty list is float64.

    Raises
    ------
    Unfit
        It is none of these, ragged, mixed, masked, or has elements that no datatype carries; or the library
        that it is from made an array of other numbers. What its ``__array__`` raises goes up as it is.
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
        raise Unfit(f"a bare {type(data).__name__} is 0-d, which the wire cannot carry; make a list of it")
    raise Unfit(f"{type(data).__name__} is not array-like; give a numpy array or nested lists")


def _is_array_like(kind: type) -> bool:
    """Return whether values of the type make a numpy array by themselves; numpy's scalars do not count."""
    if issubclass(kind, np.generic):
        return False
    return _is_known_to_numpy(kind) or hasattr(kind, "__dlpack__")


def _is_known_to_numpy(kind: type) -> bool:
    return issubclass(kind, _BUFFERS) or any(hasattr(kind, protocol) for protocol in _ARRAY_PROTOCOLS)


def _through_protocol(data: Any) -> npt.NDArray[Any]:
    kind = type(data)
    try:
        array = np.asarray(data) if _is_known_to_numpy(kind) else np.from_dlpack(data)
    except Exception as error:
        if is_of_callee(error):
            raise  # it is of the user's own code, or of the library that the array is from
        raise Unfit(f"{kind.__name__} did not become a numpy array: {error}") from error
    if array.dtype == object and array.ndim == 0:
        raise Unfit(f"{kind.__name__} did not become a numpy array")
    made = _plain(array)
    if _is_converted(kind):
        check_kept(data, made)
    return made


def _is_converted(kind: type) -> bool:
    """Return whether the library of a type makes the array itself, and may convert the elements."""
    return hasattr(kind, "__array__")


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array without its subclass, and text of every kind as `str`."""
    if type(array) is not np.ndarray:
        if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
            raise Unfit("masked elements have no form in JSON; .filled() puts a value in their place")
        array = np.asarray(array)
    if array.dtype.kind not in "OUST":
        return array
    if array.size == 0:
        return np.empty(array.shape, dtype=object)
    elements = array.ravel().tolist()
    return _from_elements(elements, array.shape, set(map(type, elements)))


def _from_lists(data: Iterable[Any]) -> npt.NDArray[Any]:
    """Take nested lists apart level by level: no recursion, whatever their depth."""
    level = list(data)
    shape = [len(level)]
    types = set(map(type, level))
    while types and all(issubclass(kind, (list, tuple)) for kind in types):
        lengths = set(map(len, level))
        if len(lengths) > 1:
            few = ", ".join(map(str, sorted(lengths)[:4]))
            raise Unfit(f"ragged: dimension {len(shape)} has lists of lengths {few}; pad them to one length")
        shape.append(lengths.pop())
        if len(shape) > MAX_DIMENSIONS:
            raise Unfit(f"nested more than {MAX_DIMENSIONS} deep")
        level = list(chain.from_iterable(level))
        types = set(map(type, level))
    return _from_elements(level, tuple(shape), types)


def _from_elements(elements: list[Any], shape: tuple[int, ...], types: set[type]) -> npt.NDArray[Any]:
    kinds = {_KINDS.get(kind) or _kind_of(kind) for kind in types}
    if len(kinds) > 1 and kinds != {"int", "float"}:
        names = " and ".join(sorted(kind.__name__ for kind in types))
        raise Unfit(f"mixes {names}; all elements must be of one kind")
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
    """Return what an element of a rarer type is."""
    if issubclass(kind, _TIMES):
        raise Unfit(f"{kind.__name__} has no datatype; send times as integers of a stated unit")
    if issubclass(kind, (complex, np.complexfloating)):
        raise Unfit(f"{kind.__name__} has no datatype; send real and imaginary parts as two tensors")
    if issubclass(kind, np.longdouble):
        raise Unfit("longdouble has no datatype; make the numbers float")
    if kind is type(None):
        raise Unfit("None is no value; a missing float is float('nan')")
    if issubclass(kind, (list, tuple)):
        raise Unfit("ragged: lists beside elements, or in an object array; all must be nested equally deep")
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
    raise Unfit(f"{kind.__name__} has no datatype; elements are bool, int, float, str or bytes")


def _stack(elements: list[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Join equal arrays in a list along a new axis."""
    arrays = [as_array(element) for element in elements]
    first = arrays[0]
    for other in arrays:
        if other.shape != first.shape:
            raise Unfit(f"ragged: arrays of shapes {first.shape} and {other.shape}; pad them to one")
        if other.dtype != first.dtype:
            raise Unfit(f"mixes arrays of {first.dtype} and {other.dtype}; .astype() them to one dtype")
    if len(shape) + first.ndim > MAX_DIMENSIONS:
        raise Unfit(f"nested more than {MAX_DIMENSIONS} deep")
    return np.stack(arrays).reshape(shape + first.shape)


def _integers(elements: list[Any], types: set[type]) -> npt.NDArray[Any]:
    if types != {int}:
        elements = list(map(int, elements))  # numpy's own would wrap or become floats
    try:
        return np.array(elements, dtype=np.int64)
    except OverflowError:
        low, high = min(elements), max(elements)
    if low < 0 or high.bit_length() > 64:
        raise Unfit("the integers fit neither INT64 nor UINT64; send floats, or split them")
    return np.array(elements, dtype=np.uint64)


def _check_exact(elements: list[Any]) -> None:
    """Refuse integers among floats that are beyond those that float64 has without gaps."""
    for number in elements:
        if not isinstance(number, (float, np.floating)) and abs(int(number)) > _EXACT_IN_FLOAT:
            raise Unfit("an integer among the floats may have no exact float64; make it a float yourself")


def _checked_text(elements: list[Any], types: set[type]) -> list[str]:
    """Return the elements as plain `str`, of which all survive the way to the model.

    The manager drops NULs at the end of a string, and JSON is UTF-8 (docs/wire.rst, "What cannot be
    carried").
    """
    if types != {str}:
        elements = [_as_str(element) for element in elements]
    joined = "".join(elements)
    if "\0" in joined and any(element.endswith("\0") for element in elements):
        raise Unfit("text that ends in NUL loses it on the way; strip it, or end it with another character")
    if not joined.isascii():
        try:
            joined.encode()
        except UnicodeEncodeError:
            raise Unfit("text with a lone surrogate is not UTF-8; BYTES carries UTF-8 only") from None
    return elements


def _as_str(element: str | bytes) -> str:
    if isinstance(element, str):
        return str.__str__(element)  # of a subclass, which may have a __str__ of its own
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise Unfit(
            f"bytes that are not UTF-8 ({error.reason} at byte {error.start}) have no form in JSON; "
            "send them as UINT8, or as text in base64 if the model reads that"
        ) from None
