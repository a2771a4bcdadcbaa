"""Replies as JSON is written by other hands, and of every length up to the limit and beyond."""

from __future__ import annotations

import json

import pytest

from tcm_sync import MessageTooLargeError

from ..helpers.peer_connection import CONTINUATION, TEXT
from ..helpers.peer_scripts import ask, connect, echo, failing
from ..helpers.scripted_peer import ScriptedPeer

KIB = 1024

FORMS = {
    "as the manager writes": lambda m: json.dumps(m),
    "compact": lambda m: json.dumps(m, separators=(",", ":")),
    "indented": lambda m: json.dumps(m, indent=2),
    "uuid first": lambda m: json.dumps({key: m[key] for key in ("uuid", "type", "payload")}),
    "payload first": lambda m: json.dumps({key: m[key] for key in ("payload", "uuid", "type")}),
    "another key first": lambda m: json.dumps({"_correlation_id": "a", "type": "x"} | m),
    "blanks around": lambda m: f" \r\n\t{json.dumps(m)}\n\n",
    "escaped": lambda m: json.dumps(m).replace('"inference"', '"\\u0069nference"'),
    "a key twice": lambda m: json.dumps(m)[:-1] + f', "uuid": {json.dumps(m["uuid"])}}}',
}


@pytest.mark.parametrize("size", [10, 100 * KIB], ids=["small", "large"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_reply_is_understood_however_its_json_is_written(form, size):
    def script(connection):
        connection.welcome()
        while True:
            connection.recv_request()
            connection.send_text(form(connection.inference({"y": ["c" * size, "ü"]})))

    with ScriptedPeer(script) as peer, connect(peer) as client:
        for _ in range(2):
            result = client.infer("m", {"x": [[1.0]]})
            assert result["y"].tolist() == ["c" * size, "ü"]
    assert len(peer.connections) == 1


def of_size(connection, size):
    """Make a reply of so many bytes."""
    empty = len(json.dumps(connection.inference({"y": [""]})))
    return json.dumps(connection.inference({"y": ["d" * (size - empty)]}))


@pytest.mark.parametrize("fragments", [1, 3])
def test_a_reply_of_just_the_limit_is_read(fragments):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.send_text(of_size(connection, 100 * KIB), fragments=fragments)
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer, max_reply_bytes=100 * KIB) as client:
        result = client.infer("m", {"x": [[1.0]]})
    assert len(result["y"].item()) > 99 * KIB


@pytest.mark.parametrize("fragments", [1, 3])
def test_a_reply_over_the_limit_is_refused_before_it_is_read_and_never_asked_for_again(fragments):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        message = of_size(connection, 100 * KIB + 1).encode()
        step = -(-len(message) // fragments)
        pieces = [message[at : at + step] for at in range(0, len(message), step)]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            shown = b"" if last else piece  # the header of the last one alone must be enough
            opcode = CONTINUATION if number else TEXT
            connection.send_frame(opcode, shown, fin=last, length=len(piece))
        connection.wait_eof()

    with ScriptedPeer(script, echo) as peer, connect(peer, max_reply_bytes=100 * KIB) as client:
        with failing(MessageTooLargeError, "max_reply_bytes") as caught:
            ask(client)
        assert caught.value.limit == 100 * KIB
        assert ask(client, 2.0) == 2.0
    assert [connection.requests for connection in peer.connections] == [1, 1]


@pytest.mark.parametrize("length", [2**32, 2**62, 2**63 - 1])
def test_an_absurd_length_is_believed_by_nobody(length):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.send_frame(TEXT, b"{", length=length)
        connection.wait_eof()

    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        with failing(MessageTooLargeError, "max_reply_bytes"):
            ask(client)
        assert ask(client, 2.0) == 2.0
