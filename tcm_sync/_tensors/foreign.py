"""Refuse arrays in which another library has changed numbers when it converted its data to numpy.

pandas, polars and pyarrow convert integers beside floats or missing values, and int64 beside uint64, to
float64, which cannot hold 2**53 + 1. Where numbers may have changed, the array is compared with the data.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._tensors.datatypes import TensorError
from tcm_sync._wire.quote import quote

if TYPE_CHECKING:
    import numpy.typing as npt

_AS_LIST = ("to_pylist", "to_list", "tolist")
_PYARROW_NAMES = {"double": "float64", "float": "float32", "halffloat": "float16"}


def is_frame(data: object) -> bool:
    """Return whether data are a data frame: of pandas, polars, pyarrow, or of a library like them."""
    kind = type(data)
    if hasattr(kind, "__dataframe__") or hasattr(kind, "__narwhals_dataframe__"):
        return True
    return hasattr(kind, "columns") and (hasattr(kind, "iloc") or hasattr(kind, "collect_schema"))


def advice_on(data: Any) -> str | None:
    """Return what to do about a tensor that its library refuses to convert to numpy, or None."""
    if str(getattr(data, "dtype", "")) == "torch.bfloat16":
        return "bfloat16 (BF16) has no form in JSON; send .float(), as FP32"
    calls = []
    if getattr(data, "requires_grad", False) is True:
        calls.append(".detach()")
    if (
        callable(getattr(data, "cpu", None))
        and getattr(getattr(data, "device", None), "type", "cpu") != "cpu"
    ):
        calls.append(".cpu()")
    if not calls:
        return None
    why = "it requires gradients" if calls == [".detach()"] else f"it is on the device {data.device}"
    return f"{type(data).__name__} did not become a numpy array, since {why}; send {''.join(calls)}"


def check_unchanged(data: Any, array: npt.NDArray[Any]) -> None:
    """Refuse an array whose numbers differ from the data that it was made from.

    Parameters
    ----------
    data : object
        Nested lists, or an array, a column or a table of another library.
    array : ndarray
        The array that numpy and the library made of it.

    Raises
    ------
    TensorError
        An integer became a float of another value, or bool became numbers. The message names the column, if
        there are columns.
    """
    if array.dtype.kind not in "iuf" or _declared_dtypes(data) == {array.dtype.name}:
        return
    if array.ndim == 2:
        columns = list(_columns(data))
        if len(columns) == array.shape[1]:
            _check_columns(columns, array)
            return
    if array.dtype.kind == "f":
        _check_elements(data, array)


def check_dtype(data: Any) -> None:
    """Refuse a column of which its library makes something else, or nothing, when it becomes an array.

    Raises
    ------
    TensorError
        Its elements have fields, whose names would be lost, or are integers of 128 bits.
    """
    dtype = getattr(data, "dtype", None)
    if str(dtype) in ("Int128", "UInt128"):
        raise TensorError(f"{dtype} has no datatype; convert it to 64 bits")
    fields = getattr(dtype, "fields", None)
    if fields and not isinstance(data, np.ndarray):
        names = " and ".join(f'"{quote(str(getattr(each, "name", each)))}"' for each in list(fields)[:2])
        raise TensorError(f"structs have no datatype; send each field ({names} …) as an input of its own")


def as_list(data: Any) -> list[Any] | None:
    """Return the elements of an array or a column of another library as it gives them itself, if it does."""
    for name in _AS_LIST:
        if callable(method := getattr(data, name, None)):
            elements = method()
            return elements if isinstance(elements, list) else None
    return None


def _declared_dtypes(data: Any) -> set[str]:
    """Return the dtypes that data declares, by numpy's names where it has them."""
    schema = getattr(data, "schema", None)  # of pyarrow, and of polars
    for found in (getattr(data, "dtype", None), getattr(data, "type", None)):
        if found is not None:
            return {_name_of(found)}
    several = getattr(data, "dtypes", None)
    if several is None:
        several = getattr(schema, "types", None)
    return set(map(_name_of, several)) if isinstance(several, Iterable) else set()


def _name_of(dtype: object) -> str:
    name = str(dtype).removeprefix("torch.")
    return _PYARROW_NAMES.get(name, name)


def _columns(data: Any) -> Iterator[tuple[object, Any]]:
    """Yield the name and values of each column of a table: of pyarrow, polars, pandas or one like it."""
    if hasattr(data, "column_names") and hasattr(data, "column"):
        yield from ((name, data.column(place)) for place, name in enumerate(data.column_names))
    elif hasattr(data, "columns") and hasattr(data, "get_columns"):
        yield from zip(data.columns, data.get_columns(), strict=True)
    elif hasattr(data, "columns") and hasattr(data, "iloc"):
        yield from ((name, data.iloc[:, place]) for place, name in enumerate(data.columns))


def _check_columns(columns: list[tuple[object, Any]], whole: npt.NDArray[Any]) -> None:
    kinds: dict[str, object] = {}
    for place, (name, column) in enumerate(columns):
        array = np.asarray(column)
        kinds.setdefault("bool" if array.dtype.kind == "b" else "numbers", name)
        try:
            check_unchanged(column, array)
            if array.dtype.kind in "iu" and whole.dtype.kind == "f":
                _compare(array.tolist(), whole[:, place])
        except TensorError as reason:
            raise TensorError(f'column "{quote(str(name))}": {reason}') from None
    if len(kinds) > 1:
        mixed = " and ".join(f'{kind} in column "{quote(str(name))}"' for kind, name in kinds.items())
        raise TensorError(f"mixes {mixed}; send them as inputs of their own")


def _check_elements(data: Any, array: npt.NDArray[Any]) -> None:
    """Compare the elements one by one, unless all floats are so small that every integer is exact."""
    if not _inexact(array).any():
        return
    elements: Any = data if isinstance(data, (list, tuple)) else as_list(data)
    while elements and isinstance(elements, (list, tuple)) and isinstance(elements[0], (list, tuple)):
        elements = list(chain.from_iterable(elements))
    if isinstance(elements, (list, tuple)) and len(elements) == array.size:
        _compare(elements, array)


def _compare(elements: list[Any] | tuple[Any, ...], array: npt.NDArray[Any]) -> None:
    """Refuse an integer that has another value in the array."""
    flat = array.reshape(-1)
    for place in np.flatnonzero(_inexact(flat)):
        given, made = elements[place], flat[place].item()
        if isinstance(given, numbers.Integral) and int(given) != made:
            raise TensorError(
                f"{int(given)} became {made!r} in the conversion to {array.dtype}, which cannot hold it; "
                "send integers without floats or missing values beside them, or make them floats yourself"
            )


def _inexact(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return where floats are so large that not every integer is exact, infinities included."""
    largest_exact = array.dtype.type(2.0 ** (np.finfo(array.dtype).nmant + 1))
    beyond: npt.NDArray[Any] = (array >= largest_exact) | (array <= -largest_exact)
    return beyond
