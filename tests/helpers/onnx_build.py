"""ONNX models for the tests, small and of every kind."""

from __future__ import annotations

from typing import Any

from onnx import ModelProto, TensorProto, helper

FLOAT = TensorProto.FLOAT


def value(name: str, element: int = FLOAT, dims: Any = ("batch", 4)) -> Any:
    return helper.make_tensor_value_info(name, element, dims)


def model(
    inputs: Any = None,
    outputs: Any = None,
    *,
    nodes: Any = (),
    weights: Any = (),
    ir: int = 10,
    opset: int = 13,
    **more: Any,
) -> ModelProto:
    """Make a model; only its declarations are looked at, so that it needs no nodes."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [value("x")] if inputs is None else inputs,
        [value("y")] if outputs is None else outputs,
        list(weights),
        **more,
    )
    return helper.make_model(
        graph, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)], producer_name="tests"
    )


def double(dims: Any = ("batch", 4), element: int = FLOAT, **more: Any) -> ModelProto:
    """Make a model that can be run: y is x + x."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return model([value("x", element, dims)], [value("y", element, dims)], nodes=[node], **more)


def weight(name: str, *dims: int, element: int = FLOAT) -> Any:
    """Make an initialiser of zeros."""
    tensor = TensorProto(name=name, data_type=element, dims=dims)
    count = 1
    for size in dims:
        count *= size
    tensor.raw_data = bytes(count * 4)
    return tensor


def outside(location: str, *dims: int, name: str = "w", **entries: Any) -> Any:
    """Make an initialiser whose data is in another file."""
    tensor = TensorProto(name=name, data_type=FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(text))
    return tensor
