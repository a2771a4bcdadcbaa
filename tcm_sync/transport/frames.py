"""WebSocket frames: ours to write masked, the manager's to read (RFC 6455, section 5).

websocket-client's own are not used: its receive buffer is quadratic in small reads, its UTF-8 check
takes half a second a megabyte, and its sends know no deadline.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator

import numpy as np
from websocket import ABNF

from tcm_sync.errors import MessageTooLargeError, ProtocolError

TEXT: int = ABNF.OPCODE_TEXT
CLOSE: int = ABNF.OPCODE_CLOSE
PING: int = ABNF.OPCODE_PING
PONG: int = ABNF.OPCODE_PONG
_CONTINUATION: int = ABNF.OPCODE_CONT
_BINARY: int = ABNF.OPCODE_BINARY

#: Bytes of a large message that go out as one frame, so that pongs can go out between two.
FRAGMENT_BYTES = 128 * 1024

_SMALL = 512  # bytes up to which one long integer is masked sooner than an array
_CONTROL_BYTES = 125  # the most a control frame may carry (section 5.5)

Event = tuple[int, bytes]


def encode_frame(opcode: int, payload: bytes | memoryview, *, final: bool = True) -> bytes:
    """Write one frame, masked with four fresh random bytes as a client must (section 5.3)."""
    size = len(payload)
    first = opcode | 0x80 if final else opcode
    if size < 126:
        header = struct.pack("!BB", first, 0x80 | size)
    elif size < 0x10000:
        header = struct.pack("!BBH", first, 0xFE, size)
    else:
        header = struct.pack("!BBQ", first, 0xFF, size)
    if not size:
        return header + b"\0\0\0\0"  # a mask of nothing
    key = os.urandom(4)
    mask = (key * (size // 4 + 1))[:size]
    if size <= _SMALL:
        number = int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")
        return b"".join((header, key, number.to_bytes(size, "little")))
    masked = np.bitwise_xor(np.frombuffer(payload, np.uint8), np.frombuffer(mask, np.uint8))
    return b"".join((header, key, masked.data))


def encode_text(message: bytes) -> Iterable[bytes]:
    """Write a text message as one frame, or as several if it is large."""
    if len(message) <= FRAGMENT_BYTES:
        return (encode_frame(TEXT, message),)
    return _encode_fragments(message)


def _encode_fragments(message: bytes) -> Iterator[bytes]:
    size = len(message)
    view = memoryview(message)
    for start in range(0, size, FRAGMENT_BYTES):
        end = start + FRAGMENT_BYTES
        yield encode_frame(_CONTINUATION if start else TEXT, view[start:end], final=end >= size)


def encode_close(code: int) -> bytes:
    """Write a close frame."""
    return encode_frame(CLOSE, struct.pack("!H", code))


def read_close(payload: bytes) -> tuple[int, str]:
    """Read a close frame's code and reason; 1005 stands for no code (section 7.1.5).

    Raises
    ------
    ProtocolError
        The payload is a single byte, or the reason is not UTF-8.
    """
    if not payload:
        return 1005, ""
    if len(payload) == 1:
        raise ProtocolError("a close frame with half a code")
    try:
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolError("a close frame whose reason is not UTF-8") from None


class FrameDecoder:
    """Cuts what was received into messages and control frames.

    Used by one thread at a time: the one that opens the socket, then the reader.

    Parameters
    ----------
    max_bytes : int
        The most bytes that a message may have, summed over its fragments. It is checked against the
        header, before the bytes come.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._needed = 0  # bytes that the buffer must hold before it is worth looking at
        self._fragments: list[bytes] | None = None
        self._fragment_bytes = 0

    def feed(self, data: bytes | memoryview) -> list[Event]:
        """Take received bytes and return the events that they complete: (opcode, payload) pairs.

        Raises
        ------
        ProtocolError
            A frame that a server must not send.
        MessageTooLargeError
            A header that announces more than `max_bytes`.
        """
        if not self._buffer and self._fragments is None and len(data) > 2 and data[0] == 0x80 | TEXT:
            # Nearly every reply is this: one whole unfragmented text frame.
            size = data[1]
            start = 2
            if size == 126 and len(data) > 4:
                size, start = data[2] << 8 | data[3], 4
            if (size < 126 or start == 4) and size <= self._max_bytes and len(data) == start + size:
                return [(TEXT, bytes(data[start:]))]
        self._buffer += data
        events: list[Event] = []
        position = 0
        while len(self._buffer) - position >= self._needed:
            end, event = self._next(position)
            if end is None:
                break
            position = end
            if event is not None:
                events.append(event)
        if position:
            del self._buffer[:position]
        return events

    def _next(self, position: int) -> tuple[int | None, Event | None]:
        """Read the frame at `position`: where it ends, or None if it is not whole yet, and its event."""
        buffer = self._buffer
        available = len(buffer) - position
        if available < 2:
            self._needed = 2
            return None, None
        first, second = buffer[position], buffer[position + 1]
        opcode, final, size = first & 0x0F, bool(first & 0x80), second & 0x7F
        self._check_header(first, second)
        start = 2
        if size >= 126:
            start = 4 if size == 126 else 10
            if available < start:
                self._needed = start
                return None, None
            size = int.from_bytes(buffer[position + 2 : position + start], "big")
            if size >> 63:
                raise ProtocolError("a frame length with its highest bit set (RFC 6455, section 5.2)")
        if opcode < CLOSE and self._fragment_bytes + size > self._max_bytes:
            raise MessageTooLargeError(
                f"the reply has at least {self._fragment_bytes + size:,} bytes, and "
                f"max_reply_bytes is {self._max_bytes:,}: ask for fewer rows a call, or raise it",
                size=self._fragment_bytes + size,
                limit=self._max_bytes,
            )
        if available < start + size:
            self._needed = start + size
            return None, None
        self._needed = 0
        end = position + start + size
        with memoryview(buffer) as view:
            payload = bytes(view[position + start : end])
        return end, self._take(opcode, final, payload)

    def _check_header(self, first: int, second: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise ProtocolError("a frame with reserved bits set (RFC 6455, section 5.2)")
        if second & 0x80:
            raise ProtocolError("a masked frame from the server (RFC 6455, section 5.1)")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise ProtocolError(f"a frame of unknown opcode {opcode}")
            if not first & 0x80 or second > _CONTROL_BYTES:
                raise ProtocolError("a control frame that is fragmented or over 125 bytes")
        elif opcode == _BINARY:
            raise ProtocolError("a binary message; the manager speaks text")
        elif opcode > _BINARY:
            raise ProtocolError(f"a frame of unknown opcode {opcode}")
        elif (opcode == _CONTINUATION) != (self._fragments is not None):
            raise ProtocolError("fragments out of order (RFC 6455, section 5.4)")

    def _take(self, opcode: int, final: bool, payload: bytes) -> Event | None:
        if opcode >= CLOSE:
            return opcode, payload
        if self._fragments is None:
            if final:
                return TEXT, payload
            self._fragments = []
        if payload:
            self._fragments.append(payload)
        self._fragment_bytes += len(payload)
        if not final:
            return None
        message = b"".join(self._fragments)
        self._fragments, self._fragment_bytes = None, 0
        return TEXT, message
