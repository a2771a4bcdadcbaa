"""Limits on how often something may happen."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class SlidingWindow:
    """At most `limit` events in any stretch of `period` seconds; what is refused does not count.

    Parameters
    ----------
    limit : int or None
        None is no limit.
    period : float
        Seconds.
    clock : callable
        Returns seconds; it never goes back.
    """

    def __init__(
        self, limit: int | None, period: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._period = period
        self._clock = clock
        self._events: deque[float] = deque()

    def is_full(self) -> bool:
        """Return whether one more event would be too many."""
        if self._limit is None:
            return False
        start = self._clock() - self._period
        while self._events and self._events[0] <= start:
            self._events.popleft()
        return len(self._events) >= self._limit

    def admit(self) -> bool:
        """Count one event, unless it is too many.

        Returns
        -------
        bool
            Whether it was counted.
        """
        if self.is_full():
            return False
        if self._limit is not None:
            self._events.append(self._clock())
        return True


class TokenBucket:
    """At most `size` events at once, and `size` a second for long; what is refused does not count.

    Parameters
    ----------
    size : int or None
        None is no limit.
    clock : callable
        Returns seconds; it never goes back.
    """

    def __init__(self, size: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._clock = clock
        self._left = float(size or 0)
        self._filled = clock()

    def admit(self) -> bool:
        """Count one event, unless it is too many.

        Returns
        -------
        bool
            Whether it was counted.
        """
        if self._size is None:
            return True
        now = self._clock()
        self._left = min(self._size, self._left + (now - self._filled) * self._size)
        self._filled = now
        if self._left < 1 - 1e-9:  # a sum of steps may be short of 1 by a rounding error
            return False
        self._left -= 1
        return True
