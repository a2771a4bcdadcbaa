"""Decode large messages without their long arrays, each of which is decoded once, straight to its type.

Each level of `msgspec.Raw` scans all the text below it, twice in a reply, and no other thread runs meanwhile:
20 ms for an array of 20 MB, 120 ms for one of 64 MB of short strings. So long arrays of numbers or of strings
are cut out first, and a random name is put in their place. Between a ``[`` and the next quotation mark there
is no string, so an array of numbers can only end at the last ``]`` before it. A cut in the wrong place leaves
a rest that is not JSON, or a name outside the outputs: then the message is decoded as a whole.
"""

from __future__ import annotations

import re
import secrets

import msgspec

from tcm_sync._wire.text_ends import end_of_list_of_strings

LARGE = 64 * 1024  # bytes from which a message is split
_LONG = 16 * 1024  # bytes from which an array is cut out
_SCAN = 2**20  # bytes that are scanned at a time
_DEEPEST = 64  # arrays inside one another, which is more than any tensor has
_OPENING = 128  # bytes in which the first string of an array begins
_LOOKS = 10_000  # candidates that are looked at: a message of texts may have millions, none of them long
_PREFIX = b'"%b:' % secrets.token_hex(16).encode()
_NAME = re.compile(_PREFIX + rb'(\d+)"')


class SplitJson(msgspec.Struct, frozen=True, eq=False):
    """JSON from which long arrays are cut out.

    Attributes
    ----------
    text : bytes
        The JSON with a name in place of each array.
    arrays : tuple of memoryview
        The JSON text of each array, not decoded.
    has_sequences : bool
        Whether some are not arrays, but sequences of values in the midst of an array.
    """

    text: bytes
    arrays: tuple[memoryview, ...]
    has_sequences: bool = False

    def with_text(self, text: bytes) -> SplitJson:
        """Return a part of the text with the same arrays."""
        return SplitJson(text, self.arrays, self.has_sequences)

    def array(self, value: bytes) -> memoryview | None:
        """Return the array whose name a value is, or None if it is an ordinary value."""
        if not value.startswith(_PREFIX):
            return None
        return self.arrays[int(value[len(_PREFIX) : -1])]

    def has_sequence(self, value: bytes) -> bool:
        """Return whether a value, which is no array of its own, has the name of a sequence in it."""
        return self.has_sequences and _PREFIX in value

    def is_whole(self) -> bool:
        """Return whether the text has the name of every array, so that all of them will be decoded."""
        return self.text.count(_PREFIX) == len(self.arrays)

    def size(self) -> int:
        """Count the bytes of the text and its arrays."""
        return len(self.text) + sum(map(len, self.arrays))

    def __bytes__(self) -> bytes:
        """Return the JSON text with its arrays."""
        return _NAME.sub(lambda found: bytes(self.arrays[int(found[1])]), self.text)


def split_off_arrays(message: bytes, *, sequences: bool = False) -> SplitJson | None:
    """Cut the long arrays of numbers, and those of strings, out of a large message; None if there are none.

    Parameters
    ----------
    message : bytes
        JSON.
    sequences : bool
        Whether to leave out the brackets of arrays that have both: what is cut out of
        ``[[1],[2],["a"],[3]]`` are then ``[1],[2]`` and ``[3]``, and the rest is still JSON. Arrays of
        strings alone are left where they are. An output with such a part is refused, and the part is never
        decoded: where several arrays begin or end in it, it may have only one of a pair of brackets.
    """
    parts: list[bytes | memoryview] = []
    arrays: list[memoryview] = []
    view = memoryview(message)
    kept = position = 0
    strings = not sequences
    for _ in range(_LOOKS):
        start = message.find(b"[", position)
        if start < 0:
            break
        quote = message.find(b'"', start)
        limit = len(message) if quote < 0 else quote
        end = message.rfind(b"]", start, limit) + 1
        if strings and _begins_with_string(message, start, limit):
            found = end_of_list_of_strings(message, start)
            strings = found is not None  # or each search would go to the end of the message
            if found is not None:
                end, limit = found, found - 1
        if end - start >= _LONG:
            if sequences:
                start, end = _balanced(message, start, end)
            parts += (view[kept:start], _name(len(arrays)))
            arrays.append(view[start:end])
            kept = end
        position = limit + 1
    if not arrays:
        return None
    return SplitJson(b"".join([*parts, view[kept:]]), tuple(arrays), sequences)


def _begins_with_string(message: bytes, start: int, quote: int) -> bool:
    """Return whether an array begins with a string, and is the value of a name."""
    if quote - start > _OPENING or message[start:quote].strip(b"[ \t\r\n"):
        return False
    return message[max(0, start - _OPENING) : start].rstrip(b" \t\r\n").endswith(b":")


def _balanced(message: bytes, start: int, end: int) -> tuple[int, int]:
    """Leave out the first brackets that are not closed in a part, or the last ones that are not opened."""
    unclosed = 0
    for place in range(start, end, _SCAN):  # for other threads to run in between
        last = min(place + _SCAN, end)
        unclosed += message.count(b"[", place, last) - message.count(b"]", place, last)
    if abs(unclosed) > _DEEPEST:
        return start, end  # no array at all
    for _ in range(unclosed):
        start = message.find(b"[", start, end) + 1
    for _ in range(-unclosed):
        end = message.rfind(b"]", start, end)
    return start, end


def _name(place: int) -> bytes:
    return b'%b%d"' % (_PREFIX, place)
