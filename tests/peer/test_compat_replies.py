"""`tcm_sync.compat` and replies that it cannot read."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tcm_sync import MessageTooLargeError, ProtocolError, compat

from ..helpers.peer_connection import TEXT, make_frame
from ..helpers.scripted_peer import ScriptedPeer


@pytest.fixture
def infer():
    """Make one call, whose reply has this JSON text for an output."""

    def call(output):
        def script(connection):
            connection.welcome()
            connection.recv_request()
            before, after = json.dumps(connection.inference({"y": "HERE"})).split('"HERE"')
            connection.send_text(f"{before}{output}{after}")
            connection.wait_eof()

        with ScriptedPeer(script) as peer, compat.TcmClient(peer.uri, compat.AuthContext("c-1")) as client:
            return client.infer("vm", "c", "m", [])

    return call


def test_a_reply_that_is_nested_too_deep_is_a_protocol_error(infer):
    assert infer("[[1]]").payload["data"] == {"y": [[1]]}
    depth = 200_000
    with pytest.raises(ProtocolError, match="no message"):
        infer("[" * depth + "]" * depth)


def test_a_reply_for_which_memory_is_short_is_an_error_of_its_own(infer, monkeypatch):
    def loads(_text):
        raise MemoryError

    monkeypatch.setattr(compat.calls, "json", SimpleNamespace(loads=loads, dumps=json.dumps))
    with pytest.raises(MessageTooLargeError, match="not enough memory"):
        infer("[[1]]")


def test_a_reply_that_is_too_large_is_an_error_of_its_own():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.send_raw(make_frame(TEXT, length=65 * 2**20))
        connection.wait_eof()

    with ScriptedPeer(script) as peer, compat.TcmClient(peer.uri, compat.AuthContext("c-1")) as client:
        with pytest.raises(MessageTooLargeError, match="max_reply_bytes"):
            client.infer("vm", "c", "m", [])


def test_a_request_that_the_manager_finds_too_large_is_returned_as_its_refusal():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.close(1009)

    with ScriptedPeer(script) as peer, compat.TcmClient(peer.uri, compat.AuthContext("c-1")) as client:
        assert client.infer("vm", "c", "m", []).type == "error"


INFERENCE = ("inference", lambda client: client.infer("vm", "c", "m", []))
JOB = ("management", lambda client: client.management_creation())
QUESTION = ("info", lambda client: client.info_queue_stats())


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        (INFERENCE, {"type": "inference", "payload": {"status": "COMPLETED"}}),
        (INFERENCE, {"type": "management", "uuid": "OWN", "payload": {"status": True}}),
        (INFERENCE, {"type": "info_response", "payload": {"status": "success", "job_id": "x"}}),
        (JOB, {"type": "management", "payload": {"status": True}}),
        (JOB, {"type": "inference", "uuid": "OWN", "payload": {"status": "COMPLETED"}}),
        (QUESTION, {"type": "info_response", "payload": {"status": "success", "job_id": "other"}}),
        (QUESTION, {"type": "info_response", "payload": {"status": "success"}}),
        (QUESTION, {"type": "management", "uuid": "OWN", "payload": {"status": True}}),
    ],
)
def test_a_reply_to_another_request_is_a_protocol_error(asked, reply):
    kind, ask = asked

    def script(connection):
        connection.welcome()
        assert connection.recv_json()["type"] == kind
        connection.send_text(json.dumps(reply).replace("OWN", connection.uuid))
        connection.wait_eof()

    with ScriptedPeer(script) as peer, compat.TcmClient(peer.uri, compat.AuthContext("c-1")) as client:
        with pytest.raises(ProtocolError, match="no reply to this request"):
            ask(client)
