"""`TcmClient.close` at every moment of a call, and what the peer sees of it."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tcm_sync import CallTimeoutError, ClientClosedError, ConnectionLostError

from ..helpers.peer_connection import CLOSE, TIMEOUT
from ..helpers.peer_scripts import ask, background, connect, echo, failing, timing_out
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

LONG = 10 * TIMEOUT


def never_handshakes(connection):
    connection.read_handshake()
    connection.wait_eof()


def never_authenticates(connection):
    connection.accept()
    connection.read_auth()
    connection.wait_eof()


def never_answers(connection):
    connection.welcome()
    connection.recv_request()
    connection.wait_eof()


def always_full(connection):
    connection.welcome()
    while True:
        connection.recv_request()
        connection.error("dropped", "BACKPRESSURE_QUEUE_FULL", dropped_type="inference")


def always_rejects(connection):
    connection.welcome()
    connection.recv_request()
    connection.error("Server is shutting down; request rejected.", "SYSTEM_SHUTDOWN")
    connection.close(1012)


def asks_for_a_long_pause(connection):
    connection.welcome()
    connection.recv_request()
    connection.fail("TRITON_OVERLOADED", retriable=True, retry_after_seconds=TIMEOUT)
    connection.wait_eof()


def opens_the_circuit(connection):
    connection.welcome()
    connection.recv_request()
    connection.fail("TRITON_CIRCUIT_OPEN", retriable=True, retry_after_seconds=TIMEOUT)
    connection.wait_eof()


#: What a call may be waiting for, and how the peer sees that it has come that far.
WAITING_FOR = {
    "the handshake": (never_handshakes, lambda peer: peer.connections),
    "auth.ok": (never_authenticates, lambda peer: peer.uuids),
    "the reply": (never_answers, lambda peer: peer.requests),
    "a queue with room": (always_full, lambda peer: peer.requests),
    "a manager that drains": (always_rejects, lambda peer: peer.requests),
    "a pause": (asks_for_a_long_pause, lambda peer: peer.requests),
    "an open circuit": (opens_the_circuit, lambda peer: peer.requests),
}


@pytest.mark.parametrize("name", WAITING_FOR)
def test_close_ends_a_call_whatever_it_waits_for(name):
    script, reached = WAITING_FOR[name]
    with ScriptedPeer(script) as peer, connect(peer, timeout=LONG, connect_timeout=LONG) as client:
        with background(lambda: ask(client)) as call:
            wait_until(lambda: reached(peer))
            client.close()
            with failing(ClientClosedError, "closed"):
                call()


@pytest.mark.parametrize("name", ["the handshake", "auth.ok"])
def test_a_connection_that_is_closed_while_it_is_opened_is_no_failure_of_the_manager(name, caplog):
    script, reached = WAITING_FOR[name]
    with ScriptedPeer(script) as peer, connect(peer, timeout=LONG, connect_timeout=LONG) as client:
        with background(lambda: ask(client)) as call:
            wait_until(lambda: reached(peer))
            client.close()
            with failing(ClientClosedError, "closed"):
                call()
        opening = client._core.runtime.pool.state
        wait_until(lambda: opening.opening == 0)
    assert "gate shut" not in caplog.text


def test_close_ends_a_call_that_waits_for_a_manager_that_is_away(caplog):
    with ScriptedPeer(echo) as peer:
        peer.stop_listening()
        with connect(peer, timeout=LONG, connect_timeout=LONG) as client:
            with background(lambda: ask(client)) as call:
                wait_until(lambda: "gate shut" in caplog.text)
                client.close()
                with failing(ClientClosedError, "closed"):
                    call()


def test_close_ends_the_calls_that_wait_in_line():
    with ScriptedPeer(never_answers) as peer, connect(peer, pool_size=1, timeout=LONG) as client:
        with ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(ask, client, float(value)) for value in range(8)]
            wait_until(lambda: peer.requests == 1)
            client.close()
            for call in calls:
                with failing(ClientClosedError, "closed"):
                    call.result(TIMEOUT)
    assert peer.requests == 1


def test_a_call_whose_reply_was_outstanding_says_that_it_may_have_run():
    with ScriptedPeer(never_answers) as peer, connect(peer) as client:
        with background(lambda: ask(client)) as call:
            wait_until(lambda: peer.requests)
            client.close()
            with failing(ClientClosedError) as caught:
                call()
    assert caught.value.outcome_unknown


def test_close_may_wait_for_the_calls_under_way_and_takes_no_new_ones():
    busy, answer = threading.Event(), threading.Event()

    def script(connection):
        connection.welcome()
        connection.recv_request()
        busy.set()
        wait_for(answer)
        connection.reply({"y": [[5.0]]})
        connection.wait_eof()

    def refused():
        try:
            return ask(client, 2.0) != 2.0
        except ClientClosedError:
            return True

    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        with background(lambda: ask(client)) as call:
            wait_for(busy)
            with background(lambda: client.close(timeout=LONG)) as closing:
                wait_until(refused)
                assert not answer.is_set()
                answer.set()
                assert call() == 5.0
                closing()
    assert peer.connections[0].requests == 1


def test_a_drain_that_takes_too_long_is_cut_short():
    with ScriptedPeer(never_answers) as peer, connect(peer) as client:
        with background(lambda: ask(client)) as call:
            wait_until(lambda: peer.requests)
            client.close(timeout=0.1)
            with failing(ClientClosedError):
                call()


def test_a_closed_client_stays_closed_and_may_be_closed_again():
    with ScriptedPeer(echo) as peer:
        client = connect(peer)
        assert ask(client, 1.0) == 1.0
        client.close()
        client.close(timeout=1.0)
        for call in (lambda: ask(client), client.open, client.__enter__):
            with failing(ClientClosedError, "closed"):
                call()
    assert len(peer.connections) == 1


def test_a_client_that_was_never_opened_is_closed_too():
    with ScriptedPeer(echo) as peer:
        client = connect(peer)
        client.close()
        with failing(ClientClosedError):
            ask(client)
    assert peer.connections == []


def test_many_threads_close_while_many_call():
    def call(value):
        try:
            for _ in range(10_000):
                assert ask(client, value) == value
        except ClientClosedError:
            return True
        return False

    with ScriptedPeer(echo) as peer:
        client = connect(peer)
        with ThreadPoolExecutor(12) as threads:
            calls = [threads.submit(call, float(value)) for value in range(8)]
            wait_until(lambda: peer.requests > 20)
            for closing in [threads.submit(client.close) for _ in range(4)]:
                closing.result(TIMEOUT)
            assert all(one.result(TIMEOUT) for one in calls)


def closes_seen(connection):
    """Return the codes of the close frames that the client sent."""
    return [int.from_bytes(frame.payload, "big") for frame in connection.frames if frame.opcode == CLOSE]


def test_the_peer_gets_a_close_frame_when_the_client_is_closed():
    with ScriptedPeer(echo) as peer:
        with connect(peer) as client:
            assert ask(client, 1.0) == 1.0
        wait_until(lambda: closes_seen(peer.connections[0]) == [1000])


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 4000])
def test_a_close_frame_is_answered_with_its_own_code(code):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.send_frame(CLOSE, code.to_bytes(2, "big") + b"why")
        connection.wait_frame(CLOSE)

    with ScriptedPeer(script) as peer, connect(peer, retry=None) as client:
        with failing(ConnectionLostError, str(code), "why"):
            ask(client)
    assert closes_seen(peer.connections[0]) == [code]


def test_a_call_that_waits_while_the_client_drains_gets_a_socket_of_its_own():
    with ScriptedPeer(never_answers, echo) as peer, connect(peer, pool_size=1) as client:
        pool = client._core.running().pool
        with timing_out(lambda: pool.state.draining), background(lambda: ask(client, 1.0)) as first:
            wait_until(lambda: peer.requests == 1)
            with background(lambda: ask(client, 2.0)) as second:
                wait_until(lambda: client.stats().waiting == 1)
                with background(lambda: client.close(LONG)) as closing:
                    with failing(CallTimeoutError):  # and its socket goes with it
                        first()
                    assert second() == 2.0
                    closing()
