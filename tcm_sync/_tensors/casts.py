"""Cast arrays from one numpy dtype to another without changing what a value means.

The only change is that floats are rounded to the nearest value of a narrower float. A value that numpy would
wrap, truncate or turn into an infinity is refused: the manager would not report it either (docs/wire.rst,
"What cannot be carried").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._tensors.datatypes import TensorError

if TYPE_CHECKING:
    import numpy.typing as npt

_WORDS = {"b": "bool", "i": "integers", "u": "integers", "f": "floats", "O": "text"}
_NUMBERS = "iuf"


def cast(array: npt.NDArray[Any], dtype: np.dtype[Any], label: object) -> npt.NDArray[Any]:
    """Return an array in another dtype, or the array itself if it has that dtype.

    Parameters
    ----------
    array : ndarray
        Of bool, integers, floats, or an object array of str.
    dtype : numpy.dtype
        The dtype to return, of one of these kinds.
    label : object
        The name of the dtype in messages.

    Raises
    ------
    TensorError
        bool, numbers and text are not cast to each other; or a value does not fit: out of range, a fraction
        or NaN for an integer, an integer that the float can only approximate. An empty array always fits.
    """
    source = array.dtype
    if source == dtype:
        return array
    if array.size == 0:
        return np.empty(array.shape, dtype)
    if source.kind not in _NUMBERS or dtype.kind not in _NUMBERS:
        raise TensorError(f"{_WORDS[source.kind]} given for {label}, which takes {_WORDS[dtype.kind]} only")
    if source.kind == "f" and dtype.kind == "f":
        return _round(array, dtype, label)
    if source.kind == "f":
        _check_integral(array, dtype, label)
    elif dtype.kind == "f":
        _check_exact(array, dtype, label)
    else:
        _check_range(array, dtype, label)
    return array.astype(dtype)


def _check_range(array: npt.NDArray[Any], dtype: np.dtype[Any], label: object) -> None:
    """Refuse integers that are out of range for another integer dtype."""
    limits = np.iinfo(dtype)
    for value in (int(array.min()), int(array.max())):
        if not limits.min <= value <= limits.max:
            raise TensorError(f"{value} is out of range for {label} ({limits.min} to {limits.max})")


def _check_exact(array: npt.NDArray[Any], dtype: np.dtype[Any], label: object) -> None:
    """Refuse integers that a float dtype cannot hold exactly."""
    largest_exact = 2 ** (np.finfo(dtype).nmant + 1)
    if -largest_exact <= int(array.min()) and int(array.max()) <= largest_exact:
        return
    beyond = array > largest_exact
    if array.dtype.kind == "i":
        beyond |= array < -largest_exact
    with np.errstate(over="ignore"):
        for value in array[beyond].tolist():
            if float(dtype.type(value)) != value:  # Python compares an int with a float exactly
                raise TensorError(f"{value} has no exact {label}; if rounding is meant, .astype() it first")


def _check_integral(array: npt.NDArray[Any], dtype: np.dtype[Any], label: object) -> None:
    """Refuse floats that are not integers of the dtype: fractions, NaN, infinities, or out of range."""
    limits = np.iinfo(dtype)
    wide = array.astype(np.float64)
    fits = (wide == np.trunc(wide)) & (wide >= float(limits.min)) & (wide < float(limits.max + 1))
    if not fits.all():
        value = array[~fits].flat[0].item()
        raise TensorError(
            f"{value} is not an integer of {label} ({limits.min} to {limits.max}); .round() it first"
        )


def _round(array: npt.NDArray[Any], dtype: np.dtype[Any], label: object) -> npt.NDArray[Any]:
    """Round floats to another dtype; refuse those that would become infinite."""
    try:
        with np.errstate(over="raise", under="ignore"):
            return array.astype(dtype)
    except FloatingPointError:
        pass
    with np.errstate(over="ignore", under="ignore"):
        overflown = array[np.isinf(array.astype(dtype)) & np.isfinite(array)]
    raise TensorError(f"{overflown[0].item()} is out of range for {label} (up to {np.finfo(dtype).max})")
