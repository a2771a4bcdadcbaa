"""Inputs that are large, or look so: work and memory are bounded, and the deadline of a call is kept."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tcm_sync import BatchPolicy, CallTimeoutError, InferenceInput, MessageTooLargeError, PipelineStep
from tcm_sync._tensors import encode

from ..helpers.waiting import GUARD

EMPTY_ROWS = [InferenceInput("x", (20_000_000, 0), "FP32", [])]
CALLS = {
    "infer": lambda client, inputs: client.infer("echo", inputs, timeout=GUARD),
    "json": lambda client, inputs: client.infer("echo", inputs, timeout=GUARD, transport="json"),
    "pipeline": lambda client, inputs: client.pipeline([PipelineStep("echo", inputs)], timeout=GUARD),
    "stream": lambda client, inputs: client.stream("echo", inputs, timeout=GUARD, allow_transient=True),
}
TIMELESS = {
    "submit": lambda client, inputs: client.submit("echo", inputs),
    "map": lambda client, inputs: next(client.map("echo", [inputs])),
    "chunked": lambda client, inputs: client.infer_chunked("echo", inputs, rows=20_000_000),
    "sample": lambda client, inputs: client.model("echo", batch=BatchPolicy()).infer_sample(inputs),
}


@pytest.mark.parametrize("name", [*CALLS, *TIMELESS])
def test_rows_without_elements_cost_nothing_before_they_are_refused(serve, connect, name):
    client = connect(serve())
    client.infer("echo", {"x": [1.0]})
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLargeError, match=r"at least (60|59),"):
            (CALLS | TIMELESS)[name](client, EMPTY_ROWS)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_large_sample_is_refused_before_it_is_written(serve, connect, monkeypatch):
    model = connect(serve()).model("echo", batch=BatchPolicy())
    monkeypatch.setattr(encode, "orjson", None)  # nothing may be written
    with pytest.raises(MessageTooLargeError, match="at least 4,000,000 bytes"):
        model.infer_sample({"x": np.zeros(1_000_000)})


def test_a_few_rows_without_elements_go_there_and_back(serve, connect):
    result = connect(serve()).infer("echo", [InferenceInput("x", (3, 0), "FP32", [])])
    assert result["x"].shape == (3, 0)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_ends_at_its_deadline_while_its_request_is_written(serve, connect, clock, monkeypatch, name):
    manager = serve()
    client = connect(manager, max_message_bytes=2**30, shm="off")
    monkeypatch.setattr(encode, "_PIECE", 1000)
    write, written = encode._text_of, []

    def write_slowly(array):
        written.append(array.size)
        clock.ahead += GUARD / 4
        return write(array)

    monkeypatch.setattr(encode, "_text_of", write_slowly)
    with pytest.raises(
        CallTimeoutError, match="while the request was being encoded; nothing was sent"
    ) as caught:
        CALLS[name](client, {"x": np.zeros((100_000, 2))})
    assert not caught.value.outcome_unknown
    assert len(written) < 10
    assert manager.stats().messages == 0
