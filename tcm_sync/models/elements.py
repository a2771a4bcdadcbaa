"""Read ONNX's types of values, and map them to Triton's datatypes."""

from __future__ import annotations

from typing import Any

from tcm_sync._tensors import DATATYPES, TensorSpec
from tcm_sync._wire.quote import quote
from tcm_sync.errors import ModelFileError

#: Triton's datatypes by ONNX's names of element types. Triton has none for the others.
TRITON_DATATYPES = {
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "BOOL": "BOOL",
    "STRING": "BYTES",
    **{name: name for name in DATATYPES if "INT" in name},
}

#: Bits of an element; 0 for text, whose size is not known.
BITS = {
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
    "COMPLEX128": 128,
    "STRING": 0,
}
_BITS_OF_OTHERS = 8  # INT8, UINT8, BOOL, and every kind of FLOAT8

MAX_DIM_NAME = 1000  # characters; it is matched with patterns, in time that grows with the square
MAX_DIMS = 64  # numpy's limit; no model has more


def element_name(number: int) -> str:
    """Return ONNX's name of an element type."""
    from onnx import TensorProto

    try:
        return str(TensorProto.DataType.Name(number))
    except ValueError:
        return f"ELEMENT_TYPE_{number}"  # from a newer ONNX than the one installed


def text(found: str | bytes) -> str:
    """Return a text of a message; protobuf leaves it as bytes if it is not UTF-8.

    Raises
    ------
    ModelFileError
        It is not UTF-8.
    """
    if isinstance(found, str):
        return found
    raise ModelFileError(f"it is damaged: a text in it is not UTF-8: {found[:80]!r}")


def bits_of(element: str) -> int:
    """Return how many bits an element has; 0 for text."""
    return BITS.get(element, _BITS_OF_OTHERS)


def read_value(value: Any, *, optional: bool = False) -> tuple[TensorSpec, str | None]:
    """Read an input or output of a graph.

    Parameters
    ----------
    value : onnx.ValueInfoProto
        The declaration in the graph.
    optional : bool
        Whether a request may leave it out, since the graph has a default value.

    Returns
    -------
    TensorSpec
        If Triton has no datatype for it, its datatype is ONNX's name: ``"COMPLEX64"``,
        ``"seq(tensor(float))"``.
    str or None
        Why no request can carry it, or None if one can.

    Raises
    ------
    ModelFileError
        It has more dimensions than numpy allows.
    """
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        shape: tuple[Any, Any] = (None, ())
        if kind == "optional_type":
            optional = True
            shape = _dims(text(value.name), value.type.optional_type.elem_type.tensor_type)
        spec = TensorSpec(text(value.name), _notation(value.type), *shape, optional)
        what = {"sequence_type": "a sequence", "map_type": "a map", "optional_type": "an optional value"}
        if kind is None:
            return spec, "its type is not stated"
        return spec, f"it is {what.get(kind, 'not a dense tensor')}, and Triton takes only tensors"
    tensor = value.type.tensor_type
    element = element_name(tensor.elem_type)
    datatype = TRITON_DATATYPES.get(element, element)
    spec = TensorSpec(text(value.name), datatype, *_dims(value.name, tensor), optional)
    if datatype == "BF16":
        return spec, "BF16 has no form in JSON, though Triton has it"
    if element == "UNDEFINED":
        return spec, "its element type is not stated"
    return spec, None if datatype in DATATYPES else f"Triton has no datatype for {element}"


def _dims(name: str, tensor: Any) -> tuple[tuple[int, ...] | None, tuple[str | None, ...]]:
    """Return the dims of a tensor and their names; None for the dims if the rank is not known."""
    if not tensor.HasField("shape"):
        return None, ()
    dims = tensor.shape.dim
    if len(dims) > MAX_DIMS:
        raise ModelFileError(f'"{name}" has {len(dims):,} dimensions, more than {MAX_DIMS}')
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else -1 for dim in dims)
    names = tuple(text(dim.dim_param) or None for dim in dims)
    longest = max((len(each) for each in names if each is not None), default=0)
    if longest > MAX_DIM_NAME:
        raise ModelFileError(
            f'"{quote(name)}" has a dimension whose name has {longest:,} characters, '
            f"more than {MAX_DIM_NAME:,}"
        )
    return sizes, names if any(names) else ()


def _notation(kind: Any) -> str:
    """Write a type as onnxruntime does: ``seq(tensor(float))``."""
    value = kind.WhichOneof("value")
    if value is None:
        return "untyped"
    inner = getattr(kind, value)
    if value in ("tensor_type", "sparse_tensor_type"):
        return f"{value.removesuffix('_type')}({element_name(inner.elem_type).lower()})"
    if value == "map_type":
        return f"map({element_name(inner.key_type).lower()},{_notation(inner.value_type)})"
    if value in ("sequence_type", "optional_type"):
        return f"{'seq' if value == 'sequence_type' else 'optional'}({_notation(inner.elem_type)})"
    return str(value).removesuffix("_type")
