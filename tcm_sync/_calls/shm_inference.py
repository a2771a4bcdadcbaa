"""An inference whose tensors go through shared memory where they can, attempt by attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from tcm_sync._calls.request import InferenceCall
from tcm_sync._shm.arena import Arena, DeclinedError
from tcm_sync._tensors import Tensor
from tcm_sync._tensors.arrays import without_repeats
from tcm_sync._wire.messages import SharedTensor
from tcm_sync.errors import (
    BackpressureError,
    InputError,
    MessageTooLargeError,
    RateLimitedError,
    SharedMemoryRegistrationError,
    SharedMemoryUnavailableError,
    TcmError,
)

if TYPE_CHECKING:
    from tcm_sync._calls.options import CallOptions
    from tcm_sync._deadline import Deadline
    from tcm_sync._pool.call import Sender
    from tcm_sync._shm.policy import ShmPolicy
    from tcm_sync._shm.segment import Segment
    from tcm_sync._transport.connection import Connection
    from tcm_sync._transport.counters import Counts
    from tcm_sync._transport.replies import Future, PendingReplies, Refusal
    from tcm_sync._wire.encode import Pieces
    from tcm_sync.settings import Route

_REGISTRATION = (SharedMemoryRegistrationError, SharedMemoryUnavailableError)


class Shareable(Struct, frozen=True, eq=False):
    """The inputs of a call that may go through shared memory."""

    tensors: tuple[Tensor, ...]


class SharedCall(InferenceCall):
    """One inference in flight: each attempt acquires the segments that it names.

    A segment goes back to the arena after a good reply alone, and after a refusal that says that the request
    was never run. After anything else it may still be read, so it is discarded.

    Parameters
    ----------
    options : CallOptions
        The call without its inputs.
    tensors : tuple of Tensor
        The inputs.
    deadline : Deadline
        The call's.
    sharing : ShmPolicy
        Has the segments, and keeps which routes accept them.
    counts : Counts
        Where it counts.
    by_reference : callable
        Writes the payload that names segments.
    by_value : callable
        Writes the payload that has the tensors as JSON; it may be too large.
    """

    def __init__(
        self,
        options: CallOptions,
        tensors: tuple[Tensor, ...],
        deadline: Deadline,
        sharing: ShmPolicy,
        counts: Counts,
        by_reference: Callable[[tuple[SharedTensor, ...]], Pieces],
        by_value: Callable[[], Pieces],
    ) -> None:
        self._route: Route = options.route
        super().__init__(
            (),
            deadline,
            waits_for_manager=options.policy is not None,
            target=(options.route, options.model_name),
        )
        self._options = options
        self._tensors = tensors
        self._sharing = sharing
        self._counts = counts
        self._by_reference = by_reference
        self._by_value = by_value
        self._arena: Arena  # once there is one
        self._acquired: list[Segment] = []  # those that the attempt under way names
        self._shared = False  # whether the last attempt named any
        self._never_used = options.allow_transient  # whether segments must be new to the server
        self._obstacle: str | None = None  # why the tensors go as JSON from now on

    def attempt(self, sender: Sender) -> None:
        """Make one attempt; a segment that cannot be registered is replaced once, then JSON is used."""
        while True:
            try:
                sender.attempt(self)
            except _REGISTRATION as error:
                if not self._shared or error.uuid is None:
                    raise
                self._discard()
                if not self._never_used:
                    self._never_used = True
                    continue
                self._sharing.record_refusal(self._route, error.message)
                if self._options.transport == "shm":
                    raise
                self._obstacle = f"refused: {error.message}"
            else:
                if self._shared:
                    self._sharing.record_success(self._route)
                return

    def write(self, connection: Connection) -> Pieces:
        """Copy the tensors to segments and name them, or write them as JSON if that cannot be."""
        if self._acquired:  # by an attempt before
            self._discard()
        self._shared = False
        why = self._obstacle or self._sharing.obstacle_on(connection, self._options.transport)
        if why is None:
            try:
                payload = self._by_reference(self._share(connection))
            except DeclinedError as declined:
                why = str(declined)
            else:
                self._shared = True
                if self.watch is not None:
                    self.watch.is_shared = True
                self._counts.shared(sum([segment.byte_size for segment in self._acquired]))
                return payload
        if self._options.transport == "shm":
            raise SharedMemoryUnavailableError(f"the tensors cannot go through shared memory: {why}")
        self._counts.declined(why)
        if self.watch is not None:
            self.watch.is_shared = False
        if not self.payload:
            try:
                self.payload = self._by_value()
            except (MessageTooLargeError, InputError) as error:
                raise with_obstacle(error, why) from None
        self._sharing.log_json(why)
        return self.payload

    def receive(self, connection: Connection, pending: PendingReplies, future: Future) -> Refusal | None:
        """Wait for the reply; after it the segments are not read any more."""
        refusal = super().receive(connection, pending, future)
        never_ran = refusal is not None and isinstance(refusal.error, (BackpressureError, RateLimitedError))
        if (refusal is None or never_ran) and not self._options.allow_transient:
            self._release()
        return refusal

    def finish(self) -> None:
        """Discard the segments that are still acquired, however the call ended."""
        if self._acquired:
            self._discard()

    def _share(self, connection: Connection) -> tuple[SharedTensor, ...]:
        self._arena = arena = self._sharing.arena()
        try:
            return tuple([self._reference(arena, tensor, connection.epoch) for tensor in self._tensors])
        except DeclinedError:
            self._release()  # those before it: the manager has not seen them
            raise

    def _reference(self, arena: Arena, tensor: Tensor, epoch: int) -> SharedTensor:
        """Have one tensor in a segment: its own, if it is the whole of one, or a copy."""
        array = tensor.array
        segment = None if self._never_used else arena.acquire_array(array, self._route, epoch)
        if segment is not None:
            self._acquired.append(segment)
        else:
            segment = arena.acquire(self._route, array.nbytes, epoch, never_used=self._never_used)
            self._acquired.append(segment)
            np.copyto(segment.array(array.dtype, array.shape), array)
        return SharedTensor(
            tensor.name, f"/{segment.name}", 0, segment.byte_size, tensor.shape, tensor.datatype
        )

    def _release(self) -> None:
        while self._acquired:
            self._arena.release(self._acquired.pop())

    def _discard(self) -> None:
        while self._acquired:
            self._arena.discard(self._acquired.pop())


def with_obstacle(error: TcmError, why: str) -> TcmError:
    """Add to an error why shared memory could not be used either."""
    error.args = (f"{error.message}; and shared memory cannot be used either: {why}",)
    return error


def copied(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return tensors with copies of the arrays."""
    return tuple([Tensor(each.name, each.datatype, each.shape, _copy(each.array)) for each in tensors])


def _copy(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Copy an array; one that is repeated stays so, and takes no more memory."""
    once = without_repeats(array).copy()
    return once if once.shape == array.shape else np.broadcast_to(once, array.shape)
