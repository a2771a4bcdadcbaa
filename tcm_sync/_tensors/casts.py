"""From one numpy dtype to another without a value that changes meaning.

Floats are rounded to the nearest of a narrower float; that is the only change there is. What numpy would
wrap, cut or turn into an infinity is refused, as the manager would not notice it either (docs/wire.rst,
"What cannot be carried").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._tensors.datatypes import Unfit

if TYPE_CHECKING:
    import numpy.typing as npt

_WORDS = {"b": "bool", "i": "integers", "u": "integers", "f": "floats", "O": "text"}
_NUMBERS = "iuf"


def cast(array: npt.NDArray[Any], dtype: np.dtype[Any], label: object) -> npt.NDArray[Any]:
    """Return the array in another dtype, or itself if it has it.

    Parameters
    ----------
    array : ndarray
        Of bool, integers, floats, or an object array of str.
    dtype : numpy.dtype
        One of the same choice.
    label : object
        What messages call the dtype, if there are any.

    Raises
    ------
    Unfit
        bool, numbers and text are not each other; or a value does not fit: out of range, a fraction or
        NaN for an integer, an integer that the float can only approximate. An empty array always fits.
    """
    source = array.dtype
    if source == dtype:
        return array
    if array.size == 0:
        return np.empty(array.shape, dtype)
    if source.kind not in _NUMBERS or dtype.kind not in _NUMBERS:
        raise Unfit(f"{_WORDS[source.kind]} given for {label}, which takes {_WORDS[dtype.kind]} only")
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
    """Refuse integers that another integer dtype does not have."""
    limits = np.iinfo(dtype)
    for value in (int(array.min()), int(array.max())):
        if not limits.min <= value <= limits.max:
            raise Unfit(f"{value} is out of range for {label} ({limits.min} to {limits.max})")


def _check_exact(array: npt.NDArray[Any], dtype: np.dtype[Any], label: object) -> None:
    """Refuse integers between which a float dtype has gaps, unless it has these very ones."""
    reach = 2 ** (np.finfo(dtype).nmant + 1)
    if -reach <= int(array.min()) and int(array.max()) <= reach:
        return
    beyond = array > reach
    if array.dtype.kind == "i":
        beyond |= array < -reach
    with np.errstate(over="ignore"):
        for value in array[beyond].tolist():
            if float(dtype.type(value)) != value:  # Python compares an int with a float exactly
                raise Unfit(f"{value} has no exact {label}; if rounding is meant, .astype() it first")


def _check_integral(array: npt.NDArray[Any], dtype: np.dtype[Any], label: object) -> None:
    """Refuse floats that are no integer of the dtype: fractions, NaN, infinities, too large ones."""
    limits = np.iinfo(dtype)
    wide = array.astype(np.float64)
    fits = (wide == np.trunc(wide)) & (wide >= float(limits.min)) & (wide < float(limits.max + 1))
    if not fits.all():
        value = array[~fits].flat[0].item()
        raise Unfit(f"{value} is not an integer of {label} ({limits.min} to {limits.max}); .round() it first")


def _round(array: npt.NDArray[Any], dtype: np.dtype[Any], label: object) -> npt.NDArray[Any]:
    """Round floats to another dtype; refuse those that would become infinite."""
    try:
        with np.errstate(over="raise", under="ignore"):
            return array.astype(dtype)
    except FloatingPointError:
        pass
    with np.errstate(over="ignore", under="ignore"):
        overflown = array[np.isinf(array.astype(dtype)) & np.isfinite(array)]
    raise Unfit(f"{overflown[0].item()} is out of range for {label} (up to {np.finfo(dtype).max})")
