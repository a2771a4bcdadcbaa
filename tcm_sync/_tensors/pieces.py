"""Decode large arrays of floats piece by piece, so that the lists between text and array stay small.

A list of a million floats takes 32 MB, and decoding it as a whole is slower, since it does not fit a cache.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tcm_sync._handlers import is_of_handler
from tcm_sync._tensors.datatypes import Unfit

if TYPE_CHECKING:
    import numpy.typing as npt

_PIECE = 64 * 1024  # bytes of text that are decoded at a time, besides the rest of an element
LARGE = 4 * 2**20  # bytes from which this is faster than decoding all at once

_SPACE = rb"[ \t\r\n]*"  # of JSON (RFC 8259, section 2)
_ALONE = re.compile(rb"%b\[(.*)\]%b" % (_SPACE, _SPACE), re.DOTALL)


def read_in_pieces(
    text: memoryview, depth: int, read: Callable[[bytes, int], npt.NDArray[Any]]
) -> npt.NDArray[Any] | None:
    """Decode nested lists to an array; None if they are not rectangular or not JSON.

    Parameters
    ----------
    text : memoryview
        JSON: nested lists, with only numbers in the innermost.
    depth : int
        How many brackets it begins with.
    read : callable
        Decodes a piece, given with the depth of its nesting, to an array, always of the same dtype; raises
        `Unfit`.
    """
    axes = depth
    while (found := _ALONE.fullmatch(text)) is not None:
        text = text[found.start(1) : found.end(1)]
        if axes == 1 or _between(axes).search(text) is not None:
            break
        axes -= 1  # the outer list has one element, so that one is cut
    else:
        return None
    try:
        parts = [read(b"".join((b"[", piece, b"]")), axes) for piece in _cut(text, _between(axes))]
        if any(not len(part) or part.ndim != axes for part in parts):
            return None
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        array = np.empty((1,) * (depth - axes) + shape, parts[0].dtype)
        np.concatenate(parts, out=array.reshape(shape))
        return array
    except (Unfit, ValueError, msgspec.DecodeError) as error:  # ValueError: of different shapes
        if is_of_handler(error):
            raise
        return None


def _cut(text: memoryview, between: re.Pattern[bytes]) -> Iterator[memoryview]:
    """Cut the text of a list between elements into pieces, without the commas between them."""
    start = 0
    while (found := between.search(text, start + _PIECE)) is not None:
        yield text[start : found.end() - 1]
        start = found.end()
    yield text[start:]


@functools.cache  # axes are few
def _between(axes: int) -> re.Pattern[bytes]:
    """Match the end of an element of a list of so many axes, and the comma behind it."""
    return re.compile((rb"\]" + _SPACE) * (axes - 1) + b",")
