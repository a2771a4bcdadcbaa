"""Threads that make calls for others, so that a caller can continue: what `submit` and `map` run on."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from tcm_sync._futures import Future
from tcm_sync._handlers import is_of_handler
from tcm_sync._reentry import Callers, entry_point
from tcm_sync._threads import DaemonThreads
from tcm_sync.errors import ClientClosedError, ConnectFailedError, ConnectionLostError

Result = TypeVar("Result")

_IDLE = 5.0  # seconds after which a thread without work ends


class Workers:
    """Does tasks in order on daemon threads, and returns a future of each.

    Parameters
    ----------
    most : int
        How many tasks are done at a time.
    callers : Callers
        The threads that are inside the client.
    """

    def __init__(self, most: int, callers: Callers) -> None:
        self._callers = callers
        self._pid = os.getpid()
        self._threads = DaemonThreads("tcm-sync-worker", most, idle=_IDLE)

    def is_inherited(self) -> bool:
        """Whether this is a child process, and the threads are its parent's."""
        return self._pid != os.getpid()

    def check_process(self) -> None:
        """Refuse to wait for threads that are a parent's."""
        if self.is_inherited():
            raise ConnectionLostError(
                "these calls were begun before a fork: they continue in the parent process alone",
                outcome_unknown=True,
            )

    @entry_point
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
        return self.submit_inside(task)

    def submit_inside(self, task: Callable[[], Result]) -> Future[Result]:
        """Do what `submit` does, inside an entry point."""
        future: Future[Result] = Future()
        try:
            accepted = self._threads.submit(partial(_do, future, task), key=future)
        except RuntimeError as error:
            if is_of_handler(error):
                raise
            raise ConnectFailedError(f"no thread to make the call with: {error}") from error
        if not accepted:
            raise ClientClosedError("the client is closed, and a closed client stays closed: make another")
        future.add_done_callback(self._threads.withdraw)
        return future

    def close(self) -> None:
        """End all that waits with `ClientClosedError`, and the threads once what they do is done."""
        for future in cast("list[Future[Any]]", self._threads.stop()):
            with suppress(InvalidStateError):  # cancelled, or ended by another `close`
                future.set_exception(
                    ClientClosedError("the client was closed while the call waited its turn")
                )
            self._threads.withdraw(future)

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, in seconds."""
        self._threads.join(timeout)


def _do(future: Future[Result], task: Callable[[], Result]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            result = task()
        except BaseException as error:  # noqa: BLE001 - it is the future's
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            del future, task  # of this frame, which the traceback of a failure has
