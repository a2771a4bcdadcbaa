"""Large messages, read without their long arrays, which are then read once and straight to their types.

Each level of `msgspec.Raw` scans all text below it: 20 ms for an array of 20 MB, twice in a reply. So long
runs of numbers are cut out first. In JSON what is between a ``[`` and the next quotation mark has no text in
it, so its last ``]`` is where such a run can end; a name that nobody can know stands in its place. A cut in
the wrong place leaves an outline that is no JSON, or a name that is no output: then all is read as it is.
"""

from __future__ import annotations

import re
import secrets

import msgspec

LARGE = 64 * 1024  # bytes from which a message is outlined
_LONG = 16 * 1024  # bytes of an array that is worth cutting out
_LOOKS = 10_000  # of text there may be millions of pieces, and none of them is worth it
_PREFIX = b'"%b:' % secrets.token_hex(16).encode()
_NAME = re.compile(_PREFIX + rb'(\d+)"')


class Outline(msgspec.Struct, frozen=True, eq=False):
    """JSON whose long arrays are elsewhere.

    Attributes
    ----------
    text : bytes
        With a name in place of each.
    arrays : tuple of memoryview
        Their own text, unread.
    """

    text: bytes
    arrays: tuple[memoryview, ...]

    def with_text(self, text: bytes) -> Outline:
        """Return the outline of a part."""
        return Outline(text, self.arrays)

    def array(self, value: bytes) -> memoryview | None:
        """Return the array that a value of the outline stands for, or None if it is a value itself."""
        if not value.startswith(_PREFIX):
            return None
        return self.arrays[int(value[len(_PREFIX) : -1])]

    def is_whole(self) -> bool:
        """Whether every array is somewhere in the text: what is not, nobody would ever read."""
        return self.text.count(_PREFIX) == len(self.arrays)

    def __bytes__(self) -> bytes:
        """Return the text as it was."""
        return _NAME.sub(lambda found: bytes(self.arrays[int(found[1])]), self.text)


def outline(message: bytes) -> Outline | None:
    """Cut the long arrays of numbers out of a large message; None if there are none."""
    parts: list[bytes | memoryview] = []
    arrays: list[memoryview] = []
    view = memoryview(message)
    kept = position = 0
    for _ in range(_LOOKS):
        start = message.find(b"[", position)
        if start < 0:
            break
        quote = message.find(b'"', start)
        limit = len(message) if quote < 0 else quote
        end = message.rfind(b"]", start, limit) + 1
        if end - start >= _LONG:
            parts += (view[kept:start], _name(len(arrays)))
            arrays.append(view[start:end])
            kept = end
        position = limit + 1
    if not arrays:
        return None
    return Outline(b"".join([*parts, view[kept:]]), tuple(arrays))


def _name(place: int) -> bytes:
    return b'%b%d"' % (_PREFIX, place)
