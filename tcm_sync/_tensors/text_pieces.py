"""Decode large arrays of text piece by piece, so that other threads run in between.

Each text is an object of its own, of 50 bytes and more. So texts that come again and again are one object.
"""

from __future__ import annotations

import math
import re
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tcm_sync._tensors.datatypes import TensorError
from tcm_sync._tensors.lists import decoder_of, why_wrong_form
from tcm_sync._wire.text_ends import end_of_string, without_escapes
from tcm_sync._wire.unreadable import UNREADABLE
from tcm_sync.errors import CallTimeoutError

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    from tcm_sync._deadline import Deadline

_PIECE = 64 * 1024  # bytes that are decoded at a time, besides the rest of a text
_BETWEEN_TEXTS = re.compile(rb"([\] \t\r\n]*)(,?)")  # behind a text
_END_OF_LIST = re.compile(rb"[ \t\r\n]*\]")

_FEW = 4096  # different texts that are always remembered
_MAX_REMEMBERED = 2**17  # those that are remembered while most texts are repeated


def decode_texts_in_pieces(
    text: memoryview, depth: int, deadline: Deadline | None = None, *, encode: bool = False
) -> npt.NDArray[Any]:
    """Decode nested lists of text to an array of objects.

    Parameters
    ----------
    text : memoryview
        JSON.
    depth : int
        How many brackets it begins with, at least 1. Behind them is something else than a ``]``.
    deadline : Deadline, optional
        The call's.
    encode : bool
        Whether the elements are to be `bytes`, in UTF-8, and not `str`.

    Raises
    ------
    TensorError
        It is not such a list, or is ragged.
    CallTimeoutError
        The deadline passed meanwhile.
    """
    reader = _Reader(text, depth, encode=encode)
    try:
        return reader.read(deadline)
    finally:
        reader.drop()  # the traceback of an error would keep it


class _Reader:
    """Reads pieces that end behind a text and the lists that end with it, before a comma.

    Parameters
    ----------
    text, depth, encode
        As `decode_texts_in_pieces` takes them.
    """

    def __init__(self, text: memoryview, depth: int, *, encode: bool) -> None:
        self._text = text
        self._depth = depth
        self._encode = encode
        self._start = 0  # of the next piece
        self._open = 0  # how many lists are open there
        self._array = np.empty(0, object)  # longer than what it is filled with
        self._filled = 0
        self._repeated = _Repeated()
        # Of each axis, the outermost first: the length of its lists, once one has ended, and what was read of
        # the present one.
        self._lengths: list[int | None] = [None] * depth
        self._read = [0] * depth

    def read(self, deadline: Deadline | None) -> npt.NDArray[Any]:
        """Read all of it."""
        while self._start < len(self._text):
            if deadline is not None and deadline.expired():
                raise CallTimeoutError(
                    "the deadline passed while the reply was being decoded", elapsed=deadline.elapsed()
                )
            self._read_piece()
        if self._open:
            raise TensorError("not valid JSON, since its lists do not end")
        array = self._array
        shape = [length or 0 for length in self._lengths]
        if math.prod(shape) != self._filled:
            raise TensorError("ragged lists")
        array.resize(shape, refcheck=False)  # in place
        return array

    def drop(self) -> None:
        """Drop what has been read."""
        del self._array

    def _read_piece(self) -> None:
        start, end = self._start, len(self._text)
        if end - start > 2 * _PIECE:
            end = self._end_of_text(start + _PIECE)
        if end == len(self._text):
            self._take(self._text[start:], self._depth)
            self._start = end
            return
        behind = _BETWEEN_TEXTS.match(self._text, end)
        assert behind is not None  # it may be empty
        closed = behind[1].count(b"]")
        if (not behind[2] and behind.end() < len(self._text)) or closed + bool(behind[2]) > self._depth:
            raise TensorError(f"not valid JSON from byte {end:,}")
        self._take(self._text[start : behind.end(1)], closed)
        self._start = behind.end()

    def _end_of_text(self, place: int) -> int:
        """Return where the text ends that is open at a place or the first behind it, or the end of all."""
        before = without_escapes(bytes(self._text[self._start : place]))
        if before.count(b'"') % 2:
            return end_of_string(self._text, place - before.endswith(b"\\"))
        begin = end_of_string(self._text, place)  # the next mark, with which a text begins
        if bytes(self._text[place:begin]).count(b",") > 1:  # it would be decoded at once
            raise TensorError(f"ragged lists, or elements that are no text, near byte {place:,}")
        return end_of_string(self._text, begin)

    def _take(self, piece: memoryview, closed: int) -> None:
        """Decode a piece that ends some lists, and count its texts."""
        if self._open and _END_OF_LIST.match(piece):
            raise TensorError(f"not valid JSON from byte {self._start:,}")  # nothing is behind a comma
        whole = b"".join((b"[" * self._open, piece, b"]" * (self._depth - closed)))
        try:
            level: list[Any] = [decoder_of("O", self._depth).decode(whole)]
        except UNREADABLE as error:
            raise TensorError(why_wrong_form(error, whole, self._depth, "O")) from None
        for axis in range(self._depth):
            self._count(axis, [len(one) for one in level], still_open=axis < self._depth - closed)
            level = list(chain.from_iterable(level))
        self._open = self._depth - closed
        self._put(level)

    def _count(self, axis: int, lengths: list[int], *, still_open: bool) -> None:
        """Count the elements of the lists of an axis; all that have ended must be equally long."""
        if axis + 1 < self._open:
            lengths[0] -= 1  # its first element is the rest of one that was counted
        lengths[0] += self._read[axis]
        self._read[axis] = lengths.pop() if still_open else 0
        if lengths and self._lengths[axis] is None:
            self._lengths[axis] = lengths[0]
        if any(length != self._lengths[axis] for length in lengths):
            raise TensorError("ragged lists")

    def _put(self, texts: list[Any]) -> None:
        """Add elements to the array, which grows in place."""
        if self._encode:
            texts = [text.encode() for text in texts]
        end = self._filled + len(texts)
        if end > len(self._array):
            self._array.resize(end + end // 8, refcheck=False)
        self._array[self._filled : end] = self._repeated.once(texts)
        self._filled = end


class _Repeated:
    """Finds texts that were there before, unless most are different: then it costs more than it saves."""

    def __init__(self) -> None:
        self._kept: dict[Any, Any] | None = {}
        self._count = 0

    def once(self, texts: list[Any]) -> list[Any]:
        """Return the texts, equal ones as the same object."""
        if self._kept is None:
            return texts
        texts = list(map(self._kept.setdefault, texts, texts))
        self._count += len(texts)
        if len(self._kept) > min(max(_FEW, self._count // 2), _MAX_REMEMBERED):
            self._kept = None
        return texts
