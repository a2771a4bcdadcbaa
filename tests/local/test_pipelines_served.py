"""Pipelines, where no recording shows the rule."""

from __future__ import annotations

import pytest

from ..helpers.raw_connection import tensor
from ..helpers.waiting import wait_until


@pytest.fixture
def run(serve, dial):
    """Run a pipeline, and return the payload of the reply."""

    def ask(*steps, manager=None, **payload):
        raw = dial(manager or serve(), "u")
        route = raw._manager.route
        body = {"vm_ip": route.vm_ip, "container_id": route.container_id, "pipeline": list(steps), **payload}
        raw.send({"uuid": "u", "type": "inference", "payload": body})
        return raw.receive()["payload"]

    return ask


def step(model_name="echo", value=1.0, **more):
    return {"model_name": model_name, "inputs": [tensor([value])], **more}


def failed(reason, code="TRITON_INFERENCE_FAILED", model_name="pipeline"):
    message = f"[TritonThread] {code}: model={model_name!r} retriable=False reason={reason}"
    data = {"code": code, "message": message, "retriable": False}
    return {"data": data, "status": "FAILED", "model_name": model_name}


def test_steps_run_one_after_another(serve, run):
    order = []

    def note(arrays):
        order.append(float(arrays["x"][0]))
        return arrays

    answer = run(
        *(step("note", value, name=str(value)) for value in (3, 1, 2)), manager=serve({"note": note})
    )
    assert answer["data"] == {"3": {"x": [3.0]}, "1": {"x": [1.0]}, "2": {"x": [2.0]}}
    assert order == [3.0, 1.0, 2.0]


def test_a_step_without_a_name_is_called_as_its_model_and_the_last_of_a_name_stays(run):
    assert run(step(value=1), step(value=2), step(value=3, name="x"))["data"] == {
        "echo": {"x": [2.0]},
        "x": {"x": [3.0]},
    }


def test_the_first_failure_is_the_failure_of_the_whole_and_ends_it(serve, run):
    manager = serve()
    answer = run(step(), step("missing"), step(), manager=manager)
    assert answer == failed("[404] Request for unknown model: 'missing' is not found", model_name="missing")
    assert manager.stats().executions == {"echo": 1}


def test_a_step_whose_tensors_are_wrong_fails_as_an_inference_does(run):
    answer = run({"model_name": "echo", "inputs": [tensor([1.0, 2.0], shape=[2, 1])]})
    assert (answer["status"], answer["data"]["code"]) == ("FAILED", "TRITON_SHAPE_MISMATCH")


def test_a_container_without_a_session_runs_none_whatever_is_allowed(serve, run):
    manager = serve()
    answer = run(
        step(),
        manager=manager,
        container_id=manager.transient_route.container_id,
        request={"allow_transient": True},
    )
    assert answer == failed("No active Triton session for this instance")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["echo"], "Field 'pipeline[0]' must be a dictionary"),
        ([step(), {"inputs": []}], "Missing required field 'pipeline[1].model_name'"),
        ([{"model_name": "echo"}], "Missing required field 'pipeline[0].inputs'"),
        ([step(protocol="grpc")], "Unsupported inference protocol: 'grpc'"),
        ([{"model_name": "echo", "inputs": [{}]}], "Missing required field 'pipeline[0].inputs[0].name'"),
    ],
)
def test_a_pipeline_without_the_form_of_one_is_a_contract_error_and_nothing_runs(serve, run, wrong, message):
    manager = serve()
    assert run(*wrong, manager=manager) == {"data": message, "status": "FAILED", "model_name": None}
    assert manager.stats().executions == {}


def test_an_unknown_container_is_a_contract_error(run):
    assert run(step(), container_id="c")["data"] == "Container 'c' not found in known containers"


def test_a_pipeline_is_one_inference_and_holds_one_worker(serve, dial, gated):
    manager = serve(workers=1)
    raw, other = dial(manager, "u"), dial(manager, "v")
    raw.ask("", pipeline=[step("gated"), step("gated", 2.0)])
    wait_until(lambda: manager.stats().executions, "it runs")
    other.ask("echo", tensor([1.0]))
    wait_until(lambda: manager.stats().running == 2, "the other waits")
    gated.open(1)
    wait_until(lambda: manager.stats().executions == {"gated": 2}, "the second step runs")
    gated.open(2)
    assert raw.receive()["payload"]["data"] == {"gated": {"y": [2.0]}}
    assert other.receive()["payload"]["status"] == "COMPLETED"
