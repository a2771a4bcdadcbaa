"""Find where JSON strings end, and lists of them, without decoding them.

A string ends at a quotation mark that is not escaped. So behind an even number of those, counted from a place
outside all strings, a bracket is one of a list and not a part of a string.
"""

from __future__ import annotations

import re

_SCAN = 2**20  # bytes that are scanned at a time, for other threads to run in between
_SHORT = 1024  # bytes that are scanned at first: most strings end there
_LOOKS = 10_000  # brackets in strings that are looked at before the search is given up

_SPACE = rb"[ \t\r\n]*"  # of JSON (RFC 8259, section 2)
_END_OF_LIST = re.compile(rb"\]" + _SPACE + rb"(?:(\})|," + _SPACE + b'")')
_COLON = re.compile(_SPACE + b":")
_BORDER = re.compile(rb"[^\\\] \t\r\n,]")  # behind it is no rest of an escape or of an `_END_OF_LIST`


def without_escapes(text: bytes) -> bytes:
    """Replace escaped backslashes and quotation marks by as many other characters."""
    if b"\\" not in text:
        return text
    return text.replace(rb"\\", b"__").replace(rb"\"", b"__")


def end_of_string(text: bytes | memoryview, place: int) -> int:
    """Return where a string ends that is open at a place: behind its quotation mark, or at the end of all."""
    size = _SHORT
    while place < len(text):
        block = without_escapes(bytes(text[place : place + size]))
        mark = block.find(b'"')
        if mark >= 0:
            return place + mark + 1
        if place + len(block) == len(text):
            break
        place += size - block.endswith(b"\\")  # what it escapes is in the next block
        size = min(2 * size, _SCAN)
    return len(text)


def end_of_list_of_strings(message: bytes, start: int) -> int | None:
    """Return where a list of strings, or of lists of them, ends that is the value of an object's name.

    Parameters
    ----------
    message : bytes
        JSON.
    start : int
        Where the list begins, outside of all strings.

    Returns
    -------
    int or None
        The place behind the last ``]`` before the end of the object, or before its next name. If that is not
        the end of the list, the message is not JSON, or the list has objects in it. None if there is no such
        place, or the strings have too many brackets.
    """
    looks = quotes = 0
    while start < len(message):
        border = _BORDER.search(message, start + _SCAN)
        block = without_escapes(message[start : border.end() if border else len(message)])
        counted = 0
        for found in _END_OF_LIST.finditer(block):
            quotes += block.count(b'"', counted, found.start())
            counted = found.start()
            if quotes % 2 == 0 and (found[1] or _is_name(message, start + found.end())):
                return start + found.start() + 1
            looks += 1
            if looks == _LOOKS:
                return None
        quotes += block.count(b'"', counted)
        start += len(block)
    return None


def _is_name(message: bytes, place: int) -> bool:
    """Return whether the string that is open at a place is a name, which has a colon behind it."""
    return _COLON.match(message, end_of_string(message, place)) is not None
