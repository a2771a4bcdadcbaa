"""The analysis beside onnxruntime's own view, for every model that onnx has for testing backends."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest

from tcm_sync.models import analyze
from tcm_sync.models.elements import TRITON_DATATYPES

from ..helpers.onnx_build import model, value, weight

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
MODELS = sorted(DATA.rglob("*.onnx"))

#: Attributes that operators of opset 6 and before had, and have no more.
OLD = {"broadcast", "is_test", "consumed_inputs", "spatial"}

#: Where onnxruntime reports something else than the file says.
EXCEPTIONS = {
    "test_maxpool_2d_ceil_output_size_reduce_by_one": "the file declares another shape than MaxPool has, "
    "and onnxruntime takes neither",
}

_DATATYPES = {name.lower(): datatype for name, datatype in TRITON_DATATYPES.items()}


def session(path: Path) -> onnxruntime.InferenceSession:
    """Load a model; where onnxruntime lacks an operator of it, with nodes of today in their place.

    Its inputs, outputs and initialisers are never touched.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    how = {"sess_options": options, "providers": ["CPUExecutionProvider"]}
    try:
        return onnxruntime.InferenceSession(path, **how)
    except Exception:  # noqa: BLE001  # of several classes that have nothing in common
        proto = onnx.load(path)
    for opset in proto.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, 7)
    for node in proto.graph.node:
        old = OLD | ({"axis"} if any(each.name == "broadcast" for each in node.attribute) else set())
        kept = [each for each in node.attribute if each.name not in old]
        if node.op_type == "StringNormalizer":  # it wants a locale that not every machine has
            kept = [each for each in kept if each.name != "locale"]
            kept.append(onnx.helper.make_attribute("locale", "C"))
        del node.attribute[:]
        node.attribute.extend(kept)
    return onnxruntime.InferenceSession(proto.SerializeToString(), **how)


def seen(found) -> tuple[str, str, str]:
    """Return name, datatype and shape as onnxruntime sees them, in our words."""
    element = found.type.removeprefix("tensor(").removesuffix(")")
    datatype = found.type if "(" in element else _DATATYPES.get(element, element.upper())
    dims = ", ".join("-1" if dim is None else str(dim) for dim in found.shape)
    return found.name, datatype, f"[{dims}]"


def declared(specs) -> list[tuple[str, str, str]]:
    """Return the same of specs; onnxruntime does not distinguish an unknown rank from a scalar."""
    return [(spec.name, spec.datatype, spec.shape.replace("[...]", "[]")) for spec in specs]


def test_there_are_models_to_compare_with() -> None:
    assert len(MODELS) > 100


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_an_analysis_agrees_with_onnxruntime(path: Path) -> None:
    analysis = analyze(path)
    try:
        theirs = session(path)
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"onnxruntime does not load it: {error}"[:200])
    assert declared(analysis.inputs) == [seen(each) for each in theirs.get_inputs()]
    agreed = declared(analysis.outputs) == [seen(each) for each in theirs.get_outputs()]
    assert agreed == (path.parent.name not in EXCEPTIONS)
    assert declared(analysis.overridable) == [seen(each) for each in theirs.get_overridable_initializers()]


def test_it_agrees_on_dimensions_of_every_kind_and_on_overridable_initialisers(tmp_path: Path) -> None:
    dims = ["batch", None, 3, "h"]
    inputs = [value("x", dims=dims), value("w", dims=[3, 1])]
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    path = tmp_path / "m.onnx"
    proto = model(inputs, [value("y", dims=dims)], nodes=[node], weights=[weight("w", 3, 1)], ir=8)
    path.write_bytes(proto.SerializeToString())
    analysis, theirs = analyze(path), session(path)
    assert declared(analysis.inputs) == [seen(each) for each in theirs.get_inputs()]
    assert declared(analysis.outputs) == [seen(each) for each in theirs.get_outputs()]
    assert declared(analysis.overridable) == [seen(each) for each in theirs.get_overridable_initializers()]
    assert analysis.overridable
