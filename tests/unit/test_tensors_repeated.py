"""Arrays that repeat a little memory, as `np.broadcast_to` makes them: measured before they are written."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from tcm_sync import InferenceInput, MessageTooLargeError, Route, TcmClient
from tcm_sync._tensors import check_inputs, encode_inputs

MANY = 5_000_000
ONES = {
    "FP32": np.float32(1.5),
    "FP64": np.float64(0.1),
    "FP16": np.float16(1),
    "INT64": np.int64(7),
    "BOOL": np.bool_(True),
    "BYTES": np.array("text", object),
    "U4": np.array("text"),
    "S4": np.array(b"text"),
    ">f4": np.array(1.5, ">f4"),
}
ASK = {
    "infer": lambda client, inputs: client.infer("m", inputs),
    "submit": lambda client, inputs: client.submit("m", inputs).result(30),
}


@pytest.fixture
def client():
    with TcmClient("ws://127.0.0.1:9/ws", route=Route("c"), retry=None) as client:
        yield client


@pytest.mark.parametrize("one", ONES.values(), ids=ONES)
@pytest.mark.parametrize("shape", [(MANY,), (MANY, 2), (2, MANY, 1)])
@pytest.mark.parametrize("how", ASK)
def test_what_is_far_too_large_is_refused_in_little_memory(client, one, shape, how):
    array = np.broadcast_to(one, shape)
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLargeError):
            ASK[how](client, {"x": array})
        assert tracemalloc.get_traced_memory()[1] < MANY / 4
    finally:
        tracemalloc.stop()


def test_a_described_one_is_too(client):
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLargeError):
            client.infer("m", [InferenceInput("x", (2, MANY), "FP32", np.broadcast_to(1.5, (2 * MANY,)))])
        assert tracemalloc.get_traced_memory()[1] < MANY / 4
    finally:
        tracemalloc.stop()


def repeated(one):
    row = np.array([one, one])
    yield np.broadcast_to(one, (3,))
    yield np.broadcast_to(one, (2, 3, 1))
    yield np.broadcast_to(row, (3, 2))
    yield np.broadcast_to(row[:, np.newaxis], (2, 3))
    yield np.broadcast_to(row, (3, 2)).T
    yield np.broadcast_to(row[:1], (1, 300_000))


@pytest.mark.parametrize("one", ONES.values(), ids=ONES)
def test_the_text_is_that_of_the_array_written_out(one):
    for array in repeated(one):
        written = np.array(array)
        sent, plain = (b"".join(encode_inputs(check_inputs({"x": each}))) for each in (array, written))
        assert sent == plain
        assert json.loads(sent)["shape"] == list(array.shape)


def test_an_infinity_in_one_is_found(client):
    with pytest.raises(ValueError, match="holds an infinity"):
        client.infer("m", {"x": np.broadcast_to(np.inf, (3, 2))})


def test_one_of_arrays_is_stacked():
    inner = np.empty(1, object)
    inner[0] = np.array([1, 2])
    (tensor,) = check_inputs({"x": np.broadcast_to(inner, (3,))})
    assert tensor.array.tolist() == [[1, 2]] * 3
