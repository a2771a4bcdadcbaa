"""Rolling restarts under load: nothing fails, nothing is answered wrongly, and few questions are asked.

    python -m pytest -s tests/client/test_restarts.py

prints how many calls were made, how often the manager was probed, and how many sockets were opened.
"""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import CallTimeoutError, ClientClosedError, RetryPolicy, ShuttingDownError, TcmClient
from tcm_sync._calls import probes as probing
from tcm_sync._pool import opening as pool_opening
from tcm_sync._pool import pool
from tcm_sync._transport import opener as opening

from ..helpers.peer_scripts import ask, background, connect, echo, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import GUARD, wait_until, wait_until_all_go_on

THREADS, RESTARTS, SOCKETS = 16, 10, 4
NOT_READY = {
    "status": "not_ready",
    "reason": "readiness_probe_failed",
    "detail": "internal_error",
    "error_id": "e-4711",
}


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_rolling_restarts_cost_no_call_and_few_questions(serve, monkeypatch, how):
    probes = itertools.count()
    asked = opening.probe
    monkeypatch.setattr(opening, "probe", lambda *args: (next(probes), asked(*args))[1])
    manager = serve(linger=0.1)
    numbers = itertools.count(1)
    over = threading.Event()
    answered = [0] * THREADS
    opened = 0

    # A killed manager loses what is in flight, which counts as an attempt; a drained one loses nothing.
    policy = RetryPolicy() if how == "stop" else RetryPolicy(attempts=100)
    client = TcmClient(manager.uri, route=manager.route, pool_size=SOCKETS, timeout=3 * GUARD, retry=policy)

    def load(thread):
        while not over.is_set():
            x = np.array([[next(numbers), thread]])
            assert client.infer("echo", {"x": x})["x"].tolist() == x.tolist()
            answered[thread] += 1

    with client, ThreadPoolExecutor(THREADS) as threads:
        loads = [threads.submit(load, thread) for thread in range(THREADS)]
        try:
            for _ in range(RESTARTS):
                wait_until_all_go_on(answered, loads)
                getattr(manager, how)()
                opened += len(manager.stats().uuids)
                manager.start()
            wait_until_all_go_on(answered, loads)
        finally:
            over.set()
        for each in loads:
            each.result(3 * GUARD)
    opened += len(manager.stats().uuids)
    asked_how_often = next(probes)
    summary = (
        f"{how}: {sum(answered)} calls, {RESTARTS} restarts, {asked_how_often} probes, {opened} new uuids"
    )
    print(summary)  # noqa: T201 - pytest -s shows it
    # Each restart needs new sockets; while it drains one at a time is tried, with pauses that double.
    assert opened <= (RESTARTS + 1) * (SOCKETS + 4)
    assert asked_how_often <= RESTARTS * 10


# --- readiness ---


def test_readiness_is_waited_for(serve):
    manager = serve()
    manager.stop()
    with TcmClient(manager.uri, route=manager.route) as client, ThreadPoolExecutor(1) as thread:
        assert client.ready().status == "unreachable"
        waiting = thread.submit(client.wait_until_ready, GUARD)
        manager.start()
        assert waiting.result(GUARD).ok
        assert client.wait_until_ready(GUARD).raw["status"] == "ready"


@pytest.mark.usefixtures("pauses_take_no_time")
def test_what_is_not_ready_in_time_is_reported_with_its_error_id():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        peer.http["/ready"] = (503, NOT_READY)
        with failing(CallTimeoutError, "not ready within 9 s", "readiness_probe_failed", "e-4711") as caught:
            client.wait_until_ready(9.0)
    assert caught.value.error_id == "e-4711"
    assert len(peer.probes) > 1


@pytest.mark.usefixtures("pauses_take_no_time")
def test_all_of_the_time_is_used():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        peer.http["/ready"] = (503, NOT_READY)
        with failing(CallTimeoutError, "readiness_probe_failed") as caught:
            client.wait_until_ready(9.0)
    assert caught.value.elapsed >= 9.0


def test_a_look_that_is_never_answered_leaves_time_for_the_next(monkeypatch):
    monkeypatch.setattr(probing, "_PROBE_TIMEOUT", 0.2)

    def silent_once(connection):
        if len(peer.probes) == 1:
            connection.wait_eof()
        connection.read_handshake()
        connection.answer_http(200, b'{"status": "ready"}')

    with ScriptedPeer(echo) as peer, connect(peer) as client:
        peer.http["/ready"] = silent_once
        assert client.wait_until_ready(GUARD).status == "ready"
    assert len(peer.probes) > 1


def test_closing_ends_a_look_that_is_under_way():
    asked = threading.Event()

    def silent(connection):
        asked.set()
        connection.wait_eof()

    with ScriptedPeer(echo) as peer, connect(peer) as client:
        peer.http["/ready"] = silent
        with background(lambda: client.wait_until_ready(100 * GUARD)) as result:
            assert asked.wait(GUARD)
            client.close()
            with pytest.raises(ClientClosedError):
                result()


def test_closing_ends_the_waiting():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        peer.http["/ready"] = (503, NOT_READY)
        with background(lambda: client.wait_until_ready(GUARD)) as result:
            wait_until(lambda: peer.probes, "it has asked")
            client.close()
            with pytest.raises(ClientClosedError):
                result()


def test_the_error_id_of_a_manager_that_is_not_ready_is_in_every_error_that_it_caused(monkeypatch):
    """Told to shut down, the client looks at /ready before it opens a socket; then all calls wait for it."""
    monkeypatch.setattr(pool, "SHUTDOWN_PAUSE", 0.0)  # /ready is asked soon
    monkeypatch.setattr(pool_opening, "SHUTDOWN_PAUSE", 10 * GUARD)  # and again when no call has time left

    def rejected(connection):
        connection.welcome()
        connection.recv_request()
        connection.error("Server is shutting down; request rejected.", "SYSTEM_SHUTDOWN")
        connection.close(1012)

    with ScriptedPeer(rejected, echo) as peer, connect(peer, pool_size=1, timeout=GUARD) as client:
        peer.http["/ready"] = (503, NOT_READY)
        with ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(ask, client) for _ in range(4)]
            errors = [call.exception(GUARD) for call in calls]
        assert [type(error) for error in errors] == [ShuttingDownError] * 4
        assert {error.error_id for error in errors} == {"e-4711"}
        assert all("e-4711" in str(error) for error in errors)


def test_the_error_id_of_a_refused_handshake_is_reported():
    def refuse(connection):
        connection.read_handshake()
        connection.answer_http(503, json.dumps(NOT_READY).encode())

    with ScriptedPeer(refuse) as peer, connect(peer, retry=None) as client:
        with pytest.raises(ConnectionError, match="e-4711") as caught:
            ask(client)
    assert caught.value.error_id == "e-4711"
