"""From the manager's refusals to exceptions: classes, codes, numbers, and words that help."""

from __future__ import annotations

import pytest

from tcm_sync import (
    ERROR_CODES,
    AuthenticationError,
    BackpressureError,
    CircuitOpenError,
    ContractError,
    InferenceError,
    InferenceFailedError,
    MessageTooLargeError,
    PayloadTooLargeError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitedError,
    ShuttingDownError,
    TritonError,
)
from tcm_sync._secrets import Secret
from tcm_sync._wire.failures import failure_of_error, failure_of_job, failure_of_reply
from tcm_sync._wire.messages import ErrorReply, Failure
from tcm_sync.retry import RetryPolicy, Verdict

TOKEN = "tok-4711-never-to-be-shown"
BEHIND_THE_MANAGER = [code for code in ERROR_CODES if code.startswith("TRITON_")]


# --- FAILED replies ---


@pytest.mark.parametrize("code", BEHIND_THE_MANAGER)
@pytest.mark.parametrize("flag", [True, False])
def test_the_table_decides_over_the_replys_own_flag(code, flag):
    error = failure_of_reply(Failure(code, "why", flag))
    assert type(error) is ERROR_CODES[code].error
    assert isinstance(error, InferenceError)
    assert (error.code, error.retriable) == (code, ERROR_CODES[code].retriable)
    assert error.message == "why"
    assert error.outcome_unknown is (code in ("TRITON_TIMEOUT", "TRITON_NETWORK"))


@pytest.mark.parametrize("flag", [True, False])
def test_a_code_that_the_table_does_not_know_follows_the_reply(flag):
    error = failure_of_reply(Failure("TRITON_GREMLINS", "why", flag))
    assert type(error) is InferenceError
    assert (error.code, error.retriable) == ("TRITON_GREMLINS", flag)


def test_a_failure_without_words_is_called_by_its_code():
    assert failure_of_reply(Failure("TRITON_ERROR")).message == "TRITON_ERROR"


@pytest.mark.parametrize(
    ("seconds", "pause"),
    [
        (None, None),
        (0, 0.0),
        (5, 5.0),
        (0.25, 0.25),
        (-3, 0.0),
        (60, 60.0),
        (1e9, 60.0),
        (10**400, 60.0),
        (float("inf"), 60.0),
        (float("nan"), None),
        ("5", None),
        ("soon", None),
        (True, None),
        ([5], None),
        ({}, None),
    ],
)
def test_the_pause_that_the_manager_asks_for(seconds, pause):
    error = failure_of_reply(Failure("TRITON_CIRCUIT_OPEN", retry_after_seconds=seconds))
    assert type(error) is CircuitOpenError
    assert error.retry_after == pause


@pytest.mark.parametrize(
    ("code", "reason", "unknown"),
    [
        ("TRITON_TIMEOUT", "timed out", True),
        ("TRITON_NETWORK", "[Errno 104] Connection reset by peer", True),
        ("TRITON_NETWORK", "[Errno 111] Connection refused", False),
        ("TRITON_OVERLOADED", "timed out", False),
        ("TRITON_CIRCUIT_OPEN", "timed out", False),
        ("TRITON_MODEL_NOT_READY", "", False),
        ("SOMETHING_NEW", "", False),
    ],
)
def test_a_request_that_triton_did_not_answer_may_have_run(code, reason, unknown):
    error = failure_of_reply(Failure(code, reason, retriable=True))
    assert error.outcome_unknown is unknown
    assert RetryPolicy(resend_lost=True).verdict(error) is Verdict.COUNTED
    assert (RetryPolicy(resend_lost=False).verdict(error) is Verdict.FATAL) is unknown


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("['image']", '{"image": array}'),
        ("['a','b']", '{"a": array, "b": array}'),
    ],
)
def test_inputs_that_are_missing_are_named_as_they_are_passed(missing, advice):
    reason = f"Got input(s) ['INPUT__0'], but missing required input(s) {missing}."
    error = failure_of_reply(Failure("TRITON_INFERENCE_FAILED", reason))
    assert error.message == f"{reason} Pass each input by its name: {advice}"


def test_words_alone_are_a_contract_error():
    error = failure_of_reply("Missing required field 'vm_ip'")
    assert type(error) is ContractError
    assert (error.code, error.retriable) == (None, False)
    assert error.message == "the manager refused the request: Missing required field 'vm_ip'"


@pytest.mark.parametrize(
    ("words", "estimated", "limit"),
    [
        ("reason=413 Payload Too Large: estimated_bytes=3145728 limit_bytes=1048576", 3145728, 1048576),
        ("413 Payload Too Large:\n estimated_bytes=7,\n limit_bytes=5", 7, 5),
        ("413 Payload Too Large: limit_bytes=5", None, 5),
        ("413 Payload Too Large: estimated_bytes=7", 7, None),
        ("413 Payload Too Large", None, None),
        (f"413 Payload Too Large: estimated_bytes={'9' * 5000} limit_bytes=5", None, 5),
    ],
)
@pytest.mark.parametrize("code", ["TRITON_INFERENCE_FAILED", "TRITON_ERROR", "TRITON_GREMLINS"])
def test_413_is_recognised_by_its_words_with_the_bytes_as_far_as_they_are_stated(
    words, estimated, limit, code
):
    error = failure_of_reply(Failure(code, words, retriable=True))
    assert type(error) is PayloadTooLargeError
    assert (error.estimated_bytes, error.limit_bytes) == (estimated, limit)
    assert (error.code, error.retriable) == (code, False)
    assert error.message.endswith(": send fewer rows a call")


@pytest.mark.parametrize("words", ["[413] nothing", "Payload Too Large", "reason=[404] no model 413"])
def test_other_words_with_these_numbers_are_no_413(words):
    assert type(failure_of_reply(Failure("TRITON_INFERENCE_FAILED", words))) is InferenceFailedError


# --- error messages ---


def test_a_shutdown_says_whether_the_request_may_have_run():
    rejected = failure_of_error(ErrorReply("rejected", "SYSTEM_SHUTDOWN"))
    dropped = failure_of_error(ErrorReply("dropped", "SYSTEM_SHUTDOWN", "inference"))
    assert type(rejected) is type(dropped) is ShuttingDownError
    assert (rejected.outcome_unknown, dropped.outcome_unknown) == (True, False)
    assert rejected.retriable
    assert rejected.message == "the manager is shutting down: rejected"
    assert failure_of_error(ErrorReply("x", "SYSTEM_SHUTDOWN", "")).outcome_unknown is False


@pytest.mark.parametrize("code", [code for code in ERROR_CODES if code.startswith("BACKPRESSURE_")])
def test_backpressure_says_that_nothing_ran(code):
    error = failure_of_error(ErrorReply("queue full", code, "inference"))
    assert type(error) is BackpressureError
    assert (error.code, error.retriable, error.outcome_unknown) == (code, True, False)
    assert error.message == "the manager dropped the request; it did not run: queue full"


@pytest.mark.parametrize("code", BEHIND_THE_MANAGER)
def test_a_code_of_triton_has_its_class_here_too(code):
    error = failure_of_error(ErrorReply("why", code))
    assert type(error) is ERROR_CODES[code].error
    assert (error.code, error.retriable) == (code, ERROR_CODES[code].retriable)
    assert error.message == f"{code}: why"


def test_an_unknown_code_is_a_protocol_error():
    error = failure_of_error(ErrorReply("why", "NEW_CODE"))
    assert type(error) is ProtocolError
    assert (error.code, error.retriable, error.message) == ("NEW_CODE", False, "NEW_CODE: why")


@pytest.mark.parametrize(
    ("words", "kind", "retriable", "advice"),
    [
        ("Forbidden: missing 'inference' role", PermissionDeniedError, False, "AuthContext(roles=...)"),
        ("Rate limit exceeded for this client (…)", RateLimitedError, True, "messages_per_second="),
        ("Message too large (>65536 bytes)", MessageTooLargeError, False, "max_message_bytes=65536"),
        ("Invalid token: Token has expired", AuthenticationError, False, "refused the authentication"),
        ("Too many failed auth attempts for this client", AuthenticationError, False, "authentication"),
        ("Invalid JSON format", ProtocolError, False, "refused the message"),
        ("UUID mismatch. Expected 'a', got 'b'", ProtocolError, False, "refused the message"),
        ("the uuid is Forbidden: not at the beginning", ProtocolError, False, "refused the message"),
        ("Message too large", ProtocolError, False, "refused the message"),
        (f"Message too large (>{'9' * 5000} bytes)", ProtocolError, False, "refused the message"),
        ("", ProtocolError, False, "refused the message"),
    ],
)
def test_without_a_code_the_words_decide(words, kind, retriable, advice):
    error = failure_of_error(ErrorReply(words))
    assert type(error) is kind
    assert (error.code, error.retriable, error.retry_after) == (None, retriable, None)
    assert advice in error.message


def test_a_message_that_is_too_large_for_the_manager_names_its_limit():
    error = failure_of_error(ErrorReply("Message too large (>131072 bytes)"))
    assert (error.size, error.limit) == (None, 131_072)
    assert error.message == (
        "the manager's limit is 131,072 bytes a message: send fewer rows a call, and set "
        "max_message_bytes=131072"
    )


# --- whatever the manager writes ---


@pytest.fixture(autouse=True)
def _token_was_sent():
    secret = Secret(TOKEN)
    yield
    assert secret.reveal() == TOKEN


@pytest.mark.parametrize("code", [*ERROR_CODES, "TRITON_GREMLINS", None])
def test_words_are_escaped_shortened_and_without_the_token(code):
    words = f"Rate \n\x1b {TOKEN} " + "x" * 1000
    errors = [failure_of_error(ErrorReply(words, code)), failure_of_reply(words)]
    if code is not None:
        errors.append(failure_of_reply(Failure(code, words)))
        errors.append(failure_of_reply(Failure(code, f"413 Payload Too Large {words}")))
    for error in errors:
        assert TOKEN not in f"{error!r} {vars(error)}"
        assert error.message.isprintable()
        assert len(error.message) < 450


def test_a_code_that_holds_the_token_is_shown_without_it():
    for error in (failure_of_error(ErrorReply("", TOKEN)), failure_of_reply(Failure(TOKEN))):
        assert TOKEN not in f"{error!r} {vars(error)}"
    assert len(failure_of_reply(Failure("x" * 10**6)).message) < 450
    assert type(failure_of_reply(Failure("TRITON_ERROR", TOKEN))) is TritonError


# --- management jobs ---

VM_GONE = "delete_vm: VM not found during deletion: vm-9"
NO_SERVER = "triton_delete_server: Server instance not found: s"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (f"Deletion failed: {VM_GONE}", {"server": "deleted", "container": "deleted", "vm": "missing"}),
        (
            f"Deletion failed: {NO_SERVER}; delete_container: refused; {VM_GONE}",
            {"server": "missing", "container": "failed", "vm": "missing"},
        ),
    ],
)
def test_a_deletion_that_failed_names_the_outcome_of_each_part(text, parts):
    error = failure_of_job("deletion", text)
    assert error.parts == parts
    for state in set(parts.values()):
        named = ", ".join(part for part, its in parts.items() if its == state)
        assert f"{state}: {named}" in error.message


@pytest.mark.parametrize(
    ("action", "text"),
    [
        ("create_vm", f"Deletion failed: {VM_GONE}"),
        ("deletion", f"odd. {VM_GONE}"),
        ("deletion", f"Deletion failed: odd. {VM_GONE}"),
        ("deletion", "Deletion failed: something new"),
    ],
)
def test_a_job_that_failed_in_another_way_has_no_parts(action, text):
    error = failure_of_job(action, text)
    assert error.parts == {}
    assert error.message == f"the job failed: {text}"


def test_a_deletion_that_lacks_an_id_is_helped():
    error = failure_of_job("delete_vm", "Missing required argument: vm_id")
    assert 'management("delete_vm", vm_id=..., ...)' in error.message
