"""What a pool holds under one lock, and what it decides from that: who is served, what is opened."""

from __future__ import annotations

import threading
from math import inf
from time import monotonic, time
from typing import Any, Literal

from tcm_sync._locks import RLock
from tcm_sync._pool.concurrency_limit import ConcurrencyLimit
from tcm_sync._pool.gate import Prober, copy_for_call
from tcm_sync._pool.inventory import Inventory
from tcm_sync._pool.manager_state import ManagerState
from tcm_sync._pool.waiters import Waiter, WaitQueue
from tcm_sync._secrets import hide
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.counters import PoolCounts
from tcm_sync._transport.opener import Opener
from tcm_sync._transport.reader import Reader
from tcm_sync.errors import ClientClosedError, ConnectFailedError, PoolTimeoutError, TcmError
from tcm_sync.events._records import ConnectionClosed, ConnectionOpened
from tcm_sync.settings import Settings

#: Sockets beyond this many wait for the manager's scheduler, the youngest longest (docs/wire.rst, "Timing").

# The reason of a closing that users see: `max_requests` or `max_lifetime` was reached.
WORN_OUT = "worn out"
LEASE_LOST = "its lease was lost"
AUDIT_INTERVAL = 5.0  # seconds between two searches for lost leases, while something is under way

_LONGER = "; a timeout= above connect_timeout= reports what fails"
_CONNECT_SLACK = 0.25  # seconds: the connector's own failure says more than a timeout here


class PoolState:
    """The connections of a pool, its wait queue, and its limits. Everything here needs `lock` to be held.

    Parameters
    ----------
    settings : Settings
        The client's.
    reader : Reader
        Calls the pool back when the time that this asks for has come.
    manager_state : ManagerState
        Shared by the client's pools.
    counts : PoolCounts
        Where it counts.
    size : int
        The most connections.
    setting : str
        What the user calls `size`.
    opener : Opener
        For messages: the manager's address, and the callable of the user that has not returned.
    """

    def __init__(
        self,
        settings: Settings,
        reader: Reader,
        manager_state: ManagerState,
        counts: PoolCounts,
        *,
        size: int,
        setting: str,
        opener: Opener,
    ) -> None:
        self.size = size
        self.setting = setting
        self.max_streams = max(1, size - 1)  # so that other calls always have a socket
        self.manager_state = manager_state
        self.manager_gate, self.auth_gate = manager_state.manager_gate, manager_state.auth_gate
        self.tenant_rate = manager_state.tenant_rate
        self.prober = Prober()  # of both gates: the socket that is being opened
        self._settings = settings
        self._reader = reader
        self._opener = opener
        # Guards inventory, waiters, concurrency_limit, counts and all plain attributes below, the pool's
        # bookkeeping fields of each connection, and ManagerState.epoch and .limits_epoch.
        self.lock = RLock()
        self.lease_ended = threading.Condition(self.lock)  # notified when a lease ends while the pool drains
        self.inventory = Inventory(settings, size)
        self.waiters = WaitQueue()
        self.concurrency_limit = ConcurrencyLimit(size)
        self.counts = counts
        self.opening = 0  # how many connections are being opened
        self.shutdowns = 0  # how often the manager said that it is shutting down
        self.manager_was_draining = False  # whether the manager was draining when last seen
        self.ready_asked_until = 0.0  # until when /ready is asked before a socket is opened
        self.draining = False  # whether new calls are refused
        self.ended: TcmError | None = None  # why no call is served any more
        self.last_removed_at = -inf  # when a connection was removed last
        self.last_removed_reason = ""
        self._miscounted = False  # whether `opening` was wrong at the last audit

    # --- serving ---

    def closed_error(self) -> TcmError:
        """Return why no call is taken any more."""
        if self.ended is not None:
            return copy_for_call(self.ended)
        return ClientClosedError("the client is closed, and a closed client stays closed: make another")

    def choose(self) -> Connection | None:
        """Find the connection for a call, unless enough are under way."""
        if self.concurrency_limit.value is not None and self.concurrency_limit.room(self.under_way()) <= 0:
            return None
        connection = self.inventory.choose()
        if self.tenant_rate.active and (connection is None or self.tenant_rate.admit() > 0.0):
            return None
        return connection

    def serve_waiters(self) -> None:
        """Hand idle connections to those who wait."""
        inventory, waiters = self.inventory, self.waiters
        while inventory.idle and waiters and (waiter := waiters.next(*self._left())) is not None:
            connection = inventory.choose()
            if connection is None:
                break
            if self.tenant_rate.active and (seconds := self.tenant_rate.admit()) > 0.0:
                self._reader.wake_at(monotonic() + seconds)
                break
            waiters.leave(waiter)
            inventory.acquire(connection, waiter.lease, streaming=waiter.streaming)
            self.counts.waited(monotonic() - waiter.since)
            waiter.resolve(connection)
        if waiters and inventory.rate_limit is not None:
            self._reader.wake_at(inventory.next_budget())

    def _left(self) -> tuple[int, int]:
        """Count the streams, and the other calls, that may begin."""
        others = (
            self.size
            if self.concurrency_limit.value is None
            else self.concurrency_limit.room(self.under_way())
        )
        return self._streams_left(), others

    def _streams_left(self) -> int:
        return self.max_streams - len(self.inventory.with_streams)

    def under_way(self) -> int:
        """Count the requests that are no streams."""
        return len(self.inventory.leased_since()) - len(self.inventory.with_streams)

    # --- opening more connections ---

    def reserve_openings(self) -> int:
        """Decide how many connections to open for the wait queue, add them to `opening`, and return how many.

        While a gate is shut that is one, the probe, or none; callers that cannot wait for the gate fail here.
        """
        room = self.size - len(self.inventory.all) - self.opening
        if room <= 0 or self.ended is not None:
            return 0
        wanted = min(self.waiters.count_servable(*self._left()) - self.opening, room)
        if self.tenant_rate.active:  # more sockets would send no more
            wanted = 0 if self.inventory.idle or self.opening else min(wanted, 1)
        if wanted <= 0:
            return 0
        if (seconds := self.auth_gate.try_pass(self.prober)) > 0.0:
            if seconds < inf and self.auth_gate.cause is not None:
                # Those who need a new socket fail; those before them wait for one that is there.
                newest = wanted if self.inventory.all else len(self.waiters)
                self.waiters.fail_newest(newest, self.auth_gate.cause)
            return 0
        if (seconds := self.manager_gate.try_pass(self.prober)) > 0.0:
            if self.auth_gate.cause is not None:
                self.auth_gate.end_probe(self.prober)
            if seconds < inf:
                self._reader.wake_at(monotonic() + seconds)
                self.fail_waiters(self.manager_gate.cause, seconds)
            return 0
        if self.gate_cause() is not None:
            wanted = 1  # the probe
        self.opening += wanted
        return wanted

    def opening_ended(self) -> None:
        """Count one connection fewer that is being opened, unless an audit has given that one up before."""
        self.opening = max(0, self.opening - 1)

    def gate_cause(self) -> TcmError | None:
        """Why a gate before the opening of connections is shut, or None."""
        return self.manager_gate.cause or self.auth_gate.cause

    def fail_waiters(self, cause: TcmError | None, seconds: float) -> None:
        """Fail those who cannot wait so long for a manager that cannot be reached."""
        if not self.inventory.all and cause is not None:
            fail_fast = not self.manager_state.reached and isinstance(cause, ConnectFailedError)
            self.waiters.fail_short_waits(cause, seconds, fail_fast=fail_fast)

    def may_replace(self, connection: Connection) -> bool:
        """Whether to open another in its place: not twice, and while a gate is shut only as its probe.

        Where no call waits for a socket no other probe is made: the gate would stay shut.
        """
        if connection.replacing or self.draining or self.auth_gate.try_pass(self.prober) > 0.0:
            return False
        if self.manager_gate.try_pass(self.prober) > 0.0:
            self.auth_gate.end_probe(self.prober)
            return False
        return True

    def take_replaced(self) -> Connection | None:
        """Mark the connection that a new one has replaced; return it if it can be closed now."""
        replaced = self.inventory.replaced()
        if replaced is None:
            return None
        replaced.closing_reason = WORN_OUT
        if replaced not in self.inventory.idle:
            return None  # closed when it is released
        self.remove(replaced, WORN_OUT)
        return replaced

    def forget_manager_limits(self) -> None:
        """Forget what was learned of a manager that has ended: the next one may have other limits."""
        self.inventory.rate_limit = self.inventory.configured_rate_limit()
        self.manager_state.limits_epoch += 1

    # --- removing connections ---

    def remove(self, connection: Connection, reason: str) -> bool:
        """Remove a connection that is closed, or about to be; whether the pool still had it."""
        if not self.inventory.remove(connection):
            return False
        self.lease_ended.notify_all()
        counts = self.counts
        self.last_removed_at, self.last_removed_reason = monotonic(), connection.closing_reason or reason
        counts.closed[self.last_removed_reason.partition(":")[0]] += 1
        counts.messages_sent += connection.messages_sent
        counts.bytes_sent += connection.bytes_sent
        self._report_closed(connection)
        return True

    # --- events, which are delivered once the lock is released ---

    def report_opened(self, connection: Connection, seconds: float) -> None:
        """Report that a connection was opened, which took so many seconds."""
        listeners = self.manager_state.listeners
        if listeners.registered:
            listeners.add_beginning(
                connection.uuid,
                ConnectionOpened(
                    at=time(),
                    manager=listeners.manager,
                    uuid=connection.uuid,
                    pool=self._kind,
                    seconds=seconds,
                ),
            )

    def _report_closed(self, connection: Connection) -> None:
        listeners = self.manager_state.listeners
        if listeners.registered:
            listeners.add_end(
                connection.uuid,
                ConnectionClosed(
                    at=time(),
                    manager=listeners.manager,
                    uuid=connection.uuid,
                    pool=self._kind,
                    reason=hide(self.last_removed_reason),
                    requests=connection.requests,
                    seconds=monotonic() - connection.opened_at,
                ),
            )

    @property
    def _kind(self) -> Literal["inference", "management"]:
        return "inference" if self.setting == "pool_size" else "management"

    def audit(self, now: float, *, connector_idle: bool) -> list[Connection]:
        """Remove what a KeyboardInterrupt between two instructions has lost: leases, a count, and probes."""
        lost = self.inventory.lost_leases(now - AUDIT_INTERVAL)
        for connection in lost:
            self.remove(connection, LEASE_LOST)
        gates = (self.auth_gate, self.manager_gate)
        opening = self.opening > 0 or any(gate.is_probed_by(self.prober) for gate in gates)
        if opening and connector_idle:
            if self._miscounted:
                self.opening = 0
                for gate in gates:
                    gate.end_probe(self.prober)
            self._miscounted = not self._miscounted  # a job may just be on its way to the connector
        else:
            self._miscounted = False
        return lost

    # --- waiting ---

    def time_left(self, waiter: Waiter) -> float:
        """Seconds that a caller may still wait, or `math.inf`. It needs no lock."""
        settings = self._settings
        waited = monotonic() - waiter.since
        bounds = [waiter.deadline.remaining()]
        if settings.pool_timeout is not None:
            bounds.append(settings.pool_timeout - waited)
        if not self.manager_state.reached:
            bounds.append(settings.connect_timeout + _CONNECT_SLACK - waited)
        return max(0.0, min((bound for bound in bounds if bound is not None), default=inf))

    def expire_waiter(self, waiter: Waiter) -> None:
        """End the wait of a caller whose time is up."""
        self.waiters.leave(waiter)
        self.counts.waited(monotonic() - waiter.since)
        waiter.resolve(None, self._timeout_error(waiter))

    def _timeout_error(self, waiter: Waiter) -> TcmError:
        waited = monotonic() - waiter.since
        inventory = self.inventory
        if not inventory.all:
            cause = self.gate_cause()
            if cause is not None:
                return copy_for_call(cause)
            without = monotonic() - self.last_removed_at
            if without < waited / 2:
                return PoolTimeoutError(
                    f"no socket came free within {waited:.3g} s: those that were open were busy, and the "
                    f"last of them was closed {without:.3g} s ago ({self.last_removed_reason}); another is "
                    "being opened"
                )
            return ConnectFailedError(
                f"no socket to {self._opener.endpoint.authority} within {waited:.3g} s: still connecting"
                f"{self._opener.credentials.running() or _LONGER}"
            )
        if len(inventory.leased_since()) < self.size and (refusal := self.tenant_rate.cause):
            return refusal  # it did not wait for a socket
        if (
            not waiter.streaming
            and len(inventory.leased_since()) < self.size
            and (refusal := self.concurrency_limit.cause)
        ):
            return refusal  # it did not wait for a socket
        return PoolTimeoutError(
            f"no socket came free within {waited:.3g} s: {self._describe()}. {self._advice(waiter)}"
        )

    def _describe(self) -> str:
        """Describe who has the sockets, and how many wait."""
        inventory = self.inventory
        busy = inventory.leased_since()
        oldest = f", the oldest for {monotonic() - min(busy):.3g} s" if busy else ""
        limited = (
            f", {inventory.rate_limit} messages a second each" if inventory.rate_limit is not None else ""
        )
        streams = f", {len(inventory.with_streams)} of them with streams" if inventory.with_streams else ""
        return (
            f"{len(inventory.all)} of {self.size} sockets open{limited}, {len(busy)} busy{streams}{oldest}; "
            f"{len(self.waiters)} other calls wait{self._opener.credentials.running()}"
        )

    def _advice(self, waiter: Waiter) -> str:
        if waiter.streaming and self._streams_left() <= 0:
            return (
                f"Streams have at most {self.max_streams} sockets when {self.setting} is {self.size}: "
                f"close one that is not needed, or raise {self.setting}"
            )
        if self.setting != "pool_size":
            return f"Raise timeout or {self.setting}"
        return "Raise timeout, pool_timeout or pool_size, or send more rows a call"

    # --- figures ---

    def read(self) -> dict[str, Any]:
        """Return what was counted, and the state of now."""
        return {
            **self.counts.read(self.inventory.all.values()),
            "open_streams": len(self.inventory.with_streams),
            "waiting": len(self.waiters),
        }
