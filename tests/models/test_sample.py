"""Sample inputs: of the right names, shapes and dtypes, and the same each time."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from tcm_sync import InputError, ModelSignature, TensorSpec
from tcm_sync._tensors import DATATYPES, fit_inputs
from tcm_sync.models import analyze, sample_inputs

from ..helpers.onnx_build import double, model, value


def signature(*specs: TensorSpec, **how) -> ModelSignature:
    return ModelSignature(specs, (), **{"batch_axis": False, **how})


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_has_samples_that_its_signature_takes(datatype: str) -> None:
    taken = signature(TensorSpec("x", datatype, (-1, 3)))
    arrays = sample_inputs(taken, batch=5)
    assert arrays["x"].shape == (5, 3)
    assert arrays["x"].dtype == DATATYPES[datatype].dtype
    (tensor,) = fit_inputs(taken, arrays)
    assert tensor.datatype == datatype


def test_the_same_seed_makes_the_same_and_another_one_others() -> None:
    taken = signature(TensorSpec("x", "FP32", (-1, 64)), TensorSpec("n", "INT64", (-1, 64)))
    first, again, other = sample_inputs(taken), sample_inputs(taken), sample_inputs(taken, seed=1)
    for name in first:
        assert np.array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_open_dimensions_are_the_batch_or_one_or_what_is_said() -> None:
    taken = analyze(
        model([value("x", dims=["batch", "seq", 4]), value("mask", TensorProto.INT64, ["batch", "seq"])])
    ).signature
    assert {name: x.shape for name, x in sample_inputs(taken, 2).items()} == {
        "x": (2, 1, 4),
        "mask": (2, 1),
    }
    sized = sample_inputs(taken, 2, sizes={"seq": 7})
    assert {name: x.shape for name, x in sized.items()} == {"x": (2, 7, 4), "mask": (2, 7)}


def test_dimensions_of_one_name_have_one_size() -> None:
    graph = analyze(model([value("adj", dims=["N", "N"]), value("x", dims=["N", 16])])).signature
    assert {name: x.shape for name, x in sample_inputs(graph, 3).items()} == {"adj": (3, 3), "x": (3, 16)}
    sized = sample_inputs(graph, sizes={"N": np.int64(5)})
    assert {name: x.shape for name, x in sized.items()} == {"adj": (5, 5), "x": (5, 16)}


@pytest.mark.parametrize("sizes", [{"seq": -1}, {"seq": 1.5}, {"seq": "7"}, {"seq": True}, [7]])
def test_sizes_that_are_none_are_refused(sizes) -> None:
    with pytest.raises(InputError, match=r"^sizes"):
        sample_inputs(signature(TensorSpec("x", "FP32", (-1, -1), ("batch", "seq"))), sizes=sizes)


def test_a_batch_axis_comes_before_the_dims_unless_there_is_none() -> None:
    spec = TensorSpec("x", "FP32", (3,))
    for batch_axis, shape in ((True, (4, 3)), (None, (4, 3))):
        assert sample_inputs(signature(spec, batch_axis=batch_axis), 4)["x"].shape == shape
    assert sample_inputs(signature(spec))["x"].shape == (3,)


def test_scalars_and_unknown_ranks_have_one_element_and_the_batch() -> None:
    taken = signature(TensorSpec("s", "FP32", ()), TensorSpec("u", "FP32", None))
    arrays = sample_inputs(taken, 2)
    assert (arrays["s"].shape, arrays["u"].shape) == ((1,), (2,))


def test_what_may_be_left_out_is() -> None:
    taken = signature(TensorSpec("x", "FP32", (1,)), TensorSpec("o", "FP32", (1,), optional=True))
    assert list(sample_inputs(taken)) == ["x"]


@pytest.mark.parametrize("batch", [0, -1, True, 1.5, None])
def test_a_batch_that_is_none_is_refused(batch) -> None:
    with pytest.raises(InputError, match="batch must be"):
        sample_inputs(signature(TensorSpec("x", "FP32", (-1,))), batch)


def test_a_batch_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match="must be at most 4 for the model, not 5"):
        sample_inputs(signature(TensorSpec("x", "FP32", (-1,)), max_batch_size=4), 5)
    with pytest.raises(InputError, match="no input has an open first dimension"):
        sample_inputs(signature(TensorSpec("x", "FP32", (1, 3))), 2)


def test_what_no_request_carries_is_refused() -> None:
    with pytest.raises(InputError, match='input "x": no request can carry BF16'):
        sample_inputs(signature(TensorSpec("x", "BF16", (-1,))))


def test_a_model_runs_with_its_samples() -> None:
    proto = double(["batch", "n"])
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    arrays = sample_inputs(analyze(proto).signature, 3, sizes={"n": 5})
    (y,) = session.run(None, arrays)
    assert np.array_equal(y, arrays["x"] * 2)
