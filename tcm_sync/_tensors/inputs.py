"""Check the inputs that users pass to a call, all of them before anything is sent."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from msgspec import UNSET, Struct

from tcm_sync._numbers import shown
from tcm_sync._tensors.arrays import MAX_DIMENSIONS, as_array, without_repeats
from tcm_sync._tensors.casts import cast
from tcm_sync._tensors.datatypes import NATIVE_NUMBERS, Datatype, TensorError, datatype_named, datatype_of
from tcm_sync._tensors.foreign import is_frame
from tcm_sync._wire.quote import quote
from tcm_sync.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

#: The name of an input that is passed without one, as in the manager's other clients.
DEFAULT_NAME = "INPUT__0"

_FORMS = (("name", "shape", "datatype", "data"), ("name", "dims", "type", "value"))


class InferenceInput(Struct, frozen=True, eq=False):
    """An input with a stated shape and datatype, which its data must fit.

    Parameters
    ----------
    name : str
        The tensor's name in the model.
    shape : sequence of int
        The size of each dimension, batch included; none may be -1.
    datatype : str
        ``"FP32"``, ``"INT64"``, ``"BYTES"`` ...: Triton's name (docs/wire.rst, "Datatypes").
    data : array_like
        Of that shape, or flat with as many elements. Floats are rounded to the nearest of a narrower
        datatype. Values that would change in any other way are refused: ``1e39`` as FP32, ``300`` as INT8,
        ``1.5`` as INT32, ``2**24 + 1`` as FP32, bool for numbers, numbers for BYTES.
    """

    name: str
    shape: Sequence[int]
    datatype: str
    data: Any


class Tensor(Struct, frozen=True, eq=False):
    """An input that has passed the checks.

    Attributes
    ----------
    name : str
    datatype : str
    shape : tuple of int
    array : ndarray
        C-contiguous, aligned, in native byte order, of the datatype's dtype; for BYTES an object array of
        `str`. Or a view that repeats such an array, as `np.broadcast_to` makes it. It may be the caller's
        own: never write to it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    array: npt.NDArray[Any]


def check_inputs(inputs: object, *, scalars: bool = False, infinities: bool = False) -> tuple[Tensor, ...]:
    """Turn the inputs of a call into tensors that can be sent.

    Parameters
    ----------
    inputs : mapping, sequence or array_like
        - name -> array-like. The datatype is that of the dtype: float64 is FP64. Lists have numpy's
          dtypes: ``[1.5]`` is FP64, ``[1]`` INT64.
        - A sequence of `InferenceInput` (also that of tcm-client), or of dicts in either form of the wire:
          ``name``, ``shape``, ``datatype``, ``data``; or ``name``, ``dims``, ``type`` (``"FP32"`` or
          ``"TYPE_FP32"``), ``value``.
        - One array-like alone, which is named ``INPUT__0``.
    scalars : bool
        Whether 0-d tensors, bare numbers and texts are allowed, since they are stacked before they are sent.
    infinities : bool
        Whether they may hold infinities, since they may go through shared memory. `encode_inputs` refuses
        infinities, which have no form in JSON.

    Returns
    -------
    tuple of Tensor
        In the order given.

    Raises
    ------
    InputError
        A tensor does not fit its stated shape or datatype, or the wire cannot carry it unchanged
        (docs/wire.rst, "What cannot be carried"). The message names it.
    """
    if type(inputs) is dict and (ready := _all_ready(inputs)):
        if not infinities:
            check_finite(ready)
        return ready
    names = set()
    tensors = []
    for place, (name, shape, datatype, data) in enumerate(fields_of_inputs(inputs)):
        name = checked_name(name, place)
        if name in names:
            raise InputError(f'input "{quote(name)}": given twice')
        names.add(name)
        try:
            tensor = _tensor(name, shape, datatype, data, scalars=scalars)
            if not infinities:
                _check_finite(tensor.array)
            tensors.append(tensor)
        except TensorError as reason:
            raise InputError(f'input "{quote(name)}": {reason}') from reason.__cause__
        except RecursionError:
            raise InputError(f'input "{quote(name)}": arrays within arrays, nested too deeply') from None
    if not tensors:
        raise InputError("no inputs: a model needs at least one")
    return tuple(tensors)


def _all_ready(inputs: dict[Any, Any]) -> tuple[Tensor, ...] | None:
    """Return the tensors of the most frequent kind of inputs: arrays of numbers that can be sent as they are.

    It is None if any of them needs the full checks.
    """
    tensors = []
    for name, data in inputs.items():
        datatype = datatype_if_ready(name, data)
        if datatype is None:
            return None
        tensors.append(Tensor(name, datatype, data.shape, data))
    return tuple(tensors)


def datatype_if_ready(name: Any, data: Any) -> str | None:
    """Return the datatype of an array of numbers that can be sent as it is (native, in C order), or None."""
    if type(data) is not np.ndarray or type(name) is not str or not name or not name.isascii():
        return None
    datatype, shape, flags = NATIVE_NUMBERS.get(data.dtype), data.shape, data.flags
    if datatype is None or not (flags.c_contiguous and flags.aligned):
        return None
    return datatype.name if 0 < len(shape) <= MAX_DIMENSIONS and 0 not in shape else None


def _is_described(inputs: object) -> TypeGuard[Sequence[Any]]:
    """Return whether inputs are a sequence of described ones, or empty; a memoryview may be released."""
    return (
        isinstance(inputs, Sequence)
        and not isinstance(inputs, memoryview)
        and (not inputs or isinstance(inputs[0], (InferenceInput, Mapping)) or _is_foreign(inputs[0]))
    )


def _is_foreign(item: Any) -> bool:
    """Whether an item is the input of another client: tcm-client's has the fields of `InferenceInput`."""
    if hasattr(item, "set_data_from_numpy"):
        raise InputError(
            f"{type(item).__name__} is an input of tritonclient: pass {{name: array}} (docs/migrating.rst)"
        )
    return isinstance(getattr(item, "name", None), str) and all(
        hasattr(item, field) for field in ("shape", "datatype", "data")
    )


def fields_of_inputs(inputs: object) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Yield name, shape, datatype and data of each input; UNSET where the user did not state it."""
    if isinstance(inputs, Mapping):
        if isinstance(inputs.get("name"), str):
            raise InputError("one input described by a dict: put it in a list")
        for name, data in inputs.items():
            yield name, UNSET, UNSET, data
    elif isinstance(inputs, InferenceInput) or _is_foreign(inputs):
        raise InputError("one InferenceInput: put it in a list")
    elif _is_described(inputs):
        for place, item in enumerate(inputs):
            if isinstance(item, InferenceInput) or _is_foreign(item):
                yield item.name, item.shape, item.datatype, item.data
            elif isinstance(item, Mapping):
                yield _from_dict(item, place)
            else:
                raise InputError(
                    f"input {place} is of type {type(item).__name__}, beside described inputs; make it one"
                )
    else:
        refuse_frame(inputs[0] if isinstance(inputs, (list, tuple)) and inputs else inputs)
        yield DEFAULT_NAME, UNSET, UNSET, inputs


def refuse_frame(inputs: object) -> None:
    """Refuse a data frame as the inputs of a model without a signature."""
    if is_frame(inputs):
        raise InputError(
            "a data frame alone does not say which input a column is: infer_frame(model, frame) makes each "
            "column an input of its name; a model with a signature takes a frame by the names of its inputs"
        )


def _from_dict(item: Mapping[Any, Any], place: int) -> tuple[Any, Any, Any, Any]:
    keys = set(item)
    form = max(_FORMS, key=lambda form: len(keys.intersection(form)))
    if keys != set(form):
        which = f'input "{quote(item["name"])}"' if isinstance(item.get("name"), str) else f"input {place}"
        wrong = [f"lacks {key!r}" for key in form if key not in keys]
        wrong += [f"has the unknown key {shown(key)}" for key in item if key not in form]
        raise InputError(f"{which}: {', '.join(wrong)}; the keys are {', '.join(form)}")
    name, shape, datatype, data = (item[key] for key in form)
    return name, shape, datatype, data


def checked_name(name: object, place: int) -> str:
    """Return the name of a tensor as a plain str, or raise if it is not a text that can be sent."""
    if not isinstance(name, str) or not name:
        raise InputError(f"input {place}: a tensor's name must be a non-empty str, not {shown(name)}")
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"input {place}: the name {shown(name)} has a lone surrogate") from None
    return name if type(name) is str else str.__str__(name)


def _tensor(name: str, shape: Any, datatype: Any, data: object, *, scalars: bool) -> Tensor:
    stated = None if datatype is UNSET else datatype_named(datatype)
    plain = without_repeats(data) if type(data) is np.ndarray else data
    array = as_array(plain, scalars=scalars)
    whole = data.shape + array.shape[data.ndim :] if type(data) is np.ndarray else array.shape
    array = without_repeats(array)  # arrays of other libraries may repeat memory too
    found = datatype_of(array.dtype)  # before the cast, since its message says what to do
    target = stated or found
    array = _contiguous(cast(array, target.dtype, target.name), target)
    if array.shape != whole:
        array = np.broadcast_to(array, whole)
    if array.ndim == 0 and not scalars:
        raise TensorError("is 0-d, which the wire cannot carry; .reshape(1) makes it 1-d")
    if array.ndim > MAX_DIMENSIONS:
        raise TensorError(f"has {array.ndim} dimensions, more than {MAX_DIMENSIONS}")
    if shape is not UNSET:
        array = _shaped(array, checked_shape(shape, scalars=scalars))
    if 0 in array.shape[:-1]:
        raise TensorError(
            f"is empty with shape {array.shape}, which the manager refuses: only the last dimension may be 0"
        )
    return Tensor(name, target.name, array.shape, array)


def check_finite(tensors: Iterable[Tensor]) -> None:
    """Refuse infinities, which have no form in JSON.

    Raises
    ------
    InputError
        A tensor holds one; the message names it.
    """
    for tensor in tensors:
        try:
            _check_finite(tensor.array)
        except TensorError as reason:
            raise InputError(f'input "{quote(tensor.name)}": {reason}') from None


def _check_finite(array: npt.NDArray[Any]) -> None:
    if array.dtype.kind == "f" and np.count_nonzero(np.isinf(without_repeats(array))):
        raise TensorError("holds an infinity, which has no form in JSON (NaN has); clip it first")


def _contiguous(array: npt.NDArray[Any], datatype: Datatype) -> npt.NDArray[Any]:
    """Return the array in C order and aligned, as the encoder needs it. The cast has made it native."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned:
        return array
    return np.array(array, dtype=datatype.dtype, order="C")


def checked_shape(shape: Iterable[Any], *, scalars: bool = False) -> tuple[int, ...]:
    """Return a stated shape as a tuple of int, or raise if it is not a shape."""
    try:
        sizes = tuple(-1 if isinstance(size, bool) else operator.index(size) for size in shape)
    except (TypeError, ValueError, SystemError):  # a memoryview that was released; the last one by 3.10
        sizes = (-1,)
    if min(sizes, default=0) < 0:
        raise TensorError(f"a shape must be a sequence of sizes, each 0 or more, not {shown(shape)}")
    if not sizes and not scalars:
        raise TensorError("the shape [] is 0-d, which the wire cannot carry; [1] is the nearest")
    if len(sizes) > MAX_DIMENSIONS:
        raise TensorError(f"the shape has {len(sizes)} dimensions, more than {MAX_DIMENSIONS}")
    return sizes


def _shaped(array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the array in the stated shape; flat data is allowed, since other Triton clients pass it."""
    if array.shape == shape:
        return array
    if array.ndim == 1 and array.size == math.prod(shape):
        return array.reshape(shape)
    raise TensorError(f"the data has shape {array.shape} and the stated one is {shape}")
