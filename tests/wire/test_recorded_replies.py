"""What a real manager answered is read into the right structs and errors."""

from __future__ import annotations

import msgspec
import pytest

from tcm_sync import (
    AuthenticationError,
    BackpressureError,
    CircuitOpenError,
    ConnectFailedError,
    ContractError,
    Deployment,
    InferenceFailedError,
    KnownFaultError,
    MessageTooLargeError,
    PayloadTooLargeError,
    PermissionDeniedError,
    ProtocolError,
    QueueStats,
    RateLimitedError,
    Route,
    ShapeMismatchError,
    SharedMemoryRegistrationError,
    SharedMemoryUnavailableError,
    ShuttingDownError,
    StreamBusyError,
    StreamTimeoutError,
    TcmError,
    TritonNetworkError,
    TritonTimeoutError,
)
from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._transport.authentication import AuthExchange, UuidTakenError
from tcm_sync._wire.decode import (
    decode_failure,
    decode_inference,
    decode_info,
    decode_management,
    decode_message,
    decode_steps,
    decode_stream,
    decode_text,
    decode_value,
    peek,
)
from tcm_sync._wire.failures import ADVISORY, failure_of_error, failure_of_reply
from tcm_sync._wire.messages import (
    Alert,
    AuthOk,
    ErrorReply,
    Failure,
    InferenceReply,
    InfoReply,
    ManagementReply,
)

from .recordings import is_remark, recorded, text

FRAMES = [pytest.param(frame, id=frame.key) for frame in recorded("server") if not is_remark(frame.message)]
STRUCTS = {
    "auth.ok": AuthOk,
    "info_response": InfoReply,
    "management": ManagementReply,
    "inference": InferenceReply,
    "error": ErrorReply,
}

#: The recorder's words in place of an answer: silence, and one stretch of a stream.
REMARKS = """
    stream.ok shm.grpc backpressure.insufficient_budget stream.end.empty_tensor stream.end.no_output
    stream.end.not_utf8 stream.end.empty_first stream.end.error stream.registered_http stream.idle_end
    stream.idle_end.no_chunks stream.timeout.total stream.registered_decoupled inference.registered_http_hangs
    shutdown.hung_worker
    management.create_container_never_answered
"""


def of_type(*types):
    return [param for param in FRAMES if param.values[0].message["type"] in types]


def answers_auth(frame):
    return isinstance(frame.answers, dict) and frame.answers["type"] == "auth"


def test_every_answer_is_a_message_or_a_remark():
    remarks = {frame.case for frame in recorded("server") if is_remark(frame.message)}
    assert remarks == set(REMARKS.split())
    assert all(isinstance(param.values[0].message, dict) for param in FRAMES)
    assert {param.values[0].message["type"] for param in FRAMES} == {*STRUCTS, "alert"}


# --- structs ---


@pytest.mark.parametrize("frame", of_type(*STRUCTS))
def test_a_message_becomes_the_struct_of_its_type(frame):
    message = frame.message
    envelope, payload = decode_message(text(message))
    assert (envelope.type, envelope.uuid) == (message["type"], message.get("uuid"))
    assert type(payload) is STRUCTS[message["type"]]
    sent = {
        name: value
        for name, value in (message.get("payload") or {}).items()
        if name not in ("job_type", "tenant_id")  # of the one advisory; nothing here depends on them
    }
    kept = {name: plain(getattr(payload, name)) for name in payload.__struct_fields__}
    assert {name: kept.pop(name) for name in sent} == sent
    assert not any(kept.values())  # what was not sent is empty


def plain(value):
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("frame", of_type("alert"))
def test_an_alert_has_no_payload(frame):
    envelope, alert = decode_message(text(frame.message))
    assert (envelope.type, envelope.uuid, bytes(envelope.payload)) == ("alert", None, b"null")
    assert alert == Alert(
        message="x", error_type="TritonServerStateChanged", timestamp=frame.message["timestamp"]
    )


@pytest.mark.parametrize("frame", FRAMES)
def test_a_prefix_is_enough_to_tell_whose_reply_a_message_is(frame):
    message = frame.message
    found = peek(text(message)[:200])
    if "uuid" in message:
        assert found == (message["type"], message["uuid"])
    else:
        assert found is None


@pytest.mark.parametrize("frame", of_type("auth.ok"))
def test_what_is_granted(frame):
    granted = frame.message.get("payload", {}).get("capability", ["json"])
    assert exchange()._message(text(frame.message)) == frozenset(granted)


def exchange():
    """Make the opening side of an authentication, which has sent its message and reads the answers."""
    return AuthExchange(Endpoint.parse("ws://127.0.0.1/ws"), None, "c-1", 2**20, Deadline(None))


# --- inferences ---

ENDS = [
    f for f in of_type("inference") if f.values[0].message["payload"]["status"] in ("COMPLETED", "FAILED")
]
BEGINNINGS = [f for f in of_type("inference") if f not in ENDS]


@pytest.mark.parametrize("frame", ENDS)
def test_the_end_of_an_inference_is_read_for_its_own_socket_only(frame):
    payload = frame.message["payload"]
    reply = decode_inference(text(frame.message), frame.message["uuid"])
    assert (reply.status, reply.model_name) == (payload["status"], payload["model_name"])
    assert msgspec.json.decode(reply.data) == payload["data"]
    with pytest.raises(ProtocolError, match="expected an inference reply for uuid another"):
        decode_inference(text(frame.message), "another")


@pytest.mark.parametrize("frame", BEGINNINGS)
def test_the_beginning_of_a_stream_does_not_end_an_inference(frame):
    assert frame.case.startswith(
        ("stream.", "shm.grpc", "close.", "shutdown.stream_running", "inference.bare_int_dims")
    )
    with pytest.raises(ProtocolError, match=r"must end COMPLETED or FAILED, got (START|ONGOING)"):
        decode_inference(text(frame.message), frame.message["uuid"])


# --- streams, pipelines, questions and jobs ---


@pytest.mark.parametrize("frame", of_type("inference"))
def test_a_stream_reads_every_status_for_its_own_socket_only(frame):
    payload = frame.message["payload"]
    reply = decode_stream(text(frame.message), frame.message["uuid"])
    assert (reply.status, reply.model_name) == (payload["status"], payload["model_name"])
    assert msgspec.json.decode(reply.data) == payload["data"]
    with pytest.raises(ProtocolError, match="expected an inference reply for uuid another"):
        decode_stream(text(frame.message), "another")


@pytest.mark.parametrize("frame", BEGINNINGS)
def test_a_chunk_is_text_and_the_start_is_not(frame):
    reply = decode_stream(text(frame.message), frame.message["uuid"])
    if reply.status == "ONGOING":
        assert decode_text(reply.data) == frame.message["payload"]["data"]
    else:
        with pytest.raises(ProtocolError, match="unreadable message"):
            decode_text(reply.data)


def test_a_pipeline_is_read_step_by_step():
    ended = [param.values[0] for param in ENDS if param.values[0].case.startswith("pipeline.ok")]
    assert len(ended) == 1
    for frame in ended:
        reply = decode_inference(text(frame.message), frame.message["uuid"])
        steps = decode_steps(reply.data)
        assert {name: plain(outputs) for name, outputs in steps.items()} == frame.message["payload"]["data"]
        assert list(steps) == ["first", "checksum"]


@pytest.mark.parametrize("frame", of_type("info_response"))
def test_an_answer_about_the_manager_is_known_by_its_job(frame):
    payload = frame.message["payload"]
    reply = decode_info(text(frame.message))
    assert (reply.job_id, reply.request_type, reply.status) == tuple(
        payload[name] for name in ("job_id", "request_type", "status")
    )
    data = decode_value(reply.data)
    assert data == payload["data"]
    if reply.request_type == "queue_stats":
        stats = QueueStats.read(data)
        assert {name: getattr(stats, name) for name in data} == data
        assert stats.extra == {}


@pytest.mark.parametrize("frame", of_type("management"))
def test_the_answer_of_a_job_is_read_for_its_own_socket_only(frame):
    payload = frame.message["payload"]
    reply = decode_management(text(frame.message), frame.message["uuid"])
    assert (reply.status, decode_value(reply.data)) == (payload["status"], payload["data"])
    with pytest.raises(ProtocolError, match="expected a management reply for uuid another"):
        decode_management(text(frame.message), "another")


def test_the_data_of_a_creation_make_a_deployment():
    (created,) = (f.values[0] for f in of_type("management") if f.values[0].key == "management.creation#2")
    deployment = Deployment.read(created.message["payload"]["data"])
    assert deployment.route == Route("ctr-9", "127.0.0.1")
    assert deployment.vm_id is None
    assert deployment.model_name == "add_sub"
    assert str(deployment.signature) == (
        "(INPUT0: FP32[-1], INPUT1: FP32[-1]) -> (SUM: FP32[-1], DIFF: FP32[-1])"
    )


# --- failures ---

#: The error of each failure by its case, or by ``case#place`` where a case has several kinds. With the
#: manager's code, and whether the failure may pass (docs/errors.rst).
FAILURES = [
    (ShapeMismatchError, "TRITON_SHAPE_MISMATCH", False, """
        inference.flat_data tensors.empty_and_scalar.scalar tensors.empty_and_scalar.scalar_111
        tensors.empty_and_scalar.0_4 tensors.empty_and_scalar.1_0_4 tensors.empty_and_scalar.0_4_add_sub
        tensors.empty_and_scalar.bytes_scalar sdk.run_inference
    """),
    (InferenceFailedError, "TRITON_INFERENCE_FAILED", False, """
        inference.no_session inference.model_missing inference.missing_tensor inference.wrong_datatype
        inference.triton_down inference.timeout inference.vm_ip_wrong pipeline.no_session stream.wrong_output
        stream.model_missing stream.end.empty_first stream.end.error stream.registered_http shm.offset
        shm.grpc shm.mixed tensors.empty_and_scalar.scalar_shape1 tensors.float_out_of_range.i8_300
        tensors.float_out_of_range.i8_minus_1_u8 tensors.float_out_of_range.u64_over inference.batch_over_max
        inference.bare_int_dims inference.decoupled_over_http inference.registered_grpc
        http.ready_registered_unhealthy
    """),
    (KnownFaultError, "TRITON_INFERENCE_FAILED", True, """
        inference.registered_http_workers inference.registered_http_hangs
    """),
    (StreamBusyError, "TRITON_INFERENCE_FAILED", True, """
        stream.registered_two_at_once stream.registered_closed_meanwhile
    """),
    (StreamTimeoutError, "TRITON_INFERENCE_FAILED", False, """
        stream.idle_end stream.idle_end.no_chunks stream.timeout.total shutdown.stream_running
    """),
    (PayloadTooLargeError, "TRITON_INFERENCE_FAILED", False, "inference.413"),
    (TritonNetworkError, "TRITON_NETWORK", True, """
        inference.triton_down.retriable#2 inference.triton_down.retriable#3
    """),
    (CircuitOpenError, "TRITON_CIRCUIT_OPEN", True, """
        inference.triton_down.retriable#4 inference.triton_down.retriable#5 inference.triton_down.retriable#6
    """),
    (TritonTimeoutError, "TRITON_TIMEOUT", True, "inference.timeout.retriable"),
    (SharedMemoryUnavailableError, "TRITON_SHM_UNAVAILABLE", False, """
        shm.no_such_key shm.unlinked_and_remade shm.registered_after_manager_restart#2
    """),
    (SharedMemoryRegistrationError, "TRITON_SHM_REGISTRATION_FAILED", False, """
        shm.again_other_size shm.transient_second_use shm.transient_further_uses shm.two_routes
        shm.unlinked_and_remade.transient shm.registered_after_manager_restart#3
        shm.registered_after_manager_restart#4 shm.registered_other_size
    """),
    (ContractError, None, False, """
        inference.vm_ip_missing inference.container_id_missing inference.inputs_missing
        inference.unknown_container inference.bad_protocol
    """),
]  # fmt: skip

#: The same of ``error`` messages.
REFUSALS = [
    (PermissionDeniedError, None, False, "authz.inference authz.management auth.strict.claims"),
    (RateLimitedError, None, True, """
        limit.messages_per_second limit.prod_20 limit.prod_20.info limit.prod_20.in_flight
    """),
    (BackpressureError, "BACKPRESSURE_TENANT_LIMIT_REACHED", True, """
        limit.tenant limit.tenant.across_uuids limit.tenant.strict
    """),
    (BackpressureError, "BACKPRESSURE_QUEUE_FULL", True, "backpressure.queue_full"),
    (ShuttingDownError, "SYSTEM_SHUTDOWN", True, """
        shutdown.queued shutdown.idle shutdown.management_ran shutdown.management_ran.1s
        shutdown.management_ran.creation shutdown.management_late shutdown.creation_just_before
        shutdown.management_nacked shutdown.new_socket shutdown.hung_worker
        shutdown.inference_sent_while_draining
    """),
    (MessageTooLargeError, None, False, "envelope.too_large"),
    (ProtocolError, None, False, """
        envelope.uuid_mismatch envelope.bad_json_later envelope.unknown_type envelope.missing_payload
        inference.not_finite tensors.float_out_of_range.1e400 tensors.float_out_of_range.f64_1e400
    """),
]  # fmt: skip

#: The same of what came in place of ``auth.ok``: whatever the words, the identity was refused.
REFUSED_AUTHS = {
    "auth.not_first": AuthenticationError,
    "auth.bad_json": AuthenticationError,
    "auth.missing_uuid": AuthenticationError,
    "auth.payload_not_object": AuthenticationError,
    "auth.duplicate_uuid": UuidTakenError,  # an AuthenticationError, after some fresh uuids
    "auth.strict.expired": AuthenticationError,
    "auth.strict.missing": AuthenticationError,
    "auth.strict.too_many": AuthenticationError,
    "auth.jwks_outage": AuthenticationError,
    "auth.jwks_hangs": AuthenticationError,
}

ADVISED = {"backpressure.insufficient_budget"}

#: What else the errors carry.
FIELDS = {
    "inference.413": {"estimated_bytes": 3 * 2**20, "limit_bytes": 2**20},
    "inference.triton_down.retriable#4": {"retry_after": 5.0},
    "inference.triton_down.retriable#5": {"retry_after": 5.0},
    "inference.triton_down.retriable#6": {"retry_after": 5.0},
    "envelope.too_large": {"limit": 65_536},
}

#: Of a shutdown, whether the request may have run: not if it was dropped from a queue.
DROPPED = {"shutdown.queued", "shutdown.management_nacked"}

FAILED = [f for f in ENDS if f.values[0].message["payload"]["status"] == "FAILED"]
REFUSED = [f for f in of_type("error") if f.values[0].case not in {*REFUSED_AUTHS, *ADVISED}]


def expected_of(frame, table):
    """Find the row of a frame: its error, code, and whether it may pass."""
    (row,) = (row for row in table if {frame.case, frame.key} & set(row[3].split()))
    return row[:3]


@pytest.mark.parametrize(("frames", "table"), [(FAILED, FAILURES), (REFUSED, REFUSALS)])
def test_the_tables_name_cases_that_there_are(frames, table):
    names = [name for row in table for name in row[3].split()]
    assert len(names) == len(set(names))
    frames = [param.values[0] for param in frames]
    assert set(names) <= {frame.case for frame in frames} | {frame.key for frame in frames}


def check(error, frame, table):
    kind, code, retriable = expected_of(frame, table)
    assert type(error) is kind
    assert (error.code, error.retriable) == (code, retriable)
    fields = FIELDS.get(frame.key) or FIELDS.get(frame.case) or {}
    assert error.retry_after == fields.get("retry_after")
    for name in ("estimated_bytes", "limit_bytes", "size", "limit"):
        assert getattr(error, name, None) == fields.get(name)
    unknown = kind is TritonTimeoutError or (kind is ShuttingDownError and frame.case not in DROPPED)
    assert error.outcome_unknown == unknown  # TRITON_NETWORK is recorded of refused connections alone


@pytest.mark.parametrize("frame", FAILED)
def test_a_failure_becomes_the_error_of_its_code(frame):
    reply = decode_inference(text(frame.message), frame.message["uuid"])
    data = frame.message["payload"]["data"]
    failure = decode_failure(reply.data)
    error = failure_of_reply(failure)
    check(error, frame, FAILURES)
    words = data if isinstance(data, str) else data["message"]
    assert words.replace("\n", "\\n").replace("\t", "\\t")[:250] in error.message
    if isinstance(failure, Failure):
        assert failure == Failure(**data)
        assert failure.retriable == (error.retriable and not isinstance(error, KnownFaultError))
    else:
        assert failure == data


@pytest.mark.parametrize("frame", REFUSED)
def test_a_refusal_becomes_the_error_of_its_code_or_its_words(frame):
    _, payload = decode_message(text(frame.message))
    error = failure_of_error(payload)
    check(error, frame, REFUSALS)
    if type(error) is not MessageTooLargeError:
        assert frame.message["payload"]["message"] in error.message


def is_outage(said):
    """Whether the key server is what failed, and not the token."""
    words = ("Fail to fetch data", "did not contain any keys", "Expecting value")
    return any(part in said for part in words)


@pytest.mark.parametrize("frame", [f for f in of_type("error") if f.values[0].case in REFUSED_AUTHS])
def test_a_refusal_in_place_of_auth_ok_is_a_refused_authentication(frame):
    said = frame.message["payload"]["message"]
    outage = is_outage(said)
    with pytest.raises(TcmError) as caught:
        exchange()._message(text(frame.message))
    assert type(caught.value) is (ConnectFailedError if outage else REFUSED_AUTHS[frame.case])
    assert said in caught.value.message
    assert caught.value.retriable is outage


@pytest.mark.parametrize("frame", [f for f in of_type("error") if f.values[0].case in ADVISED])
def test_advice_is_distinguished_from_refusals_by_its_code(frame):
    _, payload = decode_message(text(frame.message))
    assert payload.code == ADVISORY
    assert exchange()._message(text(frame.message)) is None


def test_a_shutdown_right_after_auth_ok_is_no_refused_authentication():
    """In the recording it comes behind auth.ok; a manager may as well send it instead."""
    trailing = [
        param.values[0]
        for param in of_type("error")
        if param.values[0].case == "shutdown.new_socket" and answers_auth(param.values[0])
    ]
    assert len(trailing) == 2
    for frame in trailing:
        with pytest.raises(ShuttingDownError):
            exchange()._message(text(frame.message))


def test_a_pause_of_the_manager_is_never_negative_nor_lost():
    for seconds, pause in [(5, 5.0), (0, 0.0), (-3.5, 0.0), (0.25, 0.25)]:
        error = failure_of_reply(Failure("TRITON_CIRCUIT_OPEN", retry_after_seconds=seconds))
        assert error.retry_after == pause
