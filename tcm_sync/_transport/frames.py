"""WebSocket frames: ours to write masked, the manager's to read (RFC 6455, section 5).

websocket-client's own are not used: its receive buffer is quadratic in small reads, its UTF-8 check
takes half a second a megabyte, and its sends take no deadline.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator

import numpy as np
from websocket import ABNF

from tcm_sync._wire.encode import Pieces
from tcm_sync._wire.unreadable import out_of_memory
from tcm_sync.errors import MessageTooLargeError, ProtocolError

TEXT: int = ABNF.OPCODE_TEXT
CLOSE: int = ABNF.OPCODE_CLOSE
PING: int = ABNF.OPCODE_PING
PONG: int = ABNF.OPCODE_PONG
_CONTINUATION: int = ABNF.OPCODE_CONT
_BINARY: int = ABNF.OPCODE_BINARY

#: Bytes of a large message that go out as one frame, so that pongs can go out between two.
FRAGMENT_BYTES = 128 * 1024

_FINAL = 0x80  # of the first byte: the last frame of its message
_PACK_SHORT = struct.Struct("!BB").pack
_PACK_MEDIUM = struct.Struct("!BBH").pack
_TWO_BYTES = 126  # bytes from which on the size has two bytes of its own (section 5.2)
_SMALL = 512  # bytes up to which one long integer is masked sooner than an array
_CONTROL_BYTES = 125  # the most a control frame may carry (section 5.5)
_LARGE = 2**20  # bytes from which on a frame that comes in is gathered in blocks
_BLOCK = 64 * 1024  # bytes of a block

Event = tuple[int, bytes]


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """Write one whole frame, masked with four fresh random bytes as a client must (section 5.3)."""
    size = len(payload)
    if size > _SMALL:
        return bytes(_SendBuffer(size).frame(opcode | _FINAL, (payload,), size))
    if size < _TWO_BYTES:
        header = _PACK_SHORT(opcode | _FINAL, 0x80 | size)
    else:
        header = _PACK_MEDIUM(opcode | _FINAL, 0xFE, size)
    key = os.urandom(4)
    mask = (key * (size // 4 + 1))[:size]
    number = int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")
    return b"".join((header, key, number.to_bytes(size, "little")))


def encode_text(pieces: Pieces) -> Iterable[bytes | memoryview]:
    """Write a text message as one frame, or as several if it is large.

    Each frame is good until the next one is asked for: they may share their memory.
    """
    size = sum(map(len, pieces))
    if size <= _SMALL:
        return (encode_frame(TEXT, b"".join(pieces)),)
    if size <= FRAGMENT_BYTES:
        return (_SendBuffer(size).frame(TEXT | _FINAL, pieces, size),)
    return _encode_fragments(pieces, size)


def _encode_fragments(pieces: Pieces, size: int) -> Iterator[memoryview]:
    buffer = _SendBuffer(FRAGMENT_BYTES)
    opcode = TEXT
    for part in _cut(pieces, FRAGMENT_BYTES):
        length = sum(map(len, part))
        size -= length
        yield buffer.frame(opcode if size else opcode | _FINAL, part, length)
        opcode = _CONTINUATION


def _cut(pieces: Pieces, size: int) -> Iterator[list[memoryview]]:
    """Cut a text into parts of so many bytes, the last one shorter, each of views of its pieces."""
    part: list[memoryview] = []
    room = size
    for piece in pieces:
        view = memoryview(piece)
        while view:
            part.append(view[:room])
            view = view[len(part[-1]) :]
            room -= len(part[-1])
            if not room:
                yield part
                part, room = [], size
    if part:
        yield part


def _header(first: int, size: int) -> bytes:
    if size < 0x10000:
        return _PACK_MEDIUM(first, 0xFE, size) if size >= _TWO_BYTES else _PACK_SHORT(first, 0x80 | size)
    return struct.pack("!BBQ", first, 0xFF, size)


class _SendBuffer:
    """Memory in which frames are put together and masked, each over the one before it.

    Parameters
    ----------
    size : int
        The most bytes that their payloads may have.
    """

    _START = 16  # where payloads begin: a header has 14 bytes at most, and whole words are masked

    def __init__(self, size: int) -> None:
        self._bytes = memoryview(bytearray(self._START + -(-size // 8) * 8))
        self._words = np.frombuffer(self._bytes, np.uint64, offset=self._START)

    def frame(self, first: int, parts: Iterable[bytes | memoryview], size: int) -> memoryview:
        """Write a frame whose payload is in parts, `size` bytes in all."""
        key = os.urandom(4)
        header = _header(first, size) + key
        start = self._START - len(header)
        self._bytes[start : self._START] = header
        position = self._START
        for part in parts:
            end = position + len(part)
            self._bytes[position:end] = part
            position = end
        words = self._words[: -(-size // 8)]
        np.bitwise_xor(words, np.frombuffer(key * 2, np.uint64)[0], out=words)
        return self._bytes[start:position]


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


class _MessageBlocks:
    """The bytes of one message, in blocks: other threads run while so many are joined, as CPython does it.

    Small ones are put together first, since as an object two bytes take fifty.
    """

    __slots__ = ("_blocks", "_last", "size")

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._last = bytearray()
        self.size = 0

    def add(self, data: bytes | memoryview) -> None:
        """Add some bytes."""
        self.size += len(data)
        self._last += data
        if len(self._last) >= _BLOCK:
            self._blocks.append(bytes(self._last))
            self._last.clear()

    def joined(self) -> bytes:
        """Return all of them."""
        return b"".join((*self._blocks, bytes(self._last)))


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
        self._needed = 0  # bytes that the buffer must hold before it is parsed
        self._message: _MessageBlocks | None = None  # what has come of a fragmented or a large message
        self._missing = 0  # bytes that are still to come of a large frame
        self._is_last = False  # whether that frame is the last of its message

    def feed(self, data: bytes | memoryview) -> list[Event]:
        """Take received bytes and return the events that they complete: (opcode, payload) pairs.

        Raises
        ------
        ProtocolError
            A frame that a server must not send.
        MessageTooLargeError
            A header that announces more than `max_bytes`.
        """
        if not self._buffer and self._message is None and len(data) > 2 and data[0] == 0x80 | TEXT:
            # Nearly every reply is this: one whole unfragmented text frame.
            size = data[1]
            start = 2
            if size == 126 and len(data) > 4:
                size, start = data[2] << 8 | data[3], 4
            if (size < 126 or start == 4) and size <= self._max_bytes and len(data) == start + size:
                return [(TEXT, bytes(data[start:]))]
        events: list[Event] = []
        if self._missing:
            data = self._continue_large(memoryview(data), events)
        self._buffer += data
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

    def out_of_memory(self) -> MessageTooLargeError:
        """Drop what has been received of a message, and make the error of one for which memory is short."""
        received = len(self._buffer) + self._size_of_message()
        self._buffer, self._message, self._missing = bytearray(), None, 0
        return out_of_memory(received)

    def _size_of_message(self) -> int:
        return 0 if self._message is None else self._message.size

    def _begin_large(self, payload: memoryview, size: int, *, is_last: bool) -> None:
        """Take the beginning of a large frame, whose payload has so many bytes."""
        if self._message is None:
            self._message = _MessageBlocks()
        self._message.add(payload)
        self._missing, self._is_last = size - len(payload), is_last
        self._needed = 0

    def _continue_large(self, data: memoryview, events: list[Event]) -> memoryview:
        """Take more of a large frame; return what is behind it."""
        assert self._message is not None
        taken = data[: self._missing]
        self._message.add(taken)
        self._missing -= len(taken)
        if not self._missing and self._is_last:
            events.append((TEXT, self._message.joined()))
            self._message = None
        return data[len(taken) :]

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
        joined = size + self._size_of_message()
        if opcode < CLOSE and joined > self._max_bytes:
            raise MessageTooLargeError(
                f"the reply has at least {joined:,} bytes, and "
                f"max_reply_bytes is {self._max_bytes:,}: ask for fewer rows a call, or raise it",
                size=joined,
                limit=self._max_bytes,
            )
        if available < start + size:
            if opcode < CLOSE and size > _LARGE:
                with memoryview(buffer) as view, view[position + start :] as payload:
                    self._begin_large(payload, size, is_last=final)
                return len(buffer), None
            self._needed = start + size
            return None, None
        self._needed = 0
        end = position + start + size
        with memoryview(buffer) as view, view[position + start : end] as payload:
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
        elif (opcode == _CONTINUATION) != (self._message is not None):
            raise ProtocolError("fragments out of order (RFC 6455, section 5.4)")

    def _take(self, opcode: int, final: bool, payload: memoryview) -> Event | None:
        if opcode >= CLOSE:
            return opcode, bytes(payload)
        if self._message is None:
            if final:
                return TEXT, bytes(payload)
            self._message = _MessageBlocks()
        self._message.add(payload)
        if not final:
            return None
        message = self._message.joined()
        self._message = None
        return TEXT, message
