"""Faults of managers that pass: what is sent again, what waits its turn, and what a class alone says."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import itertools
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import tcm_sync
from tcm_sync import (
    ERROR_CODES,
    KNOWN_FAULTS,
    AuthContext,
    CallTimeoutError,
    ConfigError,
    ConnectFailedError,
    KnownFaultError,
    RetryPolicy,
    StreamBusyError,
    TcmError,
)
from tcm_sync._deadline import Deadline
from tcm_sync._pool.attempt import CallSender
from tcm_sync._pool.stream_turns import StreamTurns

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import SHORT_PAUSES, ask, connect, echo, echo_once, failing, timing_out
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_until

FAULT = "Cannot switch to a different thread\n\tCurrent: <greenlet.greenlet object>"
BUSY = "cannot start another stream with one already running. 'InferenceServerClient' supports only one."
RECORDINGS = Path(__file__).parents[1] / "wire" / "transcripts.jsonl"


def faulty(times):
    """Fail so many requests by the known fault, and then echo."""

    def script(connection):
        connection.welcome()
        for _ in range(times):
            connection.recv_request()
            connection.fail("TRITON_INFERENCE_FAILED", FAULT)
        while True:
            echo_once(connection)

    return script


@pytest.mark.parametrize("fault", KNOWN_FAULTS, ids=lambda fault: fault.recording)
def test_each_known_fault_is_in_its_recording(fault):
    cases = [json.loads(line) for line in RECORDINGS.read_text().splitlines()]
    assert fault.text in json.dumps([case for case in cases if case["case"] == fault.recording])


def test_a_known_fault_is_sent_again_and_counts_as_no_attempt():
    with ScriptedPeer(faulty(6)) as peer, connect(peer, retry=replace(SHORT_PAUSES, attempts=1)) as client:
        assert ask(client) == 1.0
        assert peer.requests == 7
        assert len(peer.connections) == 1


@pytest.mark.parametrize(
    "retry",
    [
        None,
        replace(SHORT_PAUSES, known_faults=False),
        replace(SHORT_PAUSES, fatal={"TRITON_INFERENCE_FAILED"}),
    ],
)
def test_a_known_fault_is_raised_where_that_is_wanted(retry):
    with ScriptedPeer(faulty(1)) as peer, connect(peer, retry=retry) as client:
        with failing(KnownFaultError, "Cannot switch to a different thread"):
            ask(client)
        assert peer.requests == 1


def silent(connection):
    connection.welcome()
    connection.recv_request()
    connection.wait_eof()


def test_an_attempt_that_hangs_is_sent_once_more_on_another_socket():
    with ScriptedPeer(silent, echo) as peer:
        with connect(peer, retry=replace(SHORT_PAUSES, attempts=1, attempt_timeout=0.05)) as client:
            assert ask(client) == 1.0
        assert len(peer.uuids) == 2


def test_an_attempt_is_given_up_once_a_call():
    with ScriptedPeer(silent) as peer:
        with connect(peer, retry=replace(SHORT_PAUSES, attempt_timeout=0.05)) as client:
            with timing_out(lambda: peer.requests == 2, attempt=2), failing(CallTimeoutError) as caught:
                ask(client)
        assert peer.requests == 2
    assert caught.value.outcome_unknown
    assert [type(error) for error in caught.value.history] == [CallTimeoutError]


@pytest.mark.parametrize(
    "wrong", [{"attempt_timeout": 0}, {"attempt_timeout": 5.0, "resend_lost": False}, {"known_faults": 1}]
)
def test_a_policy_that_cannot_work_is_refused(wrong):
    with pytest.raises(ConfigError):
        RetryPolicy(**wrong)


class OneAtATime:
    """A manager in front of a server that runs one stream at a time; a stream ends when the test says so."""

    def __init__(self):
        self.lock = threading.Lock()
        self.running = self.refused = self.begun = 0
        self.end = threading.Semaphore(0)

    def __call__(self, connection):
        connection.welcome()
        while True:
            connection.recv_request()
            connection.send_text(connection.inference(None, "START"))
            with self.lock:
                busy = self.running > 0
                self.refused += busy
                self.running += not busy
                self.begun += not busy
            if busy:
                connection.fail("TRITON_INFERENCE_FAILED", BUSY)
                continue
            connection.send_text(connection.inference("a", "ONGOING"))
            assert self.end.acquire(timeout=TIMEOUT)
            with self.lock:
                self.running -= 1
            connection.send_text(connection.inference(None, "COMPLETED"))


def test_streams_of_a_server_that_runs_one_wait_for_one_another_without_a_socket():
    manager = OneAtATime()
    with ScriptedPeer(manager) as peer, connect(peer) as client, ThreadPoolExecutor(6) as threads:
        streams = [threads.submit(lambda: list(client.stream("m", {"x": [1.0]}))) for _ in range(6)]
        turns = client._core.running().sender.stream_turns
        for served in itertools.count(1):
            wait_until(lambda served=served: manager.begun == served)
            if served == 6:
                break
            # All others wait in line, or pause before they do, without a socket.
            wait_until(lambda served=served: len(turns._queues.get("c1", ())) == 6 - served)
            wait_until(lambda: client.stats().open_streams == 1)
            if served == 1:
                refused = manager.refused
            manager.end.release()
        manager.end.release()
        assert [each.result(TIMEOUT) for each in streams] == [["a"]] * 6
        assert manager.refused == refused, "no more were refused than before it was known"
        assert not turns._running
        assert not turns._queues


def test_a_stream_waits_for_its_turn_within_its_deadline(monkeypatch):
    manager, wait = OneAtATime(), StreamTurns._wait

    def hurry(turns, container_id, stream, cause):
        monkeypatch.undo()
        stream.deadline = Deadline(0.05)
        wait(turns, container_id, stream, cause)

    with ScriptedPeer(manager) as peer, connect(peer) as client:
        with client.stream("m", {"x": [1.0]}) as first:
            monkeypatch.setattr(StreamTurns, "_wait", hurry)
            with failing(StreamBusyError, "already running"):
                client.stream("m", {"x": [1.0]})
            assert manager.refused == 1
            manager.end.release()
            assert list(first) == ["a"]
        manager.end.release()
        assert list(client.stream("m", {"x": [1.0]})) == ["a"]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends threads no signals")
def test_a_stream_that_a_signal_handler_closes_has_had_its_turn():
    manager, main = OneAtATime(), threading.main_thread().ident
    with ScriptedPeer(manager) as peer, connect(peer) as client:
        client._core.running().sender.stream_turns.refused("c1", StreamBusyError(BUSY))
        closed = client.stream("m", {"x": [1.0]})
        assert next(closed) == "a"

        def interrupt():
            wait_until(lambda: main in client._core.callers, "the stream is being read")
            signal.pthread_kill(main, signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, lambda *_: closed.close())
        try:
            with ThreadPoolExecutor(1) as thread:
                interrupting = thread.submit(interrupt)
                assert list(closed) == []
                interrupting.result(TIMEOUT)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert closed.ended_by == "closed"
        manager.end.release(2)
        assert list(client.stream("m", {"x": [1.0]}, timeout=TIMEOUT)) == ["a"]


def test_a_stream_that_is_interrupted_before_its_first_chunk_has_had_its_turn():
    """Whoever keeps the interrupt keeps its frames, and the stream in them."""

    def interrupt(sender, call):
        raise KeyboardInterrupt

    manager = OneAtATime()
    with ScriptedPeer(manager) as peer, connect(peer) as client:
        client._core.running().sender.stream_turns.refused("c1", StreamBusyError(BUSY))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CallSender, "attempt", interrupt)
            with pytest.raises(KeyboardInterrupt) as kept:
                client.stream("m", {"x": [1.0]})
        manager.end.release()
        assert list(client.stream("m", {"x": [1.0]}, timeout=TIMEOUT)) == ["a"]
        assert kept.value.__traceback__ is not None


# --- what a class says by itself ---


def test_what_is_fixed_is_on_the_class():
    """Task backends rebuild an error from the name of its class and its arguments alone."""
    for code, rule in ERROR_CODES.items():
        alone = [other for other, others in ERROR_CODES.items() if others.error is rule.error] == [code]
        rebuilt = getattr(tcm_sync, rule.error.__name__)(*rule.error("said").args)
        assert rebuilt.code == (code if alone else None)
        assert rebuilt.retriable is rule.retriable
    for kind in (KnownFaultError, StreamBusyError):
        assert (kind("said").code, kind("said").retriable) == ("TRITON_INFERENCE_FAILED", True)


# --- the key server of a manager ---

OUTAGES = [
    'Invalid token: Invalid token: Fail to fetch data from the url, err: "<urlopen error>"',
    "Invalid token: Invalid token: Expecting value: line 1 column 1 (char 0)",
    "Invalid token: Invalid token: The JWK Set did not contain any keys",
]


@pytest.mark.parametrize("text", OUTAGES)
def test_an_outage_of_the_key_server_passes(text):
    asked = []

    def refuse(connection):
        connection.accept()
        connection.read_auth()
        connection.error(text)
        connection.close(1008)

    def token():
        asked.append(1)
        return "t" * 20

    with ScriptedPeer(refuse, refuse, echo) as peer, connect(peer, auth=AuthContext(token=token)) as client:
        assert ask(client) == 1.0
        assert len(asked) == 3, "once a socket: no other token was wanted"


def test_an_outage_that_lasts_is_a_failure_to_connect():
    def refuse(connection):
        connection.accept()
        connection.read_auth()
        connection.error(OUTAGES[0])
        connection.close(1008)

    with ScriptedPeer(refuse) as peer, connect(peer, retry=None) as client:
        with failing(ConnectFailedError, "key server") as caught:
            ask(client)
    assert isinstance(caught.value, TcmError)
    assert not caught.value.outcome_unknown
