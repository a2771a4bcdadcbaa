"""Our messages: what is in them, what is left out, and how large they may be."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from tcm_sync import AuthContext, ClientClosedError, MessageTooLargeError, Route, TcmClient
from tcm_sync._calls.options import CallOptions
from tcm_sync._calls.request import encode_tensors
from tcm_sync._secrets import Secret
from tcm_sync._tensors import check_inputs
from tcm_sync._transport.authentication import auth_request, fresh_uuid
from tcm_sync._wire.encode import check_size, encode_message, encode_payload, size_of
from tcm_sync._wire.messages import (
    AuthRequest,
    ClientIdentity,
    InferencePayload,
    InferenceRequest,
    InputTensor,
    StepRequest,
)


def test_a_message_is_its_envelope_around_the_payload_as_it_is():
    large = b'{"a": '
    message = encode_message("u-1", "inference", (large, b"1}"))
    assert b"".join(message) == b'{"uuid":"u-1","type":"inference","payload":{"a": 1}}'
    assert any(piece is large for piece in message)  # it was not copied


# --- auth ---


def auth_payload(**fields):
    token = fields.pop("token", None)
    secret = None if token is None else Secret(token)
    return json.loads(*encode_payload(auth_request(AuthContext(**fields), secret, ("json",))))


def test_who_is_nobody_says_only_what_it_can():
    assert auth_payload() == {"capability": ["json"]}
    assert json.loads(*encode_payload(AuthRequest())) == {}


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        ({"sub": "svc"}, {"sub": "svc"}),
        ({"tenant_id": "acme"}, {"tenant_id": "acme"}),
        ({"roles": ["inference", "admin"]}, {"roles": ["inference", "admin"]}),
        ({"roles": {"inference"}, "sub": "é"}, {"roles": ["inference"], "sub": "é"}),
        ({"roles": []}, None),
        ({"uuid": "only-a-prefix"}, None),
    ],
)
def test_of_an_identity_only_what_there_is_is_sent(fields, client):
    assert auth_payload(**fields).get("client") == client


def test_the_token_is_sent_as_it_is():
    token = 'q"\\/é\U0001f511'
    assert auth_payload(token=token) == {"token": token, "capability": ["json"]}
    assert auth_payload(token="") == {"token": "", "capability": ["json"]}


# --- inference ---


def inference(route=Route("c"), *, allow_transient=False):  # noqa: B008 - it is frozen
    return json.loads(encoded({"x": np.ones(1)}, route, allow_transient=allow_transient))


def encoded(inputs, route=Route("c"), *, allow_transient=False):  # noqa: B008 - it is frozen
    plan = CallOptions("m", route, allow_transient, None, None, None)
    return b"".join(encode_tensors(plan, check_inputs(inputs), limit=10**6, envelope_bytes=0))


def test_an_inference_has_the_keys_that_it_needs_and_no_other():
    assert inference() == {
        "container_id": "c",
        "model_name": "m",
        "request": {
            "protocol": "http",
            "inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}],
        },
    }


def test_the_route_is_sent_as_far_as_it_is_known():
    assert inference(Route("c", "10.0.0.1"))["vm_ip"] == "10.0.0.1"
    assert inference(Route("c", vm_id="vm"))["vm_id"] == "vm"
    assert "vm_ip" not in inference(Route("c", vm_id="vm"))


def test_a_server_that_is_not_registered_is_asked_for_in_so_many_words():
    assert inference(allow_transient=True)["request"]["allow_transient"] is True
    assert "allow_transient" not in inference()["request"]


# --- structs ---


def test_the_structs_of_all_requests_leave_out_what_is_not_given():
    tensor = InputTensor("x", (1, 2), "FP32", msgspec.Raw(b"[[1,2.5]]"))
    written = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2.5]]}

    def read(struct):
        return json.loads(msgspec.json.encode(struct))

    assert read(InferenceRequest((tensor,), "grpc", output_name="text")) == {
        "protocol": "grpc",
        "inputs": [written],
        "output_name": "text",
    }
    assert read(
        InferencePayload("c", pipeline=(StepRequest("m", msgspec.Raw(msgspec.json.encode([tensor]))),))
    ) == {
        "container_id": "c",
        "pipeline": [{"model_name": "m", "inputs": [written]}],
    }
    assert read(ClientIdentity()) == {}


# --- sizes ---


def test_a_message_of_just_the_limit_passes():
    check_size(100, 100)
    check_size(100, 100, at_least=True)


def test_a_message_over_the_limit_is_refused_with_numbers_and_advice():
    with pytest.raises(MessageTooLargeError) as caught:
        check_size(70_001, 65_536)
    error = caught.value
    assert (error.size, error.limit, error.retriable, error.code) == (70_001, 65_536, False, None)
    assert error.message == (
        "the message has 70,001 bytes, and max_message_bytes is 65,536: send fewer rows a call "
        "(infer_chunked cuts a batch), or raise the limit here and in the manager alike"
    )
    assert (error.attempts, error.outcome_unknown) == (0, False)


def test_a_lower_bound_is_called_one():
    with pytest.raises(MessageTooLargeError, match="has at least 70,001 bytes"):
        check_size(70_001, 65_536, at_least=True)


def test_an_array_that_is_hopelessly_large_is_refused_before_it_is_written(monkeypatch):
    monkeypatch.setattr(
        "tcm_sync._calls.request.encode_inputs", lambda tensors: pytest.fail("it was written")
    )
    huge = np.broadcast_to(np.float32(0), (1, 40_000))
    with pytest.raises(MessageTooLargeError, match="at least"):
        TcmClient("ws://127.0.0.1/ws", route=Route("c")).infer("m", {"x": huge})


@pytest.mark.parametrize("uuid", ["tcm-sync", "p", "p" * 40, "p" * 400])
def test_the_limit_is_that_of_the_whole_message(uuid):
    inputs = {"x": np.ones((2, 3), np.float32)}

    def refusal(limit):
        client = TcmClient("ws://h/ws", AuthContext(uuid=uuid), route=Route("c"), max_message_bytes=limit)
        client.close()  # what is not too large is refused next, for want of a socket
        with pytest.raises((MessageTooLargeError, ClientClosedError)) as caught:
            client.infer("m", inputs)
        return caught.value

    payload = encoded(inputs)
    size = size_of(encode_message(fresh_uuid(uuid), "inference", (payload,)))
    assert refusal(size - 1).size == size
    assert type(refusal(size)) is ClientClosedError
