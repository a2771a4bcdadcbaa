"""Re-entrant locks, which no interrupt leaves held.

A signal handler may raise between any two steps of the main thread: KeyboardInterrupt at Ctrl-C, or the end
of a worker or of a task. ``with lock:`` is one step on every Python but 3.14, which checks for signals
between taking the lock and the block (python/cpython#148874). A lock that is left held makes every other
thread of the client wait for ever.

A `threading.Condition` is never entered itself: its ``__exit__`` is a Python function, and an interrupt at
its beginning leaves the lock held on every Python. Enter the lock that it was made with.
"""

from __future__ import annotations

import sys

if sys.version_info[:2] == (3, 14):
    import _thread

    class RLock(_thread.RLock):
        """A re-entrant lock that is released if an interrupt comes right after it was taken."""

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

__all__ = ["RLock"]
