"""What a client counts, against a peer that says exactly what the test wants."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tcm_sync import BatchPolicy, CallTimeoutError, ClientStats, ProtocolError, TcmError
from tcm_sync._transport import unsolicited as notices
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.replies import ReplyFuture
from tcm_sync._wire.messages import Alert

from ..helpers.peer_scripts import ask, background, connect, echo, timing_out
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until


def welcome_then(*steps):
    """Make a script that takes a step of its own for each request, and echoes after them."""

    def script(connection):
        connection.welcome()
        for step in steps:
            step(connection, connection.recv_request())
        echo_on(connection)

    return script


def echo_on(connection):
    while True:
        answer(connection, connection.recv_request())


def answer(connection, payload):
    connection.reply({"y": payload["request"]["inputs"][0]["data"]})


def fail_with(code):
    return lambda connection, payload: connection.fail(code)


def test_a_new_client_has_counted_nothing():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        stats = client.stats()
        assert (stats.calls, stats.successes, stats.sockets, stats.sockets_opened, stats.uuids) == (0,) * 5
        assert (stats.failures, stats.repeats, stats.sockets_closed, stats.gates, stats.alerts) == ({},) * 5
        assert peer.requests == 0, "asking for figures sends nothing"


def test_calls_messages_and_bytes():
    sent, received = [], []

    def script(connection):
        connection.welcome()
        recv_bytes, send_raw = connection.recv_bytes, connection.send_raw

        def counted(size, each=None):
            data = recv_bytes(size, each)
            received.append(size)
            return data

        def counting(data):
            sent.append(len(data))
            send_raw(data)

        connection.recv_bytes, connection.send_raw = counted, counting
        echo_on(connection)

    with ScriptedPeer(script) as peer, connect(peer, pool_size=1) as client:
        for value in range(3):
            ask(client, value)
        stats = client.stats()
        assert (stats.calls, stats.successes, stats.messages_sent, stats.messages_received) == (3, 3, 3, 3)
        assert (stats.sockets, stats.busy, stats.waiting) == (1, 0, 0)
        assert (stats.sockets_opened, stats.uuids) == (1, 1)
        assert (stats.bytes_sent, stats.bytes_received) == (sum(received), sum(sent))


def test_a_reply_is_counted_before_anybody_has_it(monkeypatch):
    counted = []
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        client.open()
        before, resolve = client.stats().messages_received, ReplyFuture.resolve

        def watched(self, outcome):
            counted.append(client._core.counts.messages_received - before)
            resolve(self, outcome)

        monkeypatch.setattr(ReplyFuture, "resolve", watched)
        ask(client)
        ask(client)
    assert counted == [1, 2]


def test_calls_of_many_threads_are_all_counted():
    with ScriptedPeer(echo) as peer, connect(peer, pool_size=3) as client:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda value: ask(client, value), range(400)))
        stats = client.stats()
    assert (stats.calls, stats.successes, stats.messages_sent, stats.messages_received) == (400,) * 4
    assert 0 < stats.waits <= 400
    assert stats.wait_seconds > 0.0


def test_failures_and_repeats_are_counted_by_their_codes():
    steps = [fail_with("TRITON_TIMEOUT"), fail_with("TRITON_OVERLOADED"), answer, fail_with("TRITON_ERROR")]
    with ScriptedPeer(welcome_then(*steps)) as peer, connect(peer) as client:
        ask(client)
        with pytest.raises(TcmError):
            ask(client)
        stats = client.stats()
    assert stats.repeats == {"TRITON_TIMEOUT": 1, "TRITON_OVERLOADED": 1}
    assert stats.failures == {"TRITON_ERROR": 1}
    assert (stats.calls, stats.successes) == (2, 1)


def test_a_failure_without_a_code_is_counted_by_its_class():
    go_on = threading.Event()

    def script(connection):
        connection.welcome()
        connection.recv_request()
        wait_for(go_on)
        echo_on(connection)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with timing_out(lambda: peer.requests), pytest.raises(CallTimeoutError):
            ask(client)
        go_on.set()
        stats = client.stats()
    assert stats.failures == {"CallTimeoutError": 1}
    assert stats.sockets_closed == {"a reply was outstanding": 1}
    assert stats.sockets == 0


def test_outputs_that_cannot_be_read_are_a_failure():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply({"y": [1, "a"]})
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with pytest.raises(ProtocolError):
            ask(client)
        stats = client.stats()
    assert (stats.calls, stats.successes, stats.failures) == (1, 0, {"ProtocolError": 1})


def test_what_comes_unasked_is_counted():
    def script(connection):
        connection.welcome()
        payload = connection.recv_request()
        connection.alert()
        connection.advise()
        connection.advise()
        connection.send_text({"type": "new", "uuid": connection.uuid})
        answer(connection, payload)
        answer(connection, payload)  # once more
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        ask(client)
        wait_until(lambda: client.stats().sockets == 0)
        stats = client.stats()
    assert (stats.alerts, stats.advisories, stats.unknown) == ({"TritonServerStateChanged": 1}, 2, 1)
    assert (stats.late, stats.sockets_closed) == (1, {"gave it up": 1})


def test_gauges_tell_of_this_moment():
    go_on = threading.Event()

    def script(connection):
        connection.welcome()
        payload = connection.recv_request()
        wait_for(go_on)
        answer(connection, payload)
        echo_on(connection)

    with ScriptedPeer(script) as peer, connect(peer, pool_size=1) as client:
        with background(lambda: ask(client, 1)) as first, background(lambda: ask(client, 2)) as second:
            wait_until(lambda: (client.stats().busy, client.stats().waiting) == (1, 1))
            stats = client.stats()
            assert (stats.sockets, stats.busy, stats.waiting, stats.calls) == (1, 1, 1, 0)
            assert "1 of 1 sockets, 1 calls in flight, 1 waiting" in repr(client)
            go_on.set()
            assert (first(), second()) == (1.0, 2.0)
        assert (client.stats().busy, client.stats().waiting) == (0, 0)


def test_a_gate_that_is_shut_is_reported():
    def once(connection):
        connection.welcome()
        answer(connection, connection.recv_request())
        connection.drop()

    with ScriptedPeer(once) as peer, connect(peer, pool_size=1) as client:
        ask(client)
        wait_until(lambda: client.stats().sockets == 0)
        peer.stop_listening()
        with pytest.raises(TcmError):
            ask(client, timeout=0.3)
        wait_until(lambda: client.stats().gates)
        stats, shown = client.stats(), repr(client)
    assert list(stats.gates) == ["manager"]
    assert "shut: manager" in shown
    assert "\n" not in shown
    assert stats.gate_waits == 0, "a socket is waited for in line, and not at a gate"
    assert stats.failures == {"ConnectFailedError": 1}


def test_a_reset_counts_from_nothing_and_leaves_what_is_now():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        ask(client)
        before = client.stats(reset=True)
        assert before.calls == 1
        after = client.stats()
        assert (after.calls, after.messages_sent, after.sockets_opened, after.sockets) == (0, 0, 0, 1)
        ask(client)
        ask(client)
        assert client.stats().calls == 2
        assert before.calls == 1, "what was returned changes no more"
        assert client.stats().since(after).calls == 2


def test_figures_outlive_the_closing():
    with ScriptedPeer(echo) as peer:
        with connect(peer) as client:
            ask(client)
        stats = client.stats()
    assert (stats.calls, stats.sockets, stats.messages_sent) == (1, 0, 1)
    assert stats.sockets_closed == {"the client was closed": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_counts_for_itself():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        ask(client)
        client.stats(reset=True)
        ask(client)
        child = os.fork()
        if not child:
            code = 1
            try:
                before = client.stats().calls
                ask(client)
                code = 0 if (before, client.stats().calls) == (0, 1) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.stats().calls == 1


def test_batches_are_counted_by_their_size():
    def script(connection):
        connection.welcome()
        while True:
            payload = connection.recv_request()
            connection.reply({"y": payload["request"]["inputs"][0]["data"]})

    policy = BatchPolicy(max_size=3, max_wait=60.0)
    with ScriptedPeer(script) as peer, connect(peer) as client:
        model = client.model("m", batch=policy)
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(lambda value: model.infer_sample({"x": [value]}), (1.0, 2.0, 3.0)))
        model.infer_sample({"x": [4.0]})
        stats = client.stats()
    assert sum(size * times for size, times in stats.batch_sizes.items()) == 4
    assert stats.calls == sum(stats.batch_sizes.values())


def test_the_repr_fits_a_terminal():
    many = {f"TRITON_SOMETHING_LONG_{number}": 10**number for number in range(9)}
    figures = dict.fromkeys(ClientStats.__struct_fields__, 10**9)
    for name in ("failures", "repeats", "sockets_closed", "alerts", "shm_declined"):
        figures[name] = many
    stats = ClientStats(**{**figures, "batch_sizes": {32: 10**9}, "gates": {"manager": "shut: " + "x" * 200}})
    lines = repr(stats).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 20
    assert any("failures: TRITON_SOMETHING_LONG_8 100,000,000" in line for line in lines)


def test_an_alert_is_logged_once_a_kind_and_a_minute(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(notices, "monotonic", lambda: now[0])
    connection = type("C", (), {"uuid": "u"})()
    counts = Counts()
    heard = notices.UnsolicitedMessages(counts)

    def alert(kind):
        heard.alert(connection, an_alert(kind))

    with caplog.at_level(logging.WARNING, "tcm_sync.reader"):
        for kind in ("a", "a", "b", None):
            alert(kind)
        assert len(caplog.records) == 3
        now[0] += 59.0
        alert("a")
        assert len(caplog.records) == 3
        now[0] += 2.0
        alert("a")
        assert len(caplog.records) == 4
    assert counts.alerts == {"a": 4, "b": 1, "none": 1}


def test_kinds_of_alerts_without_end_are_distinguished_up_to_a_bound(caplog):
    connection = type("C", (), {"uuid": "u"})()
    counts = Counts()
    heard = notices.UnsolicitedMessages(counts)
    for number in range(500):
        heard.alert(connection, an_alert(f"k{number}"))
    assert len(counts.alerts) < 100
    assert sum(counts.alerts.values()) == 500
    assert counts.alerts["others"] > 400


def an_alert(kind):
    return Alert(message="x", error_type=kind)


def test_each_reset_counts_from_itself():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        counts = []
        for calls in (3, 2, 1, 0):
            for _ in range(calls):
                ask(client)
            counts.append(client.stats(reset=True).calls)
    assert counts == [3, 2, 1, 0]
