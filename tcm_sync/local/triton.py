"""The pretend Triton servers: who may talk to which, and what they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tcm_sync.local.failures import CodedFailure
from tcm_sync.local.models import ModelFailure
from tcm_sync.local.tensors import nesting, to_array

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tcm_sync.local.models import LoadedModel
    from tcm_sync.local.requests import Request, Target
    from tcm_sync.local.shared_memory import SharedMemory
    from tcm_sync.local.tensors import Tensor


class Triton:
    """Runs models; safe from any thread.

    Parameters
    ----------
    models : mapping of str to LoadedModel
    shared_memory : SharedMemory or None
        What finds the tensors that a request only refers to.
    max_payload_bytes : int or None
        The budget for one request, judged from shapes and datatypes.
    count_execution : callable
        Told the name of a model that is about to run.
    """

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        *,
        shared_memory: SharedMemory | None,
        max_payload_bytes: int | None,
        count_execution: Callable[[str], None],
    ) -> None:
        self._models = models
        self._shared_memory = shared_memory
        self._max_payload_bytes = max_payload_bytes
        self._count_execution = count_execution

    def run(self, request: Request) -> object:
        """Run a model on the tensors of a request.

        Returns
        -------
        object
            What the model returned.

        Raises
        ------
        Exception
            Whatever it raised, and what a manager or Triton would have said instead of running it.
        """
        if request.references:
            return self._run_on_references(request)
        estimated = sum(tensor.estimated_bytes for tensor in request.tensors)
        if self._max_payload_bytes is not None and estimated > self._max_payload_bytes:
            raise ValueError(
                f"413 Payload Too Large: estimated_bytes={estimated} limit_bytes={self._max_payload_bytes}"
            )
        arrays = _to_arrays(request.tensors)
        _connect(request.target, request.protocol)
        datatypes = {tensor.name: tensor.datatype for tensor in request.tensors}
        return self._run_model(self._find(request), datatypes, arrays)

    def _run_on_references(self, request: Request) -> object:
        """Run a model on tensors in shared memory; those that were sent beside them are lost."""
        if self._shared_memory is None:
            raise ModelFailure("TRITON_SHM_UNAVAILABLE", "this local manager has no shared memory")
        _connect(request.target, request.protocol)
        attached = self._shared_memory.attach(request.references, request.target)
        try:
            model = self._find(request)
            arrays = {found.reference.name: found.array(model.name) for found in attached}
            datatypes = {reference.name: reference.datatype for reference in request.references}
            return self._run_model(model, datatypes, arrays)
        except ModelFailure:
            raise
        except Exception as exc:
            raise ValueError(f"SHM infer call failed: {exc}") from exc

    def _run_model(
        self, model: LoadedModel, datatypes: Mapping[str, str], arrays: dict[str, NDArray[Any]]
    ) -> object:
        model.check(datatypes, arrays)
        self._count_execution(model.name)
        return model.run(arrays)

    def _find(self, request: Request) -> LoadedModel:
        model = self._models.get(request.model_name)
        if model is None or not request.target.container.serves(model.name):
            raise ValueError(f"[404] Request for unknown model: '{request.model_name}' is not found")
        return model


def _connect(target: Target, protocol: str) -> None:
    """Refuse what the manager has no connection for: those that it keeps are for HTTP."""
    if target.container.registered:
        if protocol == "grpc":
            raise ValueError("'InferenceServerClient' object has no attribute 'start_stream'")
    elif not target.allow_transient:
        raise ValueError("No active Triton session for this instance")
    if target.vm_ip != target.container.vm_ip:  # believed, and nobody is there
        raise ValueError("[Errno 111] Connection refused")


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
