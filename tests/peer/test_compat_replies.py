"""`tcm_sync.compat` and replies that it cannot read."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tcm_sync import ProtocolError, compat

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


def test_a_reply_for_which_memory_is_short_is_returned_as_an_error(infer, monkeypatch):
    def loads(_text):
        raise MemoryError

    monkeypatch.setattr(compat.client, "json", SimpleNamespace(loads=loads, dumps=json.dumps))
    answer = infer("[[1]]")  # as one over the limit of its size
    assert answer.type == "error"
    assert "not enough memory" in answer.payload["message"]
