"""Connections that end: at each moment, with each code, with and without a word."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tcm_sync import (
    AuthenticationError,
    ConnectFailedError,
    ConnectionLostError,
    MessageTooLargeError,
    RetryPolicy,
)
from tcm_sync._pool import attempt, pool_state

from ..helpers.peer_connection import CLOSE, TEXT, TIMEOUT
from ..helpers.peer_scripts import ask, ask_many, connect, echo, echo_once, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

#: 1006 is no code on the wire but its name for the lack of one: here a reset, and "end" a FIN.
CODES = [1000, 1001, 1006, 1008, 1009, 1011, 1012, None, "end"]
PATIENT = RetryPolicy(attempts=50, initial=0.001, maximum=0.002)


def leave(connection, code):
    if code == 1006:
        connection.drop()
    elif code == "end":
        connection.hang_up()
    else:
        connection.close(code, "" if code is None else "bye for now")


def before_handshake(code):
    def script(connection):
        connection.read_handshake()
        leave(connection, 1006 if code == 1006 else "end")  # there is no frame to put a code in yet

    return script


def after_handshake(code):
    def script(connection):
        connection.accept()
        leave(connection, code)

    return script


def after_auth(code):
    def script(connection):
        connection.accept()
        connection.read_auth()
        leave(connection, code)

    return script


def after_request(code):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        leave(connection, code)

    return script


def between_fragments(code):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        message = json.dumps(connection.inference({"y": [[1.0]]})).encode()
        connection.send_frame(TEXT, message[:20], fin=False)
        leave(connection, code)

    return script


def inside_a_frame(code):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        message = json.dumps(connection.inference({"y": [[1.0]]})).encode()
        connection.send_frame(TEXT, message[:20], length=len(message))
        leave(connection, 1006 if code == 1006 else "end")

    return script


BEFORE_AUTH_OK = [before_handshake, after_handshake, after_auth]
WITH_A_REQUEST = [after_request, between_fragments, inside_a_frame]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("moment", BEFORE_AUTH_OK)
def test_an_end_before_auth_ok_is_a_failure_to_connect(moment, code):
    kinds = {
        1008: (ConnectFailedError, AuthenticationError),
        1009: (ConnectFailedError, MessageTooLargeError),
    }
    with ScriptedPeer(moment(code), echo) as peer, connect(peer, retry=None) as client:
        with pytest.raises(kinds.get(code, ConnectFailedError)) as caught:
            ask(client)
    assert not caught.value.outcome_unknown
    assert peer.requests == 0


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 1012])
@pytest.mark.parametrize("moment", BEFORE_AUTH_OK)
def test_an_end_before_auth_ok_is_no_attempt(moment, code):
    with ScriptedPeer(moment(code), echo) as peer, connect(peer) as client:
        result = client.infer("m", {"x": [[2.0]]})
    assert result["y"].item() == 2.0
    assert result.attempts == 1


@pytest.mark.parametrize("code", CODES)
def test_an_idle_socket_that_ends_is_noticed_without_a_call_and_costs_none(code, caplog):
    """Even a client that never repeats anything: its next call finds another socket."""
    opened = threading.Event()

    def script(connection):
        connection.welcome()
        wait_for(opened)
        leave(connection, code)

    with ScriptedPeer(script, echo) as peer, connect(peer, retry=None) as client:
        client.open(wait=True)
        opened.set()
        wait_for(peer.connections[0].over)  # all but a reset wait for the client's end
        wait_until(lambda: code != 1006 or f"{peer.uuids[0]} closed" in caplog.text)
        assert ask(client, 2.0) == 2.0
    assert [connection.requests for connection in peer.connections] == [0, 1]


@pytest.mark.parametrize("code", [code for code in CODES if code != 1009])  # 1009 may be about the request
def test_a_socket_that_ends_right_after_auth_ok_costs_no_call(code):
    def script(connection):
        connection.accept()
        connection.read_auth()
        with connection.together():
            connection.send_text({"type": "auth.ok"})
            if isinstance(code, int) and code != 1006:
                connection.send_frame(CLOSE, code.to_bytes(2, "big"))
        leave(connection, 1006 if code == 1006 else "end")

    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        result = client.infer("m", {"x": [[2.0]]})
    assert result["y"].item() == 2.0
    assert result.attempts <= 2


@pytest.mark.parametrize("code", [code for code in CODES if code != 1009])
@pytest.mark.parametrize("moment", WITH_A_REQUEST)
def test_a_lost_reply_is_reported_as_that(moment, code):
    with ScriptedPeer(moment(code), echo) as peer, connect(peer, retry=None) as client:
        with failing(ConnectionLostError, "model 'm'") as caught:
            ask(client)
        assert caught.value.outcome_unknown
        assert caught.value.attempts == 1
        assert caught.value.uuid == peer.uuids[0]
        if isinstance(code, int) and code != 1006 and moment is not inside_a_frame:
            assert str(code) in str(caught.value)
        assert ask(client, 2.0) == 2.0
    assert [connection.requests for connection in peer.connections] == [1, 1]


@pytest.mark.parametrize("code", [code for code in CODES if code != 1009])
@pytest.mark.parametrize("moment", WITH_A_REQUEST)
def test_a_lost_reply_is_asked_for_again_on_a_new_socket(moment, code):
    with ScriptedPeer(moment(code), echo) as peer, connect(peer) as client:
        result = client.infer("m", {"x": [[2.0]]})
    assert result["y"].item() == 2.0
    assert result.attempts == 2
    assert [connection.requests for connection in peer.connections] == [1, 1]


def test_a_lost_reply_is_not_asked_for_again_if_the_policy_says_so():
    once = RetryPolicy(resend_lost=False)
    with ScriptedPeer(after_request(1006), echo) as peer, connect(peer, retry=once) as client:
        with failing(ConnectionLostError):
            ask(client)
    assert peer.requests == 1


def test_a_reset_that_the_request_itself_runs_into_is_no_lost_reply():
    """Nothing of it was taken, so it is sent again even where lost replies are not asked for again."""

    def drop_when_told(connection):
        connection.welcome()
        wait_for(informed)
        connection.drop()

    for _ in range(20):  # now and then the reader notices the reset before the call does
        informed = threading.Event()
        with ScriptedPeer(drop_when_told, echo) as peer:
            with connect(peer, retry=RetryPolicy(resend_lost=False)) as client:
                client.open(wait=True)
                informed.set()
                wait_for(peer.connections[0].over)
                assert client.infer("m", {"x": [[2.0]]}).attempts == 1


def test_replies_lost_for_ever_end_with_the_attempts():
    with ScriptedPeer(after_request(1011)) as peer, connect(peer) as client:
        with failing(ConnectionLostError, "4 attempts") as caught:
            ask(client)
    assert caught.value.attempts == 4
    assert [type(error) for error in caught.value.history] == [ConnectionLostError] * 3
    assert peer.requests == 4


@pytest.mark.parametrize("moment", [after_request, between_fragments])
def test_1009_is_never_asked_for_again(moment):
    with ScriptedPeer(moment(1009), echo) as peer, connect(peer) as client:
        with failing(MessageTooLargeError):
            ask(client)
    assert peer.requests == 1


def test_every_socket_of_a_pool_dies_at_once_and_every_call_is_answered():
    def three_then_drop(connection):
        connection.welcome()
        for _ in range(3):
            connection.reply({"y": connection.recv_request()["request"]["inputs"][0]["data"]})
        connection.drop()

    with ScriptedPeer(*[three_then_drop] * 8, echo) as peer, connect(peer, retry=PATIENT) as client:
        values = [float(value) for value in range(60)]
        assert ask_many(client, values, threads=8) == values


def test_a_reply_and_the_end_in_one_segment():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply({"y": [[1.0]]})
        connection.hang_up()

    with ScriptedPeer(script) as peer, connect(peer, retry=None) as client:
        for _ in range(20):
            assert ask(client) == 1.0
            wait_for(peer.connections[-1].over)


def test_a_socket_that_dies_as_it_is_taken_holds_up_nobody(monkeypatch):
    """The manager closes after each reply, so that calls meet sockets in every state of dying."""
    monkeypatch.setattr(
        attempt, "_CLOSE_REASON_TIMEOUT", TIMEOUT
    )  # a call that waits for nothing is to be seen
    monkeypatch.setattr(pool_state, "AUDIT_INTERVAL", TIMEOUT)

    def one_answer(connection):
        connection.welcome()
        echo_once(connection)
        connection.close(1012)

    with ScriptedPeer(one_answer) as peer, connect(peer, pool_size=2, retry=PATIENT) as client:
        with ThreadPoolExecutor(3) as threads:
            calls = [threads.submit(client.infer, "m", {"x": [[float(value)]]}) for value in range(300)]
            results = [call.result() for call in calls]
    assert [result["y"].item() for result in results] == list(range(300))
    assert max(result.elapsed for result in results) < TIMEOUT / 2  # a few milliseconds each
