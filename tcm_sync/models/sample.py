"""Make inputs to try a model with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._arguments import check_whole
from tcm_sync._numbers import shown
from tcm_sync._tensors import DATATYPES, ModelSignature, TensorSpec
from tcm_sync._wire.quote import quote
from tcm_sync.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt


def sample_inputs(
    signature: ModelSignature,
    batch: int = 1,
    seed: int = 0,
    *,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Make arrays that a model takes, for smoke tests and benchmarks.

    Floats are from 0 up to 1. Integers are 0 or 1, which are valid indices in most models. Texts are ``"0"``
    or ``"1"``. The same arguments make the same arrays.

    Parameters
    ----------
    signature : ModelSignature
        The signature of the model. Optional inputs are left out.
    batch : int
        The size of the batch axis: the axis before the dims, or the first dimension if it is open and
        ``signature.batch_axis`` is False.
    seed : int
        The seed of the random numbers.
    sizes : mapping of str to int, optional
        The sizes of other open dimensions by name. Those without an entry are 1, unless they have the name of
        the batch. Dimensions of one name have one size.

    Returns
    -------
    dict of str to ndarray
        An array for each required input, by its name.

    Raises
    ------
    InputError
        An argument is wrong, the model has no batch, or no request can carry one of its inputs.
    """
    if not isinstance(signature, ModelSignature):
        raise InputError(f"signature must be a ModelSignature, not {type(signature).__name__}")
    batch = check_whole("batch", batch, kind=InputError)
    known = _sizes(signature, batch, {} if sizes is None else sizes)
    if signature.max_batch_size is not None and batch > signature.max_batch_size:
        raise InputError(
            f"batch must be at most {signature.max_batch_size} for the model, not {shown(batch)}"
        )
    random = np.random.default_rng(check_whole("seed", seed, 0, InputError))
    arrays = {}
    open_somewhere = False
    for spec in signature.inputs:
        if spec.optional:
            continue
        if spec.datatype not in DATATYPES:
            raise InputError(f'input "{quote(spec.name)}": no request can carry {spec.datatype}')
        shape, is_open = _shape(spec, batch, known, before=signature.batch_axis is not False)
        open_somewhere |= is_open
        try:
            arrays[spec.name] = _values(random, spec.datatype, shape)
        except (MemoryError, ValueError) as error:
            raise InputError(
                f'input "{quote(spec.name)}": an array of shape {shown(shape)} cannot be made: {error}'
            ) from error
    if batch > 1 and not open_somewhere:
        raise InputError(f"batch must be 1, not {shown(batch)}: no input has an open first dimension")
    return arrays


def _sizes(signature: ModelSignature, batch: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of open dimensions by name; dimensions of one name have one size."""
    if not isinstance(sizes, Mapping):
        raise InputError(f"sizes must map names of dimensions to sizes, not {type(sizes).__name__}")
    known: dict[str, int] = {}
    if signature.batch_axis is False:
        firsts = [spec.dim_names[0] for spec in signature.inputs if spec.dim_names]
        known = {name: batch for name in firsts if name is not None}
    given = {name: check_whole(f"sizes[{name!r}]", size, 0, InputError) for name, size in sizes.items()}
    return known | given


def _shape(
    spec: TensorSpec, batch: int, sizes: Mapping[str, int], *, before: bool
) -> tuple[tuple[int, ...], bool]:
    """Return the shape of an input, and whether the batch is in it."""
    if spec.dims is None:
        return (batch,), True
    names = spec.dim_names or (None,) * len(spec.dims)
    shape = [
        size if size >= 0 else sizes.get(name or "", 1) for size, name in zip(spec.dims, names, strict=True)
    ]
    if before:
        return (batch, *shape), True
    if spec.dims[:1] == (-1,):
        return (sizes.get(names[0] or "", batch), *shape[1:]), True
    return tuple(shape) or (1,), False  # a 0-d tensor is sent as one element


def _values(random: np.random.Generator, datatype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype = DATATYPES[datatype].dtype
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    values = random.integers(0, 2, shape)
    if dtype.kind != "O":
        return values.astype(dtype)
    return values.astype(str).astype(object)
