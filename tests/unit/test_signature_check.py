"""Inputs held to a signature: what is taken, what is converted, and one error with all that is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcm_sync import InferenceInput, InputError, ModelSignature, TensorSpec
from tcm_sync._tensors import DATATYPES, InputsWithSignature, check_call, check_inputs, fit_inputs

IMAGE = TensorSpec("image", "FP32", (-1, 4), ("batch", None))
MASK = TensorSpec("mask", "INT64", (-1,), ("batch",))
TEXT = TensorSpec("text", "BYTES", (1,), optional=True)
SIGNATURE = ModelSignature((IMAGE, MASK, TEXT), (), batch_axis=False)
GOOD = {"image": np.zeros((2, 4), np.float32), "mask": np.zeros(2, np.int64)}


def taking(*dims: int, datatype: str = "FP32", **how: Any) -> ModelSignature:
    return ModelSignature((TensorSpec("x", datatype, dims),), (), **{"batch_axis": False, **how})


def problems(signature: ModelSignature, inputs: object, **how: Any) -> list[str]:
    """Return what the error lists, line by line."""
    with pytest.raises(InputError, match=r"^the inputs do not fit the model's signature:") as caught:
        fit_inputs(signature, inputs, **how)
    problem = caught.value.message.partition("signature:")[2]
    return problem.split("\n- ")[1:] if problem.startswith("\n") else [problem.removeprefix(" ")]


def fitted(data: Any, datatype: str) -> np.ndarray:
    (tensor,) = fit_inputs(taking(-1, datatype=datatype), {"x": data})
    assert tensor.datatype == datatype
    assert tensor.array.dtype == DATATYPES[datatype].dtype
    return tensor.array


# --- names ---


def test_inputs_that_fit_are_those_that_were_given() -> None:
    image, mask = fit_inputs(SIGNATURE, GOOD)
    assert (image.name, mask.name) == ("image", "mask")
    assert image.array is GOOD["image"]


def test_everything_wrong_is_reported_at_once_with_what_was_expected_beside_what_was_given() -> None:
    signature = ModelSignature(
        (IMAGE, MASK, TensorSpec("ids", "INT32", (-1, 3)), TensorSpec("w", "FP64", (2,))),
        (),
        batch_axis=False,
    )
    inputs = {
        "image": np.zeros((2, 5)),
        "ids": np.zeros(3, np.int32),
        "extra": np.zeros(1, np.int8),
        "w": [None],
    }
    image, *others = problems(signature, inputs)
    assert image.startswith(
        'input "image": expected FP32[batch, 4], given FP64[2, 5]: float64 would lose digits;'
    )
    assert image.endswith(".astype('float32') if that is intended, and dimension 1 is 5, not 4")
    nothing = "None is not a value; a missing float is float('nan')"
    assert others == [
        'input "ids": expected INT32[-1, 3], given INT32[3]: 1 dimensions, not 2',
        'input "extra": given INT8[1]: the model has no input of this name',
        f'input "w": expected FP64[2], given what cannot be sent: {nothing}',
        'input "mask": expected INT64[batch], given nothing',
    ]


def test_what_is_optional_may_be_left_out_or_given() -> None:
    assert len(fit_inputs(SIGNATURE, {**GOOD, "text": ["a"]})) == 3


def test_no_inputs_at_all_are_refused_even_where_all_are_optional() -> None:
    assert problems(ModelSignature((TEXT,), ()), {}) == ["no inputs: a model needs at least one"]


def test_a_name_that_is_none_and_one_given_twice_are_reported_among_the_rest() -> None:
    described = [InferenceInput("image", (1, 4), "FP32", np.zeros(4))] * 2
    assert problems(ModelSignature((IMAGE,), ()), described) == ['input "image": given twice']
    assert problems(ModelSignature((TEXT,), ()), {3: [1], "text": ["a"]}) == [
        "input 0: given what cannot be sent: a tensor's name must be a non-empty str, not 3"
    ]


def test_one_array_alone_has_the_name_of_the_only_input() -> None:
    for alone in (np.zeros((1, 4), np.float32), [[0.5, 0, 0, 0]]):
        (tensor,) = fit_inputs(ModelSignature((IMAGE, TEXT), ()), alone)
        assert tensor.name == "image"
    with pytest.raises(InputError, match='one array alone: the inputs of the model are "image", "mask"'):
        fit_inputs(SIGNATURE, np.zeros((1, 4), np.float32))
    with pytest.raises(InputError, match="none that is not optional"):
        fit_inputs(ModelSignature((TEXT,), ()), ["a"])


def test_described_inputs_are_held_to_the_signature_too() -> None:
    described = [{"name": "x", "dims": [2], "type": "TYPE_FP32", "value": [1, 2]}]
    (tensor,) = fit_inputs(taking(2, datatype="FP64"), described)
    assert tensor.datatype == "FP64"
    assert "would lose digits" in problems(taking(2, datatype="FP16"), described)[0]


# --- datatypes ---


@pytest.mark.parametrize(
    ("dtype", "datatype"),
    [
        ("int64", "INT8"),
        ("int64", "UINT64"),
        ("uint8", "INT64"),
        ("int64", "FP32"),
        ("int8", "FP16"),
        ("float16", "FP32"),
        ("float32", "FP64"),
    ],
)
def test_a_cast_that_loses_nothing_is_made(dtype: str, datatype: str) -> None:
    array = np.array([0, 1, 100], dtype)
    assert fitted(array, datatype).tolist() == [0, 1, 100]
    assert array.dtype == dtype


@pytest.mark.parametrize(
    ("data", "datatype", "match"),
    [
        (np.zeros(1), "FP32", "float64 would lose digits; call .astype('float32')"),
        (np.zeros(1, np.float32), "FP16", "float32 would lose digits"),
        (np.zeros(1, np.float32), "INT64", "float32 would lose digits; call .astype('int64')"),
        ([np.float64(0.5)], "FP32", "float64 would lose digits"),
        (np.array([300]), "INT8", "300 is out of range for INT8"),
        (np.array([-1]), "UINT64", "-1 is out of range"),
        (np.array([2**24 + 1]), "FP32", "16777217 has no exact FP32"),
        (np.array([True]), "FP32", "bool given for FP32"),
        (np.array([1]), "BOOL", "integers given for BOOL"),
        (["1"], "INT64", "text given for INT64"),
        ([1], "BYTES", "integers given for BYTES"),
        ([1.5], "INT64", "1.5 is not an integer"),
        ([1e39], "FP32", "out of range for FP32"),
    ],
)
def test_a_cast_that_loses_something_is_refused_and_said(data: Any, datatype: str, match: str) -> None:
    (problem,) = problems(taking(-1, datatype=datatype), {"x": data})
    assert match in problem


def test_pythons_own_numbers_have_no_width() -> None:
    assert fitted([0.1, 2], "FP32").tolist() == np.array([0.1, 2], np.float32).tolist()
    assert fitted([0.1], "FP16")[0] == np.float16(0.1)
    assert fitted([1.0, 2.0], "INT8").tolist() == [1, 2]
    assert fitted([1, 2], "FP16").tolist() == [1, 2]
    assert fitted([], "FP32").shape == (0,)


@pytest.mark.parametrize(("datatype", "match"), [("BF16", "no form in JSON"), ("INT4", "not a datatype")])
def test_a_datatype_that_no_request_carries_is_reported(datatype: str, match: str) -> None:
    (problem,) = problems(taking(-1, datatype=datatype), {"x": [1.0]})
    assert f"expected {datatype}[-1]" in problem
    assert match in problem


# --- shapes ---


@pytest.mark.parametrize(
    ("dims", "batch_axis", "shape", "wrong"),
    [
        ((-1, 4), False, (2, 4), None),
        ((-1, 4), False, (4,), "1 dimensions, not 2"),
        ((-1, 4), False, (1, 2, 4), "3 dimensions, not 2"),
        ((2, 4), False, (3, 5), "dimension 0 is 3, not 2, and dimension 1 is 5, not 4"),
        ((), False, (1,), None),
        ((), False, (2,), "dimension 0 is 2, not 1"),
        ((4,), True, (2, 4), None),
        ((4,), True, (4,), "1 dimensions, not 2"),
        ((4,), None, (2, 4), None),
        ((4,), None, (4,), None),
        ((4,), None, (2, 3), "dimension 1 is 3, not 4"),
        ((4,), None, (1, 2, 4), "3 dimensions, not 2 or 1"),
    ],
)
def test_ranks_and_fixed_dimensions_are_held_to(dims, batch_axis, shape, wrong) -> None:
    signature = taking(*dims, batch_axis=batch_axis)
    inputs = {"x": np.zeros(shape, np.float32)}
    if wrong is None:
        fit_inputs(signature, inputs)
    else:
        (problem,) = problems(signature, inputs)
        assert problem.endswith(f"given FP32{list(shape)}: {wrong}")


def test_any_shape_fits_an_unknown_rank() -> None:
    signature = ModelSignature((TensorSpec("x", "FP32", None),), (), 1, batch_axis=False)
    for shape in ((1,), (2, 3, 4)):
        fit_inputs(signature, {"x": np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("dims", "batch_axis", "shape", "wrong"),
    [
        ((-1, 4), False, (4,), None),
        ((-1, 4), False, (1, 4), "2 dimensions, not 1"),
        ((-1,), False, (), None),
        ((1, 4), False, (4,), None),
        ((), False, (), None),
        ((2, 4), False, (4,), "samples are stacked, and dimension 0 can only be 2"),
        ((4,), True, (4,), None),
        ((4,), True, (2, 4), "2 dimensions, not 1"),
        ((4,), None, (4,), None),
        ((-1, 4), None, (4,), None),
        ((4,), None, (3,), "dimension 0 is 3, not 4"),
    ],
)
def test_a_sample_is_held_to_the_shape_without_the_batch(dims, batch_axis, shape, wrong) -> None:
    signature = taking(*dims, batch_axis=batch_axis, max_batch_size=2)
    inputs = {"x": np.zeros(shape, np.float32)}
    if wrong is None:
        fit_inputs(signature, inputs, sample=True)
    else:
        (problem,) = problems(signature, inputs, sample=True)
        assert problem.endswith(wrong)


# --- batches ---


@pytest.mark.parametrize(("dims", "batch_axis"), [((-1, 4), False), ((4,), True), ((4,), None)])
def test_a_batch_over_the_largest_is_refused_unless_it_is_going_to_be_cut(dims, batch_axis) -> None:
    signature = taking(*dims, batch_axis=batch_axis, max_batch_size=3)
    fit_inputs(signature, {"x": np.zeros((3, 4), np.float32)})
    inputs = {"x": np.zeros((5, 4), np.float32)}
    assert problems(signature, inputs) == ["a batch of 5: the model takes at most 3; infer_chunked() cuts it"]
    assert fit_inputs(signature, inputs, will_be_cut=True)[0].shape == (5, 4)


def test_inputs_of_a_batch_have_one_size() -> None:
    signature = ModelSignature((IMAGE, MASK), (), 8, batch_axis=False)
    fit_inputs(signature, GOOD)
    assert problems(signature, {**GOOD, "mask": np.zeros(3, np.int64)}) == [
        'all inputs must have the same first dimension, the batch: "image" has 2, "mask" has 3'
    ]


def test_an_input_with_a_fixed_first_dimension_is_no_part_of_the_batch() -> None:
    signature = ModelSignature((IMAGE, TensorSpec("k", "INT64", (1,))), (), 2, batch_axis=False)
    fit_inputs(signature, {"image": GOOD["image"], "k": [3]})


# --- the way from a call ---


def test_only_what_is_held_is_held_to_a_signature() -> None:
    inputs = {"x": np.zeros(3)}
    assert check_call(inputs)[0].array is check_inputs(inputs)[0].array
    with pytest.raises(InputError, match="signature"):
        check_call(InputsWithSignature(taking(-1), inputs))
    sample = InputsWithSignature(taking(-1), {"x": np.zeros((), np.float32)})
    assert check_call(sample, sample=True)[0].shape == ()
