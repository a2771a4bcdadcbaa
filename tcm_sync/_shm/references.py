"""Inputs that users have put into shared memory themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from tcm_sync._numbers import as_whole, shown
from tcm_sync._tensors.check import InputsWithSignature
from tcm_sync._tensors.datatypes import TensorError, datatype_named
from tcm_sync._tensors.inputs import checked_name, checked_shape
from tcm_sync._wire.messages import SharedTensor
from tcm_sync._wire.quote import quote
from tcm_sync.errors import InputError


class SHMReference(Struct, frozen=True):
    """An input in a file of /dev/shm that the caller has made and removes.

    It is sent as it is. Either all inputs of a request are references or none: the manager loses the others.
    Use a key with one size and on one route, and change its contents in place (docs/wire.rst, "Shared
    memory").

    Parameters
    ----------
    name : str
        The tensor's name in the model.
    shm_key : str
        The name of the file, with or without the slash before it.
    byte_size : int
        Bytes of the tensor, from the file's beginning.
    shape : sequence of int
        The tensor's shape, batch axis included.
    dtype : str
        Triton's name of the datatype: ``"FP32"``; not ``"BYTES"``.
    """

    name: str
    shm_key: str
    byte_size: int
    shape: Sequence[int]
    dtype: str


def as_references(inputs: object) -> tuple[SharedTensor, ...] | None:
    """Return the inputs of a call as the wire has them if they are references, else None.

    Raises
    ------
    InputError
        One of them cannot be sent, or there are other inputs beside them.
    """
    if isinstance(inputs, InputsWithSignature):
        inputs = inputs.inputs  # references are not checked against a signature
    if isinstance(inputs, SHMReference):
        raise InputError("one SHMReference alone: put it in a list")
    if not isinstance(inputs, (list, tuple)) or not any(isinstance(each, SHMReference) for each in inputs):
        return None
    seen = set()
    references = []
    for place, each in enumerate(inputs):
        if not isinstance(each, SHMReference):
            raise InputError(
                f"input {place} is of type {type(each).__name__}, beside an SHMReference: the manager would "
                "lose one of them, so pass all inputs by reference or none"
            )
        name = checked_name(each.name, place)
        if name in seen:
            raise InputError(f'input "{quote(name)}": given twice')
        seen.add(name)
        try:
            references.append(_checked(each, name))
        except TensorError as reason:
            raise InputError(f'input "{quote(name)}": {reason}') from None
    return tuple(references)


def _checked(reference: SHMReference, name: str) -> SharedTensor:
    datatype = datatype_named(reference.dtype)
    if datatype.itemsize is None:
        raise TensorError("BYTES has no fixed size, so it cannot be passed by reference")
    shape = checked_shape(reference.shape)
    wanted = math.prod(shape) * datatype.itemsize
    size = as_whole(reference.byte_size)
    if size != wanted or not wanted:
        needs = f"{datatype.name}{list(shape)} takes {wanted}, at least 1"
        raise TensorError(f"byte_size is {shown(reference.byte_size)}, and {needs}")
    key = reference.shm_key
    file = key.removeprefix("/") if isinstance(key, str) else ""
    if not file or "/" in file or "\0" in file or file in (".", "..") or not file.isprintable():
        raise TensorError(f"shm_key must be the name of a file in /dev/shm, not {shown(key)}")
    return SharedTensor(name, f"/{file}", 0, wanted, shape, datatype.name)
