"""The simulated Triton servers: check the connection for a request, and run its model."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from tcm_sync.local.failures import CodedFailure
from tcm_sync.local.loaded_model import Inputs
from tcm_sync.local.models import ModelFailure
from tcm_sync.local.tensors import encoded_bytes, nesting, to_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from tcm_sync.local.faults import Faults
    from tcm_sync.local.loaded_model import LoadedModel
    from tcm_sync.local.requests import Request, Target
    from tcm_sync.local.shared_memory import SharedMemory
    from tcm_sync.local.tensors import Tensor


NOT_OVER_HTTP = "[501] HTTP end point doesn't support models with decoupled transaction policy"
_ONE_STREAM = (
    "cannot start another stream with one already running. "
    "'InferenceServerClient' supports only a single active stream at a given time."
)


class Triton:
    """Run models; safe from any thread.

    Parameters
    ----------
    models : mapping of str to LoadedModel
    shared_memory : SharedMemory or None
        Finds tensors in shared memory.
    max_payload_bytes : int or None
        The limit on a request's tensors, estimated from shapes and datatypes.
    count_execution : callable
        Called with the name of a model that is about to run.
    faults : Faults or None
        Imitates the known faults of kept connections.
    """

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        *,
        shared_memory: SharedMemory | None,
        max_payload_bytes: int | None,
        count_execution: Callable[[str], None],
        faults: Faults | None = None,
    ) -> None:
        self._models = models
        self._shared_memory = shared_memory
        self._max_payload_bytes = max_payload_bytes
        self._count_execution = count_execution
        self._faults = faults
        self._lock = threading.Lock()  # guards _streaming
        self._streaming: set[str] = set()  # the registered servers that a stream runs on

    def run(self, request: Request) -> object:
        """Run a model on the tensors of a request.

        Returns
        -------
        object
            What the model returned.

        Raises
        ------
        Exception
            What the model raised, or the refusal of the manager or of Triton.
        """
        container = request.target.container
        if self._faults is None or request.protocol == "grpc" or not container.registered:
            return self._run(request)
        with self._faults.client(container.container_id):
            return self._run(request)

    def _run(self, request: Request) -> object:
        if request.references:
            return self._run_on_references(request)
        estimated = sum(tensor.estimated_bytes for tensor in request.tensors)
        if self._max_payload_bytes is not None and estimated > self._max_payload_bytes:
            raise ValueError(
                f"413 Payload Too Large: estimated_bytes={estimated} limit_bytes={self._max_payload_bytes}"
            )
        arrays = _to_arrays(request.tensors)
        self.connect(request)
        datatypes = {tensor.name: tensor.datatype for tensor in request.tensors}
        return self._run_model(self._find(request), datatypes, arrays, request.protocol)

    def connect(self, request: Request) -> None:
        """Refuse a request for which the manager has no connection.

        A kept connection is used if there is one, whether the request allows a transient one or not.

        Raises
        ------
        ValueError
            With the message of the recorded manager.
        """
        container, target = request.target.container, request.target
        require_session(target)
        if target.vm_ip != container.vm_ip or not container.answers:  # vm_ip is not checked
            raise ValueError("[Errno 111] Connection refused")
        if container.registered and container.grpc != (request.protocol == "grpc"):
            raise ValueError(_wrong_connection(request))

    @contextlib.contextmanager
    def streaming(self, target: Target) -> Iterator[None]:
        """Hold the one stream that a registered server allows; other servers allow any number.

        Raises
        ------
        ValueError
            If there is one already; with the message of the recorded manager.
        """
        container_id = target.container.container_id
        if not target.container.registered:
            yield
            return
        with self._lock:
            if container_id in self._streaming:
                raise ValueError(_ONE_STREAM)
            self._streaming.add(container_id)
        try:
            yield
        finally:
            with self._lock:
                self._streaming.discard(container_id)

    def _run_on_references(self, request: Request) -> object:
        """Run a model on tensors in shared memory; other tensors of the request are ignored."""
        if self._shared_memory is None:
            raise ModelFailure("TRITON_SHM_UNAVAILABLE", "this local manager has no shared memory")
        self.connect(request)
        attached = self._shared_memory.attach(request.references, request.target)
        try:
            model = self._find(request)
            arrays = {found.reference.name: found.array(model.name) for found in attached}
            datatypes = {reference.name: reference.datatype for reference in request.references}
            return self._run_model(model, datatypes, arrays, request.protocol)
        except ModelFailure:
            raise
        except Exception as exc:
            raise ValueError(f"SHM infer call failed: {exc}") from exc

    def _run_model(
        self,
        model: LoadedModel,
        datatypes: Mapping[str, str],
        arrays: dict[str, NDArray[Any]],
        protocol: str,
    ) -> object:
        model.check(datatypes, arrays)
        if model.decoupled and protocol == "http":
            raise ValueError(NOT_OVER_HTTP)
        self._count_execution(model.name)
        return model.run(arrays if model.inputs is not None else Inputs(arrays))

    def _find(self, request: Request) -> LoadedModel:
        model = self._models.get(request.model_name)
        if model is None or not request.target.container.serves(model.name):
            raise ValueError(f"[404] Request for unknown model: '{request.model_name}' is not found")
        return model


def require_session(target: Target) -> None:
    """Refuse a request if the manager neither keeps a connection nor may make one."""
    if not target.container.registered and not target.allow_transient:
        raise ValueError("No active Triton session for this instance")


def _wrong_connection(request: Request) -> str:
    """Return the failure of a kept connection that is used for the other protocol."""
    if request.protocol == "grpc":
        return "'InferenceServerClient' object has no attribute 'start_stream'"
    described: list[dict[str, Any]] = [
        {
            "name": tensor.name,
            "shape": tensor.shape,
            "datatype": tensor.datatype,
            "parameters": {"binary_data_size": encoded_bytes(tensor)},
        }
        for tensor in request.tensors[:1]
    ]
    return f"Expected a message object, but got {described[0] if described else {}}."


def _to_arrays(tensors: list[Tensor]) -> dict[str, NDArray[Any]]:
    for tensor in tensors:
        found = nesting(tensor.data)
        if found != tensor.shape:
            raise CodedFailure(
                "TRITON_SHAPE_MISMATCH",
                f"Input shape mismatch for '{tensor.name}': dims={tensor.shape} vs value.shape={found}",
                "unknown",
            )
    return {tensor.name: to_array(tensor.data, tensor.shape, tensor.datatype) for tensor in tensors}
