"""Pipelines: what is checked before sending, what is sent, and which step gets the blame."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import numpy as np
import pytest

from tcm_sync import InferenceFailedError, InputError, MessageTooLargeError, PipelineStep, ProtocolError

from ..helpers.peer_scripts import ask, connect, echo, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for

X = {"x": np.array([[1.5]], np.float32)}
STEPS = [{"name": "first", "model_name": "a", "inputs": X}, PipelineStep("b", X, output_dtypes=np.float32)]


def answering(data, requests=None):
    def script(connection):
        connection.welcome()
        payload = connection.recv_request()
        if requests is not None:
            requests.append(payload)
        connection.reply(data, model_name=None)
        while True:
            payload = connection.recv_request()
            connection.reply({"y": payload["request"]["inputs"][0]["data"]})

    return script


def test_what_is_sent_and_what_comes():
    requests = []
    data = {"b": {"y": [[0.1]]}, "first": {"y": [[7]]}, "news": {"z": 1}}
    with ScriptedPeer(answering(data, requests)) as peer, connect(peer) as client:
        results = client.pipeline(STEPS)
    assert list(results) == ["first", "b"]
    assert results["first"]["y"].tolist() == [[7]]
    assert results["first"].model_name == "a"
    assert results["b"]["y"].dtype == np.float32
    assert results["b"].raw == b'{"y": [[0.1]]}'
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [[1.5]]}
    assert requests == [
        {
            "container_id": "c1",
            "vm_ip": "127.0.0.1",
            "pipeline": [
                {"model_name": "a", "inputs": [tensor], "name": "first"},
                {"model_name": "b", "inputs": [tensor]},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([], "no steps"),
        ({"a": X}, "a sequence of PipelineStep"),
        (PipelineStep("a", X), "a sequence of PipelineStep"),
        ("ab", "a sequence of PipelineStep"),
        (7, "a sequence of PipelineStep"),
        (["a"], "step 0 must be a PipelineStep or a dict, not str"),
        ([{"inputs": X}], "step 0: lacks 'model_name'"),
        ([{"model_name": "a", "inputs": X, "model": 1}], "step 0: has the unknown key 'model'"),
        ([{"model_name": "", "inputs": X}], "its model_name must be a text"),
        ([{"model_name": "a", "inputs": X, "name": 3}], "its name must be a text"),
        ([{"model_name": "a", "inputs": X, "protocol": "grpc"}], "over http alone, not 'grpc'"),
        ([PipelineStep("a", X), PipelineStep("a", X)], "step 'a': named twice"),
        ([PipelineStep("a", X), PipelineStep("b", X, "a")], "step 'a': named twice"),
        ([PipelineStep("a", X), PipelineStep("b", {"x": 1j})], "step 'b': input \"x\""),
        ([PipelineStep("a", X, output_dtypes="M8[s]")], "step 'a': output_dtypes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_steps_are_refused_before_anything_is_sent(steps, words):
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        with failing(InputError, words):
            client.pipeline(steps)
    assert peer.connections == []


def test_all_steps_together_are_held_to_the_limit_of_a_message():
    half = {"x": np.full(3000, 0.123456789)}
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        with failing(MessageTooLargeError, "65,536"):
            client.pipeline([PipelineStep("a", half), PipelineStep("b", half)])
    assert peer.connections == []


def test_a_step_without_a_result_is_named_and_costs_no_more_than_the_call():
    with ScriptedPeer(answering({"b": {"y": [1]}}), echo) as peer, connect(peer) as client:
        with failing(ProtocolError, "step 'first'", 'it did for: "b"') as caught:
            client.pipeline(STEPS)
        assert caught.value.uuid == peer.uuids[0]
        wait_for(peer.connections[0].over)
        assert ask(client) == 1.0


def test_a_result_that_misses_the_dtype_asked_for_names_its_step_and_keeps_the_socket():
    with ScriptedPeer(answering({"first": {"y": [1]}, "b": {"y": ["text"]}})) as peer:
        with connect(peer) as client:
            with failing(ProtocolError, "step 'b'", 'output "y"'):
                client.pipeline(STEPS)
            assert ask(client) == 1.0
    assert len(peer.uuids) == 1


@pytest.mark.parametrize(
    ("named", "step"), [("model='b'", "b"), ("step 'first' broke", "first"), ("model='pipeline'", None)]
)
def test_the_step_that_failed_is_named_where_the_manager_names_it(named, step):
    failure = {
        "code": "TRITON_INFERENCE_FAILED",
        "message": f"[TritonThread] {named} reason=no",
        "retriable": False,
    }

    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply(failure, status="FAILED", model_name="pipeline")
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with failing(InferenceFailedError) as caught:
            client.pipeline(STEPS)
    if step is None:
        assert not str(caught.value).startswith("step")
        assert caught.value.model_name == "pipeline of first, b"
    else:
        assert str(caught.value).startswith(f"step '{step}': ")


def test_a_lost_pipeline_is_run_again():
    def dies(connection):
        connection.welcome()
        connection.recv_request()
        connection.drop()

    good = {"first": {"y": [1]}, "b": {"y": [2]}}
    with ScriptedPeer(dies, answering(good)) as peer, connect(peer) as client:
        results = client.pipeline(STEPS)
    assert [result.attempts for result in results.values()] == [2, 2]
