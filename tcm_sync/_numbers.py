"""Numbers that callers pass: Python's, numpy's and other libraries', kept as plain int and float."""

from __future__ import annotations

import operator

import numpy as np

from tcm_sync._handlers import is_of_handler

_NO_NUMBERS = (bool, str, bytes, bytearray, memoryview, complex)


def as_whole(value: object) -> int | None:
    """Return a whole number of any integer type as int; None for anything else, bool and 4.0 included."""
    if type(value) is int:
        return value
    if not _may_be_number(value, "iu"):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # it says whether it has one
    except Exception as error:  # a tensor of a framework raises what it likes
        if is_of_handler(error):
            raise
        return None


def as_number(value: object) -> int | float | None:
    """Return a number of any real type as int or float, also if it is not finite; None for anything else."""
    if type(value) is float:
        return value
    whole = as_whole(value)
    if whole is not None:
        return whole
    if not _may_be_number(value, "f") or not hasattr(type(value), "__float__"):
        return None
    try:
        return float(value)  # type: ignore[arg-type]  # it has __float__
    except Exception as error:  # as above
        if is_of_handler(error):
            raise
        return None


def _may_be_number(value: object, kinds: str) -> bool:
    """Return whether a value is a scalar of some kinds of dtype, or of a type that numpy does not know."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.ndim == 0 and value.dtype.kind in kinds
    return not isinstance(value, _NO_NUMBERS) and getattr(value, "shape", ()) == ()


def shown(value: object) -> str:
    """Return how a message shows a value that was refused, whatever its repr does."""
    try:
        return f"{value!r:.80}"
    except Exception as error:  # an int of 5,000 digits has no repr, nor has what a user broke
        if is_of_handler(error):
            raise
        return f"a {type(value).__name__}"
