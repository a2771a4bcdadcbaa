"""References that a user makes himself: what is sent of them, and what is refused."""

from __future__ import annotations

import pickle

import msgspec
import numpy as np
import pytest

from tcm_sync import InferenceInput, InputError, SHMReference
from tcm_sync._shm.references import as_references
from tcm_sync._tensors import DATATYPES
from tcm_sync._tensors.check import InputsWithSignature


def reference(**changes):
    good = {"name": "x", "shm_key": "/tcm_x", "byte_size": 24, "shape": [2, 3], "dtype": "FP32"}
    return SHMReference(**{**good, **changes})


def sent(*references):
    return msgspec.to_builtins(as_references(list(references)))


def test_it_is_sent_as_it_is_from_offset_0():
    assert list(sent(reference())) == [
        {"name": "x", "shm_key": "/tcm_x", "offset": 0, "byte_size": 24, "shape": (2, 3), "dtype": "FP32"}
    ]


def test_the_slash_before_the_file_may_be_left_out():
    assert sent(reference(shm_key="tcm_x")) == sent(reference())


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_keep_their_order(kind):
    found = as_references(kind([reference(name="b"), reference(name="a")]))
    assert [each.name for each in found] == ["b", "a"]


def test_two_may_name_the_same_file():
    found = as_references([reference(name="a"), reference(name="b")])
    assert [each.shm_key for each in found] == ["/tcm_x", "/tcm_x"]


@pytest.mark.parametrize("dtype", [name for name, each in DATATYPES.items() if each.itemsize is not None])
def test_each_datatype_of_a_fixed_size_will_do(dtype):
    size = 6 * DATATYPES[dtype].itemsize
    assert sent(reference(dtype=dtype, byte_size=size))[0]["dtype"] == dtype


@pytest.mark.parametrize("shape", [(2, 3), np.array([2, 3]), [np.int64(2), 3]])
def test_the_shape_may_be_any_sequence_of_sizes(shape):
    assert sent(reference(shape=shape))[0]["shape"] == (2, 3)


def test_those_that_a_signature_holds_are_found_too():
    assert as_references(InputsWithSignature(None, [reference()])) is not None


@pytest.mark.parametrize(
    "inputs",
    [{"x": [1.0]}, [1.0, 2.0], [], "text", None, np.zeros(3), [InferenceInput("x", [1], "FP32", [1])]],
)
def test_other_inputs_are_none(inputs):
    assert as_references(inputs) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "BYTES", "byte_size": 6}, "BYTES has no fixed size"),
        ({"dtype": "FP99"}, "FP99"),
        ({"byte_size": 23}, r"byte_size is 23, and FP32\[2, 3\] takes 24"),
        ({"byte_size": 24.5}, "byte_size is 24.5"),
        ({"byte_size": True, "shape": [1], "dtype": "BOOL"}, "byte_size is True"),
        ({"byte_size": "24"}, "byte_size is '24'"),
        ({"byte_size": 0, "shape": [0]}, "at least 1"),
        ({"shape": []}, "0-d"),
        ({"shape": [-2, -3]}, "each 0 or more"),
        ({"shape": 6}, "a sequence of sizes"),
        ({"shm_key": ""}, "shm_key must be the name of a file"),
        ({"shm_key": "/"}, "shm_key must be"),
        ({"shm_key": ".."}, "shm_key must be"),
        ({"shm_key": "/."}, "shm_key must be"),
        ({"shm_key": "/a/b"}, "shm_key must be"),
        ({"shm_key": "//a"}, "shm_key must be"),
        ({"shm_key": "a\0b"}, "shm_key must be"),
        ({"shm_key": "a\nb"}, "shm_key must be"),
        ({"shm_key": b"a"}, "shm_key must be"),
        ({"shm_key": None}, "shm_key must be"),
        ({"name": ""}, "a tensor's name"),
        ({"name": 1}, "a tensor's name"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_its_name(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        as_references([reference(name="first"), reference(**changes)])
    assert ('input "x": ' in str(caught.value)) is ("name" not in changes)


def test_a_name_that_is_given_twice_is_refused():
    with pytest.raises(InputError, match='input "x": given twice'):
        as_references([reference(), reference()])


@pytest.mark.parametrize(
    "other", [{"name": "y", "shape": [1], "datatype": "FP32", "data": [1.0]}, np.zeros(3), 1.0]
)
@pytest.mark.parametrize("first", [False, True])
def test_they_are_not_mixed_with_others(other, first):
    mixed = [other, reference()] if first else [reference(), other]
    with pytest.raises(
        InputError, match=f"input {1 - first} is of type .* beside an SHMReference.*by reference or none"
    ):
        as_references(mixed)


def test_one_alone_is_to_be_put_in_a_list():
    with pytest.raises(InputError, match="put it in a list"):
        as_references(reference())


def test_it_survives_pickling():
    assert pickle.loads(pickle.dumps(reference())) == reference()
