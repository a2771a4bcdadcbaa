"""The outputs of a model as they are declared: Dask has dtypes and shapes before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._numbers import as_whole, shown
from tcm_sync._wire.quote import quote
from tcm_sync.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync._tensors import ModelSignature


@dataclass(frozen=True)
class Output:
    """An output as it was declared; the name is None if the only output is meant."""

    name: str | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # of one row

    def empty(self, rows: int) -> npt.NDArray[Any]:
        """Return an array of so many rows."""
        return np.empty((rows, *self.shape), self.dtype)


def declared_outputs(
    dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None,
    shapes: Mapping[str, Sequence[int]] | Sequence[int] | None,
    signature: ModelSignature | None,
    row_shape: tuple[int, ...] | None,
) -> tuple[Output, ...]:
    """Return the outputs with their dtypes and the shapes of their rows."""
    if dtypes is None:
        if signature is None:
            raise InputError(
                "pass output_dtypes or a signature: Dask needs the dtypes before anything is computed"
            )
        dtypes = signature.output_dtypes
    if not isinstance(dtypes, Mapping):
        only = signature.outputs[0].name if signature is not None and len(signature.outputs) == 1 else None
        if isinstance(shapes, Mapping):
            raise InputError("output_shapes is a mapping, so output_dtypes must be one too")
        return (Output(None, _dtype(dtypes), _row_shape(only, shapes, signature, row_shape)),)
    if not dtypes:
        raise InputError("output_dtypes names no output")
    if shapes is not None and not isinstance(shapes, Mapping):
        raise InputError("output_dtypes is a mapping, so output_shapes must be one too")
    if unknown := sorted(set(shapes or ()) - set(dtypes)):
        raise InputError(f"output_shapes has {', '.join(unknown)}, which output_dtypes does not name")
    return tuple(
        Output(name, _dtype(dtype), _row_shape(name, (shapes or {}).get(name), signature, row_shape))
        for name, dtype in dtypes.items()
    )


def _dtype(dtype: Any) -> np.dtype[Any]:
    try:
        checked: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise InputError(f"output_dtypes: {error}") from None
    return checked


def _row_shape(
    name: str | None,
    shape: Sequence[int] | None,
    signature: ModelSignature | None,
    otherwise: tuple[int, ...] | None,
) -> tuple[int, ...]:
    """Return the shape of one row of an output."""
    what = "the output" if name is None else f'the output "{quote(name)}"'
    if shape is not None:
        sizes = [as_whole(size) for size in shape] if isinstance(shape, Sequence) else [None]
        if any(size is None or size < 0 for size in sizes):
            raise InputError(f"output_shapes: the shape of one row is a tuple of sizes, not {shown(shape)}")
        return tuple(size for size in sizes if size is not None)
    if signature is not None:
        dims = next((spec.dims for spec in signature.outputs if spec.name == name), None)
        row = None if dims is None or signature.batch_axis is None else dims[not signature.batch_axis :]
        if row is None or -1 in row:
            raise InputError(f"the signature has not the shape of one row of {what}: pass output_shapes")
        return row
    if otherwise is None:
        raise InputError(f"pass output_shapes: several inputs do not say what a row of {what} is like")
    return otherwise
