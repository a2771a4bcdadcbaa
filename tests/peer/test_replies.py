"""Replies in odd pieces, of odd sizes, with odd company, and late ones."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import contextlib
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import (
    CallTimeoutError,
    ConnectFailedError,
    MessageTooLargeError,
    PoolTimeoutError,
    ProtocolError,
)
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.frames import FrameDecoder

from ..helpers.peer_connection import CONTINUATION, PING, PONG, TEXT, TIMEOUT, make_frame
from ..helpers.peer_scripts import ask, ask_many, background, connect, echo, echo_once, failing, timing_out
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

KIB = 1024


def test_40_kilobytes_in_one_byte_reads():
    numbers = [number / 7 for number in range(2000)]

    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.bytewise = True
        connection.reply({"y": numbers})
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        result = client.infer("m", {"x": [[1.0]]})
    assert result["y"].tolist() == numbers


def test_everything_from_the_handshake_on_in_one_byte_reads():
    def script(connection):
        connection.bytewise = True
        echo(connection)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        for value in range(5):
            assert ask(client, float(value)) == value


def test_fragments_with_a_ping_between_them():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        message = json.dumps(
            connection.inference({"y": ["größer"]}, "COMPLETED"), ensure_ascii=False
        ).encode()
        middle = message.index("ö".encode()) + 1  # a fragment may end inside a character
        connection.send_frame(TEXT, message[:middle], fin=False)
        connection.send_frame(PING, b"are you there")
        assert connection.wait_frame(PONG).payload == b"are you there"
        connection.send_frame(CONTINUATION, b"", fin=False)
        connection.send_frame(CONTINUATION, message[middle:], fin=True)
        connection.wait_eof()
        answered.append(True)

    answered = []
    with ScriptedPeer(script) as peer, connect(peer) as client:
        result = client.infer("m", {"x": [[1.0]]})
        assert result["y"].item() == "größer"
    assert answered


def test_a_reply_in_fragments_of_one_byte():
    text = "f" * 40 * KIB

    def script(connection):
        connection.welcome()
        connection.recv_request()
        with connection.together():
            connection.reply({"y": [text]}, fragments=100 * KIB)
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        assert client.infer("m", {"x": [[1.0]]})["y"].item() == text


def test_an_idle_socket_answers_pings_too():
    ponged = threading.Event()

    def script(connection):
        connection.welcome()
        for payload in (b"", b"x" * 125):
            connection.send_frame(PING, payload)
            assert connection.wait_frame(PONG).payload == payload
        ponged.set()
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        client.open(wait=True)
        wait_for(ponged)


def test_a_quiet_socket_is_pinged():
    def script(connection):
        connection.welcome()
        for _ in range(2):
            frame = connection.wait_frame(PING)
            connection.send_frame(PONG, frame.payload)
        pinged.set()
        connection.wait_eof()

    pinged = threading.Event()
    with ScriptedPeer(script) as peer, connect(peer, ping_interval=0.05) as client:
        wait_until(lambda: client.open(wait=True) and pinged.is_set())  # a late pong costs the socket


def test_a_socket_that_answers_no_ping_is_given_up():
    def silent(connection):
        connection.welcome()
        connection.wait_eof()

    with ScriptedPeer(silent, echo) as peer, connect(peer, ping_interval=0.05) as client:
        client.open(wait=True)
        wait_for(peer.connections[0].over)
        client._core.running().reader._liveness.ping_interval = (
            TIMEOUT  # the next one may be slow with its pongs
        )
        assert ask(client, 3.0) == 3.0
    assert len(peer.connections) == 2


def test_several_messages_in_one_segment():
    def script(connection):
        connection.accept()
        connection.read_auth()
        with connection.together():
            connection.alert()
            connection.send_text({"type": "auth.ok"})
            connection.alert()
        connection.recv_request()
        with connection.together():
            connection.advise()
            connection.send_frame(PING, b"p")
            connection.reply({"y": [[6.0]]})
            connection.alert()
            connection.advise()
        while True:
            echo_once(connection)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        assert ask(client) == 6.0
        assert ask(client, 7.0) == 7.0
    assert len(peer.connections) == 1


# --- company that answers nothing ---


def chatter(connection):
    """Send all that a client must let pass, whenever it comes."""
    connection.alert()
    connection.advise()
    connection.send_text({"type": "telemetry", "payload": {"load": [1, 2]}})
    connection.send_text(
        {"type": "inference.progress", "uuid": connection.uuid, "payload": {"data": {"y": [[-1.0]]}}}
    )
    connection.send_text({"type": "alert", "extra": None})
    connection.send_frame(PONG, b"unasked for")


def test_alerts_advisories_and_unknown_types_in_every_state():
    idle = threading.Event()

    def script(connection):
        connection.accept()
        chatter(connection)
        connection.read_auth()
        chatter(connection)
        connection.send_text({"type": "auth.ok", "payload": {"capability": ["json"], "new": 1}, "newer": {}})
        chatter(connection)
        for value in (1.0, 2.0):
            connection.recv_request()
            chatter(connection)
            reply = connection.inference({"y": [[value]]})
            reply["_correlation_id"] = "x"
            reply["payload"]["_auth"] = {"roles": []}
            connection.send_text(reply)
            chatter(connection)
        idle.set()
        while True:
            echo_once(connection)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        assert ask(client) == 1.0
        assert ask(client) == 2.0
        wait_for(idle)
        assert ask(client, 3.0) == 3.0
    assert len(peer.connections) == 1


def test_a_call_that_only_hears_advice_says_how_much_of_it():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        for _ in range(3):
            connection.advise()
            connection.alert()
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        heard = {"TritonServerStateChanged": 3}
        with timing_out(lambda: client.stats().alerts == heard), failing(CallTimeoutError) as caught:
            ask(client)
    assert caught.value.advisories == 3
    assert caught.value.outcome_unknown


@pytest.mark.parametrize("what", ["alerts", "pings", "empty fragments", "bytes of a frame"])
def test_a_socket_that_never_stops_talking_holds_up_no_other(what, caplog):
    caplog.set_level(logging.CRITICAL)  # or the test is one of the logging module
    talking, enough = threading.Event(), threading.Event()
    floods = {
        "alerts": make_frame(TEXT, b'{"type": "alert", "message": "x"}'),
        "pings": make_frame(PING, b"x" * 125),
        "empty fragments": make_frame(CONTINUATION, b"", fin=False),
        "bytes of a frame": b" ",
    }

    def talk(connection):
        connection.welcome()
        connection.recv_request()
        if what == "empty fragments":
            connection.send_frame(TEXT, b"", fin=False)
        if what == "bytes of a frame":
            connection.send_frame(TEXT, b"", length=60 * KIB * KIB)
        talking.set()
        connection.sock.settimeout(0.05)  # it never reads: in the end neither side can write
        while not enough.is_set():
            with contextlib.suppress(TimeoutError):
                connection.send_raw(floods[what] * 20)
        connection.drop()

    with ScriptedPeer(talk, echo) as peer, connect(peer, pool_size=2) as client:
        with background(lambda: ask(client, timeout=10 * TIMEOUT)) as flooded:
            wait_for(talking)
            for value in range(3):
                assert ask(client, float(value)) == value
            enough.set()
            assert flooded() == 1.0
    assert peer.connections[1].requests >= 3


# --- whose reply it is ---


@pytest.mark.parametrize("size", [1, 200 * KIB], ids=["small", "large"])
def test_a_reply_with_another_uuid_is_nobodys(size):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        stray = connection.inference({"y": ["z" * size]})
        stray["uuid"] = "somebody-else"
        connection.send_text(stray)
        connection.wait_eof()

    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        with failing(ProtocolError, "uuid"):
            ask(client)
        assert ask(client, 2.0) == 2.0
    assert [connection.requests for connection in peer.connections] == [1, 1]


@pytest.mark.parametrize("missing", ["uuid", "type", "payload"])
def test_a_reply_that_lacks_a_field_is_no_reply(missing):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        message = connection.inference({"y": [[1.0]]})
        del message[missing]
        connection.send_text(message)
        connection.wait_eof()

    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        with failing(ProtocolError):
            ask(client)
        assert ask(client, 2.0) == 2.0


def test_a_second_reply_to_one_request_reaches_no_other_call():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        with connection.together():
            connection.reply({"y": [[1.0]]})
            connection.reply({"y": [[-1.0]]})
        connection.wait_eof()

    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        assert ask(client) == 1.0
        wait_for(peer.connections[0].over)
        for value in (2.0, 3.0):
            assert ask(client, value) == value


def test_a_second_reply_right_before_the_next_request_is_sent_reaches_no_other_call(monkeypatch):
    late = threading.Event()

    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply({"y": [[1.0]]})
        wait_for(late)
        connection.reply({"y": [[-1.0]]})
        connection.wait_eof()

    send = Connection.send

    def send_late(connection, *what):
        """Send once the reader has had the second reply, which a call waits for already."""
        if connection.uuid == peer.uuids[0] and connection.messages_sent:
            late.set()
            wait_until(lambda: connection.closed or not connection.reader.pending, "the reply is read")
        send(connection, *what)

    monkeypatch.setattr(Connection, "send", send_late)
    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        for value in (1.0, 2.0, 3.0):
            assert ask(client, value) == value
        assert client.stats().late == 1
    assert peer.requests == 3


def test_a_reply_that_nobody_waits_for_costs_the_socket_and_no_call():
    def script(connection):
        connection.welcome()
        connection.reply({"y": [[-1.0]]})
        connection.wait_eof()

    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        client.open(wait=True)
        wait_for(peer.connections[0].over)
        assert ask(client, 2.0) == 2.0
    assert peer.connections[0].requests == 0


def test_a_late_reply_reaches_nobody():
    """The call times out; the next twenty callers get their own answers, the late one comes in between."""
    late = threading.Event()

    def script(connection):
        connection.welcome()
        payload = connection.recv_request()
        wait_for(late)
        connection.reply({"y": [[-1.0]]})
        connection.wait_eof()
        assert payload

    with ScriptedPeer(script, echo) as peer, connect(peer, pool_size=2) as client:
        with timing_out(lambda: peer.requests), failing(CallTimeoutError, "model 'm'") as caught:
            ask(client)
        assert caught.value.outcome_unknown
        assert caught.value.uuid == peer.uuids[0]
        threads = 4
        assert ask_many(client, map(float, range(10)), threads) == list(range(10))
        late.set()
        assert ask_many(client, map(float, range(10, 20)), threads) == list(range(10, 20))
    assert peer.connections[0].requests == 1


def test_many_late_replies_under_load_reach_nobody_else():
    """Every third request is answered with its number's negative, as its caller is about to time out."""

    def script(connection):
        connection.welcome()
        while True:
            payload = connection.recv_request()
            value = payload["request"]["inputs"][0]["data"][0][0]
            if value % 3 == 0:
                connection.sock.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    connection.recv_some()
                connection.sock.settimeout(TIMEOUT)
                value = -value
            connection.reply({"y": [[value]]})

    def call(value):
        if value % 3:
            return ask(client, value)
        with contextlib.suppress(CallTimeoutError, PoolTimeoutError, ConnectFailedError):
            # which of them is a matter of how long it stood in line
            assert ask(client, value, timeout=0.05) == -value  # it came in time after all
        return value

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with ThreadPoolExecutor(8) as threads:
            values = [float(value) for value in range(1, 121)]
            assert list(threads.map(call, values)) == values


def test_a_reply_for_which_memory_is_short_costs_one_socket_and_not_the_client(monkeypatch):
    feed = FrameDecoder.feed

    def out_of_memory(decoder, data):
        if len(data) > KIB:
            raise MemoryError
        return feed(decoder, data)

    monkeypatch.setattr(FrameDecoder, "feed", out_of_memory)
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        with pytest.raises(MessageTooLargeError, match="not enough memory") as caught:
            client.infer("m", {"x": np.ones(KIB)})
        assert caught.value.outcome_unknown
        assert ask(client, 7.0) == 7.0
        assert client.stats().sockets_opened == 2
