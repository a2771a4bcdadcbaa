"""Frames: written masked, read however they are cut, and refused where they break RFC 6455."""

from __future__ import annotations

import os
import struct
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcm_sync import MessageTooLargeError, ProtocolError
from tcm_sync._transport import frames
from tcm_sync._transport.frames import (
    CLOSE,
    FRAGMENT_BYTES,
    PING,
    PONG,
    TEXT,
    FrameDecoder,
    encode_close,
    encode_frame,
    encode_text,
    read_close,
)

CONTINUATION, BINARY = 0x0, 0x2
SIZES = [0, 1, 125, 126, 127, 512, 513, 65_535, 65_536, *(FRAGMENT_BYTES + more for more in (-1, 0, 1))]


def server_frame(opcode, payload=b"", *, final=True, reserved=0, masked=False, length=None):
    """Write a frame as a server does, or as it must not."""
    size = len(payload) if length is None else length
    head = bytes([final << 7 | reserved << 4 | opcode])
    bit = 0x80 if masked else 0
    if size < 126:
        head += bytes([bit | size])
    elif size < 2**16:
        head += struct.pack("!BH", bit | 126, size)
    else:
        head += struct.pack("!BQ", bit | 127, size)
    return head + (bytes(4) if masked else b"") + payload


def client_frames(data):
    """Read masked frames: opcode, final, payload of each. It shares no code with what is tested."""
    found = []
    while data:
        first, second = data[0], data[1]
        assert not first & 0x70, "a reserved bit"
        assert second & 0x80, "not masked"
        size, at = second & 0x7F, 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[2 : 2 + width], "big")
            assert size >= (126 if width == 2 else 65_536), "a longer length than needed"
            at += width
        key, at = bytes(data[at : at + 4]), at + 4
        assert len(data) >= at + size, "cut short"
        payload = bytes(byte ^ key[place % 4] for place, byte in enumerate(data[at : at + size]))
        found.append((first & 0x0F, bool(first & 0x80), payload, key))
        data = data[at + size :]
    return found


# --- writing ---


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_frame_is_masked_and_of_the_shortest_length(size, kind):
    payload = os.urandom(size)
    ((opcode, final, read, key),) = client_frames(encode_frame(TEXT, kind(payload)))
    assert (opcode, final, read) == (TEXT, True, payload)
    assert len(key) == 4


def test_each_frame_has_a_key_of_its_own(monkeypatch):
    keys = [encode_frame(TEXT, b"x" * 100)[2:6] for _ in range(100)]
    assert len(set(keys)) > 90
    monkeypatch.setattr(os, "urandom", lambda size: b"\x01\x02\x03\x04"[:size])
    assert encode_frame(PING, b"\0\0\0\0\0") == b"\x89\x85\x01\x02\x03\x04\x01\x02\x03\x04\x01"


@pytest.mark.parametrize("size", [*SIZES, 2 * FRAGMENT_BYTES, 2 * FRAGMENT_BYTES + 1])
def test_a_large_message_goes_out_in_fragments(size):
    message = os.urandom(size)
    parts = [frame for data in encode_text((message,)) for frame in client_frames(data)]
    assert b"".join(payload for _, _, payload, _ in parts) == message
    assert [opcode for opcode, *_ in parts] == [TEXT] + [CONTINUATION] * (len(parts) - 1)
    assert [final for _, final, *_ in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) == max(1, -(-size // FRAGMENT_BYTES))
    assert all(len(payload) <= FRAGMENT_BYTES for _, _, payload, _ in parts)
    assert len({key for *_, key in parts}) == len(parts)  # of four random bytes: once in a thousand million


@pytest.mark.parametrize(
    "sizes", [(0, 5, 0), (300, 300), (1, FRAGMENT_BYTES, 1), (7, 2 * FRAGMENT_BYTES - 7, 0)]
)
def test_the_pieces_of_a_message_are_one_text(sizes):
    pieces = tuple(map(os.urandom, sizes))
    parts = [frame for data in encode_text(pieces) for frame in client_frames(data)]
    assert b"".join(payload for _, _, payload, _ in parts) == b"".join(pieces)
    assert [final for _, final, *_ in parts] == [False] * (len(parts) - 1) + [True]


@pytest.mark.parametrize("size", [100, 5_000, 2 * FRAGMENT_BYTES])
def test_messages_that_are_sent_at_the_same_time_share_no_memory(size):
    messages = [os.urandom(size) for _ in range(3)]
    begun = [iter(encode_text((message,))) for message in messages]
    for frame, message in zip(list(map(next, begun)), messages, strict=True):
        ((_, _, payload, _),) = client_frames(frame)
        assert payload == message[:FRAGMENT_BYTES]


def test_a_close_frame_has_a_code():
    ((opcode, final, payload, _),) = client_frames(encode_close(1009))
    assert (opcode, final, payload) == (CLOSE, True, b"\x03\xf1")


# --- close frames read ---


@pytest.mark.parametrize(
    ("payload", "read"),
    [
        (b"", (1005, "")),
        (b"\x03\xe8", (1000, "")),
        (b"\x03\xf1Message too large", (1009, "Message too large")),
        (b"\x03\xf4\xc3\xa9", (1012, "é")),
    ],
)
def test_a_close_is_read(payload, read):
    assert read_close(payload) == read


@pytest.mark.parametrize("payload", [b"\x03", b"\x03\xe8\xff", b"\x03\xe8\xc3"])
def test_a_close_that_cannot_be_read_is_a_protocol_error(payload):
    with pytest.raises(ProtocolError, match="a close frame") as caught:
        read_close(payload)
    assert caught.value.__cause__ is None


# --- reading ---


@st.composite
def conversations(draw):
    """Draw what a server may send, and the events that it is to become."""
    data, events = b"", []
    for _ in range(draw(st.integers(1, 6))):
        size = draw(st.sampled_from([0, 1, 2, 125, 126, 127, 300, 65_535, 65_536]) | st.integers(0, 400))
        message = bytes(index % 251 for index in range(size))
        cuts = sorted(draw(st.lists(st.integers(0, size), max_size=4)))
        pieces = [message[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
        for number, piece in enumerate(pieces):
            for opcode in draw(st.lists(st.sampled_from([PING, PONG, CLOSE]), max_size=2)):
                control = draw(st.binary(max_size=125))
                data += server_frame(opcode, control)
                events.append((opcode, control))
            opcode = CONTINUATION if number else TEXT
            data += server_frame(opcode, piece, final=number == len(pieces) - 1)
        events.append((TEXT, message))
    return data, events


def fed(data, cuts, limit=2**20):
    decoder = FrameDecoder(limit)
    events = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        events += decoder.feed(memoryview(data)[start:end])
    return events


@given(conversations(), st.data())
def test_however_the_bytes_are_cut_the_events_are_the_same(conversation, data):
    received, events = conversation
    assert fed(received, []) == events
    cuts = data.draw(st.lists(st.integers(0, len(received)), max_size=20).map(sorted))
    assert fed(received, cuts) == events


def test_one_byte_at_a_time():
    message = bytes(range(256)) * 2
    received = (
        server_frame(TEXT, message[:200], final=False)
        + server_frame(PING, b"p")
        + server_frame(CONTINUATION, b"", final=False)
        + server_frame(CONTINUATION, message[200:])
        + server_frame(CLOSE)
    )
    events = [(PING, b"p"), (TEXT, message), (CLOSE, b"")]
    assert fed(received, range(1, len(received))) == events


def test_an_event_is_given_out_with_its_last_byte_and_is_a_copy():
    received = bytearray(server_frame(TEXT, b"abcdef"))
    decoder = FrameDecoder(100)
    assert decoder.feed(received[:-1]) == []
    (event,) = decoder.feed(received[-1:])
    assert event == (TEXT, b"abcdef")
    whole = memoryview(received)
    (event,) = decoder.feed(whole)
    whole[:] = bytes(len(whole))  # as the reader's buffer is written over
    assert event == (TEXT, b"abcdef")
    assert type(event[1]) is bytes


# --- limits ---


@pytest.mark.parametrize("limit", [1, 125, 126, 65_535, 65_536, 100_000])
def test_a_message_of_just_the_limit_passes_and_one_more_byte_does_not(limit):
    assert FrameDecoder(limit).feed(server_frame(TEXT, bytes(limit))) == [(TEXT, bytes(limit))]
    for received in (server_frame(TEXT, bytes(limit + 1)), server_frame(TEXT, length=limit + 1)):
        with pytest.raises(MessageTooLargeError) as caught:
            FrameDecoder(limit).feed(received)
        assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
        assert f"max_reply_bytes is {limit:,}" in caught.value.message


@pytest.mark.parametrize("length", [2**32, 2**62, 2**63 - 1])
def test_a_length_is_refused_from_the_header_alone(length):
    with pytest.raises(MessageTooLargeError) as caught:
        FrameDecoder(2**26).feed(server_frame(TEXT, length=length))
    assert caught.value.size == length


def test_the_limit_counts_all_fragments_and_no_control_frame():
    decoder = FrameDecoder(10)
    assert decoder.feed(server_frame(TEXT, b"12345", final=False)) == []
    assert decoder.feed(server_frame(PING, b"x" * 100)) == [(PING, b"x" * 100)]
    assert decoder.feed(server_frame(CONTINUATION, b"1234", final=False)) == []
    with pytest.raises(MessageTooLargeError) as caught:
        decoder.feed(server_frame(CONTINUATION, length=2))
    assert caught.value.size == 11


def test_tiny_fragments_take_little_more_memory_than_their_bytes():
    count = 20_000
    data = server_frame(TEXT, b"xy", final=False) + server_frame(CONTINUATION, b"xy", final=False) * count
    decoder = FrameDecoder(2**20)
    tracemalloc.start()
    try:
        for start in range(0, len(data), 1000):
            assert decoder.feed(data[start : start + 1000]) == []
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 2 * 2 * count + 10_000
    assert decoder.feed(server_frame(CONTINUATION, b"z")) == [(TEXT, b"xy" * (count + 1) + b"z")]


@given(st.lists(st.integers(0, 400), min_size=1, max_size=6), st.data())
def test_large_frames_are_gathered_however_they_are_cut(sizes, data):
    """Alone, as fragments, behind each other, and with small ones and pings between."""
    sent, expected = b"", []
    for number, size in enumerate(sizes):
        payloads = [bytes([number + 1]) * size, os.urandom(size // 2)] if number % 2 else [os.urandom(size)]
        for place, payload in enumerate(payloads):
            final = place == len(payloads) - 1
            sent += server_frame(CONTINUATION if place else TEXT, payload, final=final)
            sent += server_frame(PING, b"p")
            if not final:
                expected.append((PING, b"p"))
        expected += [(TEXT, b"".join(payloads)), (PING, b"p")]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    bounds = [0, *cuts, len(sent)]
    large, block = frames._LARGE, frames._BLOCK
    frames._LARGE, frames._BLOCK = 100, 30
    try:
        decoder = FrameDecoder(10**6)
        events = [event for start, end in pairwise(bounds) for event in decoder.feed(sent[start:end])]
    finally:
        frames._LARGE, frames._BLOCK = large, block
    assert events == expected


def test_the_memory_that_a_large_frame_has_taken_is_stated_when_there_is_no_more():
    decoder = FrameDecoder(10**8)
    decoder.feed(server_frame(TEXT, b"x" * 10, length=2**21))
    decoder.feed(b"x" * 70_000)
    assert decoder.out_of_memory().size == 70_010
    assert decoder.feed(server_frame(TEXT, b"next")) == [(TEXT, b"next")]


def test_a_limit_counts_each_message_by_itself():
    decoder = FrameDecoder(10)
    for _ in range(3):
        decoder.feed(server_frame(TEXT, b"12345", final=False))
        assert decoder.feed(server_frame(CONTINUATION, b"67890")) == [(TEXT, b"1234567890")]
        assert decoder.feed(server_frame(TEXT, b"1234567890")) == [(TEXT, b"1234567890")]


# --- violations ---

OPEN = server_frame(TEXT, b"a", final=False)
VIOLATIONS = {
    **{f"reserved bit {bit}": (server_frame(TEXT, b"a", reserved=bit), "reserved bits") for bit in (1, 2, 4)},
    "reserved bit of a ping": (server_frame(PING, reserved=1), "reserved bits"),
    "masked": (server_frame(TEXT, b"a", masked=True), "masked"),
    "masked ping": (server_frame(PING, b"a", masked=True), "masked"),
    "binary": (server_frame(BINARY, b"a"), "binary"),
    **{
        f"opcode {op}": (server_frame(op, b"a"), f"unknown opcode {op}")
        for op in (*range(3, 8), *range(11, 16))
    },
    "fragmented ping": (server_frame(PING, b"a", final=False), "control frame"),
    "fragmented close": (server_frame(CLOSE, final=False), "control frame"),
    "long ping": (server_frame(PING, bytes(126)), "control frame"),
    "long close": (server_frame(CLOSE, bytes(70_000)), "control frame"),
    "nothing to continue": (server_frame(CONTINUATION, b"a"), "out of order"),
    "a message within a message": (OPEN + server_frame(TEXT, b"b"), "out of order"),
    "binary within a message": (OPEN + server_frame(BINARY, b"b"), "binary"),
    "a second end": (OPEN + server_frame(CONTINUATION) * 2, "out of order"),
    "a negative length": (server_frame(TEXT, length=2**63), "highest bit"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("before", [b"", server_frame(TEXT, b"good")], ids=["first", "second"])
def test_a_violation_is_refused(name, bytewise, before):
    received, words = VIOLATIONS[name]
    received = before + received
    cuts = range(1, len(received)) if bytewise else []
    with pytest.raises(ProtocolError, match=words):
        fed(received, cuts)


@pytest.mark.parametrize("name", ["masked", "binary", "long ping"])
def test_a_violation_is_refused_before_its_payload_comes(name):
    with pytest.raises(ProtocolError):
        FrameDecoder(100).feed(VIOLATIONS[name][0][:2])


@given(st.binary(max_size=400), st.integers(1, 500))
@example(b"\x81\x7e\x00\x00", 10)  # an empty text in a longer length than it needs: allowed to a server
def test_of_garbage_only_our_errors_come_out(received, limit):
    for cuts in ([], range(1, len(received))):
        try:
            events = fed(received, list(cuts), limit)
        except (ProtocolError, MessageTooLargeError):
            continue
        assert sum(len(payload) for _, payload in events) <= len(received)


@given(st.binary(max_size=300))
def test_garbage_means_the_same_however_it_is_cut(received):
    def outcome(cuts):
        try:
            return fed(received, cuts)
        except (ProtocolError, MessageTooLargeError) as error:
            return type(error)

    assert outcome([]) == outcome(list(range(1, len(received))))


def test_the_names_of_opcodes_are_those_of_the_rfc():
    assert (frames.TEXT, frames.CLOSE, frames.PING, frames.PONG) == (0x1, 0x8, 0x9, 0xA)


@pytest.mark.parametrize("first", [0x10, 0x2B, 0x7B])
def test_a_frame_that_is_cut_anywhere_is_read_once_it_is_whole(first):
    payload = bytes([first]) * 300  # with a length of two bytes, of which the first byte behind is none
    frame = b"\x81\x7e\x01\x2c" + payload
    for cut in range(1, len(frame)):
        decoder = FrameDecoder(2**20)
        assert list(decoder.feed(frame[:cut])) == []
        assert list(decoder.feed(frame[cut:])) == [(TEXT, payload)]
