"""Whether a request may have run: what errors say of it after every attempt, and what is sent again."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from tcm_sync import (
    BatchPolicy,
    CallTimeoutError,
    ConnectFailedError,
    ConnectionLostError,
    InferenceFailedError,
    MessageTooLargeError,
    PoolTimeoutError,
    ProtocolError,
    ShuttingDownError,
    StreamTimeoutError,
    TcmError,
)
from tcm_sync._pool.attempt import CallSender
from tcm_sync._pool.call import Call
from tcm_sync._pool.pool import Pool
from tcm_sync._pool.runtime import Runtime

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import SHORT_PAUSES, ask, connect, echo
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_until

NEVER_TWICE = [None, replace(SHORT_PAUSES, resend_lost=False)]


def lose(connection):
    """Take a request, and drop the connection without an answer."""
    connection.welcome()
    connection.recv_request()
    connection.drop()


def fail_with(connection):
    connection.welcome()
    connection.recv_request()
    connection.fail("TRITON_INFERENCE_FAILED")
    connection.wait_eof()


def failure_of(call):
    with pytest.raises(TcmError) as caught:
        call()
    return caught.value


def no_socket(monkeypatch, error):
    """Let the first attempt have a socket, and no other."""
    acquire = Pool.acquire
    attempts = []

    def refuse(pool, *how, **more):
        attempts.append(1)
        if len(attempts) > 1:
            raise error
        return acquire(pool, *how, **more)

    monkeypatch.setattr(Pool, "acquire", refuse)


@pytest.mark.parametrize(
    "error",
    [
        ConnectFailedError("as at the manager's gate"),
        PoolTimeoutError("as when all sockets are busy"),
        ShuttingDownError("as at the gate of a manager that drains"),
    ],
)
def test_what_fails_before_a_further_attempt_says_that_the_first_may_have_run(monkeypatch, error):
    with ScriptedPeer(lose) as peer, connect(peer) as client:
        client.open()
        no_socket(monkeypatch, error)
        raised = failure_of(lambda: ask(client))
    assert raised is error
    assert raised.outcome_unknown
    assert [past.outcome_unknown for past in raised.history] == [True]


def test_a_deadline_that_passes_before_a_further_attempt_does_too(monkeypatch):
    exchange = CallSender._exchange
    attempts = []

    def late(sender, lease, call, *how):
        attempts.append(1)
        if len(attempts) > 1:
            monkeypatch.setattr(call.deadline, "_at", 0.0)
        return exchange(sender, lease, call, *how)

    monkeypatch.setattr(CallSender, "_exchange", late)
    with ScriptedPeer(lose, echo) as peer, connect(peer) as client:
        error = failure_of(lambda: ask(client))
        assert peer.requests == 1
    assert type(error) is CallTimeoutError
    assert error.outcome_unknown


def test_an_answered_failure_does_too(monkeypatch):
    with ScriptedPeer(lose, fail_with) as peer, connect(peer) as client:
        error = failure_of(lambda: ask(client))
    assert type(error) is InferenceFailedError
    assert error.outcome_unknown


def test_a_failure_that_was_the_only_answer_is_known():
    with ScriptedPeer(fail_with) as peer, connect(peer) as client:
        assert not failure_of(lambda: ask(client)).outcome_unknown


def test_a_client_that_is_closed_meanwhile_does_too(monkeypatch):
    with ScriptedPeer(lose) as peer, connect(peer) as client:
        client.open()
        monkeypatch.setattr(Runtime, "sleep", lambda runtime, seconds: client.close())
        error = failure_of(lambda: ask(client))
    assert error.outcome_unknown


def garbage(connection):
    connection.send_text({"type": "inference", "uuid": connection.uuid, "payload": 1})
    connection.wait_eof()


def another_uuid(connection):
    connection.send_text({"type": "inference", "uuid": "of-another", "payload": {"status": "COMPLETED"}})
    connection.wait_eof()


def no_outputs(connection):
    connection.reply({"y": {"not": "a tensor"}})
    connection.wait_eof()


def an_unknown_error(connection):
    connection.error("Internal error")
    connection.wait_eof()


def an_unknown_code(connection):
    connection.error("What now?", "NEVER_HEARD_OF")
    connection.wait_eof()


@pytest.mark.parametrize("answer", [garbage, another_uuid, no_outputs, an_unknown_error, an_unknown_code])
def test_an_answer_that_cannot_be_read_says_nothing_of_what_ran(answer):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        answer(connection)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        error = failure_of(lambda: ask(client))
    assert type(error) is ProtocolError
    assert error.outcome_unknown


def test_a_reply_that_is_larger_than_we_take_was_one():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply({"y": [[1.0] * 5_000]})
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer, max_reply_bytes=4_096) as client:
        error = failure_of(lambda: ask(client))
    assert type(error) is MessageTooLargeError
    assert error.outcome_unknown


@pytest.mark.parametrize("text", ["Invalid JSON format", "Missing required field: 'payload'"])
def test_a_message_that_was_refused_did_not_run(text):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.error(text)
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        error = failure_of(lambda: ask(client))
    assert type(error) is ProtocolError
    assert not error.outcome_unknown


def test_a_stream_that_fails_late_remembers_an_attempt_that_was_lost():
    def stream(connection):
        connection.welcome()
        connection.recv_request()
        connection.send_text(connection.inference(None, "START"))
        connection.send_text(connection.inference("a", "ONGOING"))
        connection.fail("TRITON_INFERENCE_FAILED", "Stream timed out after 120s")
        connection.wait_eof()

    for first, unknown in ([lose], True), ([], False):
        with ScriptedPeer(*first, stream) as peer, connect(peer) as client:
            chunks = client.stream("m", {"x": [1.0]})
            error = failure_of(lambda chunks=chunks: list(chunks))
        assert type(error) is StreamTimeoutError
        assert error.outcome_unknown is unknown


def test_a_shutdown_that_may_have_run_is_not_repeated_where_that_is_forbidden():
    def reject(connection):
        connection.welcome()
        connection.recv_request()
        connection.error("Server is shutting down, request rejected", "SYSTEM_SHUTDOWN")
        connection.close(1012)

    with ScriptedPeer(reject, echo) as peer, connect(peer, retry=NEVER_TWICE[1]) as client:
        error = failure_of(lambda: ask(client))
        assert peer.requests == 1
    assert type(error) is ShuttingDownError
    assert error.outcome_unknown


# --- batches whose leader leaves ---


@contextmanager
def out_of_time(ready):
    """Have the deadline of the next call pass that is sent, once something is true."""
    receive = Call.receive
    with pytest.MonkeyPatch.context() as patch:

        def receive_and_time_out(call, *how):
            patch.undo()
            wait_until(ready)
            call.deadline._at = time.monotonic()
            return receive(call, *how)

        patch.setattr(Call, "receive", receive_and_time_out)
        yield


def deserted(client, ready, size=2):
    """Put samples into one batch whose leader runs out of time once it was sent; the outcome of each."""
    model = client.model("m", batch=BatchPolicy(max_size=size, max_wait=TIMEOUT))
    outcomes = {}

    def sample(value):
        try:
            outcomes[value] = model.infer_sample({"x": np.array([value])})["y"].item()
        except TcmError as error:
            outcomes[value] = error

    with out_of_time(ready), ThreadPoolExecutor(size) as threads:
        inside = model._batcher._inside
        inside.add(object())  # somebody else is in a call, so that the leader waits for the second sample
        threads.submit(sample, 1.0)
        wait_until(lambda: len(inside) == 2)
        for number in range(2, size + 1):
            threads.submit(sample, float(number))
    return outcomes


@pytest.mark.parametrize("retry", [*NEVER_TWICE, replace(SHORT_PAUSES, attempts=1)])
def test_a_batch_whose_leader_leaves_is_not_sent_again_where_that_is_forbidden(retry):
    taken = threading.Event()

    def script(connection):
        connection.welcome()
        connection.recv_request()
        taken.set()
        connection.wait_eof()

    with ScriptedPeer(script, echo) as peer, connect(peer, retry=retry) as client:
        outcomes = deserted(client, taken.is_set)
        assert peer.requests == 1
    assert type(outcomes[1.0]) is CallTimeoutError
    assert type(outcomes[2.0]) is ConnectionLostError
    assert all(outcome.outcome_unknown for outcome in outcomes.values())


def test_a_batch_whose_leader_leaves_is_sent_again_otherwise():
    taken = threading.Event()

    def script(connection):
        connection.welcome()
        connection.recv_request()
        taken.set()
        connection.wait_eof()

    with ScriptedPeer(script, echo) as peer, connect(peer) as client:
        outcomes = deserted(client, taken.is_set)
        assert peer.requests == 2
    assert outcomes[2.0] == 2.0


def test_a_batch_that_is_divided_once_it_may_have_run_is_not_sent_again_where_that_is_forbidden():
    """The model's limit is learned while the batch is under way, and its leader leaves."""

    def script(connection):
        connection.welcome()
        connection.recv_request()
        too_many = InferenceFailedError("too many rows", max_batch_size=1)
        client._core.row_limits.learn((client._core.settings.route, "m"), too_many, 3, 8, None)
        taken.set()
        connection.wait_eof()

    taken = threading.Event()
    retry = replace(SHORT_PAUSES, resend_lost=False)
    with ScriptedPeer(script, echo) as peer, connect(peer, retry=retry) as client:
        outcomes = deserted(client, taken.is_set, size=3)
        assert peer.requests == 1
    assert [type(outcomes[value]) for value in (1.0, 2.0, 3.0)] == [
        CallTimeoutError,
        ConnectionLostError,
        ConnectionLostError,
    ]
    assert all(outcome.outcome_unknown for outcome in outcomes.values())
