"""Convert numbers of Python, numpy and other libraries to plain int and float."""

from __future__ import annotations

import operator

import numpy as np

from tcm_sync._handlers import is_of_handler

MAX_PAUSE = 60.0  # seconds: who asks for a longer pause is asked again after this one

_NOT_NUMBERS = (bool, str, bytes, bytearray, memoryview, complex)


def as_whole(value: object) -> int | None:
    """Return a whole number of any integer type as int; None for anything else, bool and 4.0 included."""
    if type(value) is int:
        return value
    if not _may_be_number(value, "iu"):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # raises if it has none
    except Exception as error:  # a framework's tensor may raise any class
        if is_of_handler(error):
            raise
        return None


def as_number(value: object) -> int | float | None:
    """Return a number of any real type, infinities and NaN included, as int or float; None otherwise."""
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


def asked_pause(value: object) -> float | None:
    """Return a pause that the other side asks for, in seconds from 0 to 60; None if it is no number."""
    seconds = as_number(value)
    if seconds is None or seconds != seconds:
        return None
    return float(min(max(0, seconds), MAX_PAUSE))


def _may_be_number(value: object, kinds: str) -> bool:
    """Return whether a value is a numpy scalar of these kinds of dtype, or a scalar of another library."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.ndim == 0 and value.dtype.kind in kinds
    return not isinstance(value, _NOT_NUMBERS) and getattr(value, "shape", ()) == ()


def shown(value: object) -> str:
    """Return the repr of a refused value for a message, shortened; its type if the repr fails."""
    try:
        return f"{value!r:.80}"
    except Exception as error:  # an int of 5,000 digits has no repr; a user's class may have a broken one
        if is_of_handler(error):
            raise
        return f"a {type(value).__name__}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, which gets an s unless there is one of it."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
