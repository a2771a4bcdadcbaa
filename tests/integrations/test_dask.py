"""Models over Dask arrays: what the result is like before it is computed, and its blocks."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from dask.base import tokenize

from tcm_sync import InputError, ModelSignature, Route, TcmClient, TensorSpec
from tcm_sync.errors import InferenceError
from tcm_sync.integrations.dask import TcmPlugin, infer_array

from ..helpers.waiting import GUARD

URI = "ws://localhost:1/ws"  # nobody is asked


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def unused():
    """A client that never opens."""
    return TcmClient(URI, route=Route("c"))


def features(arrays):
    """Two outputs: one with other axes than the input, one without."""
    x = arrays["x"]
    return {"outer": x[:, :, None] * np.array([1.0, 10.0]), "total": x.sum(axis=1)}


def uncounted(blocks):
    """Return an array of blocks whose lengths nobody has counted."""
    x = da.arange(6, chunks=6 // blocks)
    return x[x > 0]


SHAPES = {"outer": (3, 2), "total": ()}
DTYPES = {"outer": np.float32, "total": np.float64}


def test_the_result_has_its_dtype_shape_chunks_and_meta_before_anything_is_sent(unused):
    x = da.zeros((10, 3), chunks=(4, 2))
    y = infer_array(x, "m", client=unused, output_dtypes=np.float32, output_shapes=(5, 2))
    assert (y.dtype, y.shape, y.chunks) == (np.float32, (10, 5, 2), ((4, 4, 2), (5,), (2,)))
    assert (y._meta.dtype, y._meta.shape) == (np.float32, (0, 0, 0))
    assert "not open" in repr(unused)


def test_an_output_is_like_the_input_where_nothing_else_is_said(unused):
    y = infer_array(da.zeros((4, 3), chunks=2), "m", client=unused, output_dtypes=np.int8)
    assert (y.dtype, y.shape, y.chunks) == (np.int8, (4, 3), ((2, 2), (3,)))


def test_a_signature_gives_names_dtypes_and_shapes(unused):
    signature = ModelSignature(
        (TensorSpec("x", "FP32", (-1, 3)),),
        (TensorSpec("scores", "FP32", (-1, 7)), TensorSpec("label", "INT64", (-1,))),
        batch_axis=False,
    )
    y = infer_array(da.zeros((4, 3), chunks=2), "m", client=unused, signature=signature)
    assert {name: (each.dtype, each.shape) for name, each in y.items()} == {
        "scores": (np.float32, (4, 7)),
        "label": (np.int64, (4,)),
    }


def test_blocks_of_several_outputs_and_new_axes_are_right(serve, client_of):
    client = client_of(serve({"m": features}))
    source = np.random.default_rng(3).random((50, 3))
    x = da.from_array(source, chunks=(16, 1))
    y = infer_array(x + 1, "m", client=client, input_name="x", output_dtypes=DTYPES, output_shapes=SHAPES)
    outer, total = dask.compute(y["outer"][:, 0] * 2, y["total"].sum())
    expected = features({"x": source + 1})
    np.testing.assert_allclose(outer, expected["outer"][:, 0] * 2, rtol=1e-6)
    np.testing.assert_allclose(total, expected["total"].sum())


def test_outputs_that_are_computed_together_cost_one_message_a_block(serve, client_of):
    manager = serve({"m": features})
    x = da.ones((40, 3), chunks=(10, 3))
    y = infer_array(
        x,
        "m",
        client=client_of(manager),
        input_name="x",
        output_dtypes=DTYPES,
        output_shapes=SHAPES,
        rows=100,
    )
    assert manager.stats().executions.get("m", 0) == 0
    dask.compute(y["outer"], y["total"])
    assert manager.stats().executions["m"] == 4


def test_several_inputs_are_cut_at_the_same_rows(serve, client_of):
    def scaled(arrays):
        return {"y": arrays["x"] * arrays["by"][:, None]}

    client = client_of(serve({"m": scaled}))
    x, by = np.arange(30.0).reshape(10, 3), np.arange(10.0)
    arrays = {"x": da.from_array(x, chunks=(4, 3)), "by": da.from_array(by, chunks=5)}
    y = infer_array(arrays, "m", client=client, output_dtypes=np.float64, output_shapes=(3,))
    assert y.chunks == ((4, 1, 3, 2), (3,))
    assert np.array_equal(y.compute(), x * by[:, None])


def test_blocks_whose_length_nobody_has_counted_may_be_empty(serve, client_of):
    client = client_of(serve())
    x = da.arange(12, chunks=4).astype(float)
    few = x[x > 7]  # nothing in the first two blocks
    y = infer_array(few, "echo", client=client, input_name="x", output_dtypes=np.float64)
    assert y.compute().tolist() == [8, 9, 10, 11]


def test_equal_calls_have_equal_names_in_every_process(unused):
    program = """
import dask.array as da, numpy as np
from tcm_sync import Route, TcmClient
from tcm_sync.integrations.dask import infer_array
client = TcmClient("ws://localhost:1/ws", route=Route("c"))
print(infer_array(da.zeros((4, 3), chunks=2), "m", client=client, output_dtypes=np.int8).name)
"""
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    x = da.zeros((4, 3), chunks=2)
    here = infer_array(x, "m", client=unused, output_dtypes=np.int8)
    assert here.name == there.stdout.strip()
    others = [
        infer_array(x, "n", client=unused, output_dtypes=np.int8),
        infer_array(x, "m", client=unused, output_dtypes=np.int16),
        infer_array(x, "m", client=unused.with_options(route=Route("d")), output_dtypes=np.int8),
        infer_array(x + 1, "m", client=unused, output_dtypes=np.int8),
        infer_array(x, "m", client=unused, output_dtypes=np.int8, rows=1),
        infer_array(x, "m", client=unused, output_dtypes=np.int8, limit=1),
        infer_array(x, "m", client=unused, output_dtypes=np.int8, input_name="x"),
    ]
    assert len({here.name, *(other.name for other in others)}) == 8


def test_the_token_of_a_client_is_that_of_its_settings(unused):
    with dask.config.set({"tokenize.ensure-deterministic": True}):
        assert tokenize(unused) == tokenize(TcmClient(URI, route=Route("c")))
        assert tokenize(unused) == tokenize(pickle.loads(pickle.dumps(unused)))
        assert tokenize(unused) != tokenize(TcmClient(URI, route=Route("d")))
        assert tokenize(unused) != tokenize(unused.with_options(timeout=1.0))


def test_a_block_that_fails_names_its_place_and_the_model(serve, client_of):
    def picky(arrays):
        if 25 in arrays["x"]:
            raise RuntimeError("no")
        return {"y": arrays["x"]}

    client = client_of(serve({"picky": picky}), retry=None)
    x = da.arange(40, chunks=10)
    y = infer_array(x, "picky", client=client, input_name="x", output_dtypes=int)
    with pytest.raises(InferenceError, match=r"block 2, which begins at row 20: rows 0 to 9: ") as caught:
        y.compute()
    assert caught.value.model_name == "picky"


def test_a_block_of_unknown_length_that_fails_names_its_number(serve, client_of):
    client = client_of(serve({"m": lambda arrays: 1 / 0}), retry=None)
    x = da.arange(40, chunks=10)
    y = infer_array(x[x > 31], "m", client=client, input_name="x", output_dtypes=int)
    with pytest.raises(InferenceError, match=r"^block 3: rows 0 to 7: "):
        y.compute()


def test_inputs_are_checked_against_a_signature_where_they_are_computed(serve, client_of):
    signature = ModelSignature(
        (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),), batch_axis=False
    )
    client = client_of(serve({"m": lambda arrays: {"y": arrays["x"] * 2}}))
    x = da.ones((4, 3), chunks=2, dtype=np.float32)
    y = infer_array(x, "m", client=client, signature=signature)["y"]
    assert (y.dtype, y.compute().tolist()) == (np.float32, [[2.0] * 3] * 4)
    wide = infer_array(da.ones((4, 5), chunks=2), "m", client=client, signature=signature)["y"]
    with pytest.raises(InputError, match=r"^block \d, which begins at row \d: .*x"):
        wide.compute()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output_dtypes": float, "output_shapes": (4,)}, "output_shapes"),
        ({"output_dtypes": {"z": float}}, '"z"'),
    ],
)
def test_an_output_that_is_not_as_declared_is_refused(serve, client_of, options, named):
    client = client_of(serve({"m": lambda arrays: {"y": arrays["x"]}}))
    y = infer_array(da.ones((4, 3), chunks=2), "m", client=client, input_name="x", **options)
    with pytest.raises(InputError, match=named):
        dask.compute(y)


@pytest.mark.parametrize(
    ("x", "options", "named"),
    [
        (np.zeros((4, 3)), {}, "from_array"),
        (da.zeros(()), {}, "single value"),
        ({}, {}, "no inputs"),
        ({"a": da.zeros(3), "b": da.zeros(4)}, {"output_shapes": ()}, "rows"),
        ({"a": da.zeros(3), "b": da.zeros(3)}, {}, "output_shapes"),
        ({"a": uncounted(2), "b": uncounted(3)}, {}, "not known"),
        ({"a": da.zeros(3)}, {"input_name": "a"}, "input_name"),
        (da.zeros(3), {"output_dtypes": None}, "output_dtypes"),
        (da.zeros(3), {"output_dtypes": "what"}, "output_dtypes"),
        (da.zeros(3), {"output_dtypes": {}}, "output_dtypes"),
        (da.zeros(3), {"output_shapes": (-1,)}, "output_shapes"),
        (da.zeros(3), {"output_shapes": {"y": ()}}, "output_shapes"),
        (da.zeros(3), {"limit": 0}, "limit"),
        (da.zeros(3), {"rows": 0}, "rows"),
        (da.zeros(3), {"client": "client"}, "client"),
    ],
)
def test_arguments_that_cannot_work_are_refused_before_a_graph_is_made(unused, x, options, named):
    with pytest.raises(InputError, match=named):
        infer_array(x, "m", **{"client": unused, "output_dtypes": float, **options})


def test_a_plugin_is_for_a_client():
    with pytest.raises(InputError, match="client"):
        TcmPlugin("client")


def test_a_long_batch_has_no_more_messages_in_flight_than_it_may(serve, client_of):
    running, most, lock = 0, 0, threading.Lock()
    meeting = threading.Barrier(2)

    def counting(arrays):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if arrays["x"][0] == 0:
            meeting.wait(GUARD)
        with lock:
            running -= 1
        return {"y": arrays["x"]}

    client = client_of(serve({"m": counting}), pool_size=4)
    client.infer_chunked("m", {"x": np.zeros(8)}, rows=1, concurrency=2)
    assert most == 2
    most = 0
    client.infer_chunked("m", {"x": np.ones(8)}, rows=1, concurrency=1)
    client.infer_frame("m", pd.DataFrame({"x": np.ones(8)}), rows=1, concurrency=1)
    assert most == 1
    with pytest.raises(InputError, match="concurrency"):
        client.infer_chunked("m", {"x": np.ones(8)}, concurrency=0)
