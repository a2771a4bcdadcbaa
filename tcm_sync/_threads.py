"""Daemon threads that start when there is work and end when there is none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from tcm_sync._locks import RLock
from tcm_sync._process import start_thread

Job = Callable[[], None]


class DaemonThreads:
    """Runs jobs in the order in which they were submitted, on a few threads.

    Not a `concurrent.futures.ThreadPoolExecutor`, whose threads delay the interpreter's exit.

    Parameters
    ----------
    name : str
        Of each thread.
    most : int
        How many threads there may be.
    idle : float
        Seconds after which a thread without work ends.
    """

    def __init__(self, name: str, most: int, *, idle: float = 0.0) -> None:
        self._name = name
        self._most = most
        self._idle_seconds = idle
        # Guards _jobs, _threads, _waiting and _stopped. Re-entrant, since finalizers withdraw jobs.
        self._lock = RLock()
        self._changed = threading.Condition(self._lock)  # notified of a job, and of the stop
        self._jobs: dict[object, Job] = {}  # by key, in the order in which they came
        self._threads: set[threading.Thread] = set()
        self._waiting = 0  # how many of the threads wait for a job
        self._stopped = False

    def submit(self, job: Job, key: object = None) -> bool:
        """Run `job`, which must not raise; False if the threads were stopped.

        Parameters
        ----------
        job : callable
            Without arguments.
        key : hashable, optional
            Unique to this job, to withdraw it by.

        Raises
        ------
        RuntimeError
            No thread can be started, and none is there to run it. It will not be run.
        """
        key = object() if key is None else key
        with self._lock:
            if self._stopped:
                return False
            self._jobs[key] = job
            if self._waiting >= len(self._jobs):
                self._changed.notify()
                return True
        try:
            self.ensure_thread()
        except RuntimeError:  # no more threads, or the interpreter is ending
            with self._lock:
                if not self._threads and self._jobs.pop(key, None) is not None:
                    raise
        return True

    def ensure_thread(self) -> None:
        """Start a thread if jobs wait for one: an interrupted `submit` may not have started it.

        Raises
        ------
        RuntimeError
            None can be started.
        """
        thread: threading.Thread | None = None
        try:
            with self._lock:
                if self._stopped or len(self._jobs) <= self._waiting or len(self._threads) >= self._most:
                    return
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._threads.add(thread)
            start_thread(thread)
        except BaseException:  # an interrupt too: a thread that was never started takes no job
            with self._lock:
                if thread is not None and not thread.is_alive():
                    self._threads.discard(thread)
            raise

    def withdraw(self, key: object) -> None:
        """Take a job out of the queue, if no thread has begun it."""
        with self._lock:
            self._jobs.pop(key, None)

    def is_idle(self) -> bool:
        """Whether there is no job, neither waiting nor under way."""
        with self._lock:
            return not self._jobs and len(self._threads) == self._waiting

    def stop(self) -> list[object]:
        """Run no more jobs, and return the keys of those that wait, until they are withdrawn."""
        with self._lock:
            self._stopped = True
            self._changed.notify_all()
            return list(self._jobs)

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, in seconds for all of them."""
        until = monotonic() + timeout
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(max(0.0, until - monotonic()))

    def _run(self) -> None:
        thread = threading.current_thread()
        with self._lock:
            self._threads.add(thread)  # an interrupted start may have taken it out
        try:
            while (job := self._next(thread)) is not None:
                job()
                del job  # a thread that waits keeps nothing alive
        finally:
            with self._lock:
                self._threads.discard(thread)

    def _next(self, thread: threading.Thread) -> Job | None:
        """Wait for a job; None if it is time to end, and the thread counts no more."""
        with self._lock:
            while not self._stopped:
                try:
                    key = next(iter(self._jobs), None)
                    if key is not None:
                        return self._jobs.pop(key)
                except (RuntimeError, KeyError):  # a finalizer withdrew a job meanwhile
                    continue
                self._waiting += 1
                notified = self._changed.wait(self._idle_seconds)
                self._waiting -= 1
                if not (notified or self._jobs):
                    break
            self._threads.discard(thread)
            return None
