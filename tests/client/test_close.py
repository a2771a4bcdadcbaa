"""Closing a client: at any moment, from any thread, any number of times."""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tcm_sync import AuthContext, ClientClosedError, Route, TcmClient
from tcm_sync.local import ModelFailure

from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import GUARD, wait_until

CALLS = 16
SOCKETS = 4


def ask(client, model="echo", value=1.0):
    assert client.infer(model, {"x": [[value]]})["x" if model == "echo" else "y"].item() == value


@pytest.fixture
def calling():
    """Make calls in threads of their own."""
    with ThreadPoolExecutor(CALLS) as pool:
        yield pool.submit


@pytest.fixture
def client_of(calling):
    """Make clients without time limits; they are closed before the calls are waited for."""
    with contextlib.ExitStack() as stack:

        def make(uri, **settings):
            usual = {"timeout": None, "connect_timeout": 3600.0, "route": Route("local")}
            settings = {**usual, "pool_size": SOCKETS, **settings}
            client = TcmClient(uri, **settings)
            stack.callback(client.close)
            return client

        yield make


def outcomes(futures):
    """Tell what became of calls: True or False is a ClientClosedError's `outcome_unknown`."""
    found = Counter()
    for future in futures:
        error = future.exception(GUARD)
        assert error is None or type(error) is ClientClosedError, error
        found["answered" if error is None else error.outcome_unknown] += 1
    return found


def test_calls_in_flight_end_and_know_whether_they_may_have_run(serve, client_of, calling):
    manager = serve()
    client = client_of(manager.uri)
    calls = [calling(ask, client, "gated") for _ in range(CALLS)]
    wait_until(lambda: manager.stats().executions.get("gated") == SOCKETS, "as many calls run as can")
    client.close()
    assert outcomes(calls) == {True: SOCKETS, False: CALLS - SOCKETS}
    assert manager.stats().executions["gated"] == SOCKETS


def waiting_in_line(client):
    return len(client._core.runtime.pool.state.waiters) if client._core.runtime else 0


def all_are_in(manager, client, count):
    """Wait until as many calls run as can, and the rest of them are in line."""
    wait_until(lambda: manager.stats().running == SOCKETS, "as many calls run as can")
    wait_until(lambda: waiting_in_line(client) == count - SOCKETS, "the others wait")


def test_draining_answers_what_is_under_way_and_takes_nothing_new(serve, gated, client_of, calling):
    manager = serve()
    client = client_of(manager.uri)
    calls = [calling(ask, client, "gated", float(value)) for value in range(CALLS - 1)]
    all_are_in(manager, client, CALLS - 1)
    closing = calling(client.close, timeout=GUARD)
    wait_until(lambda: "closed" in repr(client), "it closes")
    with pytest.raises(ClientClosedError):
        ask(client)
    assert not closing.done()
    gated.open_all()
    closing.result(GUARD)
    assert outcomes(calls) == {"answered": CALLS - 1}


def test_draining_answers_a_call_that_waits_for_its_first_socket(client_of, calling):
    go_on = threading.Event()

    def slow(connection):
        connection.accept()
        connecting.set()
        assert go_on.wait(GUARD)
        connection.authenticate(["json"])
        connection.reply({"x": connection.recv_request()["request"]["inputs"][0]["data"]})
        connection.wait_eof()

    connecting = threading.Event()
    with ScriptedPeer(slow) as peer:
        client = client_of(peer.uri)
        call = calling(ask, client)
        assert connecting.wait(GUARD)
        closing = calling(client.close, timeout=3 * GUARD)
        wait_until(lambda: "closed" in repr(client), "it closes")
        go_on.set()
        assert outcomes([call]) == {"answered": 1}
        closing.result(GUARD)


def test_draining_ends_after_its_timeout(serve, client_of, calling):
    manager = serve()
    client = client_of(manager.uri)
    calls = [calling(ask, client, "gated")]
    wait_until(lambda: manager.stats().running == 1, "the call runs")
    client.close(timeout=0.05)
    assert outcomes(calls) == {True: 1}


def test_an_idle_client_has_nothing_to_drain(serve, client_of):
    client = client_of(serve().uri)
    ask(client)
    client.close(timeout=1e9)


def test_closing_again_and_from_many_threads_at_once(serve, client_of, calling):
    manager = serve()
    client = client_of(manager.uri)
    calls = [calling(ask, client, "gated") for _ in range(CALLS // 2)]
    wait_until(lambda: manager.stats().running == SOCKETS, "as many calls run as can")
    together = threading.Barrier(CALLS // 2)

    def close(number):
        together.wait(GUARD)
        client.close(timeout=number % 2 * 0.01)
        assert not [t for t in threading.enumerate() if t.name == "tcm-sync-reader"]

    for closing in [calling(close, number) for number in range(CALLS // 2)]:
        closing.result(GUARD)
    assert outcomes(calls) == {True: SOCKETS, False: CALLS // 2 - SOCKETS}
    client.close()
    client.close(timeout=GUARD)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="sends a signal to a thread")
def test_closing_again_after_an_interrupted_drain(serve, client_of, calling):
    manager = serve()
    client = client_of(manager.uri)
    calls = [calling(ask, client, "gated") for _ in range(CALLS - 1)]
    all_are_in(manager, client, CALLS - 1)
    main = threading.main_thread().ident

    def interrupt():
        wait_until(lambda: "closed" in repr(client), "it closes")
        signal.pthread_kill(main, signal.SIGINT)

    interrupting = calling(interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.close(timeout=3 * GUARD)
    interrupting.result(GUARD)
    client.close()
    assert outcomes(calls) == {True: SOCKETS, False: CALLS - 1 - SOCKETS}


# --- closing what is not connected ---


@contextlib.contextmanager
def silent():
    """A port where connections are accepted, and nobody says a word on them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def full_backlog():
    """A port where nothing answers who wants to connect, because too many do."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(32):
            sock = held.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
            if not select.select([], [sock], [], 0.2)[1]:
                break
        else:
            pytest.skip("this kernel's queue of connections does not fill")
        yield listener.getsockname()[1]


@pytest.mark.parametrize("peer", [silent, full_backlog])
def test_closing_while_connecting(client_of, calling, peer):
    with peer() as port:
        client = client_of(f"ws://127.0.0.1:{port}/ws")
        calls = [calling(ask, client), calling(client.open)]
        wait_until(lambda: waiting_in_line(client) == 2, "both wait for a socket")
        client.close()
        assert outcomes(calls) == {False: 2}


def test_closing_while_a_token_is_fetched(serve, client_of, calling):
    asked, go_on = threading.Event(), threading.Event()

    def token():
        asked.set()
        assert go_on.wait(GUARD)
        return "t"

    client = client_of(serve().uri, auth=AuthContext(token=token))
    call = calling(ask, client)
    try:
        assert asked.wait(GUARD)
        client.close()
        assert outcomes([call]) == {False: 1}
    finally:
        go_on.set()


def test_closing_while_a_shut_down_manager_is_asked_whether_it_is_ready(client_of, calling):
    def refuse(connection):
        connection.welcome()
        connection.recv_request()
        connection.error("shutting down", "SYSTEM_SHUTDOWN", dropped_type="inference")
        connection.close(1012)

    def never_answer(connection):
        asked.set()
        connection.wait_eof()

    asked = threading.Event()
    with ScriptedPeer(refuse) as peer:
        peer.http["/ready"] = never_answer
        client = client_of(peer.uri)
        call = calling(ask, client)
        assert asked.wait(GUARD)
        client.close()
        assert outcomes([call]) == {False: 1}
        assert peer.probes[0].over.wait(GUARD)


def test_closing_while_nobody_listens(client_of, calling):
    with ScriptedPeer(lambda connection: None) as peer:
        peer.stop_listening()
        client = client_of(peer.uri)
        calls = [calling(ask, client) for _ in range(3)]
        wait_until(
            lambda: client._core.runtime and client._core.runtime.pool.state.manager_gate.cause,
            "it is refused",
        )
        client.close()
        assert outcomes(calls) == {False: 3}


# --- closing what waits for something else ---


def refuse_for_an_hour(code):
    def model(arrays):
        raise ModelFailure(code, "come back later", retry_after_seconds=3600.0)

    return model


@pytest.mark.parametrize(
    ("code", "sign"),
    [("TRITON_CIRCUIT_OPEN", "gate shut"), ("TRITON_OVERLOADED", "repeating in")],
    ids=["gate", "pause"],
)
def test_closing_while_a_call_waits_to_be_repeated(serve, client_of, calling, caplog, code, sign):
    caplog.set_level(logging.INFO, "tcm_sync")
    manager = serve({"moody": refuse_for_an_hour(code)})
    client = client_of(manager.uri)
    call = calling(ask, client, "moody")
    wait_until(lambda: sign in caplog.text, "it waits")
    ask(client)
    client.close()
    assert outcomes([call]) == {False: 1}
    (failure,) = call.exception().history
    assert failure.code == code


@pytest.mark.parametrize("code", ["TRITON_CIRCUIT_OPEN", "TRITON_OVERLOADED"])
def test_closing_in_the_moment_in_which_calls_are_refused(serve, client_of, calling, code):
    manager = serve({"moody": refuse_for_an_hour(code)})
    for _ in range(20):
        client = client_of(manager.uri)
        refused = manager.stats().executions.get("moody", 0)
        calls = [calling(ask, client, "moody") for _ in range(CALLS // 2)]
        wait_until(lambda past=refused: manager.stats().executions.get("moody", 0) > past, "one is refused")
        client.close()
        assert set(outcomes(calls)) <= {True, False}


# --- afterwards ---


def test_a_closed_client_stays_closed(serve, client_of):
    client = client_of(serve().uri)
    ask(client)
    client.close()
    for use in (lambda: ask(client), client.open, lambda: client.open(wait=False), client.__enter__):
        with pytest.raises(ClientClosedError, match="make another"):
            use()
    assert repr(client) == f"<TcmClient {client._core.settings.uri} closed>"


def test_a_client_that_was_never_opened_can_be_closed(client_of):
    client = client_of("ws://nowhere.invalid/ws")
    client.close()
    with pytest.raises(ClientClosedError):
        ask(client)


def test_a_block_closes_its_client_also_when_it_fails(serve):
    manager = serve()
    with contextlib.suppress(ZeroDivisionError), TcmClient(manager.uri, route=manager.route) as client:
        ask(client)
        raise ZeroDivisionError
    with pytest.raises(ClientClosedError):
        ask(client)
    wait_until(lambda: manager.stats().connected == 0, "its socket is closed")


@pytest.mark.parametrize("timeout", [-1.0, None, "1", float("nan"), True])
def test_a_drain_needs_a_number_of_seconds(client_of, timeout):
    with pytest.raises(ValueError, match="timeout"):
        client_of("ws://nowhere.invalid/ws").close(timeout=timeout)
