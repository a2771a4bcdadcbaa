"""The callers that wait for a connection, first come first served."""

from __future__ import annotations

import threading
from collections import deque
from math import inf
from time import monotonic

from tcm_sync._deadline import Deadline
from tcm_sync._pool.gate import copy_for_call
from tcm_sync._pool.lease import Lease
from tcm_sync._transport.connection import Connection
from tcm_sync.errors import TcmError


class Waiter:
    """A caller in the wait queue. The lock of the pool's state guards all but `resolved`."""

    __slots__ = (
        "connection",
        "deadline",
        "error",
        "fail_fast",
        "lease",
        "resolved",
        "since",
        "streaming",
        "waits_for_manager",
    )

    def __init__(
        self,
        lease: Lease,
        deadline: Deadline,
        *,
        waits_for_manager: bool,
        streaming: bool,
        fail_fast: bool = False,
    ) -> None:
        self.lease = lease
        self.resolved = threading.Lock()  # guards nothing: it is held until there is an outcome
        self.resolved.acquire()
        self.deadline = deadline
        self.waits_for_manager = waits_for_manager
        self.fail_fast = fail_fast
        self.streaming = streaming
        self.since = monotonic()
        self.connection: Connection | None = None
        self.error: TcmError | None = None

    def resolve(self, connection: Connection | None, error: TcmError | None = None) -> None:
        """End the wait with a connection or an error."""
        self.connection, self.error = connection, error
        self.resolved.release()


class WaitQueue(deque[Waiter]):
    """Those who wait. It has no lock: that of the pool's state guards it.

    A stream waits here too while others hold all the sockets that streams may have; later callers that
    want no stream are then served before it.
    """

    def leave(self, waiter: Waiter) -> bool:
        """Take a caller out, wherever it is; whether it was still there."""
        if waiter not in self:
            return False
        self.remove(waiter)
        return True

    def next(self, streams_left: int, others_left: int) -> Waiter | None:
        """Return the first who may have a connection, when so many more streams and others may begin."""
        if streams_left > 0 and others_left > 0:
            return self[0] if self else None
        return next((w for w in self if (streams_left if w.streaming else others_left) > 0), None)

    def count_servable(self, streams_left: int, others_left: int) -> int:
        """Count those who could have a connection if there were enough."""
        streams = sum(waiter.streaming for waiter in self)
        return min(len(self) - streams, others_left) + min(streams, max(0, streams_left))

    def fail_newest(self, count: int, cause: TcmError) -> None:
        """End the waiting of so many, those who came last."""
        for _ in range(count):
            self.pop().resolve(None, copy_for_call(cause))

    def fail_short_waits(self, cause: TcmError, seconds: float, *, fail_fast: bool = False) -> None:
        """End the waiting of those who cannot wait so long, or asked not to wait; with `math.inf`, of all."""
        for waiter in list(self):
            left = waiter.deadline.remaining()
            waits_for_none = not waiter.waits_for_manager or (fail_fast and waiter.fail_fast)
            if seconds == inf or waits_for_none or (left is not None and left < seconds):
                self.remove(waiter)
                waiter.resolve(None, copy_for_call(cause))
