"""A caller's lease of a connection."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Protocol

from tcm_sync._transport.connection import Connection
from tcm_sync._transport.reader import Reader


class LeaseOwner(Protocol):
    """The pool that a lease goes back to."""

    reader: Reader

    def release(self, connection: Connection, lease: Lease, *, used: bool) -> None:
        """Take a connection that may be used again."""

    def discard(self, connection: Connection, lease: Lease, reason: str) -> None:
        """Close a connection that must not be used again."""

    def discard_lost(self, connection: Connection, lease: weakref.ref[Lease], reason: str) -> None:
        """Close a connection if this is still its last lease."""


class Lease:
    """A connection in the hands of one caller.

    A caller releases or discards its lease whatever happens (``except BaseException``): the traceback of an
    interrupt may be kept, and its frames hold the lease. If a lease is lost even so, the weak reference that
    its connection has to it causes the connection to be closed. The pool's audit finds the cases that are
    left.
    """

    __slots__ = ("__weakref__", "_pool", "connection")

    def __init__(self, pool: LeaseOwner) -> None:
        self._pool: LeaseOwner | None = pool
        self.connection: Connection

    def release(self, *, used: bool = True) -> None:
        """Return the connection: the reply came, complete and expected, or nothing was sent (not `used`)."""
        if self._pool is not None:
            self._pool.release(self.connection, self, used=used)
            self._pool = None

    def discard(self, reason: str) -> None:
        """Close the connection: a reply may be outstanding on it."""
        if self._pool is not None:
            self._pool.discard(self.connection, self, reason)
            self._pool = None

    def discard_soon(self, reason: str) -> None:
        """Have the reader close the connection. It waits for no lock, so a finalizer may call it."""
        pool, last = self._pool, self.connection.lease
        if pool is not None and last is not None and last() is self:
            pool.reader.run_soon(partial(pool.discard_lost, self.connection, last, reason))
        self._pool = None
