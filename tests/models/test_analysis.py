"""What an analysis reports of a model: tensors, weights, versions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tcm_sync import InputError, ModelFileError, TensorSpec
from tcm_sync._tensors import DATATYPES
from tcm_sync.models import analyze
from tcm_sync.models.elements import TRITON_DATATYPES, bits_of

from ..helpers.onnx_build import double, model, outside, value, weight

ELEMENTS = {name: number for name, number in TensorProto.DataType.items() if number != TensorProto.UNDEFINED}


def of(**how):
    return analyze(model(**how))


def test_a_path_bytes_and_a_proto_tell_the_same(tmp_path: Path) -> None:
    proto = double(weights=[weight("w", 100, 100)])
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    from_path, from_text = analyze(path), analyze(str(path))
    from_bytes, from_proto = analyze(path.read_bytes()), analyze(proto)
    assert from_path == from_text
    assert from_path.source == str(path)
    assert from_path.file_bytes == from_bytes.file_bytes == path.stat().st_size
    assert from_proto.file_bytes is None
    for other in (from_bytes, from_proto):
        assert other.signature == from_path.signature
        assert (other.parameters, other.parameter_bytes) == (10_000, 40_000)
        assert other.opsets == from_path.opsets


def test_what_is_no_model_at_all_is_refused() -> None:
    with pytest.raises(ModelFileError, match="not list"):
        analyze([1])
    with pytest.raises(ModelFileError, match="not ModelProto"):
        analyze(type("ModelProto", (), {})())


# --- element types ---


@pytest.mark.parametrize("element", ELEMENTS)
def test_every_element_type_is_known_and_supported_or_not_with_the_reason(element: str) -> None:
    analysis = of(inputs=[value("x", ELEMENTS[element])])
    (spec,) = analysis.inputs
    assert spec.datatype == TRITON_DATATYPES.get(element, element)
    if spec.datatype in DATATYPES:
        assert analysis.unsupported == {}
    elif element == "BFLOAT16":
        assert "JSON" in analysis.unsupported["x"]
    else:
        assert analysis.unsupported == {"x": f"Triton has no datatype for {element}"}
    assert spec.dims == (-1, 4)


def test_every_datatype_of_the_wire_is_some_element_type() -> None:
    assert set(TRITON_DATATYPES.values()) == {*DATATYPES, "BF16"}
    assert set(TRITON_DATATYPES) < set(ELEMENTS)


def test_an_element_type_of_a_newer_onnx_is_kept_by_its_number() -> None:
    analysis = of(inputs=[value("x", 999)])
    assert analysis.inputs[0].datatype == "ELEMENT_TYPE_999"
    assert "x" in analysis.unsupported


def test_an_output_without_a_type_is_kept_as_unsupported() -> None:
    untyped = helper.make_empty_tensor_value_info("y")
    analysis = of(outputs=[untyped, value("z", TensorProto.UNDEFINED)])
    assert analysis.outputs[0] == TensorSpec("y", "untyped", None)
    assert analysis.unsupported == {"y": "its type is not stated", "z": "its element type is not stated"}


@pytest.mark.parametrize(
    ("kind", "shown", "reason"),
    [
        (
            helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None)),
            "seq(tensor(float))",
            "a sequence",
        ),
        (
            helper.make_optional_type_proto(
                helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.INT64, [2]))
            ),
            "optional(seq(tensor(int64)))",
            "an optional value",
        ),
        (
            helper.make_map_type_proto(
                TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
            ),
            "map(string,tensor(float))",
            "a map",
        ),
        (
            helper.make_sparse_tensor_type_proto(TensorProto.DOUBLE, [3]),
            "sparse_tensor(double)",
            "not a dense",
        ),
    ],
)
def test_what_is_no_tensor_is_kept_as_unsupported(kind, shown: str, reason: str) -> None:
    analysis = of(inputs=[value("x"), helper.make_value_info("s", kind)])
    assert analysis.inputs[1] == TensorSpec("s", shown, None, (), shown.startswith("optional"))
    assert reason in analysis.unsupported["s"]
    assert "x" not in analysis.unsupported


# --- dimensions ---


def test_an_optional_tensor_has_the_dims_of_the_tensor() -> None:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.INT64, ["n", 2]))
    (spec,) = of(inputs=[helper.make_value_info("o", kind)]).inputs
    assert spec == TensorSpec("o", "optional(tensor(int64))", (-1, 2), ("n", None), optional=True)


def test_fixed_named_and_unknown_dimensions_are_distinguished() -> None:
    (spec,) = of(inputs=[value("x", dims=["batch", None, 3, "?", 0])]).inputs
    assert spec.dims == (-1, -1, 3, -1, 0)
    assert spec.dim_names == ("batch", None, None, "?", None)
    assert str(spec) == "x: FP32[batch, -1, 3, ?, 0]"


def test_dimensions_without_any_name_have_no_names() -> None:
    assert of(inputs=[value("x", dims=[None, 3])]).inputs[0] == TensorSpec("x", "FP32", (-1, 3))


def test_a_negative_dimension_is_an_open_one() -> None:
    assert of(inputs=[value("x", dims=[-7, 3])]).inputs[0].dims == (-1, 3)


def test_a_scalar_and_an_unknown_rank_are_distinguished() -> None:
    scalar, unknown = of(inputs=[value("s", dims=[]), value("u", dims=None)]).inputs
    assert (scalar.dims, unknown.dims) == ((), None)
    assert (scalar.shape, unknown.shape) == ("[]", "[...]")


# --- initialisers ---


def test_initialisers_are_no_inputs_and_may_be_overridden_since_the_ir_that_allows_it() -> None:
    inputs, weights = [value("x"), value("w", dims=[2])], [weight("w", 2), weight("v", 3)]
    new, old = of(inputs=inputs, weights=weights, ir=4), of(inputs=inputs, weights=weights, ir=3)
    assert [spec.name for spec in new.inputs] == [spec.name for spec in old.inputs] == ["x"]
    assert new.overridable == (TensorSpec("w", "FP32", (2,), optional=True),)
    assert old.overridable == ()


def test_a_sparse_initialiser_is_no_input_either() -> None:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("", TensorProto.INT64, [2], [0, 3]),
        [4],
    )
    proto = model([value("x"), value("w", dims=[4])], weights=[], sparse_initializer=[sparse])
    for each in (proto, proto.SerializeToString()):
        analysis = analyze(each)
        assert [spec.name for spec in analysis.inputs] == ["x"]
        assert analysis.parameters == 2


def test_the_bits_of_an_element() -> None:
    for element, datatype in TRITON_DATATYPES.items():
        itemsize = 2 if datatype == "BF16" else DATATYPES[datatype].itemsize
        assert bits_of(element) == 8 * (itemsize or 0), element
    odd = {"COMPLEX64": 64, "COMPLEX128": 128, "FLOAT8E5M2": 8, "INT4": 4, "UINT4": 4, "UINT2": 2}
    assert {element: bits_of(element) for element in odd} == odd


def test_weights_of_less_than_a_byte_are_packed() -> None:
    packed = TensorProto(name="w", data_type=TensorProto.INT4, dims=[3])
    assert analyze(model(weights=[packed])).parameter_bytes == 2


def test_weights_are_counted_wherever_they_are() -> None:
    branch = helper.make_graph([], "b", [], [value("z")], [weight("in_branch", 10)])
    nodes = [
        helper.make_node(
            "Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.INT8, [5], [1] * 5)
        ),
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("Concat", ["x"], ["y"], axis=0, names=["a", "b"]),
    ]
    proto = model(weights=[weight("w", 300, 2), weight("scalar")], nodes=nodes)
    for each in (proto, proto.SerializeToString()):
        analysis = analyze(each)
        assert analysis.parameters == 600 + 1 + 5 + 2 * 10
        assert analysis.parameter_bytes == 4 * (600 + 1 + 20) + 5


def test_weights_are_counted_however_they_are_stored() -> None:
    stored = [
        helper.make_tensor("f", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("d", TensorProto.DOUBLE, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("i", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("u", TensorProto.UINT64, [3], [1, 2, 3]),
        helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"]),
        helper.make_tensor("h", TensorProto.FLOAT16, [2], np.zeros(2, np.float16)),
    ]
    analysis = analyze(model(weights=stored).SerializeToString())
    assert analysis.parameters == 16
    assert analysis.parameter_bytes == 3 * (4 + 8 + 8 + 8) + 2 * 2


def test_weights_in_a_function_count() -> None:
    constant = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", 1, [7], [0.0] * 7))
    proto = model()
    proto.functions.append(
        helper.make_function("d", "f", [], ["c"], [constant], [helper.make_opsetid("", 13)])
    )
    assert analyze(proto.SerializeToString()).parameters == 7


# --- external weights ---


def test_external_weights_are_found_beside_the_file_and_summed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(5 * 2**30)  # more than a model file may have: a hole, on every file system of Linux
    (tmp_path / "sub" / "v.bin").write_bytes(bytes(100))
    gigabyte = 2**28  # of floats
    weights = [
        outside("w.bin", gigabyte, name="a", length=4 * gigabyte),
        outside("w.bin", gigabyte, name="b", offset=4 * gigabyte, length=4 * gigabyte),
        outside("sub/v.bin", 10, name="c"),
    ]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(weights=weights).SerializeToString())
    analysis = analyze(path)
    assert analysis.external == {"w.bin": 5 * 2**30, "sub/v.bin": 100}
    assert analysis.parameters == 2 * gigabyte + 10
    assert analysis.parameter_bytes == 4 * analysis.parameters


def test_without_a_folder_external_weights_are_what_is_needed_of_them() -> None:
    proto = model(weights=[outside("w.bin", 10, offset=60), outside("w.bin", 5, name="v")])
    for each in (proto, proto.SerializeToString()):
        assert analyze(each).external == {"w.bin": 100}


# --- the rest ---


def test_versions_producer_and_name_are_reported() -> None:
    proto = model(ir=8, opset=17)
    proto.producer_version = "1.2"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    analysis = analyze(proto.SerializeToString())
    assert (analysis.ir_version, analysis.opsets) == (8, {"ai.onnx": 17, "com.microsoft": 1})
    assert (analysis.producer, analysis.graph) == ("tests 1.2", "g")


def test_an_analysis_is_written_as_json() -> None:
    analysis = of(inputs=[value("x", dims=["batch", 4]), value("c", TensorProto.COMPLEX64)])
    written = json.loads(analysis.to_json())
    assert written["inputs"][0] == {
        "name": "x",
        "datatype": "FP32",
        "dims": [-1, 4],
        "dim_names": ["batch", None],
    }
    assert written["unsupported"] == analysis.unsupported
    assert written["first_axis"]["is_batch"] is True
    assert set(written) == set(analysis.__struct_fields__)


def test_the_signature_of_an_analysis_has_the_dims_as_they_are() -> None:
    signature = of().signature
    assert signature.inputs == (TensorSpec("x", "FP32", (-1, 4), ("batch", None)),)
    assert signature.batch_axis is False
    assert signature.max_batch_size is None


@pytest.mark.parametrize(("dims", "names"), [((1, 2), ("a",)), (None, ("a",)), ((), ("a",))])
def test_a_spec_has_as_many_names_as_dims(dims, names) -> None:
    with pytest.raises(InputError, match="dim_names"):
        TensorSpec("x", "FP32", dims, names)
