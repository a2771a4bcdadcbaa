"""``/health`` and ``/ready``: plain HTTP beside the WebSocket."""

from __future__ import annotations

import contextlib

import pytest

from ..helpers.peer_connection import ClientLeft
from ..helpers.peer_scripts import SHORT_PAUSES, ask, connect, echo
from ..helpers.scripted_peer import ScriptedPeer

SECONDS = 0.5  # what a test lets a probe take that is never answered


def never_answers(connection):
    connection.wait_eof()


def test_health_and_ready_are_asked_beside_the_path():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        assert client.health() is True
        ready = client.ready()
        assert (ready.ok, ready.status) == (True, "ready")
        peer.http["/ready"] = (
            503,
            {
                "status": "not_ready",
                "reason": "readiness_probe_failed",
                "detail": "internal_error",
                "error_id": "e-17",
            },
        )
        ready = client.ready()
    assert (ready.ok, ready.status, ready.reason) == (False, "not_ready", "readiness_probe_failed")
    assert (ready.detail, ready.error_id) == ("internal_error", "e-17")
    assert peer.connections == []


@pytest.mark.parametrize(
    ("triton", "kept", "described"),
    [
        ({"registered": 1, "healthy": 0}, {"registered": 1, "healthy": 0}, "1 registered, 0 healthy"),
        ({"registered": "one", "healthy": 0}, {"healthy": 0}, "0 healthy"),
        ([1], {}, None),
    ],
)
def test_the_triton_servers_that_the_manager_counts_are_shown(triton, kept, described):
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        peer.http["/ready"] = (503, {"status": "not_ready", "triton": triton})
        ready = client.ready()
    assert (ready.ok, dict(ready.triton)) == (False, kept)
    assert ready.explanation == (
        "not_ready" if described is None else f"not_ready, Triton servers: {described}"
    )


def endless_json(connection):
    connection.read_handshake()
    connection.send_raw(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"status": "')
    with contextlib.suppress(ClientLeft):
        while True:
            connection.send_raw(b"ready" * 1000)


@pytest.mark.parametrize(
    "answer",
    [
        endless_json,
        never_answers,
        lambda connection: connection.drop(),
        lambda connection: connection.send_raw(b"SSH-2.0-OpenSSH_9.7\r\n"),
    ],
    ids=["endless", "silent", "dropped", "another protocol"],
)
def test_a_probe_is_bounded_and_reports_what_is_wrong(answer):
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        peer.http["/health"] = peer.http["/ready"] = answer
        for probe in (client.health, client.ready):
            found = probe(timeout=SECONDS)
            assert not getattr(found, "ok", found)


@pytest.mark.parametrize("body", [b"", b"[1, 2", b"[]", b'"ready"', b'{"status": 7}', b"\xff\xfe"])
def test_a_ready_answer_of_another_kind_is_no_crash(body):
    def answer(connection):
        connection.read_handshake()
        connection.answer_http(200, body)

    with ScriptedPeer(echo) as peer, connect(peer, retry=SHORT_PAUSES) as client:
        peer.http["/ready"] = answer
        assert client.ready().ok in (True, False)


def test_a_closed_client_may_still_ask_whether_the_manager_is_there():
    with ScriptedPeer(echo) as peer:
        client = connect(peer)
        assert ask(client) == 1.0
        client.close()
        assert client.health()
        assert client.ready().ok
