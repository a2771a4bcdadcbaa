"""Threads that make calls for others, so that a caller can go on: what `submit` and `map` run on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from tcm_sync._process import start_thread
from tcm_sync._reentry import Callers, entrance
from tcm_sync.errors import ClientClosedError, ConnectFailedError, ConnectionLostError

Result = TypeVar("Result")

_IDLE = 5.0  # seconds after which a thread without work ends


class Workers:
    """Daemon threads that do tasks in order: started when there is work, ended when there is none.

    Not a `concurrent.futures.ThreadPoolExecutor`, whose threads hold up the interpreter's exit.

    Parameters
    ----------
    most : int
        How many tasks are done at a time.
    callers : Callers
        The client's.
    """

    def __init__(self, most: int, callers: Callers) -> None:
        self._most = most
        self._callers = callers
        self._pid = os.getpid()
        # Guards everything below. It is re-entrant: a `map` that was dropped may be collected inside it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # told of work, and of the end
        self._tasks: dict[Future[Any], Callable[[], Any]] = {}  # in the order in which they came
        self._threads: set[threading.Thread] = set()
        self._idle = 0  # how many of them wait for work
        self._closed = False

    def is_inherited(self) -> bool:
        """Whether this is a child process, and the threads are its parent's."""
        return self._pid != os.getpid()

    def check_process(self) -> None:
        """Refuse to wait for threads that are a parent's."""
        if self.is_inherited():
            raise ConnectionLostError(
                "these calls were begun before a fork: they go on in the parent process alone",
                outcome_unknown=True,
            )

    @entrance
    def submit(self, task: Callable[[], Result]) -> Future[Result]:
        """Have a task done, and return the future of what it returns or raises.

        A future that is cancelled before its turn takes its task out of the queue. Callbacks run in the
        thread that did the task, or that cancelled it.

        Raises
        ------
        ClientClosedError
            The client was closed.
        ConnectFailedError
            There is no thread, and none can be started.
        """
        future: Future[Result] = Future()
        thread: threading.Thread | None = None
        with self._lock:
            if self._closed:
                raise ClientClosedError(
                    "the client is closed, and a closed client stays closed: make another"
                )
            self._tasks[future] = task
            if len(self._threads) >= self._most:  # an interrupt may have left one that was never started
                self._threads = {each for each in self._threads if each.ident is not None}
            if self._idle >= len(self._tasks) or len(self._threads) >= self._most:
                self._changed.notify()
            else:
                thread = threading.Thread(target=self._work, name="tcm-sync-worker", daemon=True)
                self._threads.add(thread)
        if thread is not None:
            self._start(thread, future)
        future.add_done_callback(self._forget)
        return future

    def _start(self, thread: threading.Thread, future: Future[Any]) -> None:
        try:
            start_thread(thread)
        except RuntimeError as error:  # no more threads, or the interpreter is ending
            with self._lock:
                self._threads.discard(thread)
                if self._threads or self._tasks.pop(future, None) is None:
                    return  # another thread does it
            raise ConnectFailedError(f"no thread to make the call with: {error}") from error

    def _forget(self, future: Future[Any]) -> None:
        """Drop the task of a future that was cancelled."""
        with self._lock:
            self._tasks.pop(future, None)

    def _work(self) -> None:
        while (found := self._next()) is not None:
            future, task = found
            if future.set_running_or_notify_cancel():
                try:
                    result = task()
                except BaseException as error:  # noqa: BLE001 - whoever has the future must hear of it
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del future, task, found  # a thread that waits keeps nothing alive

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """Wait for a task; None if it is time to end."""
        with self._lock:
            while True:
                future = next(iter(self._tasks), None)
                if future is not None:
                    task = self._tasks.pop(future, None)
                    if task is not None:
                        return future, task
                    continue  # a collector's work closed the crew meanwhile
                self._idle += 1
                told = not self._closed and self._changed.wait(_IDLE)
                self._idle -= 1
                if self._closed or not (told or self._tasks):
                    self._threads.discard(threading.current_thread())
                    return None

    def close(self) -> None:
        """End all that waits with `ClientClosedError`, and the threads once what they do is done."""
        with self._lock:
            self._closed = True
            futures = list(self._tasks)
            self._tasks.clear()
            self._changed.notify_all()
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(
                    ClientClosedError("the client was closed while the call waited its turn")
                )

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, in seconds each."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(timeout)
