"""What a batch is put together from: samples of several callers."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from tcm_sync._tensors import Tensor, encode_data

if TYPE_CHECKING:
    from tcm_sync._deadline import Deadline
    from tcm_sync.errors import TcmError
    from tcm_sync.results import InferResult


class Sample:
    """One caller's inputs, and what becomes of them. All but the lock is guarded by the batcher's."""

    __slots__ = (
        "batch",
        "deadline",
        "key",
        "nbytes",
        "outcome",
        "since",
        "size",
        "tensors",
        "texts",
        "wakeup",
    )

    def __init__(self, tensors: tuple[Tensor, ...], deadline: Deadline) -> None:
        self.tensors = tensors
        # Each is written in its caller's thread, with a batch axis that is taken off again.
        self.texts = [encode_data(_as_batch(tensor))[1:-1] for tensor in tensors]
        self.key = tuple((each.name, each.datatype, each.shape) for each in tensors)
        self.size = sum(map(len, self.texts)) + len(self.texts)  # bytes that it adds to a message
        self.nbytes = sum([each.array.nbytes for each in tensors])
        self.deadline = deadline
        self.since = monotonic()
        self.batch: Batch
        self.outcome: InferResult | TcmError | None = None
        self.wakeup = (
            threading.Lock()
        )  # released once there is an outcome, or its caller is to lead; guards nothing
        self.wakeup.acquire()

    def wake(self) -> None:
        """Wake its caller, unless that was done; under the batcher's lock."""
        if self.wakeup.locked():
            self.wakeup.release()


class Batch:
    """Samples that go out together; the first one's caller leads. Guarded by the batcher's lock."""

    def __init__(self, sample: Sample, room: int) -> None:
        self.samples = [sample]
        self.room = room - sample.size  # bytes that are left of a message
        self.leader = sample
        self.open = True  # whether samples may join
        self.sent = False  # whether it went out, or is about to
        self.sendings = 0  # how often a leader's call may have run whose answer did not come


def _as_batch(tensor: Tensor) -> Tensor:
    """Return a sample as a batch of one."""
    return Tensor(tensor.name, tensor.datatype, (1, *tensor.shape), tensor.array[np.newaxis])
