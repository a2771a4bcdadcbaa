"""Connections kept open, and callers that wait for one, first come first served."""

from __future__ import annotations

import contextlib
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

from tcm_sync._deadline import Deadline
from tcm_sync._logs import Log
from tcm_sync._pool import pool_state
from tcm_sync._pool.connector import Connector
from tcm_sync._pool.lease import Lease
from tcm_sync._pool.manager_state import ManagerState
from tcm_sync._pool.opening import SHUTDOWN_PAUSE, PoolOpening, log_closed
from tcm_sync._pool.pool_limits import PoolLimits
from tcm_sync._pool.pool_state import LEASE_LOST, PoolState
from tcm_sync._pool.waiters import Waiter
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.counters import PoolCounts
from tcm_sync._transport.opener import Opener
from tcm_sync._transport.reader import Reader
from tcm_sync._waiting import MAX_STEP, acquire
from tcm_sync.errors import TcmError
from tcm_sync.events._listeners import wake
from tcm_sync.settings import Settings

if TYPE_CHECKING:
    from tcm_sync.events._watch import Watch

log = Log("tcm_sync.pool", queued=True)

READY_ASKED_FOR = 5.0  # seconds after a shutdown in which a 503 of /ready holds callers back

_EXPIRED = "idle or old"


class Pool:
    """Up to so many authenticated connections, opened when a caller waits for one.

    What it holds is in its state, under the state's lock. This class acquires and releases connections, and
    does what may wait (closing, logging, starting threads) without that lock.

    Parameters
    ----------
    settings : Settings
        The client's.
    opener : Opener
        Opens one socket.
    connector : Connector
        The threads to do it on.
    reader : Reader
        Reads the sockets, and calls the pool back when the time that it asked for has come.
    manager_state : ManagerState
        Shared by the client's pools.
    counts : PoolCounts
        Where it counts.
    size : int
        The most connections.
    setting : str
        What the user calls `size`.
    """

    def __init__(
        self,
        settings: Settings,
        opener: Opener,
        connector: Connector,
        reader: Reader,
        manager_state: ManagerState,
        counts: PoolCounts,
        *,
        size: int,
        setting: str,
    ) -> None:
        self.reader = reader
        self.size = size
        self.state = PoolState(
            settings, reader, manager_state, counts, size=size, setting=setting, opener=opener
        )
        self.limits = PoolLimits(self.state)
        self._connector = connector
        self._opening = PoolOpening(self, self.state, opener, connector, reader)
        self._inherited = False  # whether this is a forked child, and the connections its parent's

    # --- callers ---

    def open_first(self) -> None:
        """Open a first connection without waiting for it."""
        self._opening.open_first()

    def acquire(
        self,
        deadline: Deadline,
        *,
        waits_for_manager: bool = True,
        streaming: bool = False,
        fail_fast: bool = False,
        watch: Watch | None = None,
    ) -> Lease:
        """Lease a connection, waiting in the queue for one.

        Parameters
        ----------
        deadline : Deadline
            The call's.
        waits_for_manager : bool
            Whether to wait while the manager cannot be reached; without it the first failure is raised.
        streaming : bool
            Whether it is for a stream. At most ``size - 1`` have a connection at a time.
        fail_fast : bool
            Whether the first failure to connect is raised as long as the manager was never reached.
        watch : Watch, optional
            What reports a wait, if there are listeners.

        Raises
        ------
        PoolTimeoutError
            All sockets were busy for as long as there was time.
        ConnectFailedError, AuthenticationError, ShuttingDownError
            There is no socket, and none can be opened in time.
        ClientClosedError
            The client was closed.
        """
        state = self.state
        lease = Lease(self)
        waiter: Waiter | None = None
        try:
            with state.lock:
                if state.ended is not None or state.draining:
                    raise state.closed_error()
                if not state.waiters and not streaming and (connection := state.choose()) is not None:
                    state.inventory.acquire(connection, lease)
                    return lease
                waiter = Waiter(
                    lease,
                    deadline,
                    waits_for_manager=waits_for_manager,
                    streaming=streaming,
                    fail_fast=fail_fast,
                )
                state.waiters.append(waiter)
                state.serve_waiters()
                wanted = state.reserve_openings()
                if not wanted:  # it waits for what others do, and that may have been lost
                    self.reader.wake_at(monotonic() + pool_state.AUDIT_INTERVAL)
            self._opening.start(wanted)
            if watch is not None and waiter.resolved.locked():
                watch.waits("socket")
            self._wait(waiter)
        except BaseException:
            if waiter is not None:
                self._leave(waiter)
            if hasattr(lease, "connection"):
                lease.release(used=False)
            raise
        return lease

    def release(self, connection: Connection, lease: Lease, *, used: bool) -> None:
        """Make a leased connection idle, or close it if it is marked. Replace one that has expired."""
        now = monotonic()
        wanted = 0
        state = self.state
        with state.lock:
            last = connection.lease
            if last is None or last() is not lease:
                return  # the connection was lost meanwhile, or released before
            if used:
                connection.requests += 1
                if state.concurrency_limit.value is not None:
                    state.concurrency_limit.count_reply(connection)
            reason = connection.closing_reason
            if reason is not None:
                self.reader.close(connection, reason)  # before it is removed: an interrupt may come
                state.remove(connection, reason)
            else:
                expired = connection.requests >= connection.max_requests or now >= connection.lifetime_ends_at
                if expired and state.may_replace(connection):
                    connection.replacing = True
                    state.opening += 1
                    wanted = 1
                state.inventory.release(connection, now)
            if state.waiters:
                state.serve_waiters()
                wanted += state.reserve_openings()
            if state.draining:
                state.lease_ended.notify_all()
        if reason is not None:
            log_closed(connection, reason)
        if wanted:
            self._opening.start(wanted)

    def discard(self, connection: Connection, lease: Lease, reason: str) -> None:
        """Close a leased connection that must not be used again. Calling it twice does no harm."""
        last = connection.lease
        if self._inherited or (last is not None and last() is not lease):
            return
        state = self.state
        with state.lock:
            connection.closing_reason = reason  # first: the reader may see its end, and remove it
        connection.shut_down()
        self.reader.close(connection, reason)
        with state.lock:
            removed = state.remove(connection, reason)
            state.serve_waiters()  # the end of a stream may let another one begin
            wanted = state.reserve_openings()
        if removed:
            log_closed(connection, reason)
        self._opening.start(wanted)

    def discard_lost(self, connection: Connection, lease: weakref.ref[Lease], reason: str) -> None:
        """Close a connection if this lease of it, which was dropped or collected, is still its last."""
        state = self.state
        with state.lock:
            removed = connection.lease is lease and state.remove(connection, reason)
            state.serve_waiters()
            wanted = state.reserve_openings()
        if removed:
            connection.shut_down()
            self._close(connection, reason)
        self._opening.start(wanted)

    def expire(self, connection: Connection, reason: str) -> None:
        """Close a connection that is not to be used any more: now, or when it is released."""
        state = self.state
        with state.lock:
            connection.closing_reason = reason
            idle = connection in state.inventory.idle
            if idle:
                self.reader.close(connection, reason)
                state.remove(connection, reason)
        if idle:
            log_closed(connection, reason)

    def check_silent(self, since: float) -> None:
        """Lease no idle connection on which nothing came since a moment, before it was checked.

        Another one was found dead, or a call on it timed out without a sign of life: these may be dead too.
        """
        with self.state.lock:
            silent = self.state.inventory.take_silent(since)
        if silent:
            self.reader.check(silent)

    def passed_check(self, connection: Connection) -> None:
        """Make a connection available again that was checked and is alive."""
        state = self.state
        with state.lock:
            reason = connection.closing_reason
            if reason is None:
                if state.inventory.passed_check(connection):
                    state.serve_waiters()
                return
            if connection not in state.inventory.being_checked:
                return  # an earlier check made it available again: it is closed when it is released
            state.remove(connection, reason)
        self._close(connection, reason)

    def _wait(self, waiter: Waiter) -> None:
        """Wait until a connection or an error is handed over, or until there is no time left."""
        state = self.state
        while not acquire(waiter.resolved, min(state.time_left(waiter), MAX_STEP)):
            with state.lock:
                if waiter in state.waiters and state.time_left(waiter) == 0.0:
                    state.expire_waiter(waiter)
        if waiter.error is not None:
            raise waiter.error

    def _leave(self, waiter: Waiter) -> None:
        """Take a caller out of the queue."""
        with self.state.lock:
            if self.state.waiters.leave(waiter):
                self.state.lease_ended.notify_all()

    # --- figures ---

    def read(self) -> dict[str, Any]:
        """Return what was counted, and the state of now."""
        with self.state.lock:
            return self.state.read()

    def any_open(self) -> Connection | None:
        """Return any open connection, or None."""
        with self.state.lock:
            return next(iter(self.state.inventory.all.values()), None)

    def read_unlocked(self) -> tuple[int, int, int]:
        """Count sockets, busy ones and waiting calls without the lock, for a repr: it may be a little off."""
        live = list(self.state.inventory.all.values())
        return len(live), sum(c.leased_at is not None for c in live), len(self.state.waiters)

    # --- what the reader asks and reports ---

    def is_idle(self) -> bool:
        """Whether there is nothing to do for the reader. Without the lock: it is asked while no call runs."""
        state = self.state
        return not (state.inventory.all or state.waiters or state.opening)

    def lost(self, connection: Connection, reason: str) -> None:
        """Remove a connection that was closed, by whichever side."""
        state = self.state
        with state.lock:
            removed = state.remove(connection, reason)
            ours = connection.closing_reason is not None  # our own closing says nothing about the manager
            if removed and not ours and not state.inventory.all and state.setting == "pool_size":
                state.manager_state.epoch += 1
            state.serve_waiters()
            wanted = state.reserve_openings()
        if removed:
            log_closed(connection, reason)
        self._opening.start(wanted)

    def manager_shuts_down(self, error: TcmError) -> None:
        """Close idle connections, and open none until the gate lets one through."""
        reason = "the manager is shutting down"
        state = self.state
        with state.lock:
            state.shutdowns += 1
            state.manager_state.epoch += 1
            state.manager_was_draining = True
            state.ready_asked_until = monotonic() + READY_ASKED_FOR
            shut = state.manager_gate.shut(error, SHUTDOWN_PAUSE, log_now=False)
            state.forget_manager_limits()
            for connection in state.inventory.all.values():
                connection.closing_reason = reason
            idle = list(state.inventory.idle)
            for connection in idle:
                state.remove(connection, reason)
            wanted = state.reserve_openings()
        if shut:
            state.manager_gate.write_log()
        for connection in idle:
            self._close(connection, reason)
        self._opening.start(wanted)

    def on_timer(self, now: float) -> float:
        """Close expired connections and audit leases; return when to be called again, or `math.inf`."""
        state = self.state
        with state.lock:
            expired = state.inventory.expired(now)
            for connection in expired:
                state.remove(connection, _EXPIRED)
            lost = state.audit(now, connector_idle=self._connector.is_idle())
            state.concurrency_limit.raise_after_quiet(now)
            state.serve_waiters()
            wanted = state.reserve_openings()
            due = state.inventory.next_expiry(now)
            if state.waiters or state.opening or state.inventory.leased_since():
                due = min(due, now + pool_state.AUDIT_INTERVAL)
        with contextlib.suppress(RuntimeError):  # the next call of this tries again
            self._connector.ensure_thread()
        for connection in expired:
            self._close(connection, _EXPIRED)
        for connection in lost:
            connection.shut_down()
            self._close(connection, LEASE_LOST)
        self._opening.start(wanted)
        return due

    def _close(self, connection: Connection, reason: str) -> None:
        self.reader.close(connection, reason)
        log_closed(connection, reason)

    # --- closing ---

    def stop_accepting(self) -> None:
        """Refuse new calls from now on."""
        with self.state.lock:
            self.state.draining = True

    def drain(self, deadline: Deadline) -> None:
        """Wait for the calls under way."""
        state = self.state
        with state.lock:
            while state.waiters or state.inventory.leased_since():
                left = deadline.remaining()
                if not left:
                    return
                state.lease_ended.wait(min(left, MAX_STEP))

    def close(self, error: TcmError) -> None:
        """End every wait with `error`, and every call to come; the reader closes the sockets."""
        state = self.state
        with state.lock:
            state.draining = True
            state.ended = state.ended or error
            state.waiters.fail_newest(len(state.waiters), error)
            for connection in list(state.inventory.all.values()):
                state.remove(connection, "the client was closed")
        wake()
        self._connector.stop()

    def close_inherited(self) -> None:
        """Close what a forked child inherited, without a lock, which another thread may have held."""
        self._inherited = True
        for connection in self.state.inventory.all.values():
            connection.close_inherited()
