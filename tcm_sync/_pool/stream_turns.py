"""Streams of one container, one at a time: a registered server runs no more (docs/manager.rst)."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Protocol

from tcm_sync._deadline import Deadline
from tcm_sync._locks import RLock
from tcm_sync._pool.gate import copy_for_call
from tcm_sync._ttl_cache import TtlCache
from tcm_sync.errors import ClientClosedError, TcmError

_AUDIT_INTERVAL = 1.0  # seconds between two checks whether a stream that was never closed was collected
_KEPT = 600.0  # seconds after a refusal for which streams take turns; the server may be replaced meanwhile


class Stream(Protocol):
    """A stream that waits for its turn, or has it."""

    deadline: Deadline

    def __hash__(self) -> int:
        """Return a number that goes with its identity."""


class StreamTurns:
    """Has the streams of a container wait for one another for ten minutes after it refused a second one.

    One that waits has no socket. The turn of one that was dropped without being closed ends when it is
    collected.
    """

    def __init__(self) -> None:
        # Guards _refusals, _running, _queues and _closed. Re-entrant: a signal handler may close a stream.
        self._lock = RLock()
        self._changed = threading.Condition(self._lock)  # notified when a stream may have its turn
        # By container, whose server runs one stream at a time.
        self._refusals = TtlCache[str, TcmError](_KEPT)
        self._running: dict[str, weakref.WeakSet[Stream]] = {}
        self._queues: dict[str, deque[Stream]] = {}
        self._closed = False

    def enter(self, container_id: str, stream: Stream) -> None:
        """Wait until a stream may begin, first come first served.

        Raises
        ------
        StreamBusyError
            Others ran for as long as there was time.
        ClientClosedError
            The client was closed meanwhile.
        """
        with self._lock:
            cause = self._refusals.get(container_id)
            if cause is not None:
                self._wait(container_id, stream, cause)
            self._running.setdefault(container_id, weakref.WeakSet()).add(stream)

    def _wait(self, container_id: str, stream: Stream, cause: TcmError) -> None:
        queue = self._queues.setdefault(container_id, deque())
        queue.append(stream)
        try:
            while queue[0] is not stream or self._running.get(container_id):
                if self._closed:
                    raise ClientClosedError("the client was closed while the stream waited for its turn")
                left = stream.deadline.remaining()
                if left == 0.0:
                    raise copy_for_call(cause)
                self._changed.wait(_AUDIT_INTERVAL if left is None else min(left, _AUDIT_INTERVAL))
        finally:
            queue.remove(stream)
            if not queue:
                del self._queues[container_id]
            self._changed.notify_all()

    def leave(self, container_id: str, stream: Stream) -> None:
        """End the turn of a stream, if it has one."""
        with self._lock:
            running = self._running.get(container_id)
            if running is not None:
                running.discard(stream)
                if not running:
                    del self._running[container_id]
                self._changed.notify_all()

    def refused(self, container_id: str, cause: TcmError) -> None:
        """Let no two streams of a container run at once for some time from now on."""
        with self._lock:
            self._refusals.put(container_id, copy_for_call(cause))

    def close(self) -> None:
        """End every wait."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
