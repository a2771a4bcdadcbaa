"""What an array holds, in a line or two: some of its values, and their range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_FEW = 6  # values that are shown
_LONG = 24  # characters of a text


def first_values(array: npt.NDArray[Any]) -> str:
    """Return the first values of an array as text, in the order of its memory."""
    values = ", ".join(map(_value, array.flat[:_FEW].tolist()))
    return f"{values}, …" if array.size > _FEW else values


def range_of(array: npt.NDArray[Any]) -> str:
    """Return the lowest and the highest number of an array, and how many are NaN; of bool how many are true.

    It is empty for text, and for an array without elements.
    """
    if array.dtype.kind == "b":
        return f"{np.count_nonzero(array):,} of {array.size:,} true"
    if array.dtype.kind not in "iuf" or array.size == 0:
        return ""
    missing = int(np.count_nonzero(np.isnan(array))) if array.dtype.kind == "f" else 0
    if missing == array.size:
        return "all NaN"
    low, high = np.nanmin(array).item(), np.nanmax(array).item()
    return f"{_value(low)} to {_value(high)}" + (f", {missing:,} NaN" if missing else "")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return repr(value if len(value) <= _LONG else value[: _LONG - 1] + "…")
    return str(value)
