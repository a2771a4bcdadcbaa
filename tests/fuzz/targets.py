"""What is fuzzed: for each format, words that make sense in it, and what must hold of any bytes."""

from __future__ import annotations

import contextlib
import json
import pickle
import socket
import zlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest import mock

import click
import numpy as np
from hypothesis import strategies as st

from tcm_sync import InputError, MessageTooLargeError, ModelFileError, ProtocolError, TcmError
from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._tensors.outputs import check_output_dtypes, decode_outputs
from tcm_sync._transport import http
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.frames import CLOSE, FrameDecoder, read_close
from tcm_sync._transport.handshake import perform_handshake
from tcm_sync._transport.opener import Opener
from tcm_sync._transport.sockets import OpeningSockets
from tcm_sync._wire.decode import (
    decode_failure,
    decode_inference,
    decode_management,
    decode_message,
    decode_steps,
    decode_stream,
    peek,
)
from tcm_sync._wire.failures import failure_of_error, failure_of_job, failure_of_reply
from tcm_sync._wire.messages import ErrorReply
from tcm_sync.cli.bodies import read_body, read_inputs
from tcm_sync.models import analyze
from tcm_sync.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

GUARD = 30.0


@dataclass(frozen=True)
class Target:
    """A format and what reads it.

    Parameters
    ----------
    check : callable
        Takes any bytes; fails if they do harm.
    words : tuple of bytes
        What mutations put in.
    long : bool
        Whether some inputs are of about 100 KB.
    """

    check: Callable[[bytes], object]
    words: tuple[bytes, ...]
    long: bool = False

    def inputs(self, corpus):
        """Return a strategy of mutations of what is in a corpus."""
        return st.composite(mutated)(corpus, self.words, self.long)


class Bytes(bytes):
    """Bytes whose repr does not fill the screen."""

    def __repr__(self):
        return f"{bytes(self[:2000])!r}{f' and more, {len(self)} in all' if len(self) > 2000 else ''}"


def mutated(draw, seeds, words, long):
    """Draw a seed, and replace, repeat, drop or exchange parts of it."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 2, 4, 8, 40, 10**6])))
        put = draw(
            st.sampled_from(words)
            | st.binary(max_size=4)
            | st.sampled_from([bytes(data[start:end]) * 2, b"", bytes(data[start:end])[::-1]])
        )
        data[start:end] = put
    if long and draw(st.integers(0, 9)) == 0:  # other code reads long replies
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        data[start:end] = bytes(data[start:end]) * (100_000 // max(1, end - start))
    return Bytes(data)


# --- frames ---


def check_frames(data):
    """All ways to cut a stream give the same events, or the same error of ours."""
    cuts = sorted({zlib.crc32(data + bytes([number])) % (len(data) + 1) for number in range(5)})

    def outcome(cuts):
        decoder, events = FrameDecoder(100_000), []
        try:
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                events += decoder.feed(memoryview(data)[start:end])
        except (ProtocolError, MessageTooLargeError) as error:
            check_error(error)
            return type(error)
        return events

    events = outcome([])
    assert outcome(cuts) == events
    for opcode, payload in events if isinstance(events, list) else ():
        assert opcode != CLOSE or len(payload) <= 125
        if opcode == CLOSE:
            with contextlib.suppress(ProtocolError):
                read_close(payload)


FRAME_WORDS = tuple(
    bytes.fromhex(text)
    for text in ("81 7f", "01", "00", "80", "8800", "897d", "7fffffffffffffffff", "7e0000", "f1")
)

# --- envelopes ---


def check_error(error):
    """An error of ours is short, printable and can be pickled."""
    assert isinstance(error, TcmError)
    assert len(str(error)) < 3000
    assert str(error).isprintable()
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def check_envelope(data):
    """Every reader of messages returns or raises a ProtocolError, and what `peek` finds is what is there."""
    readers = (decode_failure, decode_steps)
    with_uuid = (decode_inference, decode_stream, decode_management)
    for read in [*readers, *((lambda text, read=read: read(text, "u")) for read in with_uuid)]:
        try:
            found = read(data)
        except TcmError as error:
            check_error(error)
            continue
        if read is decode_failure:
            check_error(failure_of_reply(found))
            check_error(failure_of_job("delete", found if isinstance(found, str) else found.message))
    found = peek(data)
    try:
        envelope, payload = decode_message(data)
    except ProtocolError as error:
        check_error(error)
        return
    if found is not None and data.count(b'"type"') == 1 == data.count(b'"uuid"'):
        assert found == (envelope.type, envelope.uuid)
    if isinstance(payload, ErrorReply):
        check_error(failure_of_error(payload))


JSON_WORDS = (
    *(b"null", b"true", b"1e999", b"-0.0", b"NaN", b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\u0000"),
    *(
        b'"type"',
        b'"uuid"',
        b'"payload"',
        b'"data"',
        b"\\ud800",
        b"\xff",
        b"\xed\xa0\x80",
        b" " * 40,
        b"[[[[",
    ),
    *(b"18446744073709551616", b"-9223372036854775809", b"1.5", b"[1, [2]]", b'"retry_after_seconds": 1e308'),
)

# --- tensors ---

DTYPES = (None, "f4", "f8", "i8", "u8", "?", "O", {"y": "f2"})


def check_tensors(data):
    """Outputs are what Python's own parser reads, in every dtype that they fit; else a ProtocolError."""
    for wanted in DTYPES:
        try:
            arrays = (
                decode_outputs(data) if wanted is None else decode_outputs(data, check_output_dtypes(wanted))
            )
        except TcmError as error:
            check_error(error)
            continue
        expected = json.loads(data)
        assert list(arrays) == list(expected)
        for name, array in arrays.items():
            check_array(array, expected[name], exact=wanted is None)


def check_array(array, nested, *, exact):
    """Compare an array with nested lists."""
    assert array.flags.writeable
    if not isinstance(nested, list):
        nested = [nested]
    assert array.shape == shape_of(nested)
    flat = list(flattened(nested))
    for found, read in zip(array.ravel().tolist(), flat, strict=True):
        if read is None:
            assert found != found
        elif exact or isinstance(read, (str, bool)):
            assert found == read
            assert isinstance(found, float if isinstance(read, float) else (type(read), float))


def shape_of(nested):
    shape = []
    while isinstance(nested, list):
        shape.append(len(nested))
        nested = nested[0] if nested else None
    return tuple(shape)


def flattened(nested):
    for one in nested:
        if isinstance(one, list):
            yield from flattened(one)
        else:
            yield one


# --- HTTP ---


def answered(data, read):
    """Give a client's function one end of a pair of sockets, whose other end has sent an answer and ended."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(GUARD)
        theirs.sendall(data[:60_000])
        theirs.shutdown(socket.SHUT_WR)
        return read(ours)


ENDPOINT = Endpoint.parse("ws://127.0.0.1:1/ws")


def check_probe(data):
    """A probe's answer is a status and a body that are in it, or an error of ours."""
    opening = OpeningSockets()
    target = Opener(Settings("ws://127.0.0.1:1/ws"), opening, Counts(), Addresses())

    def read(sock):
        with mock.patch.object(http, "open_socket", return_value=sock):
            return http.probe(target, "ready", Deadline(GUARD), opening)

    try:
        status, body = answered(data, read)
    except (ProtocolError, TcmError) as error:
        check_error(error)
        return
    assert str(status).encode() in data
    assert len(body) <= len(data)


def check_handshake(data):
    """No answer is taken for a handshake whose key is not the one that belongs to this request."""
    try:
        answered(data, lambda sock: perform_handshake(sock, ENDPOINT, {}, Deadline(GUARD)))
    except TcmError as error:
        check_error(error)
        return
    raise AssertionError("a handshake with another key was accepted")


HTTP_WORDS = (
    *(
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b"HTTP/1.1 ",
        b"HTTP/9.9 -1 ",
        b"Content-Length: -1\r\n",
        b": ",
        b"\x00",
        b"\xff",
    ),
    *(
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"ffffffffffffffff\r\n",
    ),
    *(
        b"Retry-After: Sun, 99 Foo 9999\r\n",
        b"Retry-After: 1e999\r\n",
        b"Sec-WebSocket-Accept: \r\n",
        b" " * 40,
    ),
    *(b"Location: http://[\r\n", b"Sec-WebSocket-Protocol: x\r\n", b"Set-Cookie: \xff=;;=\r\n", b"-"),
)

# --- files ---


def check_onnx(data):
    """A file is analyzed, and then everything can be asked of the analysis, or it is a ModelFileError."""
    try:
        analysis = analyze(data)
    except ModelFileError as error:
        check_error(error)
        return
    json.loads(analysis.to_json())
    with contextlib.suppress(TcmError):
        analysis.config_pbtxt()


ONNX_WORDS = tuple(
    bytes.fromhex(text)
    for text in ("0a00", "3a00", "ffffffffffffffffff01", "8080808000", "0b", "0c", "4202", "2a00")
)


def check_cli_file(data):
    """Files of tensors and of bodies are read, or refused with a message of the command line."""
    session = SimpleNamespace(read=lambda *_: data)
    with contextlib.suppress(click.ClickException, InputError):
        (array,) = read_inputs(session, ["x=@file"], [], samples=True).values()
        assert isinstance(array, np.ndarray)
        assert not array.dtype.hasobject or all(isinstance(one, (str, bytes)) for one in array.ravel())
    with contextlib.suppress(click.ClickException):
        body = read_body(session, "file", ["a.b=1"], reserved=["action"])
        assert body["a"]["b"] == 1


CLI_WORDS = (
    *JSON_WORDS,
    *(
        b"&a ",
        b"*a",
        b"!!python/object:os.system ",
        b"!!binary x",
        b"<<: ",
        b"- ",
        b"? ",
        b"\n",
        b"  ",
        b"\t",
    ),
    *(
        b"\x93NUMPY",
        b"'descr': '|O'",
        b"'shape': (-1,)",
        b"'shape': (99999999999,)",
        b"2020-99-99",
        b".nan",
        b"0x",
    ),
)

TARGETS = {
    "frames": Target(check_frames, FRAME_WORDS, long=True),
    "envelopes": Target(check_envelope, JSON_WORDS, long=True),
    "tensors": Target(check_tensors, JSON_WORDS, long=True),
    "probes": Target(check_probe, HTTP_WORDS),
    "handshakes": Target(check_handshake, HTTP_WORDS),
    "onnx": Target(check_onnx, ONNX_WORDS),
    "cli-files": Target(check_cli_file, CLI_WORDS),
}
