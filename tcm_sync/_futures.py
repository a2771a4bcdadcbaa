"""Futures that stay usable whenever an interrupt comes, and that end at once when they are cancelled."""

from __future__ import annotations

import concurrent.futures
from concurrent.futures._base import CANCELLED_AND_NOTIFIED
from math import inf
from time import monotonic
from typing import Any, TypeVar

from tcm_sync._locks import Condition, OnceEvent
from tcm_sync._tracebacks import shortened_errors
from tcm_sync._waiting import MAX_STEP

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
        self._ended = OnceEvent()
        self.add_done_callback(_wake)

    def cancel(self) -> bool:
        """Cancel it, unless it runs or is done; return whether it is cancelled.

        `concurrent.futures.wait` and `as_completed` are notified here, after its callbacks: no thread will
        take it up and notify them, as those of an executor do.
        """
        try:
            return super().cancel()
        finally:
            if self.cancelled():
                self.set_running_or_notify_cancel()

    def set_running_or_notify_cancel(self) -> bool:
        """Begin it; return False if it was cancelled."""
        with self._condition:
            return self._state != CANCELLED_AND_NOTIFIED and super().set_running_or_notify_cancel()

    def wait(self, seconds: float | None) -> bool:
        """Wait for so many seconds, or however long it takes, until it is done; return whether it is."""
        end = inf if seconds is None else monotonic() + seconds
        while not self.done():
            if (left := end - monotonic()) <= 0.0:
                return False
            self._ended.wait(min(left, MAX_STEP))  # an interrupt may come after its end, and before `_wake`
        return True

    # The standard library's own wait with the condition held, where an interrupt may become a RuntimeError.

    def result(self, timeout: float | None = None) -> Result:
        """Wait for so many seconds, or however long it takes, and return the result, or raise the failure."""
        try:
            with shortened_errors:
                if not self.wait(timeout):
                    raise concurrent.futures.TimeoutError
                return super().result()
        finally:
            del self  # of this frame, which the traceback of a failure has

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for so many seconds, or however long it takes, and return the failure if it is one."""
        with shortened_errors:
            if not self.wait(timeout):
                raise concurrent.futures.TimeoutError
            return super().exception()


def _wake(future: concurrent.futures.Future[Any]) -> None:
    assert isinstance(future, Future)
    future._ended.set()  # noqa: SLF001 - a bound method would be a cycle
