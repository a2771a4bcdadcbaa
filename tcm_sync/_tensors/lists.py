"""Decode JSON text that is nested lists of one kind of element to an array, all at once.

msgspec decodes the text, since orjson turns integers over 64 bits into floats. A typed decoder refuses mixed
elements at no extra cost. numpy then makes the array from the nested lists in one pass, which was the only
way measured that is fast at every size.
"""

from __future__ import annotations

import contextvars
import functools
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tcm_sync._tensors.casts import cast
from tcm_sync._tensors.datatypes import TensorError
from tcm_sync._wire.unreadable import UNREADABLE, why_unreadable

if TYPE_CHECKING:
    import numpy.typing as npt

Text = bytes | msgspec.Raw | memoryview

_ELEMENTS: dict[str, Any] = {"b": bool, "i": int, "u": int, "f": float | None, "O": str, "U": str, "S": str}
_READING = {"b": bool, "f": np.float64, "O": object, "U": object, "S": object}
_ELEMENT_WORDS = {
    "b": "bools",
    **dict.fromkeys("iu", "integers that fit int64 or uint64"),
    "f": "null or numbers in the range of float64",
    **dict.fromkeys("OUS", "text"),
}

# numpy 2 keeps its error state in a context variable. Entering a prepared context takes a tenth of the time
# of np.errstate, which would be a third of the cost of a small output.
_STATE_IN_CONTEXT = np.lib.NumpyVersion(np.__version__) >= "2.0.0"
_OVERFLOW_RAISES = contextvars.Context()
if _STATE_IN_CONTEXT:
    _OVERFLOW_RAISES.run(np.seterr, over="raise", under="ignore")


@functools.cache  # a handful of kinds, at most MAX_DIMENSIONS deep
def decoder_of(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    """Return a decoder of lists nested so deep that hold only elements of one kind."""
    nested = _ELEMENTS[kind]
    for _ in range(depth):
        nested = list[nested]  # type: ignore[valid-type]  # made when it runs
    return msgspec.json.Decoder(nested)


def why_wrong_form(error: Exception, text: bytes, depth: int, kind: str) -> str:
    """Describe why a text is not what `decoder_of` decodes, from one of `UNREADABLE`."""
    wrong_form = f"it must be lists nested {depth} deep that hold only {_ELEMENT_WORDS[kind]}"
    return why_unreadable(error, text, wrong_form=wrong_form)


def decode_lists(
    text: Text, depth: int, kind: str, dtype: np.dtype[Any] | None, *, outer: int = 0
) -> npt.NDArray[Any]:
    """Decode nested lists.

    Parameters
    ----------
    text : bytes, msgspec.Raw or memoryview
        JSON.
    depth : int
        How deep the lists are nested, at least 1.
    kind : str
        The kind of numpy dtype of the elements: a key of `_ELEMENTS`.
    dtype : numpy.dtype or None
        What floats are rounded to. Elements of other kinds have numpy's reading.
    outer : int
        How many lists there are around the text, for the message of a failure.

    Raises
    ------
    TensorError
        It is not such a list, is ragged, or a float does not fit the dtype.
    """
    try:
        nested = decoder_of(kind, depth).decode(text)
    except UNREADABLE as error:
        raise TensorError(why_wrong_form(error, bytes(text), depth + outer, kind)) from None
    array = _floats(nested, dtype) if kind == "f" and dtype is not None else _array_of(nested, text, kind)
    if array.ndim != depth:
        raise TensorError("ragged lists")
    return array


def _array_of(nested: list[Any], text: Text, kind: str) -> npt.NDArray[Any]:
    """Make an array of lists of one kind of elements; ragged lists of text have too few dimensions."""
    try:
        if kind in "iu":
            return _integers(nested, text)
        return np.array(nested, dtype=_READING[kind])
    except ValueError:
        raise TensorError("ragged lists") from None


def _floats(nested: list[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Make an array of floats of one dtype, each rounded once."""
    try:
        if _STATE_IN_CONTEXT:
            return _OVERFLOW_RAISES.copy().run(np.array, nested, dtype)  # a context has one thread at a time
        with np.errstate(over="raise", under="ignore"):
            return np.array(nested, dtype=dtype)
    except FloatingPointError:
        return cast(
            np.array(nested, dtype=np.float64), dtype, dtype
        )  # raises, with the value that is too large
    except ValueError:
        raise TensorError("ragged lists") from None


def _integers(nested: list[Any], text: Text) -> npt.NDArray[Any]:
    try:
        return np.array(nested, dtype=np.int64)
    except OverflowError:
        pass
    if b"-" not in bytes(text):  # numpy 1.26 would wrap it
        try:
            return np.array(nested, dtype=np.uint64)
        except OverflowError:
            pass
    raise TensorError("integers that fit neither int64 nor uint64")
