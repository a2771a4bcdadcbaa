"""What a real manager was sent, our encoder makes too; what it does not make is listed here, by case."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tcm_sync import AuthContext, InferenceInput, InputError, PipelineStep, SHMReference, TcmClient
from tcm_sync._pool.runtime import Runtime
from tcm_sync._pool.stream_turns import StreamTurns
from tcm_sync._secrets import Secret
from tcm_sync._tensors.datatypes import DATATYPES
from tcm_sync._transport.authentication import CAPABILITY, auth_request
from tcm_sync._wire.encode import encode_message, encode_payload

from ..helpers.scripted_peer import ScriptedPeer
from .recordings import is_remark, recorded

ALL = recorded("client")
AUTHS = [frame for frame in ALL if isinstance(frame.message, dict) and frame.message.get("type") == "auth"]
REQUESTS = [frame for frame in ALL if frame not in AUTHS]

# --- what the client does not send ---

#: Nothing makes these, now or later.
NEVER = {
    "not JSON": "auth.bad_json envelope.bad_json_later inference.not_finite",
    "broken envelope": "envelope.unknown_type envelope.missing_payload",
    # Only its job_id shows which question an answer is to, so ours always have one.
    "info without job_id": """
        auth.not_first envelope.uuid_mismatch envelope.bad_json_later limit.messages_per_second shutdown.idle
        alert info.queue_stats_while_job_runs info.queue_stats_while_inference_runs info.queue_alias
        inference.registered_http_hangs limit.tenant.across_uuids sdk.info_queue_stats
        management.create_container_never_answered
    """,
    "info by another key": "info.queue_alias",
    # Null and empty keys, which ours leaves out; everything that ours has in the request.
    "no pipeline": "inference.pipeline_null",
    "pipeline and request": "inference.pipeline_and_request",
    "inputs at the top level": "inference.top_level_inputs",
    "the official client's form": """
        sdk.inference_http sdk.inference_pipeline sdk.infer sdk.run_inference
    """,
    "no container": "inference.container_id_missing",
    "no request": "inference.inputs_missing",
    "unknown protocol": "inference.bad_protocol",
    # Callers may pass these two; what goes out is the other form, nested.
    "the manager's own form": "inference.manager_shape",
    "flat data": "inference.flat_data",
    "a bare number as shape": "inference.bare_int_dims",
    "the names of types in configurations": "inference.type_names",
    # A reference is all of an input, from the file's beginning, beside others of its kind.
    "part of a reference": "shm.offset shm.grpc shm.mixed",
    # The manager refuses or changes these, so they are refused before they are sent.
    "refused here": """
        inference.413 tensors.empty_and_scalar.scalar tensors.empty_and_scalar.scalar_shape1
        tensors.empty_and_scalar.scalar_111 tensors.empty_and_scalar.0_4 tensors.empty_and_scalar.1_0_4
        tensors.empty_and_scalar.0_4_add_sub tensors.empty_and_scalar.bytes_scalar tensors.bytes_trailing_nul
        tensors.bytes_trailing_nul.inner tensors.bytes_mixed_number tensors.float_out_of_range.1e39
        tensors.float_out_of_range.minus_1e39 tensors.float_out_of_range.1e400
        tensors.float_out_of_range.f64_1e400 tensors.float_out_of_range.f16_1e5
        tensors.float_out_of_range.i8_300 tensors.float_out_of_range.i8_minus_1_u8
        tensors.float_out_of_range.i32_1.5 tensors.float_out_of_range.u64_over
    """,
}
#: The recorder's words in place of a message.
REMARKS = """
    envelope.too_large backpressure.queue_full shutdown.queued shutdown.stream_running
    correlation.stale_after_reconnect close.queued_not_cancelled close.grpc_stream_aborted
    close.grpc_stream_aborted.longer
"""
LISTED = {kind: set(cases.split()) for kind, cases in {**NEVER, "remark": REMARKS}.items()}

#: What is sent now: by kind, how many cases have such requests, and how many requests they are.
SENT = {
    "inference": (58, 122),
    "reference": (14, 28),
    "stream": (17, 25),
    "pipeline": (4, 4),
    "info": (3, 4),
    "management": (33, 87),
}

AUTHS_NEVER = {"auth.capability.unsupported", "auth.missing_uuid", "auth.payload_not_object"}


def parsed(message):
    """Return a request's message, also one that was kept as text; None if it is not JSON."""
    if isinstance(message, dict):
        return message
    try:
        return json.loads(message.removeprefix("(verbatim) "), parse_constant=no_such_constant)
    except ValueError:
        return None


def no_such_constant(name):
    raise ValueError(f"{name} is not JSON")


def kind_of(frame):
    """Say what a request is: a key of `SENT`, or of `LISTED` if it is none of those."""
    if is_remark(frame.message):
        return "remark"
    message = parsed(frame.message)
    if message is None:
        return "not JSON"
    if message["type"] not in ("info", "management", "inference") or "payload" not in message:
        return "broken envelope"
    payload = message["payload"]
    if message["type"] != "inference":
        if message["type"] == "info" and ("action" not in payload or "request_type" in payload):
            return "info by another key"
        without = message["type"] == "info" and "job_id" not in payload
        return "info without job_id" if without else message["type"]
    return kind_of_inference(frame.case, payload)


def kind_of_inference(case, payload):
    if case.startswith("sdk."):
        return "the official client's form"
    if payload.get("pipeline"):
        return "pipeline and request" if "request" in payload else "pipeline"
    if "pipeline" in payload:
        return "no pipeline"
    if "inputs" in payload:
        return "inputs at the top level"
    if "container_id" not in payload:
        return "no container"
    if "request" not in payload:
        return "no request"
    request = payload["request"]
    protocol = request.get("protocol", "http")
    if any(type(tensor.get("shape", tensor.get("dims"))) is int for tensor in request["inputs"]):
        return "a bare number as shape"
    if any(tensor.get("datatype", "").startswith("TYPE_") for tensor in request["inputs"]):
        return "the names of types in configurations"
    if any("shm_key" in tensor for tensor in request["inputs"]):
        whole = all(tensor.get("offset") == 0 for tensor in request["inputs"])
        return "reference" if whole and protocol == "http" else "part of a reference"
    if protocol != "http":
        return "stream" if protocol == "grpc" else "unknown protocol"
    if any("dims" in tensor for tensor in request["inputs"]):
        return "the manager's own form"
    if case == "inference.flat_data":
        return "flat data"
    return "refused here" if case in LISTED["refused here"] else "inference"


def of_kind(kind):
    return [pytest.param(frame, id=frame.key) for frame in REQUESTS if kind_of(frame) == kind]


def test_the_lists_and_what_is_sent_cover_every_request_of_every_case():
    found = {}
    for frame in REQUESTS:
        found.setdefault(kind_of(frame), []).append(frame.case)
    sent = {kind: found.pop(kind) for kind in SENT}
    assert {kind: (len(set(cases)), len(cases)) for kind, cases in sent.items()} == SENT
    assert {kind: set(cases) for kind, cases in found.items()} == LISTED


def test_every_case_with_messages_has_its_authentication_here():
    """But the two that fail before it."""
    assert {frame.case for frame in AUTHS} == {frame.case for frame in ALL} - {
        "auth.not_first",
        "auth.bad_json",
    }
    assert {frame.case for frame in AUTHS} >= AUTHS_NEVER


# --- what it does send ---

SENT_AUTHS = [pytest.param(frame, id=frame.key) for frame in AUTHS if frame.case not in AUTHS_NEVER]


@pytest.mark.parametrize("frame", SENT_AUTHS)
def test_authentications_are_what_ours_are(frame):
    payload = frame.message["payload"]
    client = payload.get("client", {})
    token = Secret(payload["token"]) if "token" in payload else None
    request = auth_request(AuthContext(**client), token, CAPABILITY)
    made = json.loads(b"".join(encode_message(frame.message["uuid"], "auth", encode_payload(request))))
    assert made == {**frame.message, "payload": with_our_capability(without_empty_roles(payload))}


def with_our_capability(payload):
    """The recordings ask for nothing, for JSON, or for shared memory too; ours ask for both."""
    return {**payload, "capability": list(CAPABILITY)}


def without_empty_roles(payload):
    """An empty list of roles means the same as none, and is left out (docs/wire.rst, "Authentication")."""
    client = payload.get("client", {})
    if client.get("roles") == []:
        return {**payload, "client": {key: value for key, value in client.items() if key != "roles"}}
    return payload


class Said(Exception):
    """What a client has to send."""

    def __init__(self, call):
        super().__init__(call)
        self.call = call


class Recorder(Runtime):
    """What calls run on, as far as sending."""

    def __init__(self):
        self.reader = SimpleNamespace(stopping=False, is_reading=True)
        self.manager_state = SimpleNamespace(managers=0)
        self.sender = SimpleNamespace(stream_turns=StreamTurns(), attempt=self.record)

    def record(self, call):
        raise Said(call)


def made(message, ask):
    """Return the message that a call of a client makes, with the uuid of the one that was recorded."""
    client = TcmClient("ws://127.0.0.1/ws")
    client._core.runtime = Recorder()
    try:
        ask(client)
    except Said as said:
        call = said.call
    finally:
        client._core.runtime = None
    return json.loads(b"".join(encode_message(message["uuid"], call.kind, call.payload)))


def encoded(message, inputs):
    """Make a recorded inference again, from what a caller would pass."""
    payload = message["payload"]
    transient = payload["request"].get("allow_transient", False)
    where = where_of(payload)
    return made(
        message,
        lambda client: client.infer(payload["model_name"], inputs, allow_transient=transient, **where),
    )


def where_of(payload):
    return {name: payload[name] for name in ("container_id", "vm_ip", "vm_id") if name in payload}


def arrays(message):
    return arrays_of(message["payload"]["request"]["inputs"])


def arrays_of(tensors):
    return {
        tensor["name"]: np.array(tensor["data"], dtype=DATATYPES[tensor["datatype"]].dtype)
        for tensor in tensors
    }


def described(message):
    return [InferenceInput(**tensor) for tensor in message["payload"]["request"]["inputs"]]


@pytest.mark.parametrize("frame", of_kind("reference"))
def test_requests_by_reference_are_what_ours_are(frame):
    message = frame.message
    payload, request = message["payload"], message["payload"]["request"]
    inputs = [
        SHMReference(each["name"], each["shm_key"], each["byte_size"], each["shape"], each["dtype"])
        for each in request["inputs"]
    ]
    assert encoded(message, inputs) == {
        **message,
        "payload": {**payload, "request": {"protocol": "http", **request}},
    }


def as_ours(message):
    """Apply what we say in other words: no ``allow_transient`` for false, always the protocol, FP16."""
    payload = message["payload"]
    request = {"protocol": "http", **payload["request"]}
    if request.get("allow_transient") is False:
        del request["allow_transient"]
    request["inputs"] = [with_our_fp16(tensor) for tensor in request["inputs"]]
    return {**message, "payload": {**payload, "request": request}}


def with_our_fp16(tensor):
    """FP16 goes out with the digits of the FP32 that it equals, which read as FP16 are the same."""
    if tensor["datatype"] != "FP16":
        return tensor
    assert tensor["data"] == [[[1.5, 0.1]]]
    assert np.float16(0.099975586) == np.float16(0.1)
    return {**tensor, "data": [[[1.5, 0.099975586]]]}


@pytest.mark.parametrize("frame", of_kind("inference"))
def test_requests_are_what_ours_are_from_arrays(frame):
    message = parsed(frame.message)
    assert encoded(message, arrays(message)) == as_ours(message)


@pytest.mark.parametrize(
    "frame", [f for f in of_kind("inference") if f.values[0].key != "inference.not_finite#2"]
)
def test_requests_are_what_ours_are_from_described_inputs(frame):
    """All but the one with a null, which a caller writes as NaN."""
    message = parsed(frame.message)
    assert encoded(message, described(message)) == as_ours(message)


@pytest.mark.parametrize("frame", of_kind("the manager's own form") + of_kind("flat data"))
def test_inputs_in_another_form_go_out_like_the_rest(frame):
    (plain,) = (f for f in REQUESTS if f.case == "inference.sdk_shape")
    again = encoded(frame.message, frame.message["payload"]["request"]["inputs"])
    assert {**again, "uuid": plain.message["uuid"]} == plain.message


OTHER_FORMS = (
    *of_kind("no pipeline"),
    *of_kind("inputs at the top level"),
    *of_kind("the names of types in configurations"),
    *(frame for frame in of_kind("the official client's form") if "pipeline" not in frame.values[0].case),
)


@pytest.mark.parametrize("frame", OTHER_FORMS)
def test_what_is_asked_in_another_form_goes_out_in_ours(frame):
    """Nested inputs in the request, Triton's own names of types, and nothing that is empty."""
    payload = frame.message["payload"]
    request = {"protocol": "http", **payload.get("request", {})}
    inputs = request.get("inputs") or payload["inputs"]
    request["inputs"] = [
        {
            **tensor,
            "datatype": tensor["datatype"].removeprefix("TYPE_").replace("STRING", "BYTES"),
            "data": np.reshape(tensor["data"], tensor["shape"]).tolist(),
        }
        for tensor in inputs
    ]
    ours = {name: value for name, value in payload.items() if value and name not in ("inputs", "request")}
    transient = request.pop("allow_transient", False)
    ours["request"] = {**request, "allow_transient": True} if transient else request
    again = made(
        frame.message,
        lambda client: client.infer(
            payload["model_name"],
            [InferenceInput(**tensor) for tensor in inputs],
            allow_transient=transient,
            **where_of(payload),
        ),
    )
    assert again == {**frame.message, "payload": ours}


@pytest.mark.parametrize("frame", of_kind("refused here"))
def test_requests_that_the_manager_refuses_or_changes_are_never_made(frame):
    message = parsed(frame.message)
    tensor = message["payload"]["request"]["inputs"][0]
    with pytest.raises(InputError, match=f'^input "{tensor["name"]}": '):
        encoded(message, described(message))


def test_the_manager_gets_vm_id_where_a_route_has_it():
    (plain,) = (f.message for f in REQUESTS if f.case == "inference.vm_ip_derived")
    message = {**plain, "payload": {**plain["payload"], "vm_id": "vm-9"}}
    assert encoded(message, arrays(message)) == as_ours(message)


# --- streams, pipelines, questions and jobs ---


@pytest.mark.parametrize("frame", of_kind("stream"))
def test_streams_are_what_ours_are(frame):
    """But for the output's usual name, which ours always state."""
    message = frame.message
    payload, request = message["payload"], message["payload"]["request"]
    options = {name: request[name] for name in ("allow_transient", "output_name") if name in request}
    again = made(
        message,
        lambda client: client.stream(payload["model_name"], arrays(message), **options, **where_of(payload)),
    )
    assert again == {**message, "payload": {**payload, "request": {"output_name": "output", **request}}}


@pytest.mark.parametrize("frame", of_kind("pipeline"))
def test_pipelines_are_what_ours_are(frame):
    payload = frame.message["payload"]
    steps = [{**step, "inputs": arrays_of(step["inputs"])} for step in payload["pipeline"]]
    for form in (dict, lambda **step: PipelineStep(**step)):
        asked = [form(**step) for step in steps]
        again = made(frame.message, lambda client, asked=asked: client.pipeline(asked, **where_of(payload)))
        assert again == frame.message


@pytest.mark.parametrize("frame", of_kind("info"))
def test_questions_are_what_ours_are(frame):
    assert made(frame.message, lambda client: client.info(**frame.message["payload"])) == frame.message


@pytest.mark.parametrize("frame", of_kind("info without job_id"))
def test_a_question_gets_a_job_id_of_its_own(frame):
    action = frame.message["payload"]["action"]
    asked = TcmClient.queue_stats if action == "queue_stats" else lambda client: client.info(action)
    first, second = (made(frame.message, asked) for _ in range(2))
    ids = {message["payload"].pop("job_id") for message in (first, second)}
    assert len(ids) == 2
    assert first == second == frame.message


@pytest.mark.parametrize("frame", of_kind("management"))
def test_jobs_are_what_ours_are(frame):
    payload = frame.message["payload"]
    assert made(frame.message, lambda client: client.management(**payload)) == frame.message
    blocks = {name: block for name, block in payload.items() if name != "action"}
    shortcuts = {"creation": TcmClient.create, "deletion": TcmClient.delete}
    if shortcut := shortcuts.get(payload["action"]):
        again = made(frame.message, lambda client: shortcut(client, **blocks))
        assert again == {**frame.message, "payload": with_ids_in_blocks(payload)}


def with_ids_in_blocks(payload):
    """The manager finds the ids of a deletion there too, and ours are put there."""
    payload = {**payload}
    for block, name in (("openstack", "vm_id"), ("docker", "container_id")):
        if payload["action"] == "deletion" and name in payload:
            payload[block] = {**payload.get(block, {}), name: payload.pop(name)}
    return payload


def test_a_deletion_is_said_with_its_two_ids():
    (frame,) = (f for f in REQUESTS if f.case == "management.deletion")
    again = made(frame.message, lambda client: client.delete(vm_id="vm-9", container_id="ctr-9"))
    assert again == frame.message


def test_the_whole_client_says_what_was_recorded():
    auth, request = (frame.message for frame in ALL if frame.case == "inference.sdk_shape")
    said = []

    def script(connection):
        connection.accept()
        said.append(connection.recv_json())
        connection.send_text({"type": "auth.ok", "payload": {"capability": ["json"]}})
        said.append(connection.recv_json())
        connection.uuid = said[1]["uuid"]
        connection.reply({"SUM": [[2.0, 3.0, 4.0, 5.0]]})
        connection.wait_eof()

    who = AuthContext(token=auth["payload"]["token"], **auth["payload"]["client"])
    with ScriptedPeer(script) as peer, TcmClient(peer.uri, who) as client:
        where = {"container_id": "ctr-9", "vm_ip": "127.0.0.1"}
        client.infer("add_sub", arrays(request), **where, allow_transient=True)
    uuid = said[0]["uuid"]
    assert said == [
        {**auth, "uuid": uuid, "payload": with_our_capability(auth["payload"])},
        {**as_ours(request), "uuid": uuid},
    ]
