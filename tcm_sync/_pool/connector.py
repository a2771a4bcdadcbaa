"""The threads that open sockets, so that a caller waits for a socket and never for its opening."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import get_ident

from tcm_sync._reentry import Callers, is_entry_point
from tcm_sync._threads import DaemonThreads
from tcm_sync._transport.sockets import OpeningSockets

_MAX_THREADS = 2


class Connector:
    """Runs jobs that open sockets on at most two daemon threads.

    Name resolution and a token callable cannot be given a deadline. Here they delay only the next job.
    The threads count as inside the client while they run a job: a call that the token callable made would
    wait for the socket that this very job is to open.

    Parameters
    ----------
    callers : Callers
        The threads that are inside the client.
    """

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self._threads = DaemonThreads("tcm-sync-connector", _MAX_THREADS)
        self.opening = OpeningSockets()

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job`, which must not raise, on one of the threads; not at all once the client is closed.

        Raises
        ------
        RuntimeError
            No thread can be started.
        """
        self._threads.submit(partial(self._run, job))

    def ensure_thread(self) -> None:
        """Start a thread for jobs that an interrupted `submit` has left without one."""
        self._threads.ensure_thread()

    def is_idle(self) -> bool:
        """Whether there is no job, neither waiting nor under way."""
        return self._threads.is_idle()

    def stop(self) -> None:
        """Drop the jobs that wait, and shut down the sockets of those under way."""
        for job in self._threads.stop():
            self._threads.withdraw(job)
        self.opening.abort()

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, in seconds; one that resolves a name may not."""
        self._threads.join(timeout)

    @is_entry_point
    def _run(self, job: Callable[[], None]) -> None:
        try:
            self._callers.add(get_ident())
            job()
        finally:
            self._callers.discard(get_ident())
