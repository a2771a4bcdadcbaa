"""The head of an HTTP answer, read from a socket under a bound, and the pause that a refusal asks for."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterable

from tcm_sync._deadline import Deadline
from tcm_sync._numbers import MAX_PAUSE, asked_pause
from tcm_sync._transport.sockets import receive
from tcm_sync._wire.quote import quote

#: The most bytes that the head of an answer may have.
HEAD_BYTES = 64 * 1024

# What a refusal says beside its status. White space is stripped afterwards: by the expression it takes a time
# that grows with the square of its length.
_FIELD = re.compile(rb"^(location|retry-after|date)[ \t]*:(.*)$", re.IGNORECASE)


class HeadTooLongError(Exception):
    """The head has over `HEAD_BYTES` bytes."""


def receive_head(sock: socket.socket, deadline: Deadline) -> tuple[bytes, bytes]:
    """Read up to the empty line that ends a head.

    Returns
    -------
    head : bytes
        Without the empty line.
    rest : bytes
        What came behind it.

    Raises
    ------
    HeadTooLongError
        The head does not end within `HEAD_BYTES`.
    ConnectionResetError
        The connection ended first.
    TimeoutError
        The head was not whole within the deadline.
    """
    received = bytearray()
    while (end := received.find(b"\r\n\r\n", max(0, len(received) - 16_384 - 3))) < 0:
        if len(received) > HEAD_BYTES:
            raise HeadTooLongError
        data = receive(sock, 16_384, deadline)
        if not data:
            began = bytes(received[:80])
            said = "it answered with TLS" if began.startswith(b"\x15\x03") else quote(began)  # an alert
            raise ConnectionResetError(f"closed before the answer was whole{': ' + said if began else ''}")
        received += data
    return bytes(received[:end]), bytes(received[end + 4 :])


def read_fields(lines: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return Location, Retry-After and Date of a head, by their names in lower case."""
    return {found[1].lower(): found[2].strip(b" \t") for line in lines if (found := _FIELD.match(line))}


def pause_asked_for(fields: dict[bytes, bytes]) -> float | None:
    """Return the pause in Retry-After, seconds or a date (RFC 9110, section 10.2.3), from 0 to 60 s.

    A date is compared with the answer's own clock. None without a pause that can be read.
    """
    text = fields.get(b"retry-after", b"")
    if re.fullmatch(rb"\d+", text):
        return asked_pause(int(text) if len(text) <= 20 else MAX_PAUSE)
    until = _read_date(text)
    if until is None:
        return None
    now = _read_date(fields.get(b"date", b""))
    return asked_pause(until - (time.time() if now is None else now))


def _read_date(text: bytes) -> float | None:
    from email.utils import parsedate_to_datetime  # with more of email, which nothing else needs

    try:
        return parsedate_to_datetime(text.decode("ascii")).timestamp()
    except (ValueError, TypeError, OverflowError):  # TypeError: Python 3.10, of what is no date
        return None
