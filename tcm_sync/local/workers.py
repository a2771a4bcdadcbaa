"""Threads that run models and do management jobs."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Workers:
    """A fixed number of daemon threads that take calls from one queue.

    `concurrent.futures.ThreadPoolExecutor` is not used, since the interpreter's exit waits for its threads.

    Parameters
    ----------
    count : int
        How many threads.
    name : str
        What their names begin with.
    """

    def __init__(self, count: int, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.is_discarding = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], None]) -> None:
        """Queue a call, which must not raise, for one of the threads."""
        self._calls.put(call)

    def discard(self) -> None:
        """Drop the calls that have not begun."""
        self.is_discarding = True

    def finish(self) -> None:
        """Let the threads end after the calls that are queued."""
        for _ in self._threads:
            self._calls.put(None)

    @property
    def is_working(self) -> bool:
        """Whether a thread has not ended."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait until all threads have ended, after `finish`."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if not self.is_discarding:
                call()
            del call  # else an idle thread would keep the last request alive
