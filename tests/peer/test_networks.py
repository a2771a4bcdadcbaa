"""Networks that fail: addresses that do not answer, and connections whose packets are lost."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tcm_sync import CallTimeoutError, ConnectFailedError, PoolTimeoutError, RetryPolicy, TcmClient
from tcm_sync._pool import pool_state
from tcm_sync._pool.pool import Pool
from tcm_sync._transport import addresses, liveness, tcp_state

from ..helpers.fixtures import Clock
from ..helpers.packet_filter import discard_packets
from ..helpers.peer_connection import PING, PONG, TIMEOUT
from ..helpers.peer_scripts import (
    ROUTE,
    ask,
    ask_many,
    background,
    connect,
    echo,
    echo_once,
    failing,
    timing_out,
)
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

NEVER = 10 * TIMEOUT
GETADDRINFO = socket.getaddrinfo


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def resolve_to(monkeypatch, *ports):
    """Have the name of the manager resolve to these ports of 127.0.0.1."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

    def resolve(host, *args, **kinds):
        return found if host == "manager.example" else GETADDRINFO(host, *args, **kinds)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


# --- several addresses ---


@pytest.mark.parametrize("first", ["health", "ready", "open"])
def test_the_address_that_answered_is_the_first_one_for_sockets_and_probes(monkeypatch, listener, first):
    discard_packets(listener)
    with ScriptedPeer(echo) as peer:
        resolve_to(monkeypatch, listener.getsockname()[1], peer.port)
        with TcmClient("ws://manager.example/ws", route=ROUTE, connect_timeout=NEVER) as client:
            monkeypatch.setattr(addresses, "_ATTEMPT_DELAY", 0.01)
            assert getattr(client, first)()
            monkeypatch.setattr(addresses, "_ATTEMPT_DELAY", NEVER)
            assert client.health(timeout=TIMEOUT)
            assert client.ready(timeout=TIMEOUT).ok
            assert ask(client) == 1.0


def test_an_address_that_accepts_and_never_answers_is_tried_last(monkeypatch, listener):
    with ScriptedPeer(echo) as peer:
        resolve_to(monkeypatch, listener.getsockname()[1], peer.port)
        with TcmClient("ws://manager.example/ws", route=ROUTE, connect_timeout=0.2) as client:
            with failing(ConnectFailedError, "did not answer the handshake in time"):
                client.open()

            def opens():
                with contextlib.suppress(ConnectFailedError):  # the gate may still be shut
                    return client.open()

            wait_until(opens)
            assert ask(client) == 1.0


def test_a_name_that_moves_to_another_address_is_followed(monkeypatch):
    with ScriptedPeer(echo) as old, ScriptedPeer(echo) as new:
        resolve_to(monkeypatch, old.port)
        with TcmClient("ws://manager.example/ws", route=ROUTE, max_requests=1, pool_size=1) as client:
            assert ask(client) == 1.0
            resolve_to(monkeypatch, new.port)
            while not new.requests:
                assert ask(client) == 1.0


# --- connections that die without a word ---


@pytest.fixture
def brisk(monkeypatch):
    """Find a dead connection within 2.1 s where the kernel probes it, and within 0.6 s where bytes wait."""
    monkeypatch.setattr(tcp_state, "SILENCE", 0.5)
    monkeypatch.setattr(liveness, "TICK", 0.1)
    probes = (("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 1))
    monkeypatch.setattr(tcp_state, "_KEEPALIVE", probes)


def sockets_of(client):
    return [connection.sock for connection in client._core.running().pool.state.inventory.all.values()]


def drop_packets(client, peer):
    """Lose every packet of the connections that there are, in both directions."""
    for sock in [*sockets_of(client), *(connection.sock for connection in peer.connections)]:
        discard_packets(sock)


def warm(client, peer, count):
    """Have so many connections."""
    values = [float(value) for value in range(count)]
    together = threading.Barrier(count)
    scripts, peer.scripts = peer.scripts, (lambda connection: meet_and_echo(connection, together),)
    assert ask_many(client, values, threads=count) == values
    peer.scripts = scripts


def meet_and_echo(connection, together):
    connection.welcome()
    payload = connection.recv_request()
    together.wait(TIMEOUT)
    connection.reply({"y": payload["request"]["inputs"][0]["data"]})
    while True:
        echo_once(connection)


def takes_and_answers_nothing(connection):
    connection.welcome()
    connection.recv_request()
    connection.wait_eof()


@pytest.mark.usefixtures("brisk")
def test_a_call_that_waits_is_repeated_when_its_connection_dies_without_a_word():
    with ScriptedPeer(takes_and_answers_nothing, echo) as peer, connect(peer) as client:
        with background(lambda: client.infer("m", {"x": [[2.0]]})) as answer:
            wait_until(lambda: peer.requests)
            drop_packets(client, peer)
            result = answer()
    assert (result["y"].item(), result.attempts) == (2.0, 2)


@pytest.mark.usefixtures("brisk")
def test_a_call_on_a_connection_that_had_died_is_repeated_on_a_new_one():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        warm(client, peer, 4)
        drop_packets(client, peer)
        values = [float(value) for value in range(8)]
        assert ask_many(client, values, threads=8) == values  # four of them had to queue


@pytest.mark.usefixtures("brisk")
def test_idle_connections_that_died_are_closed_without_a_call():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        warm(client, peer, 2)
        drop_packets(client, peer)
        wait_until(lambda: client.stats().sockets == 0)
        assert ask(client) == 1.0


def test_after_a_call_without_a_sign_of_life_idle_connections_are_checked(monkeypatch):
    monkeypatch.setattr(liveness, "CHECK", 0.3)
    with ScriptedPeer(echo) as peer, connect(peer, retry=None) as client:
        warm(client, peer, 4)
        drop_packets(client, peer)
        with failing(CallTimeoutError):
            ask(client, timeout=0.2)
        for _ in range(4):
            assert ask(client) == 1.0
        wait_until(lambda: client.stats().sockets == 1)  # the dead ones are gone


def test_idle_connections_that_live_are_used_again_after_a_check(monkeypatch):
    """Their manager answers no ping, but its host confirms it."""
    together, go_on = threading.Barrier(2), threading.Event()
    checked, passed = [], Pool.passed_check

    def busy_meanwhile(connection):
        connection.welcome()
        payload = connection.recv_request()
        together.wait(TIMEOUT)
        connection.reply({"y": payload["request"]["inputs"][0]["data"]})
        wait_for(go_on)
        while True:
            echo_once(connection)

    def pass_check(pool, connection):
        passed(pool, connection)
        checked.append(connection)

    monkeypatch.setattr(Pool, "passed_check", pass_check)
    with ScriptedPeer(busy_meanwhile) as peer, connect(peer) as client:
        assert ask_many(client, [1.0, 2.0], threads=2) == [1.0, 2.0]
        with timing_out(lambda: True), failing(CallTimeoutError):
            ask(client)
        wait_until(lambda: checked, "the other connection is checked")
        inventory = client._core.running().pool.state.inventory
        assert (checked, inventory.being_checked) == (list(inventory.idle), set())
        go_on.set()
        assert ask(client, 3.0) == 3.0
    assert len(peer.connections) == 2


def test_nothing_is_repeated_while_the_managers_event_loop_is_blocked():
    """For longer than two intervals of pinging: once 25 s at the default of 20 s, and a quarter more."""
    interval = 0.6
    released = threading.Event()

    def blocked(connection):
        connection.welcome()
        payload = connection.recv_request()
        wait_for(released)
        connection.reply({"y": payload["request"]["inputs"][0]["data"]})
        connection.wait_eof()

    with ScriptedPeer(blocked) as peer, connect(peer, ping_interval=interval) as client:
        with background(lambda: client.infer("m", {"x": [[2.0]]})) as answer:
            wait_until(lambda: client._core.running().reader._connections)
            (connection,) = client._core.running().reader._connections.values()
            wait_until(lambda: connection.pinged_at)
            wait_until(lambda: time.monotonic() - connection.pinged_at > 1.5 * interval)
            released.set()
            result = answer()
    assert (result["y"].item(), result.attempts) == (2.0, 1)
    assert peer.requests == 1


def test_a_pong_that_came_while_the_process_was_stopped_counts():
    ponged = threading.Event()

    def script(connection):
        connection.welcome()
        connection.send_frame(PONG, connection.wait_frame(PING).payload)
        ponged.set()
        while True:
            echo_once(connection)

    interval = 0.2
    with ScriptedPeer(script) as peer, connect(peer, ping_interval=interval) as client:
        client.open()
        reader = client._core.running().reader
        wait_until(lambda: reader._connections)
        (connection,) = reader._connections.values()

        def be_stopped():  # in the reader's thread
            reader._watch_writing(connection, connection.ping(time.monotonic()))
            wait_for(ponged)
            wait_until(lambda: time.monotonic() - connection.pinged_at > 3 * interval)

        reader.run_soon(be_stopped)
        wait_until(lambda: connection.pinged_at and connection.last_received > connection.pinged_at)
        assert ask(client) == 1.0
    assert len(peer.connections) == 1


@pytest.mark.parametrize("end", ["expired", "worn out"])
def test_a_connection_that_was_to_be_closed_while_it_was_checked_is_closed_after_it(end):
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        assert ask(client) == 1.0
        pool = client._core.running().pool
        (connection,) = pool.state.inventory.all.values()
        with pool.state.lock:
            assert pool.state.inventory.take_silent(time.monotonic()) == [connection]
        pool.expire(connection, end)
        assert client.stats().sockets == 1
        pool.passed_check(connection)
        wait_for(peer.connections[0].over)
        assert client.stats().sockets == 0
        assert ask(client) == 1.0


def test_a_connection_that_was_leased_again_is_not_closed_under_its_call_by_a_second_check():
    asked, answered = threading.Event(), threading.Event()

    def slow(connection):
        connection.welcome()
        connection.recv_request()
        asked.set()
        wait_for(answered)
        connection.reply({"y": [[1.0]]})
        connection.wait_eof()

    with ScriptedPeer(slow) as peer, connect(peer) as client:
        with background(lambda: client.infer("m", {"x": [[1.0]]})) as answer:
            wait_for(asked)
            pool = client._core.running().pool
            (connection,) = pool.state.inventory.all.values()
            pool.expire(connection, "expired")
            pool.passed_check(connection)  # of a check that was asked for before the call got the connection
            done = threading.Event()
            pool.reader.run_soon(done.set)
            wait_for(done)
            answered.set()
            result = answer()
    assert result.attempts == 1
    assert len(peer.connections) == 1


def test_an_upload_is_not_given_up_while_the_manager_takes_no_more(monkeypatch):
    """Its kernel confirms what it has no room for; TCP_USER_TIMEOUT would end the connection."""
    monkeypatch.setattr(tcp_state, "SILENCE", 0.5)
    monkeypatch.setattr(liveness, "TICK", 0.1)
    released = threading.Event()

    def full(connection):
        connection.welcome()
        wait_for(released)
        connection.recv_request()
        connection.reply({"y": [[1.0]]})
        connection.wait_eof()

    large = np.zeros((1, 500_000))
    with ScriptedPeer(full) as peer, connect(peer, max_message_bytes=2**26, shm="off") as client:
        client.open()
        with background(lambda: client.infer("m", {"x": large})) as answer:
            (sock,) = sockets_of(client)
            wait_until(lambda: tcp_state.read_tcp_state(sock).silent_for > 0.6)
            released.set()
            result = answer()
    assert result.attempts == 1
    assert len(peer.connections) == 1


def test_a_call_that_waited_for_sockets_that_died_is_not_said_to_be_connecting(monkeypatch):
    """It waited for a minute by the pool's clock, and the last socket was closed a moment ago."""
    clock, time_left = Clock(), pool_state.PoolState.time_left
    monkeypatch.setattr(pool_state, "monotonic", clock)

    def second_has_waited():
        clock.ahead = 60.0
        return client.stats().waiting

    def until_another_is_being_opened(state, waiter):
        wait_until(lambda: len(peer.connections) == 2)
        return time_left(state, waiter)

    def never_handshakes(connection):
        connection.wait_eof()

    once = RetryPolicy(attempts=1)
    with ScriptedPeer(takes_and_answers_nothing, never_handshakes) as peer:
        with connect(peer, pool_size=1, connect_timeout=2 * NEVER, retry=once) as client:
            with timing_out(second_has_waited), background(lambda: ask(client)) as first:
                wait_until(lambda: peer.requests)
                monkeypatch.setattr(pool_state.PoolState, "time_left", until_another_is_being_opened)
                with failing(PoolTimeoutError, "busy", "CallTimeoutError", "another is being opened"):
                    ask(client, timeout=0.2)
                with pytest.raises(CallTimeoutError):
                    first()


# --- in networks of their own ---


@pytest.mark.needs_debian("iproute2")
@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_every_call_succeeds_within_ten_seconds_after_a_router_forgot_all_flows():
    """With the default settings, but 4 sockets: calls on idle connections, that wait, and that queue."""
    if not shutil.which("ip") or subprocess.run(["unshare", "--net", "true"], check=False).returncode:
        pytest.skip("this user may make no network namespace, or the command ip is missing")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "tests.helpers.forgotten_flows"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=10 * TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert [len(outcomes[state]) for state in ("idle", "waiting")] == [8, 8]
    for state in ("idle", "waiting"):
        for outcome, seconds in outcomes[state]:
            assert outcome == "right"
            assert seconds < 10.0  # what is promised, and not a guess about this machine
