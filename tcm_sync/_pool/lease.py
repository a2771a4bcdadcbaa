"""A caller's hold on a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcm_sync._pool.pool import Pool
    from tcm_sync._transport.connection import Connection


class Lease:
    """A connection in the hands of one caller.

    Whoever has one gives it back whatever happens (``except BaseException``): the traceback of an interrupt
    may be kept, and its frames hold the lease. If one is lost all the same, the weak reference that its
    connection has to it has the connection taken back, and the pool looks for what even that does not find.
    """

    __slots__ = ("__weakref__", "_pool", "connection")

    def __init__(self, pool: Pool) -> None:
        self._pool: Pool | None = pool
        self.connection: Connection

    def release(self) -> None:
        """Give the connection back: the reply came, complete and expected."""
        if self._pool is not None:
            self._pool.release(self.connection, self)
            self._pool = None

    def unused(self) -> None:
        """Give the connection back without having sent anything."""
        if self._pool is not None:
            self._pool.release(self.connection, self, used=False)
            self._pool = None

    def discard(self, reason: str) -> None:
        """Close the connection: a reply may be outstanding on it."""
        if self._pool is not None:
            self._pool.discard(self.connection, self, reason)
            self._pool = None

    def let_go(self) -> None:
        """Have the reader close the connection. It waits for no lock, so a collector may call it."""
        pool, hold = self._pool, self.connection.lease
        if pool is not None and hold is not None and hold() is self:
            pool.reader.take_back(pool, self.connection, hold, "its stream was left early")
        self._pool = None
