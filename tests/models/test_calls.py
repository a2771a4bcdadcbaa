"""``client.model(..., signature=...)``: every call that sends tensors is held to it, before it is sent."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tcm_sync import BatchPolicy, InputError, ModelSignature, TcmClient, TensorSpec
from tcm_sync._tensors import DATATYPES
from tcm_sync.local import LocalManager
from tcm_sync.models import analyze, sample_inputs

from ..helpers.onnx_build import double, model, value

GUARD = 20.0
ROW = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
WRONG = {"x": np.zeros((1, 5), np.float32)}
PROTO = double()
SIGNATURE = analyze(PROTO).signature


class Recorder:
    """A model that doubles x and remembers the shapes that came."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, arrays: dict[str, Any]) -> dict[str, Any]:
        self.shapes.append(arrays["x"].shape)
        return {"y": arrays["x"] * 2}


def words(arrays: dict[str, Any]) -> Iterator[str]:
    yield from str(arrays["text"][0]).split()
    yield None  # type: ignore[misc]  # the end


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def client(recorder: Recorder) -> Iterator[TcmClient]:
    models = {"onnx": PROTO.SerializeToString(), "double": recorder, "words": words}
    with (
        LocalManager(models, tick=0, transient_container_id="elsewhere") as manager,
        TcmClient(manager.uri, route=manager.route, timeout=GUARD) as client,
    ):
        yield client


def with_batches_of(most: int | None) -> ModelSignature:
    return ModelSignature.from_analysis(analyze(PROTO), max_batch_size=most)


def test_each_call_makes_its_outputs_exact(client: TcmClient) -> None:
    model = client.model("onnx", signature=SIGNATURE)
    calls = [
        model.infer({"x": ROW}),
        model.infer(ROW),
        model.infer([[0.1, 0.2, 0.3, 0.4]]),
        model.submit({"x": ROW}).result(GUARD),
        *model.map([{"x": ROW}, ROW]),
        model.infer_chunked(ROW),
        model.infer_sample(ROW[0]),
        model.submit_sample(ROW[0]).result(GUARD),
    ]
    for result in calls:
        assert result["y"].dtype == np.float32
        assert np.array_equal(result["y"].reshape(ROW.shape), ROW + ROW)


def test_without_a_signature_nothing_is_held_to_it(client: TcmClient) -> None:
    model = client.model("double")
    assert model.signature is None
    assert model.infer(WRONG)["y"].dtype == np.float64


def test_each_call_refuses_what_does_not_fit_and_sends_nothing(client: TcmClient, recorder: Recorder) -> None:
    model = client.model("double", signature=SIGNATURE)
    for call in (model.infer, model.submit, model.infer_chunked, model.stream):
        with pytest.raises(InputError, match="dimension 1 is 5, not 4"):
            call(WRONG)
    with pytest.raises(InputError, match="dimension 0 is 5, not 4"):
        model.infer_sample(np.zeros(5, np.float32))
    with pytest.raises(InputError, match="dimension 1 is 5, not 4"):
        list(model.map([WRONG]))
    assert recorder.shapes == []


def test_a_map_counts_what_does_not_fit_as_the_failure_of_its_call(client: TcmClient) -> None:
    model = client.model("onnx", signature=SIGNATURE)
    given = [{"x": ROW}, WRONG, ROW]
    for many in (given, iter(given)):
        good, bad, alone = model.map(many, on_error="return")
        assert isinstance(bad, InputError)
        assert np.array_equal(good["y"], alone["y"])


@pytest.mark.parametrize("many", [{"x": ROW}, "text", 3])
def test_a_map_over_what_is_not_many_is_refused_as_ever(client: TcmClient, many: Any) -> None:
    with pytest.raises(InputError, match="many_inputs must be an iterable"):
        client.model("onnx", signature=SIGNATURE).map(many)


def test_a_map_reads_its_inputs_only_as_it_needs_them(client: TcmClient) -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield ROW

    results = client.model("onnx", signature=SIGNATURE).map(endless())
    assert np.array_equal(next(results)["y"], ROW + ROW)
    results.close()


def test_a_stream_is_held_to_it(client: TcmClient) -> None:
    signature = ModelSignature((TensorSpec("text", "BYTES", (1,)),), (), batch_axis=False)
    model = client.model("words", signature=signature, container_id="elsewhere", allow_transient=True)
    with model.stream(["a b c"]) as stream:
        assert "".join(stream) == "abc"
    with pytest.raises(InputError, match="integers given for BYTES"):
        model.stream({"text": [1]})


def test_output_dtypes_win_over_the_signature(client: TcmClient) -> None:
    model = client.model("onnx", signature=SIGNATURE, output_dtypes=np.float64)
    assert model.infer(ROW)["y"].dtype == np.float64
    assert model.infer_sample(ROW[0])["y"].dtype == np.float64
    assert client.model("onnx", signature=SIGNATURE).infer(ROW, output_dtypes={"y": "f2"})["y"].dtype == "f2"


def test_integers_are_sent_in_the_datatype_of_the_model(client: TcmClient) -> None:
    assert np.array_equal(
        client.model("onnx", signature=SIGNATURE).infer(np.array([[1, 2, 3, 4]]))["y"], [[2, 4, 6, 8]]
    )


def test_a_signature_of_a_deployment_takes_requests_with_a_batch_axis(client: TcmClient) -> None:
    deployment = client.create(openstack={"name": "w"}, docker={}, minio={}, triton={"model_name": "onnx"})
    assert deployment.signature.batch_axis is None
    model = client.model("onnx", signature=deployment.signature)
    assert model.infer(ROW)["y"].dtype == np.float32
    assert np.array_equal(model.infer(sample_inputs(deployment.signature, 3))["y"].shape, (3, 4))


# --- batches ---


def test_a_batch_of_samples_is_no_larger_than_the_model_takes(client: TcmClient) -> None:
    def size(most: int | None, batch: BatchPolicy | None) -> int:
        return client.model("double", signature=with_batches_of(most), batch=batch)._batcher._policy.max_size

    eight = BatchPolicy(max_size=8)
    assert (size(3, eight), size(99, eight), size(None, eight), size(3, None)) == (3, 8, 8, 1)


def test_a_long_batch_is_cut_into_batches_that_the_model_takes(client: TcmClient, recorder: Recorder) -> None:
    model = client.model("double", signature=with_batches_of(4))
    long = np.repeat(ROW, 10, axis=0)
    with pytest.raises(InputError, match="a batch of 10: the model takes at most 4"):
        model.infer(long)
    for rows, most in ((None, 4), (99, 4), (3, 3)):
        recorder.shapes.clear()
        how = {} if rows is None else {"rows": rows}
        assert np.array_equal(model.infer_chunked(long, **how)["y"], long * 2)
        assert max(shape[0] for shape in recorder.shapes) == most
    with pytest.raises(InputError, match="rows must be"):
        model.infer_chunked(long, rows=0)


@pytest.mark.parametrize("dims", [(1, 4), ()])
def test_samples_that_cannot_be_stacked_are_refused_where_batches_are_asked_for(
    client: TcmClient, dims: tuple[int, ...]
) -> None:
    fixed = ModelSignature((TensorSpec("x", "FP32", dims),), (), batch_axis=False)
    with pytest.raises(InputError, match="samples cannot be stacked"):
        client.model("double", signature=fixed, batch=BatchPolicy())
    sample = np.zeros(dims[1:], np.float32)
    assert client.model("double", signature=fixed).infer_sample(sample)["y"].shape == sample.shape


def test_rows_of_a_square_matrix_are_no_samples(client: TcmClient) -> None:
    square = ModelSignature((TensorSpec("x", "FP32", (-1, -1), ("N", "N")),), (), batch_axis=False)
    with pytest.raises(InputError, match=r"samples cannot be stacked: two dimensions of the input 'x'"):
        client.model("double", signature=square, batch=BatchPolicy())


# --- the rest ---


@pytest.mark.parametrize("wrong", [analyze(PROTO), {"inputs": []}, "x"])
def test_what_is_no_signature_is_refused(client: TcmClient, wrong: Any) -> None:
    with pytest.raises(InputError, match="signature must be a ModelSignature, not"):
        client.model("onnx", signature=wrong)


def test_a_pickled_model_keeps_its_signature(client: TcmClient) -> None:
    model = client.model("onnx", signature=SIGNATURE)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.signature == SIGNATURE
    with copy._client, pytest.raises(InputError, match="dimension 1 is 5, not 4"):
        copy.infer(WRONG)


def test_every_datatype_goes_there_and_back() -> None:
    elements = [helper.np_dtype_to_tensor_dtype(each.dtype) for each in DATATYPES.values()]
    names = [f"x{number}" for number in range(len(elements))]
    proto = model(
        [value(name, element, ["n", 2]) for name, element in zip(names, elements, strict=True)],
        [value(f"y_{name}", element, ["n", 2]) for name, element in zip(names, elements, strict=True)],
        nodes=[helper.make_node("Identity", [name], [f"y_{name}"]) for name in names],
    )
    signature = analyze(proto).signature
    inputs = sample_inputs(signature, 2)
    with (
        LocalManager({"m": proto.SerializeToString()}, tick=0) as manager,
        TcmClient(manager.uri, route=manager.route, timeout=GUARD) as client,
    ):
        result = client.model("m", signature=signature).infer(inputs)
    for name, datatype in zip(names, DATATYPES.values(), strict=True):
        assert result[f"y_{name}"].dtype == datatype.dtype
        assert np.array_equal(result[f"y_{name}"].ravel(), inputs[name].ravel())  # text comes back flat
