"""Streams, where no recording shows the rule: their forms, their ends, and whom they hold up."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tcm_sync.local import ModelFailure, outbox

from ..helpers.raw_connection import tensor
from ..helpers.served_models import Talker, identity_onnx
from ..helpers.waiting import GUARD, wait_until

COMPLETED = {"data": None, "status": "COMPLETED", "model_name": "llm"}


def failed(reason, code="TRITON_INFERENCE_FAILED", model_name="llm", **more):
    retriable = more.pop("retriable", False)
    message = f"[TritonThread] {code}: model={model_name!r} retriable={retriable} reason={reason}"
    data = {"code": code, "message": message, "retriable": retriable, **more}
    return {"data": data, "status": "FAILED", "model_name": model_name}


def timed_out(after="0"):
    return failed(f"Stream timed out after {after}s")


@pytest.fixture
def say(serve, dial):
    """Stream what a model yields, from a manager that gives a silent stream up at once."""

    def stream(*chunks, **request):
        raw = dial(serve({"llm": lambda arrays: iter(chunks)}, stream_timeout=0), "u")
        raw.ask_stream("", **request)
        return raw.receive_stream()

    return stream


def test_messages_are_written_as_the_manager_writes_json(serve, dial):
    raw = dial(serve(), "u")
    raw.ask_stream("é EMPTY")
    text = '{"type": "inference", "uuid": "u", "payload": {"data": %s, "status": "%s", "model_name": %s}}'
    assert raw.receive_text() == text % ("null", "START", "null")
    assert raw.receive_text() == text % (r'"\u00e9"', "ONGOING", "null")
    assert raw.receive_text() == text % ("null", "COMPLETED", '"llm"')


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        ("a", "a"),
        ("", ""),
        (b"\xc3\xa9", "é"),
        (["a", "b"], "a"),
        (np.array([[b"a"]]), "a"),
        (np.float32([1.5]), "1.5"),
        ({"output": ["a"], "other": ["b"]}, "a"),
    ],
)
def test_a_chunk_may_be_a_text_or_a_tensor_or_a_response(say, chunk, text):
    assert say(chunk) == ([text], timed_out())


def test_a_response_is_read_from_the_output_that_was_asked_for(say):
    chunks = [{"a": ["1"], "b": ["2"]}, {"a": ["3"], "b": ["4"]}]
    assert say(*chunks, output_name="b")[0] == ["2", "4"]


def test_a_model_that_does_not_stream_is_a_stream_of_one_chunk(serve, dial):
    manager = serve({"once": lambda arrays: {"output": arrays["text"]}}, stream_timeout=0)
    raw = dial(manager, "u")
    raw.ask_stream("hello there", "once")
    assert raw.receive_stream() == (
        ["hello there"],
        failed("Stream timed out after 0s", model_name="once"),
    )


def test_a_model_that_returns_neither_cannot_be_streamed(serve, dial):
    raw = dial(serve({"llm": lambda arrays: 5}), "u")
    raw.ask_stream("")
    message = "the model returned a int, not an iterator of chunks or a mapping of tensors by name"
    assert raw.receive_stream() == ([], failed(message))


def test_a_model_that_streams_cannot_be_asked_over_http(serve, dial):
    """And is not run, where it is known to stream before."""
    manager = serve({"llm": Talker(), "unknown": lambda arrays: iter(["a"])})
    raw = dial(manager, "u")
    for name in ("llm", "unknown"):
        answer = raw.infer(name, tensor(["a b"], "BYTES", name="text"))
        message = "[501] HTTP end point doesn't support models with decoupled transaction policy"
        assert answer == failed(message, model_name=name)
    assert manager.stats().executions == {"unknown": 1}


def test_a_registered_server_of_a_model_that_streams_runs_one_stream_at_a_time(serve, dial, talker):
    """Another one is refused after its START; when the first has ended, the next one runs."""
    manager = serve()
    manager.cloud.create_server("local", "llm", grpc=True)
    talker.hold_before = 1
    first, second = dial(manager, "first"), dial(manager, "second")
    request = {"container_id": "local", "vm_ip": "127.0.0.1"}
    words = tensor(["a b NONE"], "BYTES", name="text")
    first.ask("llm", **request, request={"protocol": "grpc", "inputs": [words]})
    assert [first.receive()["payload"]["status"] for _ in range(2)] == ["START", "ONGOING"]
    for transient in (False, True):
        asked = {"protocol": "grpc", "inputs": [words], "allow_transient": transient}
        second.ask("llm", **request, request=asked)
        chunks, end = second.receive_stream()
        assert (chunks, end["status"]) == ([], "FAILED")
        assert "cannot start another stream with one already running" in end["data"]["message"]
    talker.go_on()
    assert [first.receive()["payload"]["status"] for _ in range(2)] == ["ONGOING", "COMPLETED"]
    wait_until(lambda: not manager.stats().running, "the worker is free")
    second.ask("llm", **request, request={"protocol": "grpc", "inputs": [words]})
    assert second.receive_stream()[0] == ["a", "b"]


# How they end


@pytest.mark.parametrize("bad", [None, b"", b"\xff", [], {}, {"other": ["a"]}])
def test_what_is_no_text_completes_a_stream_of_which_something_was_said(serve, dial, bad):
    raw = dial(serve({"llm": lambda arrays: iter(["a", bad])}), "u")
    raw.ask_stream("")
    assert raw.receive_stream() == (["a"], COMPLETED)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (None, "'NoneType' object is not subscriptable"),
        (b"", "index 0 is out of bounds for axis 0 with size 0"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_as_the_first_response_it_is_a_failure(serve, dial, bad, words):
    raw = dial(serve({"llm": lambda arrays: iter([bad])}), "u")
    raw.ask_stream("")
    assert raw.receive_stream() == ([], failed(f"STREAM_DECODE_ERROR: output_name='output' error={words}"))


def test_a_bad_chunk_in_the_middle_is_dropped_and_completes_the_stream_when_the_model_ends(serve, dial):
    raw = dial(serve(), "u")
    raw.ask_stream("a BAD b NONE c")
    assert raw.receive_stream() == (["a", "b", "c"], COMPLETED)


def test_a_bad_chunk_after_the_limit_completes_nothing(say):
    assert say("a", None) == (["a"], timed_out())


def test_the_limit_does_not_interrupt_a_model_that_talks(serve, dial, talker):
    raw = dial(serve(stream_timeout=0), "u")
    talker.hold_before = 1
    raw.ask_stream("a b c")
    assert [raw.receive()["payload"]["data"] for _ in range(2)] == [None, "a"]
    raw.ping()  # and nothing has come before the pong
    talker.go_on()
    assert [raw.receive()["payload"]["data"] for _ in range(2)] == ["b", "c"]
    assert raw.receive()["payload"] == timed_out()


def test_a_silent_stream_fails_when_its_time_is_over(serve, dial):
    raw = dial(serve(stream_timeout=0.05), "u")
    raw.ask_stream("a")
    assert raw.receive_stream() == (["a"], timed_out("0.05"))


def test_a_failure_of_the_models_choice_keeps_its_code(serve, dial):
    def busy(arrays):
        yield "a"
        raise ModelFailure("TRITON_OVERLOADED", "too much", retry_after_seconds=2)

    raw = dial(serve({"llm": busy}), "u")
    raw.ask_stream("")
    expected = failed("too much", "TRITON_OVERLOADED", retriable=True, retry_after_seconds=2)
    assert raw.receive_stream() == (["a"], expected)


# What is refused


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"inputs": [tensor([[1.0]])], "allow_transient": False},
            "No active Triton session for this instance",
        ),
        (
            {"inputs": [{"name": "x", "shm_key": "/k", "offset": 0, "byte_size": 4, "shape": [1]}]},
            "SHM references are not supported for gRPC streaming yet",
        ),
    ],
)
def test_what_is_refused(serve, dial, change, reason):
    raw = dial(serve(), "u")
    raw.ask_stream("", **change)
    while (payload := raw.receive()["payload"])["status"] == "START":
        pass
    assert payload == failed(reason)


def test_a_request_without_the_form_of_one_is_refused_before_the_start(serve, dial):
    raw = dial(serve(), "u")
    raw.ask_stream("", inputs=None)
    expected = {"data": "Missing required field 'request.inputs'", "status": "FAILED", "model_name": None}
    assert raw.receive()["payload"] == expected


def test_wrong_inputs_are_refused_in_the_words_of_triton_without_a_status_of_http(serve, dial):
    raw = dial(serve({"llm": identity_onnx()}), "u")
    raw.ask_stream("", inputs=[tensor([[[1.0]]])])
    message = raw.receive_stream()[1]["data"]["message"]
    assert "reason=[request id: <id_unknown>] expected 1 inputs but got 1 inputs" in message


# Whom they hold up


def test_a_stream_holds_a_worker_until_its_end(serve, dial, talker):
    manager = serve(workers=1, stream_timeout=0)
    talker.hold_before = 1
    streaming, other = dial(manager, "u"), dial(manager, "v")
    streaming.ask_stream("a b")
    wait_until(lambda: manager.stats().executions, "it runs")
    other.ask("echo", tensor([1.0]))
    wait_until(lambda: manager.stats().running == 2, "the other waits for the worker")
    assert manager.stats().executions == {"llm": 1}
    talker.go_on()
    assert streaming.receive_stream()[0] == ["a", "b"]
    assert other.receive()["payload"]["status"] == "COMPLETED"


def test_a_stream_of_a_closed_socket_is_heard_by_nobody_who_takes_over_its_uuid(serve, dial, talker):
    manager = serve()
    talker.hold_before = 1
    old = dial(manager, "u")
    old.ask_stream("a b EMPTY")
    wait_until(lambda: manager.stats().executions, "it runs")
    old.close()
    wait_until(lambda: not manager.stats().connected, "the close is noticed")
    new = dial(manager, "u")
    talker.go_on()
    wait_until(lambda: not manager.stats().running, "it has ended")
    new.ping()


def test_a_stream_whose_turn_comes_when_its_socket_is_closed_is_run_all_the_same(serve, dial, gated):
    manager = serve(workers=1)
    raw = dial(manager, "u")
    raw.ask("gated", tensor([1.0]))
    raw.ask_stream("a b")
    wait_until(lambda: manager.stats().running == 2, "both are with the worker")
    raw.close()
    wait_until(lambda: not manager.stats().connected, "the close is noticed")
    gated.open(1)
    wait_until(lambda: not manager.stats().running, "both have ended")
    assert manager.stats().executions == {"gated": 1, "llm": 1}


def test_streams_of_two_sockets_continue_side_by_side(serve, dial, talker):
    manager = serve()
    talker.hold_before = 1
    first, second = dial(manager, "a"), dial(manager, "b")
    for raw in (first, second):
        raw.ask_stream("1 2 EMPTY")
        assert [raw.receive()["payload"]["data"] for _ in range(2)] == [None, "1"]
    talker.go_on()
    for raw in (first, second):
        assert raw.receive()["payload"]["data"] == "2"
        assert raw.receive()["payload"] == COMPLETED


# Much at once


class Endless:
    """A model that talks for as long as it is asked; `said` counts the chunks."""

    def __init__(self, chunk="x" * 1000, ends_after=None) -> None:
        self.said = 0
        self.chunk = chunk
        self.ends_after = ends_after

    def __call__(self, arrays):
        while self.said != self.ends_after:
            yield self.chunk
            self.said += 1
        yield None


def wait_until_held_up(manager):
    """Wait until neither the socket nor the outbox takes more."""

    def is_held_up(session):
        unsent = session._connection.transport.get_write_buffer_size()
        return unsent and session.outbox._characters >= outbox.CAPACITY

    wait_until(lambda: any(map(is_held_up, list(manager._server._sessions))), "the model is held up")


def test_many_chunks_come_in_order_and_none_is_lost(serve, dial):
    raw = dial(serve({"llm": lambda arrays: iter([*map(str, range(20_000)), None])}), "u")
    raw.ask_stream("")
    assert raw.receive_stream() == ([*map(str, range(20_000))], COMPLETED)


def test_a_client_that_does_not_read_holds_the_model_up_and_nobody_else(serve, dial):
    model = Endless(ends_after=100_000)  # 100 MB
    manager = serve({"llm": model})
    not_reading, other = dial(manager, "not_reading"), dial(manager, "other")
    not_reading.ask_stream("")
    wait_until_held_up(manager)
    assert model.said < 50_000
    assert other.infer("echo", tensor([1.0]))["status"] == "COMPLETED"
    not_reading.close()
    wait_until(lambda: not manager.stats().running, "the model is let go")
    assert model.said == 100_000


def test_a_client_that_reads_again_misses_nothing(serve, dial):
    manager = serve({"llm": Endless(ends_after=20_000)})
    raw = dial(manager, "u")
    raw.ask_stream("")
    wait_until_held_up(manager)
    chunks, end = raw.receive_stream()
    assert (len(chunks), end) == (20_000, COMPLETED)


# Stopped and killed


def test_killing_ends_a_silent_stream(serve, dial):
    manager = serve()
    raw = dial(manager, "u")
    raw.ask_stream("a")
    assert [raw.receive()["payload"]["data"] for _ in range(2)] == [None, "a"]
    manager.kill()
    assert raw.wait_for_close() is None
    manager.stop()


def test_killing_ends_a_model_that_talks_without_end(serve, dial):
    model = Endless()
    manager = serve({"llm": model})
    raw = dial(manager, "u")
    raw.ask_stream("")
    raw.receive()
    manager.kill()
    manager.stop()


def test_killing_ends_the_stream_of_a_client_that_is_gone(serve, dial):
    model = Endless()
    manager = serve({"llm": model})
    raw = dial(manager, "u")
    raw.ask_stream("")
    raw.receive()
    raw.close()
    wait_until(lambda: not manager.stats().connected, "the close is noticed")
    manager.kill()
    manager.stop()


def test_stopping_waits_for_the_end_of_a_stream(serve, dial, talker):
    manager = serve()
    talker.hold_before = 1
    raw = dial(manager, "u")
    raw.ask_stream("a b EMPTY")
    wait_until(lambda: manager.stats().executions, "it runs")
    stopping = threading.Thread(target=manager.stop)
    stopping.start()
    wait_until(lambda: manager._server.core.draining, "it drains")
    talker.go_on()
    assert raw.receive_stream() == (["a", "b"], COMPLETED)
    assert raw.wait_for_close() == 1000
    stopping.join(GUARD)
    assert not stopping.is_alive()


def test_stopping_drops_a_client_that_does_not_read(serve, dial, monkeypatch):
    monkeypatch.setattr(outbox, "DRAIN_WAIT", 0.05)
    model = Endless(ends_after=100_000)
    manager = serve({"llm": model})
    raw = dial(manager, "u")
    raw.ask_stream("")
    wait_until_held_up(manager)
    manager.stop()
    assert model.said == 100_000


def test_the_server_that_a_job_creates_for_a_model_that_streams_serves_streams(serve, dial):
    """Without allow_transient; and no inferences, whatever the model."""
    raw = dial(serve(), "u")
    created = raw.do_job("creation", openstack={"name": "w1"}, triton={"model_name": "llm"})
    where = {"container_id": created["container_id"], "vm_ip": created["vm_ip"]}
    words = tensor(["a b NONE"], "BYTES", name="text")
    raw.ask("llm", **where, request={"protocol": "grpc", "inputs": [words]})
    assert raw.receive_stream() == (["a", "b"], COMPLETED)
    message = raw.infer("echo", tensor([1.0, 2.0]), **where)["data"]["message"]
    assert message.endswith(
        "Expected a message object, but got {'name': 'x', 'shape': [2], 'datatype': 'FP32', "
        "'parameters': {'binary_data_size': 8}}."
    )
