"""Properties of the whole way: through the client, a live manager whose model is the identity, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tcm_sync import InferenceInput, TcmClient
from tcm_sync._tensors import DATATYPES
from tcm_sync.local import LocalManager

from ..helpers.served_models import echo
from ..helpers.waiting import GUARD

MODEST = settings(max_examples=100, deadline=None, database=None)
NUMBERS = [name for name in DATATYPES if name != "BYTES"]
#: An empty tensor may have its zero in the last dimension only.
SHAPES = st.builds(
    lambda sizes, last: (*sizes, last), st.lists(st.integers(1, 3), max_size=3), st.integers(0, 5)
)
LAYOUTS = {
    "as it is": lambda a: a,
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: a[..., ::-1].copy()[..., ::-1],
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) if a.size else a,
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda s: not s.endswith("\0"))
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def client():
    with (
        LocalManager({"echo": echo}, tick=0, max_message_bytes=2**24) as manager,
        TcmClient(
            manager.uri,
            route=manager.route,
            timeout=GUARD,
            max_message_bytes=2**24,
            max_requests=10**6,
            shm="off",
        ) as client,
    ):
        client.infer("echo", {"x": [1.0]})  # opens the one socket, and the table of turns, for all tests here
        yield client


def elements_of(dtype):
    if dtype.kind == "f":
        return hnp.from_dtype(dtype, allow_infinity=False, allow_nan=True, allow_subnormal=True)
    return hnp.from_dtype(dtype)


@st.composite
def numeric_arrays(draw, datatype):
    dtype = DATATYPES[datatype].dtype
    return draw(hnp.arrays(dtype, draw(SHAPES), elements=elements_of(dtype)))


def assert_same_bits(result, expected):
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    if expected.dtype.kind == "f":
        missing = np.isnan(expected)
        assert np.array_equal(np.isnan(result), missing)
        result, expected = result[~missing], expected[~missing]
    assert result.tobytes() == expected.tobytes()


@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_come_back_bit_for_bit(client, datatype):
    @MODEST
    @given(numeric_arrays(datatype), st.sampled_from(sorted(LAYOUTS)))
    def check(array, layout):
        data = LAYOUTS[layout](array)
        assert_same_bits(client.infer("echo", {"x": data}, output_dtypes=array.dtype)["x"], array)
        stated = [InferenceInput("x", array.shape, datatype, data)]
        assert_same_bits(client.infer("echo", stated, output_dtypes={"x": array.dtype})["x"], array)

    check()


@MODEST
@given(shape=SHAPES, data=st.data())
def test_text_comes_back_flat(client, shape, data):
    count = math.prod(shape)
    flat = data.draw(st.lists(TEXT, min_size=count, max_size=count))
    array = np.array(flat, dtype=object).reshape(shape)
    forms = {
        "objects": array,
        "bytes": np.array([element.encode() for element in flat], dtype=object).reshape(shape),
        "numpy's text": array.astype(str),
        "Fortran": np.asfortranarray(array),
    }
    sent = [InferenceInput("x", shape, "BYTES", forms[data.draw(st.sampled_from(sorted(forms)))])]
    result = client.infer("echo", sent, output_dtypes=str)["x"]
    assert result.dtype == object
    assert result.ravel().tolist() == flat
    as_bytes = client.infer("echo", sent, output_dtypes={"x": bytes})["x"]
    assert as_bytes.ravel().tolist() == [element.encode() for element in flat]


@MODEST
@given(data=st.data())
def test_several_tensors_keep_their_names_and_dtypes(client, data):
    names = data.draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    arrays = {name: data.draw(st.sampled_from(NUMBERS).flatmap(numeric_arrays)) for name in names}
    dtypes = {name: array.dtype for name, array in arrays.items()}
    result = client.infer("echo", arrays, output_dtypes=dtypes)
    assert set(result) == set(arrays)
    for name, array in arrays.items():
        assert_same_bits(result[name], array)


def test_every_half_float_comes_back(client):
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    array = every[~np.isinf(every)].reshape(2, -1)
    assert_same_bits(client.infer("echo", {"x": array}, output_dtypes="f2")["x"], array)


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_random_bit_patterns_of_floats_come_back(client, datatype):
    dtype = DATATYPES[datatype].dtype
    array = np.frombuffer(np.random.default_rng(11).bytes(50_000 * dtype.itemsize), dtype)
    array = array[np.isfinite(array)].reshape(1, -1)
    assert_same_bits(client.infer("echo", {"x": array}, output_dtypes=dtype)["x"], array)
