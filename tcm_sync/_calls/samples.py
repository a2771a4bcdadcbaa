"""What a batch is put together from: samples of several callers."""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from tcm_sync._deadline import Deadline
from tcm_sync._futures import Future
from tcm_sync._locks import RLock
from tcm_sync._tensors import Tensor, encode_data
from tcm_sync.results import InferResult

if TYPE_CHECKING:
    from collections.abc import Hashable


class Sample:
    """One caller's inputs, and their outcome. All but the lock is guarded by the batcher's."""

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
    #: Whether its caller may give more samples before this one has its outcome.
    more_may_come = False

    def __init__(self, tensors: tuple[Tensor, ...], deadline: Deadline) -> None:
        self.tensors = tensors
        # Each is written in its caller's thread, with a batch axis that is taken off again.
        self.texts = [encode_data(_as_batch(tensor))[1:-1] for tensor in tensors]
        self.key: Hashable = tuple((each.name, each.datatype, each.shape) for each in tensors)
        self.size = sum(map(len, self.texts)) + len(self.texts)  # bytes that it adds to a message
        self.nbytes = sum([each.array.nbytes for each in tensors])
        self.deadline = deadline
        self.since = monotonic()
        self.batch: Batch
        self.outcome: InferResult | BaseException | None = None
        self.wakeup = (
            threading.Lock()
        )  # released once there is an outcome, or its caller is to lead; guards nothing
        self.wakeup.acquire()

    def wake(self) -> None:
        """Wake its caller, unless that was done; under the batcher's lock."""
        if self.wakeup.locked():
            self.wakeup.release()

    def begin(self) -> bool:
        """Note that it is about to be sent; False if it was cancelled."""
        return True


class SubmittedSample(Sample):
    """A sample whose caller does not wait: a future gets its outcome.

    Its batch has samples with its timeout alone, so that the leader's deadline is the first that passes.

    Parameters
    ----------
    tensors, deadline
        As those of `Sample`.
    woken : deque
        Where it is put when it has an outcome, or is to lead.
    """

    __slots__ = ("_lock", "_running", "_settled", "_woken", "future")
    more_may_come = True

    def __init__(
        self, tensors: tuple[Tensor, ...], deadline: Deadline, woken: deque[SubmittedSample]
    ) -> None:
        super().__init__(tensors, deadline)
        self.key = ("submitted", deadline.timeout, self.key)
        self.future: Future[InferResult] = Future()
        self._woken = woken
        self._lock = RLock()  # guards the two below
        self._running: bool | None = None  # False: it was cancelled
        self._settled = False

    def wake(self) -> None:
        """Have it attended to by the thread that holds the batcher's lock, once that is released."""
        self._woken.append(self)

    def begin(self) -> bool:
        """Note that it is about to be sent, and cannot be cancelled any more; False if it was."""
        with self._lock:
            if self._running is None:
                self._running = self.future.set_running_or_notify_cancel()
            return self._running

    def settle(self) -> None:
        """Give the future the outcome, once. Callbacks of the future run here."""
        with self._lock:
            if self._settled or not self.begin():
                return
            self._settled = True
        if isinstance(self.outcome, InferResult):
            self.future.set_result(self.outcome)
        else:
            self.future.set_exception(self.outcome)

    def restart(self) -> None:
        """Restart its deadline, since its batch waited for a thread until now."""
        self.deadline = Deadline(self.deadline.timeout)


class Batch:
    """Samples that go out together; the first one's caller leads. Guarded by the batcher's lock."""

    def __init__(self, sample: Sample, room: int) -> None:
        self.samples = [sample]
        self.room = room - sample.size  # bytes that are left of a message
        self.leader = sample
        self.open = True  # whether samples may join
        self.begun = False  # whether a thread of the background leads it, or did
        self.sent = False  # whether it went out, or is about to
        self.sendings = 0  # how often a leader's call may have run whose answer did not come


def _as_batch(tensor: Tensor) -> Tensor:
    """Return a sample as a batch of one."""
    return Tensor(tensor.name, tensor.datatype, (1, *tensor.shape), tensor.array[np.newaxis])
