"""Futures that stay usable whenever an interrupt comes, and that end at once when they are cancelled."""

from __future__ import annotations

import concurrent.futures
from concurrent.futures._base import CANCELLED_AND_NOTIFIED
from threading import Lock
from typing import TypeVar

from tcm_sync._locks import Condition
from tcm_sync._waiting import acquire

Result = TypeVar("Result")


class Future(concurrent.futures.Future[Result]):
    """A future of the standard library, which enters its condition in one step.

    The standard library's own may stay locked if a signal handler raises inside one of its methods, and the
    thread that does the work then waits for ever. The names of its condition and of its state are private to
    the standard library, and are the same from Python 3.2 to 3.14.
    """

    def __init__(self) -> None:
        super().__init__()
        self._condition = Condition()

    def cancel(self) -> bool:
        """Cancel it, unless it runs or is done; return whether it is cancelled.

        `concurrent.futures.wait` and `as_completed` have it at once: no thread will take it up and notify
        them, as those of an executor do.
        """
        cancelled = super().cancel()
        if cancelled:
            self.set_running_or_notify_cancel()
        return cancelled

    def set_running_or_notify_cancel(self) -> bool:
        """Begin it; return False if it was cancelled."""
        with self._condition:
            return self._state != CANCELLED_AND_NOTIFIED and super().set_running_or_notify_cancel()

    def wait(self, seconds: float | None) -> bool:
        """Wait for so many seconds, or however long it takes, until it is done; return whether it is."""
        done = Lock()
        done.acquire()
        self.add_done_callback(lambda _: done.release())
        return acquire(done, seconds)
