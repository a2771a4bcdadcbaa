"""What a model that is bound to a signature and a batch policy does with its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import replace
from typing import TYPE_CHECKING

from tcm_sync._tensors import (
    EachInputsWithSignature,
    InputsWithSignature,
    ModelSignature,
    SizedInputsWithSignature,
    is_frame,
)
from tcm_sync.errors import InputError
from tcm_sync.settings import UNSET, BatchPolicy, Unset

if TYPE_CHECKING:
    import numpy.typing as npt

    DTypes = Mapping[str, npt.DTypeLike] | npt.DTypeLike


def of_signature(
    signature: ModelSignature | None, output_dtypes: DTypes | Unset | None, batch: BatchPolicy | None
) -> tuple[DTypes | Unset | None, BatchPolicy]:
    """Return the dtypes and the batch policy of a model, after what its signature says.

    Raises
    ------
    InputError
        An argument is wrong, or samples of the model cannot be stacked.
    """
    if batch is not None and not isinstance(batch, BatchPolicy):
        raise InputError(f"batch must be a BatchPolicy, not {type(batch).__name__}")
    if signature is not None and not isinstance(signature, ModelSignature):
        raise InputError(
            f"signature must be a ModelSignature, not {type(signature).__name__}; an analysis has one"
        )
    if batch is None:
        batch = BatchPolicy(max_size=1, max_wait=0.0)
    if signature is None:
        return output_dtypes, batch
    if output_dtypes is None or output_dtypes is UNSET:
        output_dtypes = signature.output_dtypes
    return output_dtypes, _bounded(batch, signature)


def with_signature(signature: ModelSignature | None, inputs: object) -> object:
    """Have inputs checked against the signature, if there is one, when they are encoded."""
    return inputs if signature is None else InputsWithSignature(signature, inputs)


def each_with_signature(signature: ModelSignature | None, many_inputs: Iterable[object]) -> Iterable[object]:
    """Do so with each of many inputs."""
    is_many = isinstance(many_inputs, Iterable) and not isinstance(many_inputs, (str, bytes, Mapping))
    if signature is None or not is_many or is_frame(many_inputs):  # which is refused later
        return many_inputs
    if isinstance(many_inputs, Sized):
        return SizedInputsWithSignature(signature, many_inputs)
    return EachInputsWithSignature(signature, many_inputs)


def _bounded(batch: BatchPolicy, signature: ModelSignature) -> BatchPolicy:
    """Hold a policy to the batches that the model takes."""
    if batch.max_size == 1:
        return batch
    from tcm_sync.models.batch import has_first_size_again  # here: most programs have no model files

    for spec in signature.inputs:
        if signature.batch_axis is False and spec.dims is not None and spec.dims[:1] != (-1,):
            raise InputError(
                "batch: samples cannot be stacked: the signature has no open first dimension for the input "
                f"{spec.name!r}, {spec}"
            )
        if signature.batch_axis is False and has_first_size_again(spec):
            raise InputError(
                f"batch: samples cannot be stacked: two dimensions of the input {spec.name!r}, {spec}, have "
                "one size"
            )
    most = signature.max_batch_size
    return batch if most is None else replace(batch, max_size=min(batch.max_size, most))
