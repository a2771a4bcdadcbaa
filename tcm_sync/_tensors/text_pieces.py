"""Decode large arrays of text piece by piece, so that other threads run in between."""

from __future__ import annotations

import functools
import re
from itertools import chain
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tcm_sync._wire.unreadable import UNREADABLE
from tcm_sync.errors import CallTimeoutError

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    from tcm_sync._deadline import Deadline

_PIECE = 64 * 1024  # bytes of text that are decoded at a time, besides the rest of an element
_LONGEST = 2**20  # bytes in which that element must end
_TRIES = 4  # ends of a piece that are tried, since what looks like the end of an element may be in a text

_SPACE = rb"[ \t\r\n]*"  # of JSON (RFC 8259, section 2)
_END = re.compile(rb'(?<!\\)"((?:' + _SPACE + rb"\])*)" + _SPACE + b",")


def decode_texts_in_pieces(
    text: memoryview, depth: int, deadline: Deadline | None = None
) -> npt.NDArray[Any] | None:
    """Decode nested lists of text to an array of objects; None if they have to be decoded at once.

    Parameters
    ----------
    text : memoryview
        JSON.
    depth : int
        How many brackets it begins with, at least 1.
    deadline : Deadline, optional
        The call's.

    Raises
    ------
    CallTimeoutError
        The deadline passed meanwhile.
    """
    reader = _Reader(text, depth)
    while reader.left:
        if deadline is not None and deadline.expired():
            raise CallTimeoutError(
                "the deadline passed while the reply was being decoded", elapsed=deadline.elapsed()
            )
        if not reader.read_piece():
            return None
    return reader.array()


class _Reader:
    """Reads pieces that end behind a text and the lists that end with it, before a comma.

    What is around a quotation mark does not say whether it opens or closes: ``","`` may be a text.
    But a piece that begins where a text begins, and ends at an opening one, is not valid JSON.
    """

    def __init__(self, text: memoryview, depth: int) -> None:
        self._text = text
        self._depth = depth
        self._start = 0  # of the next piece
        self._open = 0  # how many lists are open there
        self._texts: list[npt.NDArray[Any]] = []
        # Of each axis, the outermost first: the length of its lists, once one has ended, and what was read of
        # the present one.
        self._lengths: list[int | None] = [None] * depth
        self._read = [0] * depth

    @property
    def left(self) -> bool:
        """Whether there is more to read."""
        return self._start < len(self._text)

    def read_piece(self) -> bool:
        """Read a piece; return whether it is what it should be."""
        start = self._start
        if len(self._text) - start <= 2 * _PIECE:
            return self._take(bytes(self._text[start:]), self._depth, len(self._text))
        ends = _END.finditer(self._text, start + _PIECE, start + _PIECE + _LONGEST)
        for _, found in zip(range(_TRIES), ends, strict=False):
            closed = found[1].count(b"]")
            if closed < self._depth and self._take(
                bytes(self._text[start : found.end(1)]), closed, found.end()
            ):
                return True
        return False

    def _take(self, piece: bytes, closed: int, end: int) -> bool:
        """Decode a piece that ends some lists, and count its texts; return whether it is right."""
        if self._open and piece.lstrip().startswith(b"]"):
            return False  # there is nothing between this and the comma before it
        try:
            lists: list[Any] = _decoder(self._depth).decode(
                b"[" * self._open + piece + b"]" * (self._depth - closed)
            )
        except UNREADABLE:
            return False
        level = [lists]
        for axis in range(self._depth):
            if not self._count(axis, [len(one) for one in level], still_open=axis < self._depth - closed):
                return False
            level = list(chain.from_iterable(level))
        texts = np.empty(len(level), object)
        texts[:] = level
        self._texts.append(texts)
        self._start, self._open = end, self._depth - closed
        return True

    def _count(self, axis: int, lengths: list[int], *, still_open: bool) -> bool:
        """Count the elements of the lists of an axis; return whether all that have ended are equally long."""
        if axis + 1 < self._open:
            lengths[0] -= 1  # its first element is the rest of one that was counted
        lengths[0] += self._read[axis]
        self._read[axis] = lengths.pop() if still_open else 0
        if lengths and self._lengths[axis] is None:
            self._lengths[axis] = lengths[0]
        return all(length == self._lengths[axis] for length in lengths)

    def array(self) -> npt.NDArray[Any] | None:
        """Return the array of all texts."""
        shape = [length or 0 for length in self._lengths]
        array = np.empty(sum(map(len, self._texts)), object)
        if array.size != np.prod(shape):
            return None
        end = len(array)
        while self._texts:
            part = self._texts.pop()
            array[end - len(part) : end] = part
            end -= len(part)
        return array.reshape(shape)


@functools.cache
def _decoder(depth: int) -> msgspec.json.Decoder[Any]:
    nested: Any = str
    for _ in range(depth):
        nested = list[nested]
    return msgspec.json.Decoder(nested)
