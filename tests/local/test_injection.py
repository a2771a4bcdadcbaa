"""Faults that a test plans for the next requests: what the manager answers, and what a client does then."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from tcm_sync import (
    ERROR_CODES,
    BackpressureError,
    CircuitOpenError,
    ConfigError,
    ConnectionLostError,
    ProtocolError,
    RetryPolicy,
    ShuttingDownError,
)
from tcm_sync.local import LocalManager
from tcm_sync.local.fault_texts import plan_text
from tcm_sync.local.injection import FAILURES, REFUSALS

from ..helpers.raw_connection import tensor
from ..helpers.waiting import GUARD, wait_until
from ..wire.recordings import recorded

X = {"x": np.ones((1, 1), np.float32)}
SENT = tensor([[1.0]])
DONE = {"data": {"x": [[1.0]]}, "status": "COMPLETED", "model_name": "echo"}

#: The recorded messages of the real manager that are answered in these cases, by code.
RECORDED = {
    message.message["payload"]["code"]: message.message
    for message in recorded("server")
    if isinstance(message.message, dict)
    and message.message.get("type") == "error"
    and message.message["payload"].get("dropped_type") != "management"
    and message.case in ("backpressure.queue_full", "limit.tenant", "shutdown.queued")
}


@pytest.fixture
def manager(serve):
    return serve()


@pytest.fixture
def raw(manager, dial):
    return dial(manager, "u-1")


# --- fail_next ---


@pytest.mark.parametrize("code", FAILURES)
def test_an_inference_fails_with_every_code_of_the_table_and_the_next_one_runs(manager, raw, code):
    manager.fail_next(code, message="as planned", retry_after_seconds=2)
    retriable = ERROR_CODES[code].retriable
    assert raw.infer("echo", SENT) == {
        "data": {
            "code": code,
            "message": f"[TritonThread] {code}: model='echo' retriable={retriable} reason=as planned",
            "retriable": retriable,
            "retry_after_seconds": 2,
        },
        "status": "FAILED",
        "model_name": "echo",
    }
    assert manager.stats().executions == {}
    assert raw.infer("echo", SENT) == DONE


def test_an_open_circuit_is_reported_as_it_was_recorded(manager, raw):
    manager.fail_next("TRITON_CIRCUIT_OPEN")
    (of_manager,) = {
        json.dumps(message.message["payload"])
        for message in recorded("server")
        if message.case == "inference.triton_down.retriable" and "CIRCUIT_OPEN" in json.dumps(message.message)
    }
    assert json.dumps(raw.infer("echo", SENT)) == of_manager.replace("add_sub", "echo")


def test_a_stream_that_fails_has_begun(manager, raw):
    manager.fail_next("TRITON_NETWORK")
    raw.ask_stream("to be")
    chunks, end = raw.receive_stream()
    assert (chunks, end["status"], end["data"]["code"]) == ([], "FAILED", "TRITON_NETWORK")


def test_a_pipeline_fails(manager, raw):
    manager.fail_next("TRITON_TIMEOUT")
    reply = raw.infer(None, pipeline=[{"model_name": "echo", "inputs": [SENT]}])
    assert (reply["status"], reply["model_name"]) == ("FAILED", "pipeline")
    assert reply["data"]["code"] == "TRITON_TIMEOUT"


def test_a_client_repeats_what_the_table_calls_retriable(manager, connect):
    manager.fail_next("TRITON_OVERLOADED", times=2)
    result = connect(manager, retry=RetryPolicy(attempts=3, initial=0.0)).infer("echo", X)
    assert (result.attempts, result["x"].tolist()) == (3, [[1.0]])


def test_the_pause_that_is_asked_for_reaches_the_caller(manager, connect):
    manager.fail_next("TRITON_CIRCUIT_OPEN", retry_after_seconds=0.25)
    with pytest.raises(CircuitOpenError) as caught:
        connect(manager, retry=None).infer("echo", X)
    assert caught.value.retry_after == 0.25


# --- refuse_next ---


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_the_recorded_one_and_the_request_does_not_run(manager, raw, code):
    expected = RECORDED.get(code)
    if code == "BACKPRESSURE_EXECUTOR_FULL":  # no manager was recorded in this state
        text = "Request dropped due to backpressure (executor full)."
        payload = {"code": code, "message": text, "dropped_type": "inference"}
        expected = {"type": "error", "payload": payload}
    manager.refuse_next(code)
    raw.ask("echo", SENT)
    assert raw.receive() == expected
    closes = {"BACKPRESSURE_TENANT_LIMIT_REACHED": 1008, "SYSTEM_SHUTDOWN": 1000}
    if code in closes:
        assert raw.wait_for_close() == closes[code]
    else:
        assert raw.infer("echo", SENT) == DONE
    assert manager.stats().nacks == {code: 1}


def test_a_job_that_is_refused_does_not_run(manager, connect):
    manager.refuse_next("BACKPRESSURE_QUEUE_FULL", kind="management")
    client = connect(manager, retry=None)
    assert client.infer("echo", X)["x"].tolist() == [[1.0]], "it waits for a job"
    with pytest.raises(BackpressureError) as caught:
        client.management("create_vm", openstack={"name": "w"})
    assert not caught.value.outcome_unknown
    assert manager.cloud.vms == ()


# --- drop_next, delay_next, garble_next, stale_next ---


def test_a_connection_that_drops_has_no_close_frame_and_the_request_still_runs(manager, raw, gated):
    manager.drop_next()
    raw.ask("gated", SENT)
    assert raw.wait_for_close() is None
    wait_until(lambda: not manager.stats().connected, "the drop is noticed")
    gated.open(1.0)
    wait_until(lambda: manager.stats().lost_replies, "the reply has nowhere to go")
    assert manager.stats().executions == {"gated": 1}


def test_a_client_repeats_an_inference_whose_connection_dropped_unless_it_must_not(manager, connect):
    manager.drop_next(times=2)
    assert connect(manager).infer("echo", X)["x"].tolist() == [[1.0]]
    manager.drop_next()
    with pytest.raises(ConnectionLostError) as caught:
        connect(manager, retry=RetryPolicy(resend_lost=False)).infer("echo", X)
    assert caught.value.outcome_unknown


def test_a_job_whose_connection_drops_is_not_repeated(manager, connect):
    manager.drop_next(kind="management")
    with pytest.raises(ConnectionLostError) as caught:
        connect(manager).management("create_vm", openstack={"name": "w"})
    assert caught.value.outcome_unknown
    wait_until(lambda: len(manager.cloud.vms) == 1, "the job was done")


def test_a_delay_holds_a_worker_and_ends_when_the_manager_is_killed(serve, dial):
    manager = serve(workers=1)
    raw, other = dial(manager, "u-1"), dial(manager, "u-2")
    manager.delay_next(3600)
    raw.ask("echo", SENT)
    wait_until(lambda: manager.stats().running, "it waits in its worker")
    other.ask("echo", SENT)
    wait_until(lambda: manager.stats().running == 2, "the other one waits for the worker")
    assert manager.stats().executions == {}
    manager.kill()
    manager.stop()


def test_a_delayed_request_is_answered(manager, raw):
    manager.delay_next(0.001)
    assert raw.infer("echo", SENT) == DONE


def test_half_a_reply_is_no_json_and_breaks_the_call(manager, raw, connect):
    manager.garble_next()
    raw.ask("echo", SENT)
    text = raw.receive_text()
    whole = json.dumps({"type": "inference", "uuid": "u-1", "payload": DONE})
    assert text == whole[: len(whole) // 2]
    manager.garble_next()
    client = connect(manager)
    with pytest.raises(ProtocolError):
        client.infer("echo", X)
    assert client.infer("echo", X)["x"].tolist() == [[1.0]]


def test_the_first_message_of_a_stream_is_cut(manager, raw):
    manager.garble_next()
    raw.ask_stream("to be NONE")
    assert raw.receive_text().startswith('{"type": "inference", "uuid": "u-1"')
    assert [raw.receive()["payload"]["data"] for _ in range(2)] == ["to", "be"]


def test_a_stale_reply_comes_after_the_right_one_and_the_client_gives_the_socket_up(manager, raw, connect):
    manager.stale_next()
    assert raw.infer("echo", SENT) == DONE
    assert raw.infer("echo", tensor([[2.0]])) == DONE, "the stale one, to a client that does not notice it"
    assert raw.receive()["payload"]["data"] == {"x": [[2.0]]}
    manager.stale_next()
    client = connect(manager)
    assert client.infer("echo", X)["x"].tolist() == [[1.0]]
    wait_until(lambda: client.stats().late == 1, "the second reply has come")
    wait_until(lambda: client.stats().sockets == 0, "its socket is given up")
    assert client.infer("echo", {"x": X["x"] + 1})["x"].tolist() == [[2.0]]
    assert client.stats().sockets_opened == 2


# --- the plan ---


def test_faults_are_taken_in_order_each_by_a_request_that_fits(manager, raw):
    manager.pass_next()
    manager.fail_next("TRITON_TIMEOUT", model_name="other")
    manager.fail_next("TRITON_NETWORK")
    manager.fail_next("TRITON_ERROR", times=2)
    assert manager.faults_left == (
        "pass_next()",
        "fail_next('TRITON_TIMEOUT')",
        "fail_next('TRITON_NETWORK')",
        "fail_next('TRITON_ERROR')",
        "fail_next('TRITON_ERROR')",
    )
    raw.ask_info()
    assert raw.receive()["type"] == "info_response", "it takes none"
    answers = [raw.infer("echo", SENT)["data"] for _ in range(3)]
    assert [answer.get("code") for answer in answers] == [None, "TRITON_NETWORK", "TRITON_ERROR"]
    assert raw.infer("other", SENT)["data"]["code"] == "TRITON_TIMEOUT"
    assert manager.faults_left == ("fail_next('TRITON_ERROR')",)
    manager.clear_faults()
    assert manager.faults_left == ()
    assert raw.infer("echo", SENT) == DONE


def test_faults_can_be_planned_from_several_threads_and_before_the_start(connect):
    manager = LocalManager({"echo": lambda arrays: arrays}, tick=0)
    threads = [threading.Thread(target=manager.fail_next, args=("TRITON_ERROR",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    with manager:
        client = connect(manager, retry=None)
        for left in range(19, -1, -1):
            with pytest.raises(Exception, match="TRITON_ERROR"):
                client.infer("echo", X)
            assert len(manager.faults_left) == left
        assert client.infer("echo", X)["x"].tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (lambda m: m.fail_next("TRITON_OVERLAODED"), "did you mean 'TRITON_OVERLOADED'"),
        (lambda m: m.fail_next("BACKPRESSURE_QUEUE_FULL"), "is a code of refuse_next"),
        (lambda m: m.refuse_next("TRITON_TIMEOUT"), "is a code of fail_next"),
        (lambda m: m.refuse_next("BACKPRESSURE_INSUFFICIENT_BUDGET"), "is a notice"),
        (lambda m: m.fail_next(None), "there is no code None"),
        (lambda m: m.fail_next("TRITON_ERROR", times=0), "times must be a whole number of at least 1"),
        (lambda m: m.fail_next("TRITON_ERROR", retry_after_seconds=-1), "retry_after_seconds"),
        (lambda m: m.fail_next("TRITON_ERROR", message=""), "message must be"),
        (lambda m: m.delay_next("soon"), "seconds must be a number"),
        (lambda m: m.delay_next(float("inf")), "seconds must be a number"),
        (lambda m: m.drop_next(kind="info"), "kind must be 'inference' or 'management'"),
        (lambda m: m.drop_next(kind="management", model_name="echo"), "model_name is for inferences"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_and_not_planned(plan, said):
    manager = LocalManager({})
    with pytest.raises(ConfigError) as caught:
        plan(manager)
    assert said in str(caught.value)
    assert manager.faults_left == ()


def test_texts_plan_the_same_faults():
    manager = LocalManager({})
    texts = ["ok*2", "TRITON_OVERLOADED", "BACKPRESSURE_QUEUE_FULL", "drop", "delay=0.5", "garble", "stale"]
    for text in texts:
        plan_text(manager, text)
    assert manager.faults_left == (
        "pass_next()",
        "pass_next()",
        "fail_next('TRITON_OVERLOADED')",
        "refuse_next('BACKPRESSURE_QUEUE_FULL')",
        "drop_next()",
        "delay_next(0.5)",
        "garble_next()",
        "stale_next()",
    )


@pytest.mark.parametrize("text", ["", "drop=1", "delay", "delay=soon", "drop*", "drop*x", "drop*0", "no"])
def test_a_text_that_is_no_fault_is_named(text):
    manager = LocalManager({})
    with pytest.raises(ConfigError, match=r"^fault "):
        plan_text(manager, text)
    assert manager.faults_left == ()


@pytest.mark.parametrize(
    ("text", "near"), [("TRITON_OVERLAODED*2", "TRITON_OVERLOADED"), ("garbel", "garble"), ("drop=2", "drop")]
)
def test_a_text_that_is_nearly_a_fault_gets_that_named(text, near):
    with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
        plan_text(LocalManager({}), text)


# --- shut_down ---


def test_a_manager_that_is_shut_down_refuses_everything_until_it_is_started_again(manager, dial, connect):
    raw, idle = dial(manager, "u-1"), dial(manager, "u-2")
    manager.shut_down()
    manager.shut_down()
    refusal = {"code": "SYSTEM_SHUTDOWN", "message": "Server is shutting down; request rejected."}
    raw.ask_info()
    assert raw.receive()["type"] == "info_response", "handled"
    assert raw.receive() == {"type": "error", "payload": refusal}, "and refused"
    assert raw.wait_for_close() == 1012
    with pytest.raises(ShuttingDownError):
        connect(manager, retry=None).infer("echo", X)
    manager.stop()
    assert idle.wait_for_close() == 1000
    manager.start()
    assert connect(manager).infer("echo", X)["x"].tolist() == [[1.0]]


def test_shutting_down_drops_what_waits_and_finishes_what_runs(serve, dial, gated):
    manager = serve(workers=1, executor_queue_size=1)
    raw, other = dial(manager, "u-1"), dial(manager, "u-2")
    raw.ask("gated", SENT)
    wait_until(lambda: manager.stats().executions, "it runs")
    other.ask("gated", SENT)
    wait_until(lambda: manager.stats().waiting, "the other one waits")
    manager.shut_down()
    assert other.receive() == RECORDED["SYSTEM_SHUTDOWN"]
    gated.open(1.0)
    assert raw.receive()["payload"]["data"] == {"y": [[1.0]]}


def test_a_manager_that_is_not_running_is_not_shut_down():
    manager = LocalManager({})
    manager.shut_down()
    with manager:
        pass
    manager.shut_down()
