"""Peers with too much work, limits on messages, and peers that read nothing."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import (
    BackpressureError,
    CallTimeoutError,
    ClientClosedError,
    PoolTimeoutError,
    RateLimitedError,
    TcmClient,
    TcmError,
)
from tcm_sync._pool import concurrency_limit, pool_state
from tcm_sync.local import LocalManager

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import ask, ask_many, background, connect, echo, echo_once, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

MEGABYTE = 10**6


def limited(limit, refused):
    """Make a script that lets so many messages a sliding second pass, as the manager does for each uuid."""

    def script(connection):
        connection.welcome()
        recent = deque()
        while True:
            payload = connection.recv_request()
            now = time.monotonic()
            while recent and now - recent[0] >= 1.0:
                recent.popleft()
            if len(recent) >= limit:
                refused.append(connection.uuid)
                connection.error("Rate limit exceeded for this client (messages per second)")
                connection.close(1008)
            recent.append(now)
            connection.reply({"y": payload["request"]["inputs"][0]["data"]})

    return script


def test_a_limit_of_20_a_second_is_learned():
    refused = []
    with ScriptedPeer(limited(20, refused)) as peer, connect(peer, pool_size=2) as client:
        values = [float(value) for value in range(150)]
        assert ask_many(client, values, threads=8) == values
    assert refused  # else this test shows nothing
    assert len(refused) <= 6


def test_a_limit_that_is_known_is_never_passed():
    refused = []
    settings = {"pool_size": 2, "messages_per_second": 19}
    with ScriptedPeer(limited(20, refused)) as peer, connect(peer, **settings) as client:
        values = [float(value) for value in range(90)]
        assert ask_many(client, values, threads=6) == values
    assert refused == []
    assert len(peer.connections) == 2


def test_a_refusal_that_overtakes_the_reply_in_flight_is_repeated_and_no_attempt():
    refused = []
    with ScriptedPeer(limited(3, refused)) as peer, connect(peer, pool_size=1) as client:
        results = []
        while len(results) < 6 or not refused:
            results.append(client.infer("m", {"x": [[float(len(results))]]}))
    assert [result["y"].item() for result in results] == list(range(len(results)))
    assert {result.attempts for result in results} == {1}


def test_a_limit_nobody_can_keep_ends_with_the_deadline():
    """Refused from the first message on."""
    refused = []

    def script(connection):
        if connection.number == 2:
            gate = client._core.running().gates.backpressure
            gate._initial = gate._maximum = 2 * TIMEOUT  # for which there is no time
        limited(0, refused)(connection)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with failing(RateLimitedError, "Rate limit exceeded", "messages_per_second"):
            ask(client)
    assert len(refused) == 3


# --- backpressure ---


def full(connection):
    connection.welcome()
    while True:
        connection.recv_request()
        connection.error(
            "Request dropped due to backpressure (per-user queue full).",
            "BACKPRESSURE_QUEUE_FULL",
            dropped_type="inference",
        )


def test_a_queue_that_is_always_full_is_not_stormed_by_fifty_threads():
    def call(number):
        with pytest.raises(TcmError) as caught:
            ask(client, float(number), timeout=3.0)
        return caught.value

    with ScriptedPeer(full) as peer, connect(peer, pool_size=4) as client:
        client.open(wait=True)
        with ThreadPoolExecutor(50) as threads:
            errors = list(threads.map(call, range(50)))
    assert {type(error) for error in errors} <= {BackpressureError, PoolTimeoutError}
    assert any(isinstance(error, BackpressureError) for error in errors)
    for error in errors:
        if isinstance(error, BackpressureError):
            assert error.code == "BACKPRESSURE_QUEUE_FULL"
            assert "queue full" in str(error)
        assert not error.outcome_unknown
        assert error.elapsed < TIMEOUT / 2
    assert peer.requests <= 40
    assert len(peer.connections) <= 4


def test_after_a_refusal_fewer_are_under_way_and_who_cannot_wait_hears_why():
    go_on, refused = threading.Event(), []

    def script(connection):
        connection.welcome()
        while True:
            connection.recv_request()
            if not refused:
                refused.append(connection.uuid)
                connection.error("Request dropped.", "BACKPRESSURE_QUEUE_FULL", dropped_type="inference")
                continue
            wait_for(go_on)
            connection.reply({"y": [1.0]})

    with ScriptedPeer(script) as peer, connect(peer, pool_size=2) as client:
        with background(lambda: ask(client)) as answer:  # refused once, then held, the only one of its window
            wait_until(lambda: peer.requests == 2)
            with failing(BackpressureError, "Request dropped") as caught:
                ask(client, timeout=1.0)  # the refusal's gate opens after 0.5 s
            assert caught.value.outcome_unknown is False
            go_on.set()
            assert answer() == 1.0
        assert ask(client) == 1.0  # there is room again
    assert peer.requests == 3, "the call that could not wait was sent"


def test_time_without_a_refusal_makes_room_where_answers_are_long_in_coming(monkeypatch):
    monkeypatch.setattr(pool_state, "AUDIT_INTERVAL", 0.05)
    monkeypatch.setattr(concurrency_limit, "_QUIET_SECONDS", 0.1)
    go_on, lock, refused = threading.Event(), threading.Lock(), []

    def script(connection):
        connection.welcome()
        while True:
            connection.recv_request()
            with lock:
                first = not refused
                refused.append(connection.uuid)
            if first:
                connection.error("Request dropped.", "BACKPRESSURE_QUEUE_FULL", dropped_type="inference")
            else:
                wait_for(go_on)
                connection.reply({"y": [1.0]})

    with ScriptedPeer(script) as peer, connect(peer, pool_size=2) as client:
        with background(lambda: ask(client)) as one, background(lambda: ask(client)) as two:
            try:
                wait_until(lambda: peer.requests == 3)  # one of them twice, and none is answered
            finally:
                go_on.set()
            assert (one(), two()) == (1.0, 1.0)


@pytest.mark.parametrize("code", ["BACKPRESSURE_QUEUE_FULL", "BACKPRESSURE_EXECUTOR_FULL"])
def test_a_dropped_request_is_sent_again_on_the_same_socket_and_is_no_attempt(code):
    def script(connection):
        connection.welcome()
        for _ in range(2):
            connection.recv_request()
            connection.error("Request dropped due to backpressure.", code, dropped_type="inference")
        while True:
            echo_once(connection)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        result = client.infer("m", {"x": [[2.0]]})
    assert result["y"].item() == 2.0
    assert result.attempts == 1
    assert peer.requests == 3
    assert len(peer.connections) == 1


@pytest.mark.parametrize("lost", [False, True])
def test_lines_about_a_call_name_the_model(caplog, lost):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        if lost:
            connection.drop()
        connection.error("Request dropped.", "BACKPRESSURE_QUEUE_FULL", dropped_type="inference")
        echo_once(connection)

    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        ask(client)
    logged = [text for text in caplog.messages if "repeating" in text or "requests at a time" in text]
    assert len(logged) == (1 if lost else 2)
    assert all("model 'm'" in text for text in logged)


def test_a_tenants_limit_costs_the_socket_and_no_attempt():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.error("Tenant quota exceeded (messages per second).", "BACKPRESSURE_TENANT_LIMIT_REACHED")
        connection.close(1008)

    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        result = client.infer("m", {"x": [[2.0]]})
    assert result["y"].item() == 2.0
    assert result.attempts == 1
    assert len(peer.connections) == 2


def test_a_tenants_limit_is_learned_for_all_sockets_and_costs_few_of_them(caplog):
    with LocalManager(
        {"echo": lambda inputs: {"y": inputs["x"]}}, tick=0, tenant_messages_per_second=50
    ) as manager:
        with TcmClient(manager.uri, route=manager.route, timeout=TIMEOUT) as client:
            with ThreadPoolExecutor(8) as threads:
                values = [float(value) for value in range(150)]
                answers = threads.map(lambda value: client.infer("echo", {"x": [value]})["y"].item(), values)
                assert list(answers) == values
            stats = client.stats()
    assert 1 <= stats.repeats["BACKPRESSURE_TENANT_LIMIT_REACHED"] <= 16
    assert stats.uuids <= 20
    assert 10 < stats.tenant_messages_per_second < 100
    assert "messages a second of all sockets" in repr(stats)
    assert stats.requests_at_once is None  # it is not the number at a time that was too large
    assert any("limits a tenant's messages" in text for text in caplog.messages)


def test_who_cannot_wait_for_a_tenants_limit_gets_the_refusal():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.error("Tenant quota exceeded (messages per second).", "BACKPRESSURE_TENANT_LIMIT_REACHED")
        connection.close(1008)

    with ScriptedPeer(script, echo) as peer, connect(peer, retry=None) as client:
        with failing(BackpressureError, "quota"):
            ask(client)
        client.open()  # the only message of this second
        with failing(BackpressureError, "quota") as caught:
            ask(client, timeout=0.05)
        assert caught.value.attempts == 0
    assert peer.requests == 1


# --- a pool that is too small, and its turns ---


def test_a_pool_whose_sockets_are_all_busy_says_so():
    busy, done = threading.Event(), threading.Event()

    def hold(connection):
        connection.welcome()
        connection.recv_request()
        busy.set()
        wait_for(done)
        connection.reply({"y": [[1.0]]})
        connection.wait_eof()

    with ScriptedPeer(hold) as peer, connect(peer, pool_size=1) as client:
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(ask, client)
            wait_for(busy)
            with failing(PoolTimeoutError, "1") as caught:
                ask(client, timeout=0.2)
            assert not caught.value.outcome_unknown
            assert caught.value.attempts == 0
            done.set()
            assert first.result() == 1.0
    assert peer.requests == 1


def test_pool_timeout_bounds_the_wait_for_a_socket_tighter_than_the_deadline():
    busy, done = threading.Event(), threading.Event()

    def hold(connection):
        connection.welcome()
        connection.recv_request()
        busy.set()
        wait_for(done)
        connection.reply({"y": [[1.0]]})
        connection.wait_eof()

    with ScriptedPeer(hold) as peer, connect(peer, pool_size=1, pool_timeout=0.1) as client:
        client.open(wait=False)
        wait_until(lambda: client.stats().sockets == 1)
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(ask, client)
            wait_for(busy)
            with failing(PoolTimeoutError) as caught:
                ask(client, timeout=4 * TIMEOUT)
            assert caught.value.elapsed < TIMEOUT
            done.set()
            assert first.result() == 1.0
    assert peer.requests == 1


def test_sockets_are_replaced_after_so_many_requests_less_up_to_a_fifth():
    with ScriptedPeer(echo) as peer, connect(peer, pool_size=1, max_requests=10, retry=None) as client:
        for turn in range(4):
            for value in range(10):
                assert ask(client, float(value)) == value
            wait_for(peer.connections[turn].over)
    for worn in peer.connections[:4]:
        assert 8 <= worn.requests <= 12  # up to two before its own turn began


def test_a_socket_whose_replacement_failed_is_replaced_later():
    def refuse(connection):
        connection.drop()

    with ScriptedPeer(echo, refuse, echo) as peer, connect(peer, pool_size=1, max_requests=1) as client:
        for value in itertools.count():
            assert ask(client, float(value)) == value
            if peer.connections[0].over.wait(0.01):
                break
            assert value < 100 * TIMEOUT, "it is used for ever"
        assert ask(client) == 1.0
    assert len(peer.connections) >= 3


def test_no_call_notices_that_sockets_are_replaced():
    with ScriptedPeer(echo) as peer, connect(peer, pool_size=2, max_requests=10, retry=None) as client:
        values = [float(value) for value in range(300)]
        assert ask_many(client, values, threads=8) == values
    assert len(peer.connections) > 3


@pytest.mark.parametrize("setting", ["max_idle", "max_lifetime"])
def test_sockets_are_given_up_by_age(setting):
    with ScriptedPeer(echo) as peer, connect(peer, retry=None, **{setting: 0.2}) as client:
        assert ask(client, 1.0) == 1.0
        wait_for(peer.connections[0].over)
        assert ask(client, 2.0) == 2.0


# --- a peer that reads nothing ---


@pytest.mark.usefixtures("sending_ends_early")
def test_100_megabytes_to_a_peer_that_never_reads_end_with_the_deadline():
    over = threading.Event()

    def never_read(connection):
        connection.welcome()
        wait_for(over)

    said = np.array(["a" * (100 * MEGABYTE)], dtype=object)
    with ScriptedPeer(never_read, echo) as peer:
        with connect(peer, max_message_bytes=110 * MEGABYTE) as client:
            client.open(wait=True)
            with failing(CallTimeoutError, "model 'm'") as caught:
                client.infer("m", {"x": said})
            assert caught.value.elapsed < TIMEOUT / 2
            assert ask(client, 2.0) == 2.0
        over.set()
    assert peer.connections[0].requests == 0


def test_a_peer_that_reads_slowly_gets_all_of_it():
    def read_slowly(connection):
        connection.welcome()
        text = connection.recv_message(lambda: time.sleep(0.005))
        connection.count_request()
        connection.reply({"y": [text.count("a")]})
        connection.wait_eof()

    said = np.array(["a" * (20 * MEGABYTE)], dtype=object)
    with ScriptedPeer(read_slowly) as peer, connect(peer, max_message_bytes=25 * MEGABYTE) as client:
        assert client.infer("m", {"x": said})["y"].item() >= 20 * MEGABYTE


def test_close_does_not_wait_for_a_peer_that_never_reads():
    begun, over = threading.Event(), threading.Event()

    def stop_reading(connection):
        connection.welcome()
        connection.recv_bytes(1)
        begun.set()
        wait_for(over)

    def call():
        with failing(ClientClosedError):
            client.infer("m", {"x": np.array(["a" * (20 * MEGABYTE)], dtype=object)})

    with ScriptedPeer(stop_reading) as peer:
        with connect(peer, max_message_bytes=110 * MEGABYTE) as client, background(call) as sending:
            wait_for(begun)
            client.close()
            sending()
        over.set()
