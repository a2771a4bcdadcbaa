"""A caller's hold on a connection, and its place in the line for one."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING

from tcm_sync.deadline import Deadline
from tcm_sync.errors import TcmError

if TYPE_CHECKING:
    from tcm_sync.transport.connection import Connection
    from tcm_sync.transport.pool import Pool


class Lease:
    """A connection in the hands of one caller.

    A KeyboardInterrupt between two instructions can lose one: then its finalizer has the connection
    taken back, and the pool looks for what even that does not find.
    """

    __slots__ = ("__weakref__", "_pool", "connection")

    def __init__(self, pool: Pool) -> None:
        self._pool: Pool | None = pool
        self.connection: Connection

    def release(self) -> None:
        """Give the connection back: the reply came, complete and expected."""
        if self._pool is not None:
            self._pool.release(self.connection)
            self._pool = None

    def unused(self) -> None:
        """Give the connection back without having sent anything."""
        if self._pool is not None:
            self._pool.release(self.connection, used=False)
            self._pool = None

    def discard(self, reason: str) -> None:
        """Close the connection: a reply may be outstanding on it."""
        if self._pool is not None:
            self._pool.discard(self.connection, reason)
            self._pool = None

    def __del__(self) -> None:
        if self._pool is not None and hasattr(self, "connection"):
            self._pool.reader.take_back(self._pool, self.connection)


class Waiter:
    """A caller in the line. All but the lock is guarded by the pool's lock."""

    __slots__ = ("connection", "deadline", "error", "handed", "lease", "patient", "since")

    def __init__(self, lease: Lease, deadline: Deadline, patient: bool) -> None:
        self.lease = lease
        self.handed = threading.Lock()  # held until there is an outcome; guards nothing
        self.handed.acquire()
        self.deadline = deadline
        self.patient = patient
        self.since = monotonic()
        self.connection: Connection | None = None
        self.error: TcmError | None = None

    def settle(self, connection: Connection | None, error: TcmError | None = None) -> None:
        """Hand over a connection, or what came in its place."""
        self.connection, self.error = connection, error
        self.handed.release()
