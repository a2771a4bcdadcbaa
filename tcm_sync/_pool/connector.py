"""The threads that open sockets, so that a caller waits for a socket and never for its opening."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from tcm_sync._process import start_thread
from tcm_sync._reentry import Callers, is_entrance
from tcm_sync._transport.sockets import OpeningSockets

_MOST_THREADS = 2


class Connector:
    """Runs jobs that open sockets on at most two daemon threads, started when there is work.

    They are always inside the client: the socket that a call would wait for may be the one that they open.
    Name resolution and a token callable know no deadline. Here they hold up nobody but the next job.
    """

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self.opening = OpeningSockets()
        self._lock = threading.RLock()  # guards the three below
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads: set[threading.Thread] = set()
        self._stopped = False

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job`, which must not raise, on one of the threads."""
        with self._lock:
            if self._stopped:
                return
            self._jobs.append(job)
            if len(self._threads) >= _MOST_THREADS:
                return
            thread = threading.Thread(target=self._run, name="tcm-sync-connector", daemon=True)
            self._threads.add(thread)
        try:
            start_thread(thread)
        except RuntimeError:  # no more threads, or the interpreter is ending
            with self._lock:
                self._threads.discard(thread)
                if self._threads or job not in self._jobs:
                    return  # another thread does it
                self._jobs.remove(job)
            raise

    def nudge(self) -> None:
        """Start a thread for jobs that an interrupted `submit` has left without one that was started."""
        with self._lock:
            self._threads = {thread for thread in self._threads if thread.ident is not None}
            if self._stopped or not self._jobs or self._threads:
                return
            thread = threading.Thread(target=self._run, name="tcm-sync-connector", daemon=True)
            self._threads.add(thread)
        try:
            start_thread(thread)
        except RuntimeError:  # the next look tries again
            with self._lock:
                self._threads.discard(thread)

    def idle(self) -> bool:
        """Whether there is no job, neither waiting nor under way."""
        with self._lock:
            return not self._jobs and not self._threads

    def stop(self) -> None:
        """Forget the jobs that wait, and shut down the sockets of those under way."""
        with self._lock:
            self._stopped = True
            self._jobs.clear()
        self.opening.abort()

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, in seconds each; one that resolves a name may not."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(timeout)

    @is_entrance
    def _run(self) -> None:
        try:
            self._callers.add(threading.get_ident())
            self._work()
        finally:
            self._callers.discard(threading.get_ident())

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._threads.discard(threading.current_thread())
                    return
                job = self._jobs.popleft()
            try:
                job()
            except BaseException:
                with self._lock:
                    self._threads.discard(threading.current_thread())
                raise
