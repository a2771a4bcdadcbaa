"""How long a thread may wait in one step.

Python handles a signal in the main thread, between two steps. A wait for a lock ends early for a signal that
comes to that thread during the wait, but not for one that comes right before it, or to another thread.

Two waits are in one step. Those of `close` for the client's threads end within milliseconds, since nothing
that these threads still do waits, and after 10 seconds at most. Those of `concurrent.futures.wait` and
`as_completed` are the standard library's, whatever futures they wait for.
"""

from __future__ import annotations

from math import inf
from threading import Lock
from time import monotonic

MAX_STEP = 1.0  # seconds of one step


def acquire(lock: Lock, seconds: float | None) -> bool:
    """Acquire a lock within so many seconds, or however long it takes; return whether it was."""
    left = inf if seconds is None else max(0.0, seconds)
    if lock.acquire(timeout=min(left, MAX_STEP)):  # most waits are over in one step, and read no clock
        return True
    end = monotonic() + left - MAX_STEP
    while (left := end - monotonic()) > 0.0:
        if lock.acquire(timeout=min(left, MAX_STEP)):
            return True
    return False
