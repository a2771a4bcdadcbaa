"""The client's calls about shared memory: arrays that live in it, and what would go through it."""

from __future__ import annotations

import math
import operator
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._calls.inference import Inference
from tcm_sync._handlers import is_of_handler
from tcm_sync._numbers import shown
from tcm_sync._process import notice_fork
from tcm_sync._reentry import entrance
from tcm_sync._shm.arena import DeclinedError
from tcm_sync._shm.policy import Transport, is_worth_sharing
from tcm_sync._shm.references import as_references
from tcm_sync._tensors import DATATYPES, check_call
from tcm_sync._wire.encode import size_of
from tcm_sync.errors import InputError, MessageTooLargeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from tcm_sync._calls.request import Plan
    from tcm_sync._shm.segment import Segment
    from tcm_sync._tensors import Tensor

_SHAREABLE = frozenset(each.dtype for each in DATATYPES.values() if each.itemsize is not None)


class Memory(Inference):
    """The client's `empty_shared` and `explain`."""

    def empty_shared(self, shape: int | Sequence[int], dtype: npt.DTypeLike) -> np.ndarray[Any, Any]:
        """Return an array that lives in shared memory: fill it, and pass it as an input without a copy.

        It is an ordinary array otherwise. The file behind it goes with the last view of it, or with the
        client; the array stays readable and writable in any case. It is copied like any other where it cannot
        be named: for a second call at the same time, on another route, after a call that failed or was given
        up (which may still be reading it), in part or out of order, in a forked child, and with
        ``allow_transient``. Pickled, it is a plain array.

        Do not write to it while a call that was given it is under way.

        Parameters
        ----------
        shape : int or sequence of int
            At least one element.
        dtype : dtype
            Of numbers or bool, in native byte order.

        Returns
        -------
        ndarray
            Its contents are zero.

        Raises
        ------
        InputError
            The shape or the dtype cannot be, or there is no shared memory, or no room in it.
        """
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
        except (TypeError, ValueError):  # a memoryview that was released
            raise InputError(f"shape must be a size or a sequence of sizes, not {shown(shape)}") from None
        if not sizes or min(sizes) < 1:
            raise InputError(f"shape must have at least one dimension, and each at least 1, not {sizes}")
        byte_size = math.prod(sizes) * wanted.itemsize
        if byte_size > sys.maxsize:
            raise InputError("shape: no machine has so much memory")
        try:
            segment = self._new_segment(byte_size)
        except DeclinedError as declined:
            raise InputError(f"no shared memory: {declined}") from None
        return segment.array(wanted, sizes)

    @entrance
    def _new_segment(self, byte_size: int) -> Segment:
        self._running()
        return self._sharing.arena().empty(byte_size)

    def explain(
        self,
        inputs: object,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        transport: Transport = "auto",
    ) -> str:
        """Say in words how a call with these inputs would travel, and why. Nothing is sent.

        Parameters
        ----------
        inputs, vm_ip, container_id, vm_id, allow_transient, transport
            As `infer` takes them.

        Raises
        ------
        InputError
            The inputs cannot be sent at all.
        """
        notice_fork()
        plan = self._plan("any", vm_ip, container_id, vm_id, allow_transient, transport=transport)
        if as_references(inputs) is not None:
            return "by reference, as the inputs themselves say"
        tensors = check_call(inputs, infinities=True)
        size = sum(tensor.array.nbytes for tensor in tensors)
        try:
            text = size_of(self._as_json(plan, tensors))
            fits = f"as JSON it is {text:,} bytes"
        except (MessageTooLargeError, InputError) as error:
            fits, text = f"it cannot go as JSON ({error.message})", None
        why = "transport='json' says so" if transport == "json" else self._obstacle_now(plan, tensors)
        if why is None and (transport == "shm" or text is None or is_worth_sharing(tensors)):
            return f"through shared memory: {size:,} bytes, nothing is in the way; {fits}"
        if transport == "shm" or text is None:
            return f"not at all: {why}; {fits}" if text is None else f"not at all: {why}"
        return f"as JSON: {fits}, and {why or f'{size:,} bytes of tensors are too few to be worth sharing'}"

    @entrance
    def _obstacle_now(self, plan: Plan, tensors: tuple[Tensor, ...]) -> str | None:
        """Say what is in the way, with the sockets and the memory that there are now."""
        why = self._sharing.obstacle(
            tensors, plan.route, plan.transport, allow_transient=plan.allow_transient
        )
        runtime = self._runtime
        connection = None if runtime is None else runtime.pool.any_open()
        if why is None and connection is not None:
            why = self._sharing.obstacle_on(connection, plan.transport)
        if why is None:
            try:
                why = self._sharing.arena().obstacle(sum(tensor.array.nbytes for tensor in tensors))
            except DeclinedError as declined:
                why = str(declined)
        return why
