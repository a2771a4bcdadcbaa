"""Read inference requests, with the order of checks and the messages of the recorded manager."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tcm_sync.local.failures import ContractFailure, missing, required
from tcm_sync.local.tensors import Tensor, is_datatype

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tcm_sync.local.cloud_objects import Container

    Find = Callable[[object], Container | None]

DEFAULT_OUTPUT = "output"


@dataclass(frozen=True)
class Target:
    """Which Triton server a request is for.

    Attributes
    ----------
    container : Container
        The container.
    vm_ip : str
        The address that the request states.
    allow_transient : bool
        Whether a connection may be made for this request only.
    """

    container: Container
    vm_ip: str
    allow_transient: bool


@dataclass(frozen=True)
class Reference:
    """An input in shared memory."""

    name: str
    key: str
    offset: int
    byte_size: int
    shape: list[int]
    datatype: str


@dataclass(frozen=True)
class Request:
    """One run of one model.

    Attributes
    ----------
    target : Target
    model_name : str
    tensors : list of Tensor
        The inputs that are in the message.
    references : list of Reference
        The inputs that are in shared memory.
    protocol : str
        ``"http"`` or ``"grpc"``.
    output_name : str
        The output whose text a stream sends.
    """

    target: Target
    model_name: str
    tensors: list[Tensor]
    references: list[Reference]
    protocol: str = "http"
    output_name: str = DEFAULT_OUTPUT


@dataclass(frozen=True)
class Step:
    """One step of a pipeline: its name in the reply, and its request."""

    name: str
    request: Request


def has_pipeline(payload: Mapping[str, Any]) -> bool:
    """Return whether an inference has a pipeline that is not null or empty."""
    return bool(payload.get("pipeline"))


def is_stream(payload: Mapping[str, Any]) -> bool:
    """Return whether an inference requests a stream."""
    request = payload.get("request")
    return isinstance(request, dict) and request.get("protocol") == "grpc" and not has_pipeline(payload)


def read_request(payload: Mapping[str, Any], find: Find) -> Request:
    """Read the payload of an inference that is not a pipeline.

    Parameters
    ----------
    payload : mapping
    find : callable
        Returns the container of an id, or None.

    Raises
    ------
    ContractFailure
        If something is missing, or the container is unknown.
    ValueError
        If an input that refers to shared memory cannot be read from there.
    """
    container, vm_ip = _find_container(payload, find)
    model_name = required(payload, "model_name")
    stated = payload.get("request")
    request = stated if isinstance(stated, dict) else {}
    inputs = payload.get("inputs") if request.get("inputs") is None else request["inputs"]
    if not isinstance(inputs, list):
        missing("request.inputs")
    protocol = request.get("protocol", "http")
    if protocol not in ("http", "grpc"):
        raise ContractFailure(f"Unsupported inference protocol: {protocol!r}")
    if container is None:
        raise _unknown_container(payload)
    return Request(
        Target(container, vm_ip, bool(request.get("allow_transient"))),
        str(model_name),
        *_read_inputs(inputs, "request.inputs", protocol),
        protocol,
        str(request.get("output_name") or DEFAULT_OUTPUT),
    )


def read_pipeline(payload: Mapping[str, Any], find: Find) -> list[Step]:
    """Read the payload of a pipeline.

    Raises
    ------
    ContractFailure, ValueError
        As `read_request` does.
    """
    container, vm_ip = _find_container(payload, find)
    steps = payload["pipeline"]
    if not isinstance(steps, list):
        raise ContractFailure("Field 'pipeline' must be a list of steps")
    if container is None:
        raise _unknown_container(payload)
    target = Target(container, vm_ip, allow_transient=False)
    return [_read_step(step, f"pipeline[{at}]", target) for at, step in enumerate(steps)]


def _read_step(step: object, where: str, target: Target) -> Step:
    if not isinstance(step, dict):
        raise ContractFailure(f"Field '{where}' must be a dictionary")
    model_name = str(required(step, "model_name", f"{where}."))
    inputs = step.get("inputs")
    if not isinstance(inputs, list):
        missing(f"{where}.inputs")
    protocol = step.get("protocol", "http")
    if protocol != "http":
        raise ContractFailure(f"Unsupported inference protocol: {protocol!r}")
    read = _read_inputs(inputs, f"{where}.inputs", protocol)
    return Step(str(step.get("name") or model_name), Request(target, model_name, *read))


def _find_container(payload: Mapping[str, Any], find: Find) -> tuple[Container | None, str]:
    """Return the container, and the address that the request states, or else the container's own."""
    container = find(required(payload, "container_id"))
    vm_ip = payload.get("vm_ip") or (container.vm_ip if container is not None else missing("vm_ip"))
    return container, vm_ip


def _unknown_container(payload: Mapping[str, Any]) -> ContractFailure:
    return ContractFailure(f"Container {payload['container_id']!r} not found in known containers")


def _read_inputs(inputs: list[Any], where: str, protocol: str) -> tuple[list[Tensor], list[Reference]]:
    """Read the inputs that are in the message, and those that are references to shared memory."""
    tensors, references = [], []
    for at, sent in enumerate(inputs):
        place = f"{where}[{at}]"
        if not isinstance(sent, dict):
            raise ContractFailure(f"Field '{place}' must be a dictionary")
        if "shm_key" not in sent:
            tensors.append(_read_tensor(sent, place))
        elif protocol == "grpc":
            raise ValueError("SHM references are not supported for gRPC streaming yet")
        else:
            references.append(_read_reference(sent, place))
    return tensors, references


def _read_reference(sent: dict[str, Any], where: str) -> Reference:
    name, key, byte_size, shape, dtype = (
        required(sent, field, f"{where}.") for field in ("name", "shm_key", "byte_size", "shape", "dtype")
    )
    offset = sent.get("offset", 0)
    for field, value in (("offset", offset), ("byte_size", byte_size)):
        if type(value) is not int or value < 0:
            raise ContractFailure(f"Field '{where}.{field}' must be a number of bytes")
    datatype = _datatype(dtype, name)
    if datatype == "BYTES":
        raise ValueError(f"this local manager reads no BYTES from shared memory (input {name!r})")
    return Reference(str(name), str(key), offset, byte_size, _shape(shape, where), datatype)


def _read_tensor(sent: dict[str, Any], where: str) -> Tensor:
    """Read an input in either of its forms; the manager's own form has dims, type and value."""
    name = sent.get("name")
    shape = sent.get("shape", sent.get("dims"))
    datatype = sent.get("datatype", sent.get("type"))
    for field, value in (("name", name), ("shape", shape), ("datatype", datatype)):
        if value is None:
            missing(f"{where}.{field}")
    if "data" not in sent and "value" not in sent:
        missing(f"{where}.data")
    return Tensor(
        str(name), _shape(shape, where), _datatype(datatype, name), sent.get("data", sent.get("value"))
    )


def _shape(shape: object, where: str) -> list[int]:
    if type(shape) is int:
        shape = [shape]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ContractFailure(f"Field '{where}.shape' must be a list of sizes")
    return shape


def _datatype(datatype: object, name: object) -> str:
    triton_type = str(datatype).removeprefix("TYPE_")
    triton_type = "BYTES" if triton_type == "STRING" else triton_type
    if not is_datatype(triton_type):
        raise ContractFailure(f"Unsupported datatype {datatype!r} of input {name!r}")
    return triton_type
