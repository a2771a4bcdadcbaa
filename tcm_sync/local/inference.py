"""One inference: from the payload of a request to the payload of its reply.

The order of the checks, and the words, are those of the recorded manager (docs/wire.rst, "Inference" and
"What cannot be carried"). The tensors are read and written here anew, not with `tcm_sync.tensors`, so that
a mistake there is not hidden by its twin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tcm_sync.local.models import ModelFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tcm_sync.local.models import LoadedModel

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
_TEXT_BYTES = 1  # what a text counts for when payloads are judged by shape and datatype alone


class ContractFailure(Exception):
    """The request lacks something: answered by its text alone, with no code and no model."""


class _CodedFailure(ModelFailure):
    """A failure that names another model than the request does."""

    def __init__(self, code: str, message: str, model_name: str) -> None:
        super().__init__(code, message)
        self.model_name = model_name


@dataclass(frozen=True)
class _Tensor:
    """An input as it was sent."""

    name: str
    shape: list[int]
    datatype: str
    data: Any

    @property
    def estimated_bytes(self) -> int:
        """What it will take, judged from shape and datatype."""
        itemsize = _TEXT_BYTES if self.datatype == "BYTES" else _DTYPES[self.datatype].itemsize
        return math.prod(self.shape) * itemsize


class Inference:
    """Answers inference requests; safe from any thread.

    Parameters
    ----------
    models : mapping of str to LoadedModel
    container_id, vm_ip : str
        The one container that there is, and where.
    max_payload_bytes : int or None
        The budget for one request, judged from shapes and datatypes.
    count_execution : callable
        Told the name of a model that is about to run.
    """

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        *,
        container_id: str,
        vm_ip: str,
        max_payload_bytes: int | None,
        count_execution: Callable[[str], None],
    ) -> None:
        self._models = models
        self._container_id = container_id
        self._vm_ip = vm_ip
        self._max_payload_bytes = max_payload_bytes
        self._count_execution = count_execution

    def answer(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Run one request.

        Returns
        -------
        dict
            The payload of the reply; failures are answers too.
        """
        model_name = payload.get("model_name")
        try:
            vm_ip, tensors = self._read_request(payload)
            outputs = self._run(str(model_name), vm_ip, tensors)
            data = {name: to_json(np.asarray(value)) for name, value in outputs.items()}
        except ContractFailure as failure:
            return {"data": str(failure), "status": "FAILED", "model_name": None}
        except _CodedFailure as failure:
            return _failed(failure, failure.model_name)
        except ModelFailure as failure:
            return _failed(failure, str(model_name))
        except Exception as exc:  # noqa: BLE001 - a model may raise anything, and the client must be told
            return _failed(ModelFailure("TRITON_INFERENCE_FAILED", str(exc)), str(model_name))
        return {"data": data, "status": "COMPLETED", "model_name": model_name}

    def _read_request(self, payload: Mapping[str, Any]) -> tuple[str, list[_Tensor]]:
        container_id = _required(payload, "container_id")
        known = container_id == self._container_id
        vm_ip = payload.get("vm_ip") or (self._vm_ip if known else _missing("vm_ip"))
        if "pipeline" in payload:
            raise ContractFailure("Pipelines are not supported by this local manager")
        _required(payload, "model_name")
        request = payload.get("request")
        inputs = request.get("inputs") if isinstance(request, dict) else None
        if not isinstance(inputs, list) or not isinstance(request, dict):
            _missing("request.inputs")
        protocol = request.get("protocol", "http")
        if protocol == "grpc":
            raise ContractFailure("Streaming (protocol 'grpc') is not supported by this local manager")
        if protocol != "http":
            raise ContractFailure(f"Unsupported inference protocol: {protocol!r}")
        if not known:
            raise ContractFailure(f"Container {container_id!r} not found in known containers")
        return vm_ip, [_read_tensor(found, f"request.inputs[{at}]") for at, found in enumerate(inputs)]

    def _run(self, model_name: str, vm_ip: str, tensors: list[_Tensor]) -> Mapping[str, Any]:
        estimated = sum(tensor.estimated_bytes for tensor in tensors)
        if self._max_payload_bytes is not None and estimated > self._max_payload_bytes:
            raise ValueError(
                f"413 Payload Too Large: estimated_bytes={estimated} limit_bytes={self._max_payload_bytes}"
            )
        for tensor in tensors:
            found = _nesting(tensor.data)
            if found != tensor.shape:
                raise _CodedFailure(
                    "TRITON_SHAPE_MISMATCH",
                    f"Input shape mismatch for '{tensor.name}': dims={tensor.shape} vs value.shape={found}",
                    "unknown",
                )
        arrays = {tensor.name: to_array(tensor.data, tensor.shape, tensor.datatype) for tensor in tensors}
        if vm_ip != self._vm_ip:  # trusted, and nobody is there
            raise ValueError("[Errno 111] Connection refused")
        model = self._models.get(model_name)
        if model is None:
            raise ValueError(f"[404] Request for unknown model: '{model_name}' is not found")
        model.check({tensor.name: tensor.datatype for tensor in tensors}, arrays)
        self._count_execution(model_name)
        outputs = model.run(arrays)
        if not isinstance(outputs, Mapping):
            raise TypeError(
                f"the model returned a {type(outputs).__name__}, not a mapping of tensors by name"
            )
        return outputs


def _missing(field: str) -> NoReturn:
    raise ContractFailure(f"Missing required field '{field}'")


def _required(payload: Mapping[str, Any], field: str) -> Any:
    value = payload.get(field)
    return _missing(field) if value is None else value


def _failed(failure: ModelFailure, model_name: str) -> dict[str, Any]:
    data: dict[str, Any] = {
        "code": failure.code,
        "message": f"[TritonThread] {failure.code}: model={model_name!r} "
        f"retriable={failure.retriable} reason={failure}",
        "retriable": failure.retriable,
    }
    if failure.retry_after_seconds is not None:
        data["retry_after_seconds"] = failure.retry_after_seconds
    return {"data": data, "status": "FAILED", "model_name": model_name}


def _read_tensor(sent: object, where: str) -> _Tensor:
    """Read an input in either form of the wire: the manager's own has dims, type and value."""
    if not isinstance(sent, dict):
        raise ContractFailure(f"Field '{where}' must be a dictionary")
    if "shm_key" in sent:
        raise ModelFailure("TRITON_SHM_UNAVAILABLE", "this local manager has no shared memory")
    name = sent.get("name")
    shape = sent.get("shape", sent.get("dims"))
    datatype = sent.get("datatype", sent.get("type"))
    for field, value in (("name", name), ("shape", shape), ("datatype", datatype)):
        if value is None:
            _missing(f"{where}.{field}")
    if "data" not in sent and "value" not in sent:
        _missing(f"{where}.data")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ContractFailure(f"Field '{where}.shape' must be a list of sizes")
    triton_type = str(datatype).removeprefix("TYPE_")
    triton_type = "BYTES" if triton_type == "STRING" else triton_type
    if triton_type not in _DTYPES:
        raise ContractFailure(f"Unsupported datatype {datatype!r} of input {name!r}")
    return _Tensor(str(name), shape, triton_type, sent.get("data", sent.get("value")))


def _nesting(data: object) -> list[int]:
    """Tell the shape of nested lists by their first elements; a bare value counts as a list of one."""
    if not isinstance(data, list):
        return [1]
    shape = []
    while isinstance(data, list):
        shape.append(len(data))
        data = data[0] if data else None
    return shape


def to_array(data: Any, shape: list[int], datatype: str) -> NDArray[Any]:
    """Make an array of the JSON of one input, with the casts and losses of the recorded manager.

    Parameters
    ----------
    data : nested lists, or a bare value for shape [1]
        Nested as `shape` says, as far as the first elements show it.
    shape : list of int
    datatype : str
        A Triton datatype that has a JSON form.

    Raises
    ------
    ValueError, TypeError, OverflowError
        If a value cannot be what the datatype says.
    """
    if not isinstance(data, list):
        data = [data]
    dtype = _DTYPES[datatype]
    if datatype == "BYTES":
        return _texts(data, shape)
    if dtype.kind in "iu":
        return _integers(data, dtype)
    with np.errstate(over="ignore"):  # what overflows becomes infinite without a word
        return np.array(data, dtype=dtype)


def _integers(data: list[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Cut floats to integers, and refuse what is out of range: numpy 1 would wrap it."""
    unsigned = dtype == np.uint64
    wide: NDArray[Any] = np.array(data, dtype=np.object_ if unsigned else np.int64)
    bounds = np.iinfo(dtype)
    if unsigned:
        outside = [int(value) for value in wide.flat if isinstance(value, int | float) and value < 0]
    else:
        outside = wide[(wide < bounds.min) | (wide > bounds.max)].tolist()
    if outside:
        raise OverflowError(f"Python integer {outside[0]} out of bounds for {dtype.name}")
    return wide.astype(dtype)


def _texts(data: list[Any], shape: list[int]) -> NDArray[Any]:
    """Make an array of str: anything else becomes its text, and trailing NULs are lost."""
    found = np.array(data, dtype=np.object_)
    if list(found.shape) != shape:
        raise ValueError("setting an array element with a sequence: the lists are not of equal length")
    texts = np.empty(found.size, dtype=np.object_)
    texts[:] = [str(value).rstrip("\0") for value in found.flat]
    return texts.reshape(shape)


def to_json(array: NDArray[Any]) -> Any:
    """Make what JSON can carry of an output, with the losses of the recorded manager.

    Texts lose their shape and a single one its list; FP16 is widened; what is not finite becomes null.

    Raises
    ------
    TypeError, UnicodeDecodeError
        If the output has no JSON form.
    """
    if array.dtype.kind in "OSU":
        texts = [_text(value) for value in array.ravel()]
        if not texts:
            return array.tolist()
        return texts[0] if len(texts) == 1 else texts
    if array.dtype.newbyteorder("=") not in _DTYPES.values():
        raise TypeError(f"an output of dtype {array.dtype} has no JSON form")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        values = array.astype(np.object_)
        values[~np.isfinite(array)] = None
        return values.tolist()
    return array.tolist()


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"an output that holds a {type(value).__name__} has no JSON form")
