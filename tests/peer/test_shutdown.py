"""A manager that drains: SYSTEM_SHUTDOWN in its three meanings, and what holds the callers back."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import threading
import time

import pytest

from tcm_sync import ShuttingDownError
from tcm_sync._pool import pool

from ..helpers.peer_connection import CLOSE, TIMEOUT
from ..helpers.peer_scripts import ask, background, connect, echo, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until


def drop(connection):
    connection.error("Request dropped: system is shutting down.", "SYSTEM_SHUTDOWN", dropped_type="inference")


def reject(connection):
    connection.error("Server is shutting down; request rejected.", "SYSTEM_SHUTDOWN")


def dropped_from_the_queue(connection):
    connection.welcome()
    connection.recv_request()
    drop(connection)
    connection.close(1000)


def rejected(connection):
    connection.welcome()
    connection.recv_request()
    reject(connection)
    connection.close(1012)


def rejected_when_idle(connection):
    connection.welcome()
    reject(connection)
    connection.close(1012)


def rejected_after_the_reply(connection):
    connection.welcome()
    connection.recv_request()
    with connection.together():
        connection.reply({"y": [[1.0]]})
        reject(connection)
    connection.close(1012)


@pytest.mark.parametrize("script", [dropped_from_the_queue, rejected])
def test_a_refused_inference_is_sent_again_on_a_new_socket_and_is_no_attempt(script):
    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        result = client.infer("m", {"x": [[2.0]]})
    assert result["y"].item() == 2.0
    assert result.attempts == 1
    assert [connection.requests for connection in peer.connections] == [1, 1]


@pytest.mark.parametrize(("script", "unknown"), [(dropped_from_the_queue, False), (rejected, True)])
def test_without_a_policy_the_error_says_whether_it_may_have_run(script, unknown):
    with ScriptedPeer(script) as peer, connect(peer, retry=None) as client:
        with failing(ShuttingDownError, "shutting down") as caught:
            ask(client)
    assert caught.value.outcome_unknown is unknown
    assert caught.value.code == "SYSTEM_SHUTDOWN"
    assert peer.requests == 1


def test_on_an_idle_socket_no_call_has_failed():
    with ScriptedPeer(rejected_when_idle, echo) as peer, connect(peer) as client:
        client.open(wait=True)
        wait_for(peer.connections[0].over)
        result = client.infer("m", {"x": [[2.0]]})
    assert result["y"].item() == 2.0
    assert result.attempts == 1
    assert peer.connections[0].requests == 0


def test_trailing_a_good_reply_no_call_has_failed():
    with ScriptedPeer(rejected_after_the_reply, echo) as peer, connect(peer) as client:
        assert ask(client) == 1.0
        wait_for(peer.connections[0].over)
        assert ask(client, 2.0) == 2.0
    assert [connection.requests for connection in peer.connections] == [1, 1]


def test_the_reply_of_another_socket_still_comes():
    busy, informed = threading.Event(), threading.Event()

    def working(connection):
        connection.welcome()
        connection.recv_request()
        busy.set()
        wait_for(informed)
        connection.reply({"y": [[1.0]]})
        connection.close(1000)

    with ScriptedPeer(working, rejected, echo) as peer, connect(peer, pool_size=2) as client:
        with background(lambda: ask(client)) as first:
            wait_for(busy)
            assert ask(client, 2.0) == 2.0
            informed.set()
            assert first() == 1.0
    assert [connection.requests for connection in peer.connections] == [1, 1, 1]


def test_idle_sockets_are_retired_when_another_gets_the_refusal():
    both, informed = threading.Barrier(2, timeout=TIMEOUT), threading.Event()

    def answer_together(connection):
        connection.welcome()
        data = connection.recv_request()["request"]["inputs"][0]["data"]
        both.wait()
        connection.reply({"y": data})
        if connection.number == 0:
            wait_for(informed)
            reject(connection)
            connection.close(1012)
        connection.wait_eof()

    with ScriptedPeer(answer_together, answer_together, echo) as peer, connect(peer, pool_size=2) as client:
        with background(lambda: ask(client, 1.0)) as first:
            assert ask(client, 2.0) == 2.0
            assert first() == 1.0
        informed.set()
        for connection in peer.connections[:2]:
            wait_for(connection.over)
        assert ask(client, 3.0) == 3.0
    assert [connection.requests for connection in peer.connections] == [1, 1, 1]


# --- the gate ---


def test_a_503_of_ready_holds_everybody_back():
    connected_at_probe = []

    def not_ready_twice(connection):
        connected_at_probe.append(len(peer.connections))
        ready = len(connected_at_probe) > 2
        connection.read_handshake()
        connection.answer_http(
            200 if ready else 503, b'{"status": "ready"}' if ready else b'{"status": "not_ready"}'
        )

    with ScriptedPeer(rejected, echo) as peer, connect(peer) as client:
        peer.http["/ready"] = not_ready_twice
        assert ask(client, 2.0) == 2.0
    assert connected_at_probe[:3] == [1, 1, 1]
    assert len(peer.connections) == 2


def silent(connection):
    connection.drop()


@pytest.mark.parametrize(
    "answer", [(404, {}), (401, {}), (302, {}), (500, {}), (200, {"status": "?"}), silent]
)
def test_any_other_answer_of_ready_lets_one_connection_try(answer):
    with ScriptedPeer(rejected, echo) as peer, connect(peer) as client:
        peer.http["/ready"] = answer
        assert ask(client, 2.0) == 2.0
    assert len(peer.connections) == 2


HELD = {"status": "not_ready", "reason": "readiness_probe_failed"}
UNHEALTHY = {"status": "not_ready", "triton": {"registered": 1, "healthy": 0}}


@pytest.mark.parametrize(
    "answer",
    [(503, UNHEALTHY), (503, {}), (503, {"error": "no such backend"})],
    ids=["triton", "empty", "ingress"],
)
def test_a_503_that_says_nothing_of_the_manager_itself_lets_one_connection_try(answer, monkeypatch):
    monkeypatch.setattr(pool, "READY_ASKED_FOR", 10 * TIMEOUT)
    with ScriptedPeer(rejected, echo) as peer, connect(peer) as client:
        peer.http["/ready"] = answer
        assert ask(client, 2.0) == 2.0
    assert len(peer.connections) == 2


def test_a_503_of_ready_holds_nobody_back_for_long(monkeypatch):
    monkeypatch.setattr(pool, "READY_ASKED_FOR", 0.7)  # one pause, and a moment
    with ScriptedPeer(rejected, echo) as peer, connect(peer) as client:
        peer.http["/ready"] = (503, HELD)
        assert ask(client, 2.0) == 2.0
    assert len(peer.connections) == 2


def test_a_socket_whose_opening_began_before_the_shutdown_does_not_end_the_pause():
    opening, informed = threading.Event(), threading.Event()
    told_at, asked_at = [], []

    def first(connection):
        connection.welcome()
        connection.recv_request()
        wait_for(opening)
        told_at.append(time.monotonic())
        reject(connection)
        connection.send_frame(CLOSE, (1012).to_bytes(2, "big"))
        connection.wait_eof()
        informed.set()

    def second(connection):
        connection.accept()
        connection.read_auth()
        opening.set()
        wait_for(informed)
        connection.send_text({"type": "auth.ok"})
        later(connection)

    def later(connection):
        if connection.number > 1:
            connection.welcome()
        while True:
            data = connection.recv_request()["request"]["inputs"][0]["data"]
            asked_at.append(time.monotonic())
            connection.reply({"y": data})

    with ScriptedPeer(first, second, later) as peer, connect(peer, pool_size=2) as client:
        with background(lambda: ask(client, 1.0)) as one:
            wait_until(lambda: peer.requests == 1)
            assert ask(client, 2.0) == 2.0
            assert one() == 1.0
    assert min(asked_at) - told_at[0] >= 0.45  # the pause is 0.5 s


@pytest.fixture
def room_for_one_pause(monkeypatch):
    """Return a timeout in which one pause fits, and no second one."""
    monkeypatch.setattr(pool, "SHUTDOWN_PAUSE", 2.5)
    return 4.5


def test_a_manager_that_drains_for_ever_is_asked_seldom_and_the_error_says_why(room_for_one_pause):
    with ScriptedPeer(rejected) as peer, connect(peer) as client:
        with failing(ShuttingDownError, "shutting down") as caught:
            ask(client, timeout=room_for_one_pause)
        assert caught.value.elapsed < TIMEOUT / 2
    assert len(peer.connections) == 2


def test_a_draining_manager_that_authenticates_and_refuses_is_asked_seldom_by_many(room_for_one_pause):
    def call(value):
        with pytest.raises(ShuttingDownError):
            ask(client, value, timeout=room_for_one_pause)

    with ScriptedPeer(rejected_when_idle) as peer, connect(peer) as client:
        with background(lambda: call(1.0)) as one, background(lambda: call(2.0)) as other:
            call(3.0)
            one()
            other()
    assert len(peer.connections) <= 8
