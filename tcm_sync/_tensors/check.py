"""Check the inputs of a call against the signature of its model, and report everything that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from msgspec import UNSET, Struct

from tcm_sync._tensors.casts import cast
from tcm_sync._tensors.datatypes import TensorError, datatype_named
from tcm_sync._tensors.foreign import is_frame
from tcm_sync._tensors.inputs import InferenceInput, Tensor, check_inputs, fields_of_inputs
from tcm_sync._tensors.signature import ModelSignature, TensorSpec, possible_shapes, rows_of_a_message
from tcm_sync._tensors.tables import Table
from tcm_sync._wire.quote import quote
from tcm_sync.errors import InputError

Dims = tuple[int, ...]


class InputsWithSignature(Struct, frozen=True, eq=False):
    """Inputs together with the signature that they are checked against.

    Attributes
    ----------
    signature : ModelSignature
    inputs : object
        What `check_inputs` takes; or one array-like alone, if the model takes one input.
    """

    signature: ModelSignature
    inputs: object


class EachInputsWithSignature:
    """The inputs of many calls, each of which is paired with the signature when it is read."""

    def __init__(self, signature: ModelSignature, many_inputs: Iterable[object]) -> None:
        self._signature = signature
        self._many = many_inputs

    def __iter__(self) -> Iterator[InputsWithSignature]:
        return (InputsWithSignature(self._signature, inputs) for inputs in self._many)


class SizedInputsWithSignature(EachInputsWithSignature):
    """The same of inputs that have a length."""

    def __len__(self) -> int:
        return len(self._many)  # type: ignore[arg-type]  # it is only made of inputs with a length


def check_call(inputs: object, *, sample: bool = False, infinities: bool = False) -> tuple[Tensor, ...]:
    """Turn the inputs of a call into tensors that can be sent, and check them against a signature, if any.

    Parameters
    ----------
    inputs : object
        What `check_inputs` takes, or `InputsWithSignature`.
    sample : bool
        Whether it is one sample, which gets its batch axis later.
    infinities : bool
        Whether they may hold infinities, which have no form in JSON.

    Raises
    ------
    InputError
        They cannot be sent, or do not fit the signature.
    """
    if type(inputs) is InputsWithSignature:
        return fit_inputs(inputs.signature, inputs.inputs, sample=sample, infinities=infinities)
    return check_inputs(inputs, scalars=sample, infinities=infinities)


def fit_inputs(
    signature: ModelSignature,
    inputs: object,
    *,
    sample: bool = False,
    will_be_cut: bool = False,
    infinities: bool = False,
) -> tuple[Tensor, ...]:
    """Check inputs against a signature, and convert them to its datatypes.

    Integers are converted to other integers or floats if every value stays the same. Floats of an array are
    only converted to wider floats. Python's floats have no width, and are rounded to the nearest. bool,
    numbers and text are not converted to each other.

    Parameters
    ----------
    signature : ModelSignature
        What the model takes.
    inputs : object
        What `check_inputs` takes, or one array-like alone, or a data frame.
    sample : bool
        Whether it is one sample, which gets its batch axis later.
    will_be_cut : bool
        Whether it is a batch that will be cut, so that it may have more rows than the model takes at a time.
    infinities : bool
        Whether they may hold infinities, which have no form in JSON.

    Returns
    -------
    tuple of Tensor
        In the order given, of the datatypes that the model takes.

    Raises
    ------
    InputError
        They do not fit. The message lists every fault, with what was expected and what was given.
    """
    if type(inputs) is not dict and is_frame(inputs):
        inputs = _from_frame(signature, inputs, sample=sample)
    specs = {spec.name: spec for spec in signature.inputs}
    given: dict[str | int, Tensor | None] = {}
    batches: dict[str, int] = {}
    wrong = []
    for place, (name, *what) in enumerate(_named(signature, inputs)):
        key, where = (name, f'input "{quote(name)}"') if isinstance(name, str) else (place, f"input {place}")
        if key in given:
            wrong.append(f"{where}: given twice")
            continue
        spec = specs.get(name) if isinstance(name, str) else None
        given[key], shape, reasons = _fit(
            signature, spec, name, *what, sample=sample, will_be_cut=will_be_cut, infinities=infinities
        )
        if reasons:
            wanted = "" if spec is None else f" expected {spec.datatype}{spec.shape},"
            wrong.append(f"{where}:{wanted} given {', and '.join(reasons)}")
        elif spec is not None and not sample and _has_batch(signature, spec, shape):
            batches[name] = shape[0]
    wrong += [
        f'input "{quote(spec.name)}": expected {spec.datatype}{spec.shape}, given nothing'
        for spec in signature.inputs
        if spec.name not in given and not spec.optional
    ]
    wrong += _batch_faults(batches, None if will_be_cut else signature.max_batch_size)
    if not given and not wrong:
        wrong = ["no inputs: a model needs at least one"]
    if wrong:
        faults = f" {wrong[0]}" if len(wrong) == 1 else "".join(f"\n- {each}" for each in wrong)
        raise InputError(f"the inputs do not fit the model's signature:{faults}")
    return tuple(tensor for tensor in given.values() if tensor is not None)


def _from_frame(signature: ModelSignature, frame: object, *, sample: bool) -> dict[str, Any]:
    """Return the columns of a data frame as the signature takes them."""
    if sample:
        raise InputError("a data frame is not one sample; infer_frame() takes it")
    table = Table(frame, signature=signature)
    return table.take(0, table.length)


def _fit(
    signature: ModelSignature,
    spec: TensorSpec | None,
    name: Any,
    shape: Any,
    datatype: Any,
    data: Any,
    *,
    sample: bool,
    will_be_cut: bool,
    infinities: bool,
) -> tuple[Tensor | None, Dims, list[str]]:
    """Return one input as the model takes it, its shape, and the faults found."""
    one: object = {name: data} if datatype is UNSET else [InferenceInput(name, shape, datatype, data)]
    try:
        (tensor,) = check_inputs(one, scalars=sample, infinities=infinities)
    except InputError as error:
        return None, (), [f"what cannot be sent: {error.message.partition(': ')[2]}"]
    if spec is None:
        return None, (), [f"{tensor.datatype}{list(tensor.shape)}: the model has no input of this name"]
    faults = _shape_faults(signature, spec, tensor.shape, sample=sample, will_be_cut=will_be_cut)
    fitted = None
    try:
        fitted = _converted(tensor, spec, plain=_is_plain(data, datatype))
    except TensorError as reason:
        faults.insert(0, str(reason))
    if faults:
        faults[0] = f"{tensor.datatype}{list(tensor.shape)}: {faults[0]}"
    return fitted, tensor.shape, faults


def _named(signature: ModelSignature, inputs: object) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Yield name, shape, datatype and data of each input; one array alone is the model's only input."""
    for name, shape, datatype, data in fields_of_inputs(inputs):
        if data is inputs:
            needed = [spec.name for spec in signature.inputs if not spec.optional]
            if len(needed) != 1:
                listed = ", ".join(f'"{quote(each)}"' for each in needed) or "none that is not optional"
                raise InputError(f"one array alone: the inputs of the model are {listed}; pass them by name")
            yield needed[0], shape, datatype, data
        else:
            yield name, shape, datatype, data


def _is_plain(data: object, datatype: object) -> bool:
    """Return whether the data are Python's numbers in lists, which have no dtype."""
    if datatype is not UNSET:
        return False
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    return type(data) in (int, float, list, tuple)


def _converted(tensor: Tensor, spec: TensorSpec, *, plain: bool) -> Tensor:
    """Return the tensor in the datatype that the model takes."""
    if tensor.datatype == spec.datatype:
        return tensor
    wanted, found = datatype_named(spec.datatype), tensor.array.dtype
    loses = wanted.dtype.kind in "iu" or _is_narrower(wanted.dtype, found)
    if found.kind == "f" and loses and not plain:
        raise TensorError(
            f"{found} would lose digits; call .astype({wanted.dtype.name!r}) if that is intended"
        )
    array = cast(tensor.array, wanted.dtype, wanted.name)
    return Tensor(tensor.name, wanted.name, tensor.shape, array)


def _is_narrower(dtype: np.dtype[Any], than: np.dtype[Any]) -> bool:
    return dtype.kind == "f" and dtype.itemsize < than.itemsize


def _shape_faults(
    signature: ModelSignature, spec: TensorSpec, shape: Dims, *, sample: bool, will_be_cut: bool
) -> list[str]:
    """Describe how a shape differs from the one declared."""
    if spec.dims is None:
        return []
    forms = possible_shapes(signature, spec, sample=sample)
    if will_be_cut and spec.dims and spec.dims[0] == rows_of_a_message(signature):
        forms = [(-1, *form[1:]) for form in forms]
    if not forms:
        return [f"samples are stacked, and dimension 0 can only be {(spec.dims or (1,))[0]}"]
    ranked = [form for form in forms if len(form) == len(shape)]
    if not ranked:
        ranks = " or ".join(str(len(form)) for form in forms)
        return [f"{len(shape)} dimensions, not {ranks}"]
    return min((_size_faults(form, shape) for form in ranked), key=len)


def _size_faults(dims: Dims, shape: Dims) -> list[str]:
    return [
        f"dimension {place} is {size}, not {wanted}"
        for place, (size, wanted) in enumerate(zip(shape, dims, strict=True))
        if wanted not in (-1, size)
    ]


def _has_batch(signature: ModelSignature, spec: TensorSpec, shape: Dims) -> bool:
    """Return whether the first dimension of a shape that fits is the batch."""
    if spec.dims is None or (signature.max_batch_size is None and not signature.batch_axis):
        return False
    return len(shape) > len(spec.dims) or spec.dims[0] == -1


def _batch_faults(batches: dict[str, int], most: int | None) -> list[str]:
    if len(set(batches.values())) > 1:
        sizes = ", ".join(f'"{quote(name)}" has {size}' for name, size in batches.items())
        return [f"all inputs must have the same first dimension, the batch: {sizes}"]
    size = next(iter(batches.values()), 0)
    if most is not None and size > most:
        return [f"a batch of {size}: the model takes at most {most}; infer_chunked() cuts it"]
    return []
