"""The connections of a pool: which are idle, which have expired, and which may send under the rate limit."""

from __future__ import annotations

import random
import sys
import weakref
from collections import deque
from math import inf
from time import monotonic

from tcm_sync._pool.lease import Lease
from tcm_sync._transport.connection import Connection
from tcm_sync.settings import Settings

_JITTER = 0.2  # share by which the limits of sockets differ, so that they are not all replaced at once
_RATE_WINDOW = 1.02  # seconds: the manager counts the messages of one second; the rest is a margin


class Inventory:
    """Every live connection, and the idle ones in the order of their last use.

    It has no lock: that of the pool's state guards it, and the bookkeeping fields of its connections.

    Parameters
    ----------
    settings : Settings
        The client's limits.
    size : int
        The most connections.
    """

    def __init__(self, settings: Settings, size: int) -> None:
        self._settings = settings
        self._size = size
        self.all: dict[str, Connection] = {}  # by uuid
        self.idle: deque[Connection] = deque()  # the most recently used last
        self.being_checked: set[Connection] = set()  # those that are not idle because they are being checked
        self.with_streams: set[Connection] = set()  # those that are leased to streams
        # When the connections that were removed last had sent their messages.
        self._sent_by_removed: deque[deque[float]] = deque(maxlen=16)
        # Messages a second of one socket, where there is a limit.
        self.rate_limit = self.configured_rate_limit()

    def add(self, connection: Connection) -> None:
        """Add a fresh connection, idle, with limits of its own."""
        connection.jitter = random.uniform(1.0 - _JITTER, 1.0)  # noqa: S311 - guards no secret
        connection.max_requests = max(1, round(self._settings.max_requests * connection.jitter))
        connection.lifetime_ends_at = connection.opened_at + self._settings.max_lifetime * connection.jitter
        if self.rate_limit is not None and self.rate_limit > (connection.sent_at.maxlen or 0):
            connection.sent_at = deque(maxlen=self.rate_limit)
        self.all[connection.uuid] = connection
        self.idle.append(connection)

    def remove(self, connection: Connection) -> bool:
        """Remove a connection; whether it was there."""
        if self.all.pop(connection.uuid, None) is None:
            return False
        self._sent_by_removed.append(connection.sent_at)
        if connection in self.idle:
            self.idle.remove(connection)
        self.being_checked.discard(connection)
        self.with_streams.discard(connection)
        connection.leased_at = connection.lease = connection.on_lease_lost = None
        return True

    def lost_leases(self, before: float) -> list[Connection]:
        """Return the connections whose leases began before a moment and were collected since."""
        return [
            c
            for c in self.all.values()
            if c not in self.idle
            and c not in self.being_checked
            and (c.leased_at is None or c.leased_at < before)
            and (c.lease is None or c.lease() is None)
        ]

    def choose(self) -> Connection | None:
        """Find the connection for the next caller; it stays idle until it is acquired."""
        if self.rate_limit is None:
            return self.idle[-1] if self.idle else None
        now = monotonic()  # in turn, the longest idle first, and within its budget
        return next((c for c in self.idle if self._budget_at(c) <= now), None)

    def acquire(self, connection: Connection, lease: Lease, *, streaming: bool = False) -> None:
        """Give an idle connection to the holder of `lease`."""
        lease.connection = connection  # first: an interrupted caller releases what it has
        if self.idle[-1] is connection:  # nearly always
            self.idle.pop()
        else:
            self.idle.remove(connection)
        if streaming:
            self.with_streams.add(connection)
        connection.leased_at = monotonic()
        connection.lease = weakref.ref(lease, connection.on_lease_lost)

    def release(self, connection: Connection, now: float) -> None:
        """Make a connection idle again."""
        self.with_streams.discard(connection)
        connection.leased_at = connection.lease = None
        connection.idle_since = now
        self.idle.append(connection)

    def take_silent(self, since: float) -> list[Connection]:
        """Take out the idle connections on which nothing came since a moment, to be checked."""
        silent = [connection for connection in self.idle if connection.last_received < since]
        for connection in silent:
            self.idle.remove(connection)
        self.being_checked.update(silent)
        return silent

    def passed_check(self, connection: Connection) -> bool:
        """Make a connection that was checked idle again; whether it was being checked."""
        if connection not in self.being_checked:
            return False
        self.being_checked.discard(connection)
        self.idle.append(connection)
        return True

    def leased_since(self) -> list[float]:
        """Return when each lease that is held began."""
        return [c.leased_at for c in self.all.values() if c.leased_at is not None]

    # --- budgets ---

    def configured_rate_limit(self) -> int | None:
        """Messages that a socket may send in a second: one fewer than the manager's limit, to be safe."""
        limit = self._settings.messages_per_second
        return None if limit is None else max(1, int(min(limit, sys.maxsize)) - 1)

    def learn_rate_limit(self, connection: Connection) -> int | None:
        """Learn a limit from a refusal, and return it if it is lower than before.

        It is what the socket sent in its last second, the refused one not counted, less one.
        """
        sent = connection.sent_at
        counted = sum(1 for at in sent if sent[-1] - at <= 1.0) - 1
        learned = max(1, counted - 1)
        if self.rate_limit is not None and learned >= self.rate_limit:
            return None
        self.rate_limit = learned
        return learned

    def sent_since(self, moment: float) -> int:
        """Count the messages that were sent after a moment, also on connections that were removed."""
        sent = [*(connection.sent_at for connection in self.all.values()), *self._sent_by_removed]
        return sum(at > moment for times in sent for at in times)

    def next_budget(self) -> float:
        """When the first idle connection may send again under the limit."""
        return min((self._budget_at(c) for c in self.idle), default=inf)

    def _budget_at(self, connection: Connection) -> float:
        assert self.rate_limit is not None
        sent = connection.sent_at
        return sent[-self.rate_limit] + _RATE_WINDOW if len(sent) >= self.rate_limit else 0.0

    # --- ages ---

    def replaced(self) -> Connection | None:
        """Find the connection that a new one has replaced, if any."""
        staying = [c for c in self.all.values() if c.closing_reason is None]
        replaced = next((c for c in staying if c.replacing), None)
        if replaced is None and len(staying) > self._size:
            return staying[0]  # the oldest
        return replaced

    def expired(self, now: float) -> list[Connection]:
        """Find the connections that were idle for too long, or are too old and idle."""
        return [c for c in self.idle if self._expires_at(c) <= now]

    def next_expiry(self, now: float) -> float:
        """When to check for expired ones again."""
        longest = self._settings.max_idle
        return min(
            (
                now + longest if c.leased_at is not None or c in self.being_checked else self._expires_at(c)
                for c in self.all.values()
            ),
            default=inf,
        )

    def _expires_at(self, connection: Connection) -> float:
        settings = self._settings
        return min(
            connection.idle_since + settings.max_idle * connection.jitter,
            connection.lifetime_ends_at,
        )
