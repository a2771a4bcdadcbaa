"""What is repeated, how often, and what the error says when it is over."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest

import tcm_sync
from tcm_sync import (
    BackpressureError,
    CircuitOpenError,
    ContractError,
    InferenceError,
    InferenceFailedError,
    MessageTooLargeError,
    PayloadTooLargeError,
    PermissionDeniedError,
    ProtocolError,
    RetryPolicy,
    TritonNetworkError,
)
from tcm_sync._pool.attempt import CallSender
from tcm_sync._pool.pool import Pool

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import ROUTE, ask, background, connect, echo_once, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_until

RETRIABLE = {
    "TRITON_TIMEOUT": "TritonTimeoutError",
    "TRITON_NETWORK": "TritonNetworkError",
    "TRITON_OVERLOADED": "TritonOverloadedError",
    "TRITON_CIRCUIT_OPEN": "CircuitOpenError",
    "TRITON_SERVER_NOT_READY": "ServerNotReadyError",
    "TRITON_MODEL_NOT_READY": "ModelNotReadyError",
    "TRITON_CONFIG_DOWNLOAD_FAILED": "ConfigDownloadError",
}
FATAL = {
    "TRITON_INFERENCE_FAILED": "InferenceFailedError",
    "TRITON_SHAPE_MISMATCH": "ShapeMismatchError",
    "TRITON_MODEL_MISSING": "ModelMissingError",
    "TRITON_AUTH_FAILED": "TritonAuthError",
    "TRITON_MODEL_LOAD_FAILED": "ModelLoadError",
    "TRITON_SHM_UNAVAILABLE": "SharedMemoryUnavailableError",
    "TRITON_SHM_REGISTRATION_FAILED": "SharedMemoryRegistrationError",
    "TRITON_SERVER_CREATION_FAILED": "ServerCreationError",
    "TRITON_MISSING_ARGUMENT": "MissingArgumentError",
    "TRITON_MISSING_INSTANCE": "MissingInstanceError",
    "TRITON_ERROR": "TritonError",
}


def answering(*answers):
    """Make a script that gives these answers, one a request, and then echoes. An answer is a function."""
    left = list(answers)

    def script(connection):
        connection.welcome()
        while left:
            answer = left.pop(0)
            connection.recv_request()
            answer(connection)
        while True:
            echo_once(connection)

    return script


def failed(code, **more):
    return lambda connection: connection.fail(code, **more)


def refusing(message, code=None, **more):
    return lambda connection: connection.error(message, code, **more)


@pytest.mark.parametrize("code", RETRIABLE)
def test_a_passing_failure_is_asked_again_on_the_same_socket(code):
    with ScriptedPeer(answering(failed(code, retriable=True))) as peer, connect(peer) as client:
        result = client.infer("m", {"x": [[2.0]]})
    assert result["y"].item() == 2.0
    assert result.attempts == 2
    assert peer.requests == 2
    assert len(peer.connections) == 1


@pytest.mark.parametrize("code", RETRIABLE)
def test_a_failure_that_does_not_pass_is_raised_as_its_own_class(code):
    kind = getattr(tcm_sync, RETRIABLE[code])
    twice = RetryPolicy(attempts=2, initial=0.01)
    with ScriptedPeer(answering(*[failed(code, retriable=True)] * 2)) as peer:
        with connect(peer, retry=twice) as client:
            with failing(kind, code, "because", "model 'm'", "container 'c1'", "2 attempts") as caught:
                ask(client)
    assert (caught.value.code, caught.value.retriable) == (code, True)
    assert peer.requests == 2


def test_the_last_failure_has_the_history_of_four_attempts():
    answers = [
        failed(code, retriable=True)
        for code in ("TRITON_TIMEOUT", "TRITON_NETWORK", "TRITON_OVERLOADED", "TRITON_NETWORK")
    ]
    with ScriptedPeer(answering(*answers)) as peer, connect(peer) as client:
        with failing(TritonNetworkError, "4 attempts") as caught:
            ask(client)
        error = caught.value
        assert error.attempts == 4
        assert [past.code for past in error.history] == [
            "TRITON_TIMEOUT",
            "TRITON_NETWORK",
            "TRITON_OVERLOADED",
        ]
        assert (error.model_name, error.route, error.uuid) == ("m", ROUTE, peer.uuids[0])
        assert error.elapsed > 0
        assert error.outcome_unknown
        assert ask(client, 2.0) == 2.0
    assert peer.requests == 5


@pytest.mark.parametrize("code", FATAL)
def test_a_lasting_failure_is_raised_at_once(code):
    kind = getattr(tcm_sync, FATAL[code])
    with ScriptedPeer(answering(failed(code))) as peer, connect(peer) as client:
        with failing(kind, code, "because", "model 'm'") as caught:
            ask(client)
        assert (caught.value.code, caught.value.retriable, caught.value.attempts) == (code, False, 1)
        assert caught.value.history == ()
        assert ask(client, 2.0) == 2.0
    assert len(peer.connections) == 1


@pytest.mark.parametrize("retriable", [True, False])
def test_an_unknown_code_follows_its_own_flag(retriable):
    with ScriptedPeer(answering(*[failed("TRITON_BRAND_NEW", retriable=retriable)] * 4)) as peer:
        with connect(peer) as client:
            with failing(InferenceError, "TRITON_BRAND_NEW") as caught:
                ask(client)
    assert caught.value.code == "TRITON_BRAND_NEW"
    assert peer.requests == (4 if retriable else 1)


def test_a_user_may_call_a_code_retriable():
    policy = RetryPolicy(initial=0.01, retriable={"TRITON_INFERENCE_FAILED"})
    script = answering(failed("TRITON_INFERENCE_FAILED", reason="[Errno 111] Connection refused"))
    with ScriptedPeer(script) as peer, connect(peer, retry=policy) as client:
        assert client.infer("m", {"x": [[2.0]]}).attempts == 2
    assert peer.requests == 2


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (failed("TRITON_NETWORK", retriable=True), "TRITON_NETWORK"),
        (
            refusing("Request dropped.", "BACKPRESSURE_QUEUE_FULL", dropped_type="inference"),
            "BACKPRESSURE_QUEUE_FULL",
        ),
    ],
)
def test_a_user_may_call_a_code_fatal(answer, code):
    with ScriptedPeer(answering(answer)) as peer, connect(peer, retry=RetryPolicy(fatal={code})) as client:
        with pytest.raises((TritonNetworkError, BackpressureError)) as caught:
            ask(client)
    assert caught.value.code == code
    assert peer.requests == 1


def test_a_call_may_bring_its_own_policy():
    twice = RetryPolicy(attempts=2, initial=0.01)
    answers = [failed("TRITON_NETWORK", retriable=True)] * 3
    with ScriptedPeer(answering(*answers)) as peer, connect(peer) as client:
        with failing(TritonNetworkError, "2 attempts"):
            ask(client, retry=twice)
        with failing(TritonNetworkError):
            ask(client, retry=None)
        assert ask(client, 2.0) == 2.0
    assert peer.requests == 4


ONCE = {
    "TRITON_TIMEOUT": (failed("TRITON_TIMEOUT", retriable=True), "TritonTimeoutError"),
    "queue full": (
        refusing("dropped", "BACKPRESSURE_QUEUE_FULL", dropped_type="inference"),
        "BackpressureError",
    ),
    "executor full": (
        refusing("dropped", "BACKPRESSURE_EXECUTOR_FULL", dropped_type="inference"),
        "BackpressureError",
    ),
    "tenant limit": (refusing("quota", "BACKPRESSURE_TENANT_LIMIT_REACHED"), "BackpressureError"),
    "rate limit": (refusing("Rate limit exceeded for this client (messages per second)"), "RateLimitedError"),
    "shutting down": (refusing("rejected", "SYSTEM_SHUTDOWN"), "ShuttingDownError"),
    "dropped": (refusing("dropped", "SYSTEM_SHUTDOWN", dropped_type="inference"), "ShuttingDownError"),
}


@pytest.mark.parametrize("name", ONCE)
def test_without_a_policy_every_failure_is_raised_the_first_time(name):
    answer, kind = ONCE[name]
    with ScriptedPeer(answering(answer)) as peer, connect(peer, retry=None) as client:
        with failing(getattr(tcm_sync, kind)) as caught:
            ask(client)
    assert caught.value.retriable
    assert caught.value.history == ()
    assert peer.requests == 1


# --- how long to wait ---


def test_a_pause_that_the_manager_asks_for_is_kept():
    times = []

    def note_and_fail(connection):
        times.append(time.monotonic())
        connection.fail("TRITON_OVERLOADED", retriable=True, retry_after_seconds=0.4)

    def note_and_echo(connection):
        times.append(time.monotonic())
        connection.reply({"y": [[2.0]]})

    with ScriptedPeer(answering(note_and_fail, note_and_echo)) as peer, connect(peer) as client:
        assert ask(client, 2.0) == 2.0
    assert times[1] - times[0] >= 0.4


@pytest.mark.parametrize("code", ["TRITON_CIRCUIT_OPEN", "TRITON_OVERLOADED"])
def test_a_pause_that_does_not_fit_the_deadline_is_not_begun(code):
    kind = getattr(tcm_sync, RETRIABLE[code])
    script = answering(failed(code, retriable=True, retry_after_seconds=4 * TIMEOUT))
    with ScriptedPeer(script) as peer, connect(peer, timeout=2 * TIMEOUT) as client:
        with failing(kind, code) as caught:
            ask(client)
    assert caught.value.retry_after == 60.0
    assert caught.value.elapsed < TIMEOUT
    assert peer.requests == 1


def test_an_open_circuit_holds_the_next_calls_of_that_model_and_of_no_other():
    script = answering(failed("TRITON_CIRCUIT_OPEN", retriable=True, retry_after_seconds=4 * TIMEOUT))
    with ScriptedPeer(script) as peer, connect(peer) as client:
        for _ in range(5):
            with failing(CircuitOpenError, "TRITON_CIRCUIT_OPEN"):
                ask(client)
        assert peer.requests == 1
        assert client.infer("other", {"x": [[3.0]]})["y"].item() == 3.0
        elsewhere = client.infer("m", {"x": [[4.0]]}, container_id="c2", vm_ip="127.0.0.1")
        assert elsewhere["y"].item() == 4.0


@contextmanager
def opening_a_circuit_before(call):
    """Have a call wait for the one socket while the circuit of model ``m`` opens; yield peer and outcome."""
    go_on = threading.Event()

    def held(connection):
        go_on.wait(TIMEOUT)
        connection.fail("TRITON_CIRCUIT_OPEN", retriable=True, retry_after_seconds=4 * TIMEOUT)

    with (
        ScriptedPeer(answering(held)) as peer,
        connect(peer, pool_size=1) as client,
        background(lambda: ask(client)) as first,
    ):
        wait_until(lambda: peer.requests == 1)
        with background(lambda: call(client)) as second:
            wait_until(lambda: client.stats().waiting == 1)
            go_on.set()
            with failing(CircuitOpenError, "TRITON_CIRCUIT_OPEN"):
                first()
            yield peer, second


def test_a_circuit_that_opens_while_a_call_waits_for_a_socket_holds_it():
    with opening_a_circuit_before(ask) as (peer, outcome):
        with failing(CircuitOpenError, "TRITON_CIRCUIT_OPEN"):
            outcome()
        assert peer.requests == 1


@pytest.mark.parametrize(
    ("code", "kind", "gate"),
    [
        ("TRITON_CIRCUIT_OPEN", CircuitOpenError, "circuit of 'm'"),
        ("BACKPRESSURE_QUEUE_FULL", BackpressureError, "backpressure"),
    ],
)
def test_a_gate_is_shut_before_anybody_else_has_the_socket(monkeypatch, code, kind, gate):
    found = []

    def watched(self, *args, **options):
        found.append(list(client.stats().gates))
        release(self, *args, **options)

    def refuse(connection):
        if kind is BackpressureError:
            connection.error("Request dropped.", code, dropped_type="inference")
        else:
            connection.fail(code, retriable=True)

    with ScriptedPeer(answering(refuse)) as peer, connect(peer, retry=None) as client:
        client.open()
        release = Pool.release
        monkeypatch.setattr(Pool, "release", watched)
        with failing(kind):
            ask(client)
    assert found == [[gate]]


def test_a_circuit_of_another_model_costs_a_waiting_call_nothing(monkeypatch):
    gated = []
    original = CallSender._attempt_gated
    monkeypatch.setattr(
        CallSender, "_attempt_gated", lambda self, call: gated.append(call.target[1]) or original(self, call)
    )
    with opening_a_circuit_before(lambda client: client.infer("other", {"x": [[3.0]]})) as (_, outcome):
        assert outcome()["y"].item() == 3.0
    assert gated == []


def test_no_repeat_begins_with_less_time_than_the_failed_attempt_took(clock):
    def slow_failure(connection):
        clock.ahead += 0.6 * TIMEOUT
        connection.fail("TRITON_TIMEOUT", retriable=True)

    with ScriptedPeer(answering(*[slow_failure] * 4)) as peer, connect(peer, timeout=TIMEOUT) as client:
        with failing(tcm_sync.TritonTimeoutError):
            ask(client)
    assert peer.requests == 1


# --- never repeated ---


@pytest.mark.parametrize("policy", [RetryPolicy(), RetryPolicy(retriable={"TRITON_INFERENCE_FAILED"})])
def test_413_is_fatal_whatever_the_policy_says(policy):
    reason = "413 Payload Too Large: estimated_bytes=3145728 limit_bytes=1048576"
    script = answering(failed("TRITON_INFERENCE_FAILED", reason=reason))
    with ScriptedPeer(script) as peer, connect(peer, retry=policy) as client:
        with failing(PayloadTooLargeError, "413", "fewer rows") as caught:
            ask(client)
    assert (caught.value.estimated_bytes, caught.value.limit_bytes) == (3145728, 1048576)
    assert caught.value.code == "TRITON_INFERENCE_FAILED"
    assert peer.requests == 1


def test_1009_with_its_words_names_the_limit_and_what_to_do():
    def too_large(connection):
        connection.error("Message too large (>4096 bytes)")
        connection.close(1009)

    with ScriptedPeer(answering(too_large)) as peer, connect(peer) as client:
        with failing(MessageTooLargeError, "4,096", "max_message_bytes") as caught:
            ask(client)
        assert caught.value.limit == 4096
        assert ask(client, 2.0) == 2.0
    assert peer.requests == 2


def test_a_message_over_our_own_limit_is_never_sent():
    with ScriptedPeer(answering()) as peer, connect(peer, max_message_bytes=1000) as client:
        with failing(MessageTooLargeError, "max_message_bytes", "1,000") as caught:
            client.infer("m", {"x": [[1.5] * 1000]})
        assert caught.value.limit == 1000
        assert caught.value.size > 4000
        assert ask(client, 2.0) == 2.0
    assert peer.requests == 1


@pytest.mark.parametrize(
    "words", ["Missing required field 'vm_ip'", "Container 'c1' not found in known containers"]
)
def test_words_alone_are_a_contract_error(words):
    def refuse(connection):
        connection.reply(words, status="FAILED", model_name=None)

    with ScriptedPeer(answering(refuse)) as peer, connect(peer) as client:
        with failing(ContractError, words, "model 'm'"):
            ask(client)
        assert ask(client, 2.0) == 2.0
    assert peer.requests == 2
    assert len(peer.connections) == 1


def test_a_missing_role_is_named_and_the_socket_is_kept():
    with (
        ScriptedPeer(answering(refusing("Forbidden: missing 'inference' role"))) as peer,
        connect(peer) as client,
    ):
        with failing(PermissionDeniedError, "Forbidden", "'inference' role", "roles="):
            ask(client)
        assert ask(client, 2.0) == 2.0
    assert len(peer.connections) == 1
    assert peer.requests == 2


@pytest.mark.parametrize(
    "words", ["Invalid JSON format", "Missing required field: 'payload'", "Something that no table has"]
)
def test_other_words_are_a_protocol_error(words):
    with ScriptedPeer(answering(refusing(words))) as peer, connect(peer) as client:
        with failing(ProtocolError, words):
            ask(client)
        assert ask(client, 2.0) == 2.0
    assert peer.requests == 2


def test_an_error_with_a_code_that_no_table_has_ends_the_call():
    with ScriptedPeer(answering(refusing("what now", "BRAND_NEW_CODE"))) as peer, connect(peer) as client:
        with pytest.raises(tcm_sync.TcmError, match="BRAND_NEW_CODE") as caught:
            ask(client)
        assert caught.value.code == "BRAND_NEW_CODE"
        assert ask(client, 2.0) == 2.0
    assert peer.requests == 2


def test_a_failure_that_quotes_the_token_is_not_passed_on():
    def quote(connection):
        connection.fail("TRITON_AUTH_FAILED", reason=f"bearer {connection.auth['token']} refused")

    with ScriptedPeer(answering(quote)) as peer, connect(peer) as client:
        with failing(tcm_sync.TritonAuthError, "refused"):
            ask(client)


def test_reasons_are_shortened():
    with (
        ScriptedPeer(answering(failed("TRITON_ERROR", reason="r" * 50_000))) as peer,
        connect(peer) as client,
    ):
        with failing(tcm_sync.TritonError, "rrrr") as caught:
            ask(client)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (failed("TRITON_ERROR"), InferenceError),
        (failed("TRITON_INFERENCE_FAILED"), InferenceFailedError),
        (failed("TRITON_ERROR"), tcm_sync.TcmError),
    ],
)
def test_failures_can_be_caught_by_their_parents(answer, kind):
    with ScriptedPeer(answering(answer)) as peer, connect(peer) as client:
        with pytest.raises(kind):
            ask(client)
