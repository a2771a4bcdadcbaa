"""What no manager should send, sent at every moment: refused with a reason, and the socket is closed."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import struct
import threading

import pytest

from tcm_sync import ConnectFailedError, ConnectionLostError, MessageTooLargeError, ProtocolError
from tcm_sync.errors import TcmError

from ..helpers.peer_connection import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, make_frame
from ..helpers.peer_scripts import TOKEN, ask, connect, echo, echo_once, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for

REPLY = b'{"type": "inference", "uuid": "%s", "payload": {"data": {"y": [[1]]}, "status": "COMPLETED"}}'


def reply_with(payload):
    """Make a reply with an odd payload, written as JSON."""
    return b'{"type": "inference", "uuid": "%s", "payload": ' + payload + b"}"


#: Whole messages that cannot be read. ``%s`` becomes the socket's uuid.
MESSAGES = {
    "empty": b"",
    "not JSON": b"not JSON at all",
    "cut off": REPLY[:-10],
    "two at once": REPLY + REPLY,
    "NaN": reply_with(b'{"status": "COMPLETED", "data": {"y": [NaN]}}'),
    "a list": b"[1, 2, 3]",
    "a number": b"17",
    "null": b"null",
    "no type": b'{"uuid": "%s", "payload": {}}',
    "type is a number": b'{"type": 7}',
    "uuid is a list": b'{"type": "inference", "uuid": ["%s"], "payload": {"status": "COMPLETED"}}',
    "payload is a text": reply_with(b'"COMPLETED"'),
    "payload is null": reply_with(b"null"),
    "status is a number": reply_with(b'{"status": 1, "data": {}}'),
    "status is none of ours": reply_with(b'{"status": "MAYBE", "data": {}}'),
    "failed without data": reply_with(b'{"status": "FAILED"}'),
    "failed with a list": reply_with(b'{"status": "FAILED", "data": [1]}'),
    "failed with a numeric code": reply_with(b'{"status": "FAILED", "data": {"code": 5}}'),
    "error without payload": b'{"type": "error"}',
    "error message is a number": b'{"type": "error", "payload": {"message": 5}}',
    "invalid UTF-8": reply_with(b'{"status": "COMPLETED", "data": {"y": ["\xff\xfe"]}}'),
    "invalid UTF-8 in a field of nobody": REPLY[:-1] + b', "extra": "\xc3\x28"}',
    "half a surrogate": REPLY[:-1] + b', "extra": "\xed\xa0\x80"}',
    "nested 100,000 deep, open": reply_with(b'{"status": "COMPLETED", "data": ' + b"[" * 100_000),
    "nested 100,000 deep": reply_with(
        b'{"status": "COMPLETED", "data": {"y": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    ),
    "nested in a field of nobody, open": REPLY[:-1] + b', "extra": ' + b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
}

#: Whole replies that can be read, up to outputs that no tensor has.
OUTPUTS = {
    "outputs are a list": reply_with(b'{"status": "COMPLETED", "data": [1]}'),
    "outputs are null": reply_with(b'{"status": "COMPLETED", "data": null}'),
    "an output is ragged": reply_with(b'{"status": "COMPLETED", "data": {"y": [[1, 2], [3]]}}'),
    "an output is an object": reply_with(b'{"status": "COMPLETED", "data": {"y": {"z": 1}}}'),
    "an output mixes kinds": reply_with(b'{"status": "COMPLETED", "data": {"y": [1, "a"]}}'),
}


def frames_around(reply):
    """Good replies in frames that RFC 6455 forbids a server to send (sections 5.1 to 5.5)."""
    return {
        "binary message": make_frame(BINARY, reply),
        "masked": make_frame(TEXT, reply, mask=b"abcd"),
        "reserved bit 1": make_frame(TEXT, reply, rsv=4),
        "reserved bit 2": make_frame(TEXT, reply, rsv=2),
        "reserved bit 3": make_frame(TEXT, reply, rsv=1),
        "unknown data opcode": make_frame(0x3, reply),
        "unknown control opcode": make_frame(0xB, b"x") + make_frame(TEXT, reply),
        "long ping": make_frame(PING, b"x" * 126) + make_frame(TEXT, reply),
        "long close": make_frame(CLOSE, struct.pack(">H", 1000) + b"x" * 124),
        "fragmented ping": make_frame(PING, b"x", fin=False) + make_frame(TEXT, reply),
        "fragmented close": make_frame(CLOSE, struct.pack(">H", 1000), fin=False),
        "pong with a reserved bit": make_frame(PONG, b"x", rsv=4) + make_frame(TEXT, reply),
        "continuation of nothing": make_frame(CONTINUATION, reply),
        "text inside a text": make_frame(TEXT, b"{", fin=False) + make_frame(TEXT, reply),
        "length with its highest bit": b"\x81\x7f" + struct.pack(">Q", 2**63 + 5) + reply,
        "binary inside a text": make_frame(TEXT, b"{", fin=False) + make_frame(BINARY, reply),
    }


#: Close frames whose payload is not what sections 5.5.1 and 7.4 allow.
CLOSES = {
    "close of one byte": b"\x03",
    "close 0": struct.pack(">H", 0),
    "close 999": struct.pack(">H", 999),
    "close 1005": struct.pack(">H", 1005),
    "close 1006": struct.pack(">H", 1006),
    "close reason is no UTF-8": struct.pack(">H", 1000) + b"\xff\xff",
}
FRAMES = list(frames_around(b""))
GARBAGE = [*MESSAGES, *OUTPUTS, *FRAMES, *CLOSES]


def sending(name, moment, go_on=None):
    """Make a script that sends it at one moment, under the socket's own uuid, and waits for the end."""

    def script(connection):
        connection.accept()
        connection.read_auth()
        uuid = connection.uuid.encode()
        if moment != "auth":
            connection.send_text({"type": "auth.ok"})
        if moment == "idle":
            wait_for(go_on)
        if moment == "request":
            connection.recv_request()
        if name in MESSAGES or name in OUTPUTS:
            connection.send_text((MESSAGES | OUTPUTS)[name].replace(b"%s", uuid))
        elif name in CLOSES:
            connection.send_frame(CLOSE, CLOSES[name])
        else:
            connection.send_raw(frames_around(REPLY.replace(b"%s", uuid))[name])
        connection.wait_eof()

    return script


@pytest.mark.parametrize("name", [*MESSAGES, *FRAMES])
def test_garbage_in_place_of_a_reply(name):
    with ScriptedPeer(sending(name, "request"), echo) as peer, connect(peer) as client:
        with failing(ProtocolError) as caught:
            ask(client)
        assert caught.value.model_name == "m"
        assert len(str(caught.value)) < 600
        assert ask(client, 2.0) == 2.0
    assert [connection.requests for connection in peer.connections] == [1, 1]


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_are_no_tensors(name):
    """The reply is complete and this call's own: whether the socket is used further is open."""

    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.send_text(OUTPUTS[name].replace(b"%s", connection.uuid.encode()))
        while True:
            echo_once(connection)

    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        with failing(ProtocolError):
            ask(client)
        assert ask(client, 2.0) == 2.0
    assert peer.requests == 2


@pytest.mark.parametrize("name", CLOSES)
def test_a_bad_close_in_place_of_a_reply(name):
    with ScriptedPeer(sending(name, "request"), echo) as peer, connect(peer, retry=None) as client:
        with pytest.raises((ConnectionLostError, ProtocolError)):
            ask(client)
        assert ask(client, 2.0) == 2.0


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_on_an_idle_socket_costs_no_call(name):
    opened = threading.Event()
    with ScriptedPeer(sending(name, "idle", opened), echo) as peer, connect(peer) as client:
        client.open(wait=True)
        opened.set()
        wait_for(peer.connections[0].over)
        assert ask(client, 2.0) == 2.0
    assert peer.connections[0].requests == 0


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_in_place_of_auth_ok(name):
    with ScriptedPeer(sending(name, "auth"), echo) as peer, connect(peer, retry=None) as client:
        with pytest.raises(TcmError) as caught:
            ask(client)
        assert isinstance(caught.value, (ConnectFailedError, ProtocolError, MessageTooLargeError))
        assert caught.value.attempts <= 1
    assert peer.requests == 0


def test_what_an_error_quotes_is_short_printable_and_without_the_token():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.send_text(f"\x1b[31m{TOKEN}\r\nforged: line\u202e" + "x" * 10_000)
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with failing(ProtocolError) as caught:
            ask(client)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
