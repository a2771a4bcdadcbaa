"""The pool and the opening of its sockets: the line of callers, and everything that can fail on the way."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from types import SimpleNamespace

import pytest

from tcm_sync import (
    AuthContext,
    AuthenticationError,
    BackpressureError,
    ClientClosedError,
    ConfigError,
    ConnectFailedError,
    InferenceError,
    ProtocolError,
    ShuttingDownError,
    TcmClient,
)
from tcm_sync._transport import opener as opening

from ..helpers.peer_connection import CLOSE, PING, PONG
from ..helpers.peer_scripts import TIMEOUT, ask, background, connect, echo, echo_once
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

SECRET = "tok-4711-never-to-be-shown"


# --- the line ---


def test_callers_are_served_in_the_order_in_which_they_came():
    served = []
    go_on = threading.Event()

    def script(connection):
        connection.welcome()
        while True:
            payload = connection.recv_request()
            value = payload["request"]["inputs"][0]["data"][0][0]
            served.append(value)
            if value == 0.0:
                wait_for(go_on)
            connection.reply({"y": [[value]]})

    with ScriptedPeer(script) as peer, connect(peer, pool_size=1) as client:
        pool = client._core.running().pool
        with contextlib.ExitStack() as calls:
            for number in range(10):
                calls.enter_context(background(lambda number=number: ask(client, float(number))))
                if number:
                    wait_until(lambda number=number: len(pool.state.waiters) == number)
                else:
                    wait_until(lambda: served == [0.0])
            go_on.set()
        assert served == [float(number) for number in range(10)]


def test_sockets_are_opened_as_callers_come_and_no_more_than_there_may_be():
    meeting = threading.Barrier(4)

    def script(connection):
        connection.welcome()
        connection.recv_request()
        meeting.wait(TIMEOUT)
        connection.reply({"y": [[1.0]]})
        while True:
            echo_once(connection)

    with ScriptedPeer(script) as peer, connect(peer, pool_size=3) as client:
        with contextlib.ExitStack() as calls:
            for _ in range(8):
                calls.enter_context(background(lambda: ask(client)))
            meeting.wait(TIMEOUT)
        assert len(peer.connections) == 3
        assert peer.requests == 8


def test_one_caller_after_the_other_needs_one_socket():
    with ScriptedPeer(echo) as peer, connect(peer, pool_size=4) as client:
        for number in range(20):
            assert ask(client, float(number)) == number
    assert len(peer.connections) == 1


def test_a_pool_of_more_than_are_served_is_warned_of_once(caplog):
    caplog.set_level(logging.WARNING, "tcm_sync.pool")
    with ScriptedPeer(echo) as peer, connect(peer, pool_size=6, turns="off") as client:
        ask(client)
        ask(client)
    (record,) = caplog.records
    assert record.getMessage().startswith('pool_size=6 with turns="off": the manager serves 5 sockets')


def test_opening_ahead_does_not_wait_and_opens_one():
    go_on = threading.Event()

    def script(connection):
        wait_for(go_on)
        echo(connection)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        assert client.open(wait=False) is client
        client.open(wait=False)
        wait_until(lambda: len(peer.connections) == 1)
        go_on.set()
        client.open()
        client.open(wait=False)
        assert ask(client) == 1.0
    assert len(peer.connections) == 1


def test_a_closed_client_opens_nothing():
    with ScriptedPeer(echo) as peer:
        client = connect(peer)
        client.close()
        for call in (lambda: ask(client), client.open, lambda: client.open(wait=False)):
            with pytest.raises(ClientClosedError, match="a closed client stays closed"):
                call()
    assert peer.connections == []


# --- tokens ---


def raising(error):
    def token():
        raise error

    return token


def test_a_token_callable_that_fails_is_a_refused_authentication_that_reports_no_secret(caplog):
    caplog.set_level(logging.DEBUG)
    auth = AuthContext(token=raising(LookupError(SECRET)))
    with ScriptedPeer(echo) as peer, connect(peer, auth=auth) as client:
        with pytest.raises(AuthenticationError, match="the token callable raised LookupError") as caught:
            ask(client)
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text
    assert peer.connections == []


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (lambda: None, "the token callable returned NoneType, not a str"),
        (lambda: SECRET.encode(), "the token callable returned bytes, not a str"),
        (lambda: SECRET + "\ud800", "the token callable returned half a surrogate pair"),
    ],
)
def test_a_token_callable_that_returns_something_else_is_reported(token, words, caplog):
    caplog.set_level(logging.DEBUG)
    with ScriptedPeer(echo) as peer, connect(peer, auth=AuthContext(token=token)) as client:
        with pytest.raises(ConfigError) as caught:
            ask(client)
    assert words in str(caught.value)
    assert SECRET not in f"{caught.value} {caplog.text}"


def test_a_token_callable_that_ends_the_thread_is_survived(caplog):
    caplog.set_level(logging.ERROR, "tcm_sync.pool")
    auth = AuthContext(token=raising(SystemExit(SECRET)))
    with ScriptedPeer(echo) as peer, connect(peer, auth=auth) as client:
        with pytest.raises(ConnectFailedError, match="SystemExit") as caught:
            ask(client)
    assert not caught.value.retriable
    assert "opening a socket failed in an unexpected way" in caplog.text
    assert SECRET not in f"{caught.value} {caplog.text}"


def test_a_token_callable_may_use_the_client_of_another_manager():
    with ScriptedPeer(echo) as other, connect(other) as source, ScriptedPeer(echo) as peer:
        auth = AuthContext(token=lambda: f"t-{ask(source, 7.0)}")
        with connect(peer, auth=auth) as client:
            assert ask(client) == 1.0
    assert peer.connections[0].auth["token"] == "t-7.0"


# --- threads ---


def test_without_a_thread_to_open_sockets_the_call_fails(monkeypatch):
    def start(thread, start=threading.Thread.start):
        if thread.name == "tcm-sync-connector":
            raise RuntimeError("can't start new thread")
        start(thread)

    with ScriptedPeer(echo) as peer, connect(peer) as client:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(ConnectFailedError, match="no thread to open a socket with"):
                ask(client, retry=None)
        assert ask(client) == 1.0


def test_without_a_thread_to_read_sockets_the_call_fails(monkeypatch):
    def start(thread, start=threading.Thread.start):
        if thread.name == "tcm-sync-reader":
            raise RuntimeError("can't start new thread")
        start(thread)

    with ScriptedPeer(echo) as peer, connect(peer) as client:
        client.close()
        client = connect(peer)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(ConnectFailedError, match="no thread to read the sockets with"):
                ask(client)
        assert ask(client) == 1.0
        client.close()


def test_a_reader_that_fails_ends_its_calls_and_the_next_call_has_another(caplog):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.wait_eof()

    def fail():
        raise ZeroDivisionError("planted")

    with ScriptedPeer(script, echo) as peer, connect(peer, retry=None) as client:
        reader = client._core.running().reader
        with background(lambda: ask(client)) as result:
            wait_until(lambda: peer.requests == 1)
            reader.run_soon(fail)
            with pytest.raises(
                ConnectionError, match="the client's reader failed: ZeroDivisionError"
            ) as caught:
                result()
        assert caught.value.outcome_unknown
        assert ask(client) == 1.0
        assert client._core.running().reader is not reader
    assert "the reader failed" in caplog.text


# --- between auth.ok and the first request, after a shutdown ---


def reject(connection):
    connection.error("Server is shutting down; request rejected.", "SYSTEM_SHUTDOWN")


def drained(connection):
    """Refuse the first request, as a draining manager does."""
    connection.welcome()
    connection.recv_request()
    reject(connection)
    connection.close(1012)


def after_a_shutdown(*then):
    """Ask a manager that drains, then serves as the test says on the next, watched connections, then well."""
    with ScriptedPeer(drained, *then, echo) as peer, connect(peer) as client:
        value = ask(client)
    return value, peer


def test_what_comes_right_after_auth_ok_is_not_lost():
    def script(connection):
        connection.accept()
        connection.read_auth()
        with connection.together():
            connection.send_text({"type": "auth.ok", "payload": {"capability": ["json"]}})
            connection.alert()
            connection.send_frame(PING, b"are you there")
            connection.advise()
        echo_once(connection)
        connection.wait_frame(CLOSE)

    value, peer = after_a_shutdown(script)
    assert value == 1.0
    assert len(peer.connections) == 2
    assert (True, PONG, b"are you there") in peer.connections[1].frames


@pytest.mark.parametrize(
    ("end", "grace"),
    [
        (lambda connection: connection.close(1012), 0.1),  # which is left to the reader
        (lambda connection: connection.hang_up(), TIMEOUT),
        (lambda connection: connection.drop(), TIMEOUT),
        (lambda connection: connection.error("some other refusal"), TIMEOUT),
        (reject, TIMEOUT),
    ],
    ids=["close", "end", "reset", "refusal", "shutdown"],
)
def test_a_socket_that_is_refused_right_after_auth_ok_costs_no_call(end, grace, monkeypatch):
    def script(connection):
        monkeypatch.setattr(opening, "_GRACE", grace)
        connection.welcome()
        end(connection)
        connection.wait_eof()

    def unwatched(connection):
        monkeypatch.setattr(opening, "_GRACE", 0.0)
        echo(connection)

    value, peer = after_a_shutdown(script, unwatched)
    assert value == 1.0
    assert len(peer.connections) == 3
    assert peer.requests == 2


def test_a_frame_that_is_cut_in_two_right_after_auth_ok_is_joined():
    def script(connection):
        connection.welcome()
        connection.send_raw(b"\x89\x04pi")
        connection.recv_request()  # it is watched no longer
        connection.send_raw(b"ng")
        connection.reply({"y": [[1.0]]})
        connection.wait_frame(CLOSE)

    value, peer = after_a_shutdown(script)
    assert value == 1.0
    assert (True, PONG, b"ping") in peer.connections[1].frames


# --- in place of auth.ok ---


def test_an_answer_over_the_limit_is_no_auth_ok():
    def script(connection):
        connection.accept()
        connection.read_auth()
        connection.send_text({"type": "auth.ok", "payload": {"capability": ["x" * 2000]}})
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer, max_reply_bytes=1000) as client:
        with pytest.raises(ProtocolError, match=r"instead of auth\.ok: the reply has at least"):
            client.open()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("BACKPRESSURE_TENANT_LIMIT_REACHED", BackpressureError),
        ("SYSTEM_SHUTDOWN", ShuttingDownError),
        ("TRITON_ERROR", InferenceError),
        ("NEW_CODE", ProtocolError),
    ],
)
def test_a_refusal_with_a_code_is_the_error_of_its_code(code, kind):
    def script(connection):
        connection.accept()
        connection.read_auth()
        connection.error("not now", code)
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer, retry=None) as client:
        with pytest.raises(kind, match="not now"):
            ask(client)


# --- processes ---


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_has_sockets_of_its_own_and_the_parent_keeps_his():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        assert ask(client, 1.0) == 1.0
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                status = 0 if ask(client, 2.0) == 2.0 else 2
                client.close()
            os._exit(status)
        assert os.waitpid(pid, 0) == (pid, 0)
        assert ask(client, 3.0) == 3.0
        assert len(peer.connections) == 2
        assert [connection.requests for connection in peer.connections] == [2, 1]


@pytest.mark.parametrize(
    ("module", "patched"), [("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")]
)
def test_green_threads_are_refused_with_advice(monkeypatch, module, patched):
    name = module.partition(".")[0]
    client = TcmClient("ws://127.0.0.1:1/ws", connect_timeout=0.1)
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{patched: lambda what: True}))
    with pytest.raises(ConfigError, match=f"^{name} has patched thread.*: use worker processes"):
        client.open()
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{patched: lambda what: False}))
    with pytest.raises(ConnectFailedError):
        client.open()
    client.close()
