"""Counters of a client, kept through every runtime that it has in one process."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from time import monotonic
from typing import Any

from tcm_sync._locks import RLock
from tcm_sync._transport.connection import Connection
from tcm_sync.events._watch import cause_of

_MINUTE = 60.0  # seconds


class PoolCounts:
    """What one pool counts, guarded by the lock of its state."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed: Counter[str] = Counter()  # by the kind of the reason
        self.waits = 0  # calls that waited for a socket
        self.wait_seconds = 0.0
        # Of connections that were removed.
        self.messages_sent = 0
        self.bytes_sent = 0

    def read(self, live: Collection[Connection]) -> dict[str, Any]:
        """Return the counters, with what the live connections have counted so far."""
        return {
            "sockets": len(live),
            "busy": sum(c.leased_at is not None for c in live),
            "open_streams": 0,
            "waiting": 0,
            "sockets_opened": self.opened,
            "sockets_closed": Counter(self.closed),
            "waits": self.waits,
            "wait_seconds": self.wait_seconds,
            "messages_sent": self.messages_sent + sum(c.messages_sent for c in live),
            "bytes_sent": self.bytes_sent + sum(c.bytes_sent for c in live),
        }

    def waited(self, seconds: float) -> None:
        """Count a wait for a socket that has ended."""
        self.waits += 1
        self.wait_seconds += seconds


class Counts:
    """Counters that only ever grow; `tcm_sync._calls.stats` says what they mean.

    Each pool counts under the lock of its state, the reader without a lock what only it counts, and all
    others under `lock`.
    """

    def __init__(self) -> None:
        self._began = monotonic()
        self.pools = (PoolCounts(), PoolCounts())
        # Guards what follows, from `calls` to `turn_wait_seconds`.
        self.lock = RLock()
        self.calls = 0
        self._call_seconds = 0.0  # of all calls together
        # Before the first call of each second: when, the calls before it, and their seconds.
        self._marks: deque[tuple[float, int, float]] = deque(maxlen=int(_MINUTE) + 1)
        self._next_mark = 0.0
        self.failures: Counter[str] = Counter()  # by code, or by class
        self.repeats: Counter[str] = Counter()  # by the same of what was repeated
        self.streams = 0
        self.batch_sizes: Counter[int] = Counter()
        self.shm_sends = self.shm_sent_bytes = 0
        self.shm_declined: Counter[str] = Counter()
        self.uuids = 0
        self.gate_waits = 0
        self.gate_wait_seconds = 0.0
        self.turn_waits = 0
        self.turn_wait_seconds = 0.0
        # Only the reader changes these.
        self.messages_received = 0
        self.bytes_received = 0
        self.late = 0
        self.unknown = 0
        self.advisories = 0
        self.alerts: Counter[str] = Counter()

    def read(self) -> dict[str, Any]:
        """Return all counters but those of the pools."""
        now = monotonic()
        with self.lock:
            figures = {name: getattr(self, name) for name in _FIGURES}
            figures.update(self._last_minute(now))
            copies = {name: Counter(value) for name, value in figures.items() if isinstance(value, Counter)}
        return {**figures, **copies, "seconds": now - self._began}

    def called(self, began: float) -> None:
        """Count a call that ends now, however, and began at a moment of `time.monotonic`."""
        now = monotonic()
        with self.lock:
            if now >= self._next_mark:
                self._next_mark = now + 1.0
                self._marks.append((now, self.calls, self._call_seconds))
            self.calls += 1
            self._call_seconds += now - began

    def _last_minute(self, now: float) -> dict[str, float]:
        """Return how many calls ended a second in the last minute, and how long they took in the mean."""
        first = next((mark for mark in self._marks if now - mark[0] <= _MINUTE), None)
        if first is None:
            return {"calls_per_second": 0.0, "seconds_per_call": 0.0}
        _, earlier, earlier_seconds = first
        calls = self.calls - earlier
        age = max(now - self._began, 0.001)  # a coarse clock may show none
        return {
            "calls_per_second": calls / min(_MINUTE, age),
            "seconds_per_call": (self._call_seconds - earlier_seconds) / calls,
        }

    def failed(self, error: BaseException) -> None:
        """Count the failure of a call."""
        with self.lock:
            self.failures[cause_of(error)] += 1

    def repeated(self, error: BaseException) -> None:
        """Count a call that is sent again, after `error`."""
        with self.lock:
            self.repeats[cause_of(error)] += 1

    def started_stream(self) -> None:
        """Count a stream that has begun."""
        with self.lock:
            self.streams += 1

    def batched(self, size: int) -> None:
        """Count a batch that goes out."""
        with self.lock:
            self.batch_sizes[size] += 1

    def shared(self, size: int) -> None:
        """Count an attempt whose tensors went through shared memory."""
        with self.lock:
            self.shm_sends += 1
            self.shm_sent_bytes += size

    def declined(self, why: str) -> None:
        """Count tensors that were large enough for shared memory, and went as JSON."""
        with self.lock:
            self.shm_declined[why.partition(":")[0]] += 1

    def used_uuid(self) -> None:
        """Count a uuid that the manager is about to learn: each slows it (docs/wire.rst, "Timing")."""
        with self.lock:
            self.uuids += 1

    def waited_at_gate(self, seconds: float) -> None:
        """Count a wait for a gate to open."""
        with self.lock:
            self.gate_waits += 1
            self.gate_wait_seconds += seconds

    def waited_for_turn(self, seconds: float) -> None:
        """Count a wait for a turn to send."""
        with self.lock:
            self.turn_waits += 1
            self.turn_wait_seconds += seconds


_FIGURES = (
    "calls",
    "failures",
    "repeats",
    "streams",
    "batch_sizes",
    "shm_sends",
    "shm_sent_bytes",
    "shm_declined",
    "uuids",
    "gate_waits",
    "gate_wait_seconds",
    "turn_waits",
    "turn_wait_seconds",
    "messages_received",
    "bytes_received",
    "late",
    "unknown",
    "advisories",
    "alerts",
)
