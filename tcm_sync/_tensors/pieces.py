"""Decode large arrays of numbers or bools piece by piece, straight into one array.

A list of a million floats takes 32 MB, and a million short lists take ten times their text and much of the
garbage collector's time, while all other threads wait. So no more than a piece of the text exists as lists at
any time. A text that is no regular array is refused at the first piece that shows it.
"""

from __future__ import annotations

import functools
import math
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import numpy as np

from tcm_sync._tensors.casts import cast
from tcm_sync._tensors.datatypes import TensorError
from tcm_sync._tensors.lists import decode_lists
from tcm_sync._wire.unreadable import UNREADABLE
from tcm_sync.errors import CallTimeoutError

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync._deadline import Deadline

LARGE = 4 * 2**20  # bytes from which this is faster than decoding all at once
MEDIUM = 256 * 1024  # bytes from which it is faster if there are many lists
_MANY_LISTS = 10_000
_PIECE = 64 * 1024  # bytes of text that are decoded at a time, besides the rest of a unit
_MAX_UNIT_BYTES = 2 * 2**20  # bytes in which that unit must end, those between elements not counted
_SHORT = 32  # elements up to which innermost lists are too many to be made
_SCAN = 2**20  # bytes that are scanned at a time

_SPACE = rb"[ \t\r\n]*"  # of JSON (RFC 8259, section 2)
_EMPTY_LIST = re.compile(rb"%b\[%b\]%b" % (_SPACE, _SPACE, _SPACE))
_END_OF_EMPTY_LIST = re.compile(_SPACE + rb"\]")
_BETWEEN_ELEMENTS = re.compile(rb"([\] \t\r\n]*)(?:(,)([\[ \t\r\n]*))?")
_WITHOUT_BRACKETS = bytes.maketrans(b"[]", b"  ")
_BLANKS = b" \t\r\n"
_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b"[],"))
_syntax = msgspec.json.Decoder(msgspec.Raw)  # checks that a text is JSON, and makes nothing of it


def decode_in_pieces(
    text: memoryview,
    depth: int,
    kind: str,
    dtype: np.dtype[Any] | None = None,
    deadline: Deadline | None = None,
) -> npt.NDArray[Any]:
    """Decode nested lists of numbers or bools to an array.

    Parameters
    ----------
    text : memoryview
        JSON.
    depth : int
        How many brackets it begins with, at least 1.
    kind : {"b", "i", "u", "f"}
        The kind of the elements.
    dtype : numpy.dtype, optional
        The dtype of the array; without one: bool, int64 (uint64 if a value needs it) or float64.
    deadline : Deadline, optional
        The call's.

    Raises
    ------
    TensorError
        It is not such a list, is ragged, or an element does not fit the dtype.
    CallTimeoutError
        The deadline passed meanwhile.
    """
    reader = _Reader(text, depth, kind, dtype)
    try:
        return reader.read(deadline)
    finally:
        reader.drop()  # the traceback of an error would keep it


def is_for_pieces(text: memoryview) -> bool:
    """Return whether a text of at least `MEDIUM` bytes is decoded faster in pieces.

    The number of its lists is estimated from its beginning, since to count them takes 4 % of the decoding.
    """
    return len(text) >= LARGE or bytes(text[:_PIECE]).count(b"[") * len(text) > _MANY_LISTS * _PIECE


def has_any(text: memoryview, marks: tuple[bytes, ...]) -> bool:
    """Return whether a text has one of some single bytes, without a copy of all of it."""
    for start in range(0, len(text), _SCAN):
        part = bytes(text[start : start + _SCAN])
        if any(mark in part for mark in marks):
            return True
    return False


class _Reader:
    """Reads one text as a sequence of equal units, each a number or a list that is not too long.

    The unit of ``[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]`` may be ``[[1, 2], [3, 4]]``, ``[1, 2]`` or ``1``: the
    largest that fits a piece. The lists above it are not made: only their lengths are counted and compared.

    Parameters
    ----------
    text, depth, kind, dtype
        As `decode_in_pieces` takes them.
    """

    def __init__(self, text: memoryview, depth: int, kind: str, dtype: np.dtype[Any] | None) -> None:
        self._text = text
        self._kind = kind
        self._dtype = dtype
        # Where the next piece begins; the axes and the shape of a unit.
        self._position, self._axes, self._unit = self._first_unit(depth)
        self._elements = math.prod(self._unit)
        self._is_short = bool(self._unit) and self._unit[-1] < _SHORT
        self._unit_structure = _structure_of(self._unit)
        # The axes above a unit, the innermost first: the length of each, once its first list has ended, and
        # how much of the present list has been read.
        self._lengths: list[int | None] = [None] * (depth - self._axes)
        self._read = [0] * (depth - self._axes)
        wanted = {"b": np.dtype(bool), "f": np.dtype(np.float64)}.get(kind, np.dtype(np.int64))
        self._is_empty = _EMPTY_LIST.fullmatch(text) is not None
        # In nested lists without an empty one there is one element more than there are commas.
        count = _count(text, ",") + 1 if self._elements and not self._is_empty else 0
        self._array = np.empty(count, wanted if dtype is None else dtype)
        self._filled = 0

    def _first_unit(self, depth: int) -> tuple[int, int, tuple[int, ...]]:
        """Find the first unit, the largest list that fits a piece: where it begins, its axes, its shape."""
        opened = [found.end() for found in islice(re.finditer(rb"\[", self._text), depth)]
        empty = _END_OF_EMPTY_LIST.match(self._text, opened[-1])  # no element in it could be the unit
        for axes in range(depth - 1, 0, -1):
            start = opened[depth - axes - 1]
            limit = (empty.end() if empty else start) + _PIECE
            found = _ends(axes).search(self._text, start, limit)
            if found is not None:
                first = decode_lists(self._text[start : found.end()], axes, self._kind, self._dtype)
                return start, axes, first.shape
        return opened[-1], 0, ()

    def read(self, deadline: Deadline | None) -> npt.NDArray[Any]:
        """Read all of it."""
        over = self._is_empty
        while not over:
            if deadline is not None and deadline.expired():
                raise CallTimeoutError(
                    "the deadline passed while the reply was being decoded", elapsed=deadline.elapsed()
                )
            over = self._read_piece()
        array = self._array
        shape = (*[length or 0 for length in reversed(self._lengths)], *self._unit)
        if self._filled != len(array) or math.prod(shape) != len(array):
            raise TensorError("ragged lists")
        array.resize(shape, refcheck=False)  # in place
        return array

    def drop(self) -> None:
        """Drop what has been read."""
        del self._array

    def _read_piece(self) -> bool:
        """Read some units, up to the end of a list above them; return whether that was the last."""
        start = self._position
        end = self._end_of_piece(start)
        piece = bytes(self._text[start:end])
        units = self._store(piece)
        if units:
            self._count(units)
            self._position = end + 1  # behind the comma
            if end == len(self._text):
                raise TensorError("not valid JSON, since its lists do not end")
            return False
        cut = self._end_of_list(piece)
        units = self._store(piece[:cut])
        if not units:
            self._refuse(piece[:cut], start)
        self._count(units)
        return self._skip_brackets(start + cut)

    def _end_of_piece(self, start: int) -> int:
        """Return where a piece ends: at the comma behind a unit, or at the end of the text."""
        found = _commas_behind(self._axes).search(self._text, start + _PIECE)
        end = len(self._text) if found is None else found.end() - 1
        longest = _PIECE + _MAX_UNIT_BYTES
        if end - start > longest and len(bytes(self._text[start:end]).translate(None, _BLANKS)) > longest:
            raise TensorError("ragged lists, or a number of over a million digits")
        return end

    def _end_of_list(self, piece: bytes) -> int:
        """Return where the first list above the units ends in a piece: behind the last unit in it."""
        found = _ends(self._axes + 1).search(piece)
        if found is None:
            return len(piece)
        place = found.start()
        for _ in range(self._axes):
            place = piece.index(b"]", place) + 1
        return place

    def _skip_brackets(self, place: int) -> bool:
        """Continue behind the brackets that end some lists and begin others; return whether the text ends."""
        found = _BETWEEN_ELEMENTS.match(self._text, place)
        assert found is not None  # it may be empty
        closed = found[1].count(b"]")
        if not 0 < closed <= len(self._lengths):
            raise TensorError(f"not valid JSON from byte {place:,}")
        self._close(closed)
        is_last = closed == len(self._lengths)
        if is_last and not found[2] and found.end() == len(self._text):
            return True
        opened = [bracket.end() for bracket in re.finditer(rb"\[", found[3] or b"")]
        if is_last or len(opened) < closed:
            raise TensorError(f"ragged lists, or not valid JSON from byte {place:,}")
        self._position = found.start(3) + opened[closed - 1]
        return False

    def _count(self, units: int) -> None:
        """Count units that were read."""
        self._read[0] += units
        length = self._lengths[0]
        if length is not None and self._read[0] > length:
            raise TensorError("ragged lists")

    def _close(self, closed: int) -> None:
        """Compare the lengths of lists that end, so many above a unit, with those before them."""
        for level in range(closed):
            length, self._read[level] = self._read[level], 0
            if self._lengths[level] is None:
                self._lengths[level] = length
            elif self._lengths[level] != length:
                raise TensorError("ragged lists")
            if level + 1 < len(self._read):
                self._read[level + 1] += 1

    def _store(self, piece: bytes) -> int:
        """Decode whole units into the array; return how many, 0 if the piece is something else."""
        if len(piece) > 2 * _PIECE and piece.count(b",") > _PIECE + self._elements:
            raise TensorError("ragged lists")  # one unit has more elements than the first
        if not self._is_short:
            try:
                part = decode_lists(b"[%b]" % piece, self._axes + 1, self._kind, self._dtype)
            except TensorError:
                return 0
            if part.shape[1:] != self._unit:
                return 0
            self._put(part.reshape(-1))
            return len(part)
        units = self._units_in(piece)
        if units and self._elements:
            text = b"[%b]" % piece.translate(_WITHOUT_BRACKETS)
            try:
                self._put(decode_lists(text, 1, self._kind, self._dtype))
            except TensorError:
                return 0
        return units

    def _units_in(self, piece: bytes) -> int:
        """Return how many units of short lists a piece has, 0 if it is something else. No list is made.

        It has to be JSON, and have the brackets and commas of so many units.
        """
        try:
            _syntax.decode(b"[%b]" % piece)
        except UNREADABLE:
            return 0
        structure = piece.translate(None, _ALL_BUT_STRUCTURE if self._elements else _BLANKS)
        units = (len(structure) + 1) // (len(self._unit_structure) + 1)
        return units if structure == ((self._unit_structure + b",") * units)[:-1] else 0

    def _put(self, part: npt.NDArray[Any]) -> None:
        """Add elements to the array."""
        if self._kind in "iu":
            part = self._fitted(part)
        end = self._filled + len(part)
        if end > len(self._array):
            raise TensorError("ragged lists")
        self._array[self._filled : end] = part
        self._filled = end

    def _fitted(self, part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return integers in the dtype of the array, which becomes uint64 when a value needs it."""
        if self._dtype is not None:
            return cast(part, self._dtype, self._dtype)
        if part.dtype == self._array.dtype:
            return part
        before = self._array[: self._filled]
        signed = before if part.dtype == np.uint64 else part
        if signed.size and signed.min() < 0:
            raise TensorError("integers that fit neither int64 nor uint64")
        if part.dtype == np.uint64:
            self._array = np.empty(len(self._array), np.uint64)
            self._array[: self._filled] = before
        return part.astype(np.uint64)

    def _refuse(self, piece: bytes, start: int) -> NoReturn:
        """Raise the reason why a piece is not a sequence of units."""
        outer = len(self._lengths) - 1
        decode_lists(b"[%b]" % piece, self._axes + 1, self._kind, self._dtype, outer=outer)
        raise TensorError(f"ragged lists, at byte {start:,} or a little later")


def _count(text: memoryview, mark: str) -> int:
    parts = (text[start : start + _SCAN] for start in range(0, len(text), _SCAN))
    return sum(int(np.count_nonzero(np.frombuffer(part, np.uint8) == ord(mark))) for part in parts)


def _structure_of(shape: tuple[int, ...]) -> bytes:
    """Write the brackets and commas of an array."""
    text = b""
    for length in reversed(shape):
        text = b"[%b]" % b",".join([text] * length)
    return text


@functools.cache  # axes are few
def _ends(axes: int) -> re.Pattern[bytes]:
    """Match the end of so many lists at once."""
    return re.compile((rb"\]" + _SPACE) * axes)


@functools.cache
def _commas_behind(axes: int) -> re.Pattern[bytes]:
    """Match the end of so many lists at once, and the comma behind them."""
    return re.compile((rb"\]" + _SPACE) * axes + b",")
