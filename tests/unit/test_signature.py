"""Signatures: where they come from, JSON, tables."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcm_sync import InputError, ModelSignature, ProtocolError, TensorSpec

X = TensorSpec("x", "FP32", (-1, 64), ("batch", None))
Y = TensorSpec("y", "BYTES", (-1,))
SIGNATURE = ModelSignature((X,), (Y,), 8, batch_axis=False)
METADATA = {
    "name": "digits",
    "versions": ["1"],
    "platform": "onnxruntime_onnx",
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}],
    "outputs": [{"name": "label", "datatype": "BYTES", "shape": [-1]}],
}


def test_it_comes_from_an_analysis() -> None:
    analysis = SimpleNamespace(inputs=(X,), outputs=(Y,))
    assert ModelSignature.from_analysis(analysis, max_batch_size=8) == SIGNATURE
    assert ModelSignature.from_analysis(analysis).max_batch_size is None


@pytest.mark.parametrize("form", [dict, json.dumps, lambda found: json.dumps(found).encode()])
def test_it_comes_from_the_metadata_of_a_server(form) -> None:
    signature = ModelSignature.from_metadata(form(METADATA))
    assert signature == ModelSignature(
        (TensorSpec("image", "FP32", (-1, 64)),), (TensorSpec("label", "BYTES", (-1,)),), batch_axis=False
    )
    assert ModelSignature.from_metadata(form(METADATA), max_batch_size=4).max_batch_size == 4


@pytest.mark.parametrize(
    "broken",
    [
        "no JSON",
        "[" * 100_000,
        b"\xff",
        "[]",
        None,
        {"inputs": []},
        {**METADATA, "outputs": "x"},
        {**METADATA, "inputs": [{"name": "image", "datatype": "FP32"}]},
        {**METADATA, "inputs": [{"name": "image", "datatype": "FP32", "shape": "12"}]},
        {**METADATA, "inputs": [{"name": "image", "datatype": 1, "shape": [1]}]},
        {**METADATA, "inputs": [{"name": "image", "datatype": "FP32", "shape": [True]}]},
    ],
)
def test_metadata_of_another_form_are_refused(broken) -> None:
    with pytest.raises(ProtocolError):
        ModelSignature.from_metadata(broken)


def test_it_comes_from_a_creation_which_reports_nothing_of_the_batch() -> None:
    reply = {
        "inputs": [{"name": "x", "type": "TYPE_FP32", "dims": [64]}],
        "outputs": [{"name": "y", "type": "TYPE_STRING", "dims": [1]}],
    }
    signature = ModelSignature.from_management(reply)
    assert signature == ModelSignature((TensorSpec("x", "FP32", (64,)),), (TensorSpec("y", "BYTES", (1,)),))
    assert signature.batch_axis is None


def test_two_are_equal_if_all_is() -> None:
    assert ModelSignature((X,), (Y,), 8, batch_axis=False) == SIGNATURE
    assert hash(ModelSignature((X,), (Y,), 8, batch_axis=False)) == hash(SIGNATURE)
    for change in ({"inputs": (Y,)}, {"outputs": ()}, {"max_batch_size": 9}, {"batch_axis": None}):
        assert msgspec.structs.replace(SIGNATURE, **change) != SIGNATURE
    assert pickle.loads(pickle.dumps(SIGNATURE)) == SIGNATURE


specs = st.builds(
    lambda name, datatype, dims, optional: TensorSpec(
        name,
        datatype,
        None if dims is None else tuple(size for size, _ in dims),
        tuple(each for _, each in dims or ()),
        optional,
    ),
    st.text(max_size=5),
    st.sampled_from(["FP32", "BYTES", "seq(tensor(float))"]),
    st.none() | st.lists(st.tuples(st.integers(-1, 9), st.none() | st.text(max_size=3)), max_size=3),
    st.booleans(),
)
signatures = st.builds(
    ModelSignature,
    st.lists(specs, max_size=3).map(tuple),
    st.lists(specs, max_size=3).map(tuple),
    st.none() | st.integers(1, 99),
    st.none() | st.booleans(),
)


@given(signatures)
def test_json_brings_back_what_was_written(signature: ModelSignature) -> None:
    assert ModelSignature.from_json(signature.to_json()) == signature
    assert ModelSignature.from_json(signature.to_json().encode()) == signature


@given(signatures)
def test_any_can_be_shown(signature: ModelSignature) -> None:
    assert len(repr(signature).split("\n")) >= 2 + len(signature.inputs) + len(signature.outputs)
    assert signature._repr_html_().count("<tr>") == 1 + len(signature.inputs) + len(signature.outputs)
    str(signature)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        b"\xff",
        "{}",
        '{"inputs": [{"name": "x"}], "outputs": []}',
        '{"inputs": [], "outputs": [], "max_batch_size": 0}',
        '{"outputs": [], "inputs": [{"name": "x", "datatype": "F", "dims": [], "dim_names": ["a"]}]}',
    ],
)
def test_json_of_something_else_is_refused(text) -> None:
    with pytest.raises(InputError, match="not the JSON of a signature"):
        ModelSignature.from_json(text)


@pytest.mark.parametrize("most", [0, -1, True, 1.5])
def test_a_largest_batch_that_is_none_is_refused(most) -> None:
    with pytest.raises(InputError, match="max_batch_size"):
        ModelSignature((), (), most)


def test_its_repr_is_a_table() -> None:
    optional = TensorSpec("w", "FP16", None, optional=True)
    assert repr(ModelSignature((X, optional), (Y,), 8, batch_axis=True)) == "\n".join(
        [
            "ModelSignature",
            "                    name  datatype  shape",
            "  input             x     FP32      [batch, 64]",
            "  input (optional)  w     FP16      [...]",
            "  output            y     BYTES     [-1]",
            "  a batch axis comes before each shape",
            "  at most 8 samples in a request",
        ]
    )


def test_its_text_is_one_line() -> None:
    assert str(SIGNATURE) == "(x: FP32[batch, 64]) -> (y: BYTES[-1])"


def test_a_notebook_shows_a_table_with_names_escaped() -> None:
    shown = ModelSignature((TensorSpec("<b>&", "FP32", (1,)),), (), 8)._repr_html_()
    assert ">&lt;b&gt;&amp;</td>" in shown
    assert "<b>" not in shown
    assert "<p>at most 8 samples in a request</p>" in shown


def test_outputs_have_the_dtypes_of_those_that_json_can_carry() -> None:
    signature = ModelSignature((), (TensorSpec("a", "FP16", (1,)), TensorSpec("b", "BF16", (1,)), Y))
    assert signature.output_dtypes == {"a": np.dtype(np.float16), "y": np.dtype(object)}
