"""The client's calls about shared memory: arrays that live in it, and what would go through it."""

from __future__ import annotations

import math
import operator
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._calls.inference import encode_as_json, obstacle
from tcm_sync._handlers import is_of_handler
from tcm_sync._numbers import shown
from tcm_sync._process import notice_fork
from tcm_sync._shm.arena import DeclinedError
from tcm_sync._shm.policy import is_worth_sharing
from tcm_sync._shm.references import as_references
from tcm_sync._tensors import DATATYPES, check_call
from tcm_sync._tracebacks import shortened_errors
from tcm_sync._wire.encode import size_of
from tcm_sync.errors import InputError, MessageTooLargeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from tcm_sync._calls.core import Core
    from tcm_sync._calls.options import CallOptions
    from tcm_sync._tensors import Tensor

_SHAREABLE = frozenset(each.dtype for each in DATATYPES.values() if each.itemsize is not None)


def empty_shared(core: Core, shape: int | Sequence[int], dtype: npt.DTypeLike) -> np.ndarray[Any, Any]:
    """Return an array that lives in shared memory."""
    try:
        wanted = np.dtype(dtype)
    except Exception as error:
        if is_of_handler(error):
            raise
        raise InputError(f"dtype: {shown(dtype)} is no dtype of an array: {error}") from error
    if wanted not in _SHAREABLE or not wanted.isnative:
        raise InputError(f"dtype must be of numbers or bool in native byte order, not {wanted}")
    try:
        sizes = tuple(map(operator.index, [shape] if isinstance(shape, (int, np.integer)) else shape))
    except (TypeError, ValueError, SystemError):  # a memoryview that was released; the last one by 3.10
        raise InputError(f"shape must be a size or a sequence of sizes, not {shown(shape)}") from None
    if not sizes or min(sizes) < 1:
        raise InputError(f"shape must have at least one dimension, and each at least 1, not {sizes}")
    byte_size = math.prod(sizes) * wanted.itemsize
    if byte_size > sys.maxsize:
        raise InputError("shape: no machine has so much memory")
    try:
        segment = core.new_segment(byte_size)
    except DeclinedError as declined:
        raise InputError(f"no shared memory: {declined}") from None
    return segment.array(wanted, sizes)


def explain(core: Core, options: CallOptions, inputs: object) -> str:
    """Describe how a call with these inputs would travel, and why."""
    notice_fork()
    if as_references(inputs) is not None:
        return "by reference, as the inputs themselves say"
    with shortened_errors:
        tensors = check_call(inputs, infinities=True)
    size = sum(tensor.array.nbytes for tensor in tensors)
    try:
        text = size_of(encode_as_json(core, options, tensors))
        fits = f"as JSON it is {text:,} bytes"
    except (MessageTooLargeError, InputError) as error:
        fits, text = f"it cannot go as JSON ({error.message})", None
    transport = options.transport
    why = "transport='json' says so" if transport == "json" else _obstacle_now(core, options, tensors)
    if why is None and (transport == "shm" or text is None or is_worth_sharing(tensors)):
        return f"through shared memory: {size:,} bytes, nothing is in the way; {fits}"
    if transport == "shm" or text is None:
        return f"not at all: {why}; {fits}" if text is None else f"not at all: {why}"
    return f"as JSON: {fits}, and {why or f'{size:,} bytes of tensors are too few to be worth sharing'}"


def _obstacle_now(core: Core, options: CallOptions, tensors: tuple[Tensor, ...]) -> str | None:
    """Return what is in the way, with the sockets and the memory that there are now."""
    why = obstacle(core, options, tensors)
    connection = None if why is not None else core.any_connection()
    if connection is not None:
        why = core.shm.obstacle_on(connection, options.transport)
    if why is None:
        try:
            why = core.shm.arena().obstacle(sum(tensor.array.nbytes for tensor in tensors))
        except DeclinedError as declined:
            why = str(declined)
    return why
