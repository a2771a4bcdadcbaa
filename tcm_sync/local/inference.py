"""Answer inferences that have one reply, of one model or of a pipeline.

The order of the checks and the messages are those of the recorded manager (docs/wire.rst, "Inference" and
"Pipelines"). Streams are in streams.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._tensors.arrays import as_array
from tcm_sync._tensors.datatypes import TensorError
from tcm_sync._tensors.foreign import check_unchanged
from tcm_sync.local.failures import StepFailure, failed_reply
from tcm_sync.local.requests import has_pipeline, read_pipeline, read_request
from tcm_sync.local.tensors import to_json
from tcm_sync.local.triton import NOT_OVER_HTTP, require_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tcm_sync.local.models import ModelFailure
    from tcm_sync.local.requests import Find, Request
    from tcm_sync.local.triton import Triton


class Inference:
    """Answers inference requests that have one reply; safe from any thread.

    Parameters
    ----------
    triton : Triton
        Runs the models.
    find : callable
        Returns the container with an id, or None.
    """

    def __init__(self, triton: Triton, find: Find) -> None:
        self._triton = triton
        self._find = find

    def answer(
        self, payload: Mapping[str, Any], injected: Callable[[], ModelFailure] | None = None
    ) -> dict[str, Any]:
        """Run one request.

        Parameters
        ----------
        payload : mapping
            The request.
        injected : callable, optional
            Makes what it fails with, in place of running.

        Returns
        -------
        dict
            The payload of the reply, which may report a failure.
        """
        is_pipeline = has_pipeline(payload)
        model_name = payload.get("model_name")
        try:
            if injected is not None:
                raise injected()
            data = self._run_pipeline(payload) if is_pipeline else self._run_one(payload)
        except BaseException as exc:  # noqa: BLE001 - a model may raise anything, and its worker continues
            return failed_reply(exc, "pipeline" if is_pipeline else str(model_name))
        return {"data": data, "status": "COMPLETED", "model_name": model_name}

    def _run_one(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        return self._outputs(read_request(payload, self._find))

    def _run_pipeline(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Run the steps one after another; the first failure is the failure of the pipeline."""
        steps = read_pipeline(payload, self._find)
        require_session(steps[0].request.target)
        return {step.name: self._step_outputs(step.request) for step in steps}

    def _step_outputs(self, request: Request) -> dict[str, Any]:
        try:
            return self._outputs(request)
        except Exception as exc:
            raise StepFailure(request.model_name, exc) from exc

    def _outputs(self, request: Request) -> dict[str, Any]:
        outputs = self._triton.run(request)
        if isinstance(outputs, Iterator):
            raise ValueError(NOT_OVER_HTTP)
        if not isinstance(outputs, Mapping):
            raise TypeError(
                f"the model returned a {type(outputs).__name__}, not a mapping of tensors by name"
            )
        return {_output_name(name): to_json(_array(value)) for name, value in outputs.items()}


def _output_name(name: object) -> str:
    if isinstance(name, str):
        return name
    raise TypeError(f"the model returned an output whose name is a {type(name).__name__}, not a str")


def _array(value: object) -> NDArray[Any]:
    """Return an output as an array of exactly the numbers that the model returned."""
    array = np.asarray(value)
    try:
        check_unchanged(value, array)
    except TensorError:
        if not isinstance(value, (list, tuple)):
            raise
        return as_array(value)  # numpy makes floats of [2**64 - 1, 1], which are uint64
    return array
