"""Re-entrant locks and events that stay usable whenever an interrupt comes.

A signal handler may raise between any two steps of the main thread: KeyboardInterrupt at Ctrl-C, or the end
of a worker or of a task. A lock that is left held then makes every other thread of the client wait for ever.

- ``with lock:`` is one step on every Python but 3.14, which checks for signals between taking the lock and
  the block (python/cpython#148874); hence `RLock`.
- ``with condition:`` is none on any Python: ``__exit__`` is a Python function, and an interrupt at its
  beginning leaves the lock held. Enter the lock that the condition was made with, or use `Condition`.
- `threading.Event` enters a condition; hence `OnceEvent`.
"""

from __future__ import annotations

import sys
import threading
from math import inf
from operator import attrgetter
from threading import Lock
from time import monotonic

from tcm_sync._waiting import MAX_STEP

if sys.version_info[:2] == (3, 14):
    import _thread

    class RLock(_thread.RLock):
        """A re-entrant lock that is released if an interrupt comes right after it was taken.

        An interrupt may also come right before it is taken: what must be undone in any case, as in a
        ``finally`` block, is undone outside.
        """

        __slots__ = ()

        def __enter__(self) -> bool:
            try:
                return self.acquire()
            except BaseException:
                try:  # noqa: SIM105 - in as few steps as possible
                    self.release()
                except RuntimeError:  # it was not taken
                    pass
                raise

else:
    from threading import RLock

__all__ = ["Condition", "OnceEvent", "RLock"]


class Condition(threading.Condition):
    """A condition that a ``with`` block enters and leaves by the lock's own methods, as it does the lock."""

    def __init__(self) -> None:
        self._entered = RLock()
        super().__init__(self._entered)

    # A property is looked up before the lock is taken. Leaving calls the lock's `__exit__`, which is in C.
    __enter__ = property(attrgetter("_entered.__enter__"))
    __exit__ = property(attrgetter("_entered.__exit__"))


class OnceEvent:
    """An event that threads wait for, as `threading.Event` is, and that is never cleared."""

    def __init__(self) -> None:
        self._is_set = False
        self._wakes = Lock()  # guards nothing: it is held until the event is set
        self._wakes.acquire()

    def is_set(self) -> bool:
        """Return whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """Have it happen, and wake all who wait."""
        self._is_set = True
        self._wake()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, in seconds, and return whether it has happened."""
        end = inf if timeout is None else monotonic() + timeout
        while not self._is_set and (left := end - monotonic()) > 0.0:
            if self._wakes.acquire(timeout=min(left, MAX_STEP)):
                self._wake()  # the next one that waits
        return self._is_set

    def _wake(self) -> None:
        try:  # noqa: SIM105 - a finalizer may set it, in as few steps as possible
            self._wakes.release()
        except RuntimeError:  # nobody waits, and it was set before
            pass
