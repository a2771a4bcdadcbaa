"""ONNX models, run by onnxruntime if it is installed, else by the reference evaluator of onnx."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from tcm_sync.errors import ModelFileError
from tcm_sync.local.loaded_model import LoadedModel, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

logger = logging.getLogger("tcm_sync.local")

#: Datatypes by ONNX's names of element types, which are onnxruntime's too.
_DATATYPES = {
    "float": "FP32",
    "double": "FP64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "bool": "BOOL",
    "string": "BYTES",
    **{f"{sign}int{bits}": f"{sign}INT{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_INVALID = "INVALID"  # what Triton reports as the datatype of an input that is not a tensor


def load_onnx(name: str, source: str | bytes | os.PathLike[str]) -> LoadedModel:
    """Load an ONNX model from a file or from its bytes.

    Raises
    ------
    ModelFileError
        If the file does not exist, is not ONNX, or cannot be run. The message names the model and the file.
    """
    where = "the bytes given" if isinstance(source, bytes) else os.fspath(source)
    try:
        if not isinstance(source, bytes):
            source = os.fspath(source)
            with open(source, "rb"):
                pass  # a missing file fails here, with the same message for both backends
        try:
            import onnxruntime
        except ImportError:
            logger.info("model %r: onnxruntime is not installed; the slow reference evaluator runs it", name)
            return _with_reference(name, source)
        logger.info("model %r: onnxruntime %s runs it", name, onnxruntime.__version__)
        return _with_onnxruntime(name, source)
    except Exception as exc:  # the backends raise classes of their own, and _usable a ValueError
        raise ModelFileError(f"model {name!r}: {where} cannot be run as an ONNX model: {exc}") from exc


def _with_onnxruntime(name: str, source: str | bytes) -> LoadedModel:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the manager's workers run models in parallel already
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    output_names = [output.name for output in session.get_outputs()]

    def run(arrays: dict[str, Any]) -> Mapping[str, Any]:
        return dict(zip(output_names, session.run(output_names, arrays), strict=True))

    def spec(found: Any) -> TensorSpec:
        kind, _, element = found.type.rstrip(")").partition("(")
        dims = tuple(size if isinstance(size, int) else -1 for size in found.shape)
        return _spec(found.name, element if kind == "tensor" else None, dims or None)

    inputs, outputs = map(spec, session.get_inputs()), map(spec, session.get_outputs())
    return LoadedModel(name, run, _usable(inputs), tuple(outputs))


def _with_reference(name: str, source: str | bytes) -> LoadedModel:
    import onnx
    from onnx.reference import ReferenceEvaluator

    proto = onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load_model(source)
    onnx.checker.check_model(proto)
    evaluator = ReferenceEvaluator(proto)
    one_at_a_time = threading.Lock()  # onnx does not document it as safe for threads

    def run(arrays: dict[str, Any]) -> Mapping[str, Any]:
        with one_at_a_time:
            return dict(zip(evaluator.output_names, evaluator.run(None, arrays), strict=True))

    weights = {tensor.name for tensor in proto.graph.initializer}  # older files list them as inputs too

    def spec(found: Any) -> TensorSpec:
        tensor = found.type.tensor_type
        element = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        dims = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim)
        return _spec(found.name, element, dims or None)

    inputs = (spec(found) for found in proto.graph.input if found.name not in weights)
    return LoadedModel(name, run, _usable(inputs), tuple(map(spec, proto.graph.output)))


def _spec(name: str, element: str | None, dims: tuple[int, ...] | None) -> TensorSpec:
    return TensorSpec(name, _DATATYPES.get(element or "", _INVALID), dims)


def _usable(inputs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Refuse a model with an input that no request can contain. Outputs are checked when it returns them."""
    specs = tuple(inputs)
    for spec in specs:
        if spec.datatype == _INVALID:
            raise ValueError(f"its input {spec.name!r} is not a tensor of a datatype that Triton supports")
    return specs
