"""The forms in which inputs may be passed, their names, shapes and stated datatypes."""

from __future__ import annotations

import collections
import pickle
from typing import Any

import numpy as np
import pytest

from tcm_sync._tensors import InferenceInput, check_inputs
from tcm_sync.errors import InputError

from ..helpers.names import steady

ONE = np.array([[1.5, 2.5]], dtype=np.float32)


def only(inputs: object) -> Any:
    (tensor,) = check_inputs(inputs)
    return tensor


def facts(inputs: object) -> list[tuple[Any, ...]]:
    return [(t.name, t.datatype, t.shape, t.array.tolist()) for t in check_inputs(inputs)]


# --- the forms ---


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": ONE},
        collections.OrderedDict(x=ONE),
        [InferenceInput("x", (1, 2), "FP32", ONE)],
        (InferenceInput(name="x", shape=[1, 2], datatype="TYPE_FP32", data=ONE),),
        collections.deque([InferenceInput("x", np.array([1, 2]), "FP32", [[1.5, 2.5]])]),
        [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1.5, 2.5]]}],
        [{"value": [[1.5, 2.5]], "type": "FP32", "dims": [1, 2], "name": "x"}],
        [{"name": "x", "dims": (np.int64(1), 2), "type": "TYPE_FP32", "value": ONE}],
        [collections.OrderedDict(name="x", shape=[1, 2], datatype="FP32", data=[1.5, 2.5])],
    ],
    ids=lambda inputs: type(inputs).__name__,
)
def test_every_form_says_the_same(inputs: object) -> None:
    tensor = only(inputs)
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", "FP32", (1, 2))
    assert tensor.array.dtype == np.float32
    assert tensor.array.tolist() == [[1.5, 2.5]]
    assert all(type(size) is int for size in tensor.shape)


@pytest.mark.parametrize("inputs", [ONE, ONE.tolist(), [ONE[0]]], ids=["array", "list", "list of arrays"])
def test_one_array_alone_has_the_name_of_the_managers_other_clients(inputs: object) -> None:
    tensor = only(inputs)
    assert tensor.name == "INPUT__0"
    assert tensor.array.tolist() == [[1.5, 2.5]]


def test_described_inputs_of_both_forms_may_be_mixed_and_keep_their_order() -> None:
    inputs = [
        {"name": "b", "dims": [1], "type": "INT8", "value": [1]},
        InferenceInput("a", [1], "INT8", [2]),
        {"name": "c", "shape": [1], "datatype": "INT8", "data": [3]},
    ]
    assert facts(inputs) == [("b", "INT8", (1,), [1]), ("a", "INT8", (1,), [2]), ("c", "INT8", (1,), [3])]


def test_a_mapping_keeps_its_order() -> None:
    assert [t.name for t in check_inputs({"z": [1], "a": [1], "m": [1]})] == ["z", "a", "m"]


@pytest.mark.parametrize("inputs", [{}, [], (), collections.deque()], ids=repr)
def test_no_inputs_are_refused(inputs: object) -> None:
    with pytest.raises(InputError, match="no inputs"):
        check_inputs(inputs)


@pytest.mark.parametrize("inputs", [None, 5, "text", b"text", {1, 2}, iter([1]), object()], ids=steady)
def test_what_is_no_form_of_inputs_is_refused(inputs: object) -> None:
    with pytest.raises(InputError, match=r'input "INPUT__0": .*(not array-like|make a list of it)'):
        check_inputs(inputs)


@pytest.mark.parametrize(
    "inputs",
    [
        {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]},
        {"name": "x", "dims": [1], "type": "FP32", "value": [1]},
        InferenceInput("x", [1], "FP32", [1]),
    ],
    ids=["client's", "manager's", "InferenceInput"],
)
def test_a_description_without_its_list_is_refused_with_what_to_do(inputs: object) -> None:
    with pytest.raises(InputError, match="put it in a list"):
        check_inputs(inputs)


def test_an_array_may_be_called_name() -> None:
    assert only({"name": [1]}).name == "name"


def test_an_array_beside_described_inputs_is_refused() -> None:
    with pytest.raises(InputError, match="input 1 is of type ndarray, beside described inputs"):
        check_inputs([InferenceInput("x", [1], "FP32", [1]), ONE])


def test_a_described_input_beside_arrays_is_refused() -> None:
    with pytest.raises(InputError, match='input "INPUT__0": InferenceInput has no datatype'):
        check_inputs([1.5, InferenceInput("x", [1], "FP32", [1])])


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (
            {"name": "x", "shape": [1], "datatype": "FP32"},
            "input \"x\": lacks 'data'; the keys are name, shape",
        ),
        ({"name": "x", "dims": [1], "type": "FP32"}, "input \"x\": lacks 'value'; the keys are name, dims"),
        ({"shape": [1], "datatype": "FP32", "data": [1]}, "input 0: lacks 'name'"),
        (
            {"name": "x", "shape": [1], "datatype": "FP32", "data": [1], "shpae": 1},
            "input \"x\": has the unknown key 'shpae'",
        ),
        (
            {"name": "x", "shape": [1], "datatype": "FP32", "value": [1]},
            "input \"x\": lacks 'data', has the unknown key 'value'",
        ),
        ({"name": "x", "dims": [1], "type": "FP32", "value": [1], 7: 8}, 'input "x": has the unknown key 7'),
        ({}, "input 0: lacks 'name', lacks 'shape'"),
    ],
)
def test_wrong_keys_are_refused_by_name(item: dict[Any, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        check_inputs([item])
    assert str(caught.value).startswith(said)


# --- names ---


@pytest.mark.parametrize("name", ["", None, 5, b"x", ("x",)], ids=repr)
def test_a_name_that_is_no_text_is_refused(name: object) -> None:
    for inputs in ({name: ONE}, [InferenceInput(name, [1, 2], "FP32", ONE)]):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="input 0: a tensor's name must be a non-empty str"):
            check_inputs(inputs)


def test_a_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InputError, match=r"input 1: the name 'x\\ud800' has a lone surrogate"):
        check_inputs({"é": ONE, "x\ud800": ONE})


def test_a_name_given_twice_is_refused() -> None:
    twice = [InferenceInput("x", [1], "FP32", [1]), {"name": "x", "dims": [1], "type": "FP32", "value": [1]}]
    with pytest.raises(InputError, match='input "x": given twice'):
        check_inputs(twice)


def test_a_name_of_a_subclass_of_str_becomes_a_plain_one() -> None:
    class Name(str):
        def __str__(self) -> str:
            return "another"

    tensor = only({Name("x"): ONE})
    assert type(tensor.name) is str
    assert tensor.name == "x"


def test_a_name_is_escaped_and_shortened_in_messages() -> None:
    with pytest.raises(InputError) as caught:
        check_inputs({"\n" + "x" * 100_000: None})
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


# --- shapes ---


@pytest.mark.parametrize("shape", [(2, 3), (6,), (1, 6), (3, 1, 2), (1,) * 31 + (6,)], ids=repr)
def test_flat_data_takes_the_stated_shape(shape: tuple[int, ...]) -> None:
    tensor = only([InferenceInput("x", shape, "INT8", range(6))])
    assert tensor.shape == tensor.array.shape == shape
    assert tensor.array.ravel().tolist() == list(range(6))


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((3, 2), [[1, 2, 3], [4, 5, 6]]),
        ((6,), [[1, 2, 3], [4, 5, 6]]),
        ((1, 2, 3), [[1, 2, 3], [4, 5, 6]]),
        ((2, 2), [1, 2, 3]),
        ((1, 0), [1]),
        ((1,), []),
    ],
)
def test_data_of_another_shape_is_refused(shape: tuple[int, ...], data: list[Any]) -> None:
    with pytest.raises(InputError) as caught:
        check_inputs([InferenceInput("x", shape, "INT8", data)])
    found = np.shape(data)
    assert str(caught.value) == f'input "x": the data has shape {found} and the stated one is {shape}'


@pytest.mark.parametrize("shape", [(-1, 2), (1.0, 2), ("1", 2), "12", 2, None, (True, 2), (None,)], ids=repr)
def test_a_shape_that_is_not_made_of_sizes_is_refused(shape: Any) -> None:
    with pytest.raises(
        InputError, match='input "x": a shape must be a sequence of sizes, each 0 or more, not '
    ):
        check_inputs([InferenceInput("x", shape, "FP32", ONE)])


def test_a_stated_shape_has_at_most_32_dimensions() -> None:
    with pytest.raises(InputError, match='input "x": the shape has 33 dimensions, more than 32'):
        check_inputs([InferenceInput("x", (1,) * 32 + (6,), "INT8", range(6))])


def test_flat_data_that_is_reshaped_is_still_checked() -> None:
    with pytest.raises(InputError, match=r'input "x": .*infinity'):
        check_inputs([InferenceInput("x", (1, 2), "FP32", [1.0, float("inf")])])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("size", [1, 2, 64, 65, 1000])
@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_an_infinity_is_found_wherever_it_is(dtype: str, size: int, infinity: float) -> None:
    for place in {0, size // 2, size - 1}:
        array = np.full(size, np.nan, dtype)
        array[place] = infinity
        with pytest.raises(InputError, match=r'input "x": .*infinity'):
            check_inputs({"x": array})


@pytest.mark.parametrize("size", [2, 64, 65])
def test_a_sum_that_overflows_is_no_infinity(size: int) -> None:
    (tensor,) = check_inputs({"x": np.full(size, np.finfo(np.float64).max)})
    assert np.isfinite(tensor.array).all()


# --- what the manager refuses by its shape ---


@pytest.mark.parametrize(
    "data",
    [1.5, 7, True, "a", b"a", np.float32(1.5), np.array(1.5), np.array("a"), np.array(None), 1j],
    ids=lambda data: f"{type(data).__name__} {data!r}",
)
def test_a_scalar_is_refused(data: object) -> None:
    with pytest.raises(
        InputError, match=r'input "x": .*(0-d, which the wire cannot carry|None is not a value)'
    ):
        check_inputs({"x": data})


def test_a_stated_scalar_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r'input "x": the shape \[\] is 0-d'):
        check_inputs([InferenceInput("x", [], "FP32", [1.5])])


@pytest.mark.parametrize("shape", [(0, 4), (1, 0, 4), (0, 0), (0, 1)])
@pytest.mark.parametrize("dtype", ["float32", "int8", "bool", "U1", "object"])
def test_an_empty_tensor_is_refused_unless_its_last_dimension_is_the_only_zero(
    shape: tuple[int, ...], dtype: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_inputs({"x": np.empty(shape, dtype)})
    assert str(caught.value).startswith(f'input "x": is empty with shape {shape}, which the manager refuses')


@pytest.mark.parametrize("shape", [(1, 4, 0), (1, 0), (0,)])
def test_an_empty_tensor_whose_last_dimension_is_zero_passes(shape: tuple[int, ...]) -> None:
    assert only({"x": np.empty(shape, np.int16)}).shape == shape
    assert only({"x": np.empty(shape, np.int16).tolist()}).datatype == "FP64"
    for datatype in ("BYTES", "BOOL", "UINT64", "FP16"):
        nested = only([InferenceInput("x", shape, datatype, np.empty(shape).tolist())])
        flat = only([InferenceInput("x", shape, datatype, [])])
        assert nested.shape == flat.shape == shape
        assert nested.datatype == flat.datatype == datatype
        assert nested.array.dtype == flat.array.dtype


@pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="numpy 1.26 has at most 32 dimensions")
def test_more_dimensions_than_32_are_refused() -> None:
    assert only({"x": np.zeros((1,) * 32)}).shape == (1,) * 32
    with pytest.raises(InputError, match='input "x": has 33 dimensions, more than 32'):
        check_inputs({"x": np.zeros((1,) * 33)})


# --- what comes of it ---


def test_nothing_is_returned_unless_every_input_is_good() -> None:
    with pytest.raises(InputError, match='input "bad"'):
        check_inputs({"good": ONE, "bad": ["a", 1]})


def test_an_unknown_datatype_is_refused_even_with_data_of_its_own() -> None:
    for datatype in ("float32", "BF16", None, np.float32):
        with pytest.raises(InputError, match=r'input "x": .*(is not a datatype|BF16)'):
            check_inputs([InferenceInput("x", (1, 2), datatype, ONE)])  # type: ignore[arg-type]


def test_an_array_that_is_ready_is_not_copied() -> None:
    assert only({"x": ONE}).array is ONE


def test_an_inference_input_is_frozen_and_survives_pickle() -> None:
    item = InferenceInput("x", (1, 2), "FP32", ONE)
    with pytest.raises(AttributeError):
        item.name = "y"  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(item))
    assert (again.name, again.shape, again.datatype) == ("x", (1, 2), "FP32")
    assert again.data.tolist() == ONE.tolist()
    assert facts([again]) == facts([item])


def test_inference_inputs_compare_by_identity_since_arrays_have_no_truth_value() -> None:
    item = InferenceInput("x", (1, 2), "FP32", ONE)
    assert item == item
    assert item != InferenceInput("x", (1, 2), "FP32", ONE)
    assert len({item, item}) == 1
