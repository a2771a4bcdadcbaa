"""Connections kept open, and callers that wait for one, first come first served."""

from __future__ import annotations

import contextlib
import threading
import weakref
from time import monotonic
from typing import Any

from tcm_sync._deadline import Deadline
from tcm_sync._logs import Log
from tcm_sync._pool import growth
from tcm_sync._pool.gate import again
from tcm_sync._pool.growth import LEASE_LOST, SHUTDOWN_PAUSE, Growth
from tcm_sync._pool.lease import Lease
from tcm_sync._pool.waiters import Waiter
from tcm_sync._transport.connection import Connection
from tcm_sync.errors import (
    ConnectFailedError,
    PoolTimeoutError,
    TcmError,
)

log = Log("tcm_sync.pool", queued=True)

#: Sockets beyond this many wait for the manager's scheduler, the youngest longest (docs/wire.rst, "Timing").
SERVED_A_TICK = 5

_EXPIRED = "idle or old"

_CONNECT_SLACK = 0.25  # seconds: the connector's own failure says more than a timeout here


class Pool(Growth):
    """Up to so many authenticated connections, opened when somebody waits for one."""

    # --- callers ---

    def lease(
        self, deadline: Deadline, *, patient: bool = True, streaming: bool = False, eager: bool = False
    ) -> Lease:
        """Take a connection, waiting in line for one.

        Parameters
        ----------
        deadline : Deadline
            The call's.
        patient : bool
            Whether to wait while the manager cannot be reached; without it the first failure is raised.
        streaming : bool
            Whether it is for a stream. At most ``size - 1`` have a connection at a time.
        eager : bool
            Whether the first failure to connect is raised as long as the manager was never reached.

        Raises
        ------
        PoolTimeoutError
            All sockets were busy for as long as there was time.
        ConnectFailedError, AuthenticationError, ShuttingDownError
            There is no socket, and none can be opened in time.
        ClientClosedError
            The client was closed.
        """
        lease = Lease(self)
        waiter: Waiter | None = None
        try:
            with self._lock:
                if self._ended is not None or self._draining:
                    raise self._ending()
                if not self._waiters and not streaming and (connection := self._choose()) is not None:
                    self._shelf.lend(connection, lease)
                    return lease
                waiter = Waiter(lease, deadline, patient=patient, streaming=streaming, eager=eager)
                self._waiters.append(waiter)
                self._serve()
                wanted = self._grow()
                if not wanted:  # it waits for what others do, and that may have been lost
                    self.reader.wake_at(monotonic() + growth.AUDIT_INTERVAL)
            self._open_more(wanted)
            self._wait(waiter)
        except BaseException:
            if waiter is not None:
                self._decline(waiter)
            if hasattr(lease, "connection"):
                lease.unused()
            raise
        return lease

    def release(self, connection: Connection, lease: Lease, *, used: bool = True) -> None:
        """Take back a connection that may be used again, from whoever has it."""
        now = monotonic()
        wanted = 0
        with self._lock:
            hold = connection.lease
            if hold is None or hold() is not lease:
                return  # it died meanwhile, or was given back before
            if used:
                connection.requests += 1
                if self._window.exact is not None:
                    self._window.answered(connection)
            retired = connection.retiring
            if retired is not None:
                self.reader.close(connection, retired)  # before it is in no book: an interrupt may come
                self._forget(connection, retired)
            else:
                worn = connection.requests >= connection.most_requests or now >= connection.old_at
                if worn and self._may_replace(connection):
                    connection.replacing = True
                    self._opening += 1
                    wanted = 1
                self._shelf.put_back(connection, now)
            if self._waiters:
                self._serve()
                wanted += self._grow()
            if self._draining:
                self._calm.notify_all()
        if retired is not None:
            self._log_closed(connection, retired)
        if wanted:
            self._open_more(wanted)

    def discard(self, connection: Connection, lease: Lease, reason: str) -> None:
        """Give up a connection, for whoever has it; doing so twice is as good as once."""
        hold = connection.lease
        if self._abandoned or (hold is not None and hold() is not lease):
            return
        with self._lock:
            connection.retiring = reason  # for whoever forgets it first: the reader may see its end
        connection.shut_down()
        self.reader.close(connection, reason)
        with self._lock:
            known = self._forget(connection, reason)
            self._serve()  # the end of a stream may let another one begin
            wanted = self._grow()
        if known:
            self._log_closed(connection, reason)
        self._open_more(wanted)

    def reclaim(self, connection: Connection, hold: weakref.ref[Lease], reason: str) -> None:
        """Close a connection if the lease that was let go, or collected, is still its last."""
        with self._lock:
            lost = connection.lease is hold and self._forget(connection, reason)
            self._serve()
            wanted = self._grow()
        if lost:
            connection.shut_down()
            self._close(connection, reason)
        self._open_more(wanted)

    def retire(self, connection: Connection, reason: str) -> None:
        """Close a connection that is not to be used any more: now, or when it comes back."""
        with self._lock:
            connection.retiring = reason
            idle = connection in self._shelf.idle
            if idle:
                self.reader.close(connection, reason)
                self._forget(connection, reason)
        if idle:
            self._log_closed(connection, reason)

    def refused(self, connection: Connection, cause: TcmError) -> None:
        """Send less at a time: the manager had too much to do for the request on `connection`."""
        with self._lock:
            news = self._window.refused(connection, self._under_way(), cause)
            width = self._window.width
        if news:
            log.info("at most %s requests at a time for now: %s", width, cause)

    def learn_limit(self, connection: Connection) -> None:
        """Learn from a ``Rate limit exceeded`` how many messages a second a socket may send."""
        with self._lock:
            learned = self._shelf.learn_limit(connection)
        if learned is not None:
            log.warning(
                "the manager limits messages: a socket sends at most %d a second from now on", learned
            )

    def over_tenant_limit(self, connection: Connection, cause: TcmError) -> None:
        """Send fewer messages a second: the one on `connection` was over the tenant's limit."""
        with self._lock:
            sent_at = connection.sent_at[-1]
            rate = self._pace.refused(sent_at, self._shelf.sent_since(sent_at - 1.0) - 1, cause)
        if rate is not None:
            log.warning(
                "the manager limits a tenant's messages: this client sends %.3g a second from now on: %s",
                rate,
                cause,
            )

    def _choose(self) -> Connection | None:
        """Find the connection for a call, unless enough are under way."""
        if self._window.exact is not None and self._window.left(self._under_way()) <= 0:
            return None
        connection = self._shelf.choose()
        if self._pace.active and (connection is None or self._pace.admit() > 0.0):
            return None
        return connection

    def _wait(self, waiter: Waiter) -> None:
        """Wait until a connection or an error is handed over, or until there is no time left."""
        while not waiter.handed.acquire(timeout=self._patience(waiter)):
            with self._lock:
                if waiter in self._waiters and self._patience(waiter) == 0.0:
                    self._waiters.leave(waiter)
                    self._counts.waited(monotonic() - waiter.since)
                    waiter.settle(None, self._timed_out(waiter))
        if waiter.error is not None:
            raise waiter.error

    def _patience(self, waiter: Waiter) -> float:
        """Seconds that a caller may still wait; -1 is for ever."""
        settings = self._settings
        waited = monotonic() - waiter.since
        bounds = [waiter.deadline.remaining()]
        if settings.pool_timeout is not None:
            bounds.append(settings.pool_timeout - waited)
        if not self._standing.reached:
            bounds.append(settings.connect_timeout + _CONNECT_SLACK - waited)
        left = min((bound for bound in bounds if bound is not None), default=None)
        return -1 if left is None else min(max(left, 0.0), threading.TIMEOUT_MAX)

    def _decline(self, waiter: Waiter) -> None:
        """Leave the line."""
        with self._lock:
            if self._waiters.leave(waiter):
                self._calm.notify_all()

    def _timed_out(self, waiter: Waiter) -> TcmError:
        waited = monotonic() - waiter.since
        shelf = self._shelf
        if not shelf.all:
            cause = self.manager_gate.cause or self.auth_gate.cause
            if cause is not None:
                return again(cause)
            return ConnectFailedError(
                f"no socket to {self._opener.endpoint.authority} within {waited:.3g} s: still connecting"
                f"{self._opener.credentials.running()}"
            )
        if len(shelf.busy()) < self.size and (refusal := self._pace.cause):
            return refusal  # it did not wait for a socket
        if not waiter.streaming and len(shelf.busy()) < self.size and (refusal := self._window.cause):
            return refusal  # it did not wait for a socket
        return PoolTimeoutError(
            f"no socket came free within {waited:.3g} s: {self._state()}. {self._advice(waiter)}"
        )

    def _state(self) -> str:
        """Describe who has the sockets, and how many wait."""
        shelf = self._shelf
        busy = shelf.busy()
        oldest = f", the oldest for {monotonic() - min(busy):.3g} s" if busy else ""
        limited = f", {shelf.limit} messages a second each" if shelf.limit is not None else ""
        streams = f", {len(shelf.with_streams)} of them with streams" if shelf.with_streams else ""
        return (
            f"{len(shelf.all)} of {self.size} sockets open{limited}, {len(busy)} busy{streams}{oldest}; "
            f"{len(self._waiters)} other calls wait{self._opener.credentials.running()}"
        )

    def _advice(self, waiter: Waiter) -> str:
        if waiter.streaming and self._streams_left() <= 0:
            return (
                f"Streams have at most {self.most_streams} sockets when {self._setting} is {self.size}: "
                f"close one that is not needed, or raise {self._setting}"
            )
        if self._setting != "pool_size":
            return f"Raise timeout or {self._setting}"
        return (
            f"Raise timeout or pool_timeout, send more rows a call, or raise pool_size up to {SERVED_A_TICK}"
        )

    def read(self) -> dict[str, Any]:
        """Return what was counted, and the state of now."""
        with self._lock:
            return {
                **self._counts.read(self._shelf.all.values()),
                "open_streams": len(self._shelf.with_streams),
                "waiting": len(self._waiters),
            }

    def any_open(self) -> Connection | None:
        """Return some connection, to be looked at."""
        with self._lock:
            return next(iter(self._shelf.all.values()), None)

    def limits(self) -> tuple[int | None, int | None, float | None]:
        """Return how many requests may be under way; and messages a second, of a socket and of the client."""
        return self._window.width, self._shelf.limit, self._pace.rate

    def glance(self) -> tuple[int, int, int]:
        """Count sockets, busy ones and waiting calls without the lock, for a repr: it may be a little off."""
        live = list(self._shelf.all.values())
        return len(live), sum(c.leased_at is not None for c in live), len(self._waiters)

    # --- what the reader tells ---

    def lost(self, connection: Connection, reason: str) -> None:
        """Forget a connection that has died or was closed."""
        with self._lock:
            known = self._forget(connection, reason)
            ours = connection.retiring is not None  # our own closing tells nothing of the manager
            if known and not ours and not self._shelf.all and self._setting == "pool_size":
                self._standing.epoch += 1
            self._serve()
            wanted = self._grow()
        if known:
            self._log_closed(connection, reason)
        self._open_more(wanted)

    def shutting_down(self, error: TcmError) -> None:
        """Stop the world: idle sockets are closed, and none is opened until the gate lets one through."""
        reason = "the manager is shutting down"
        with self._lock:
            self._shutdowns += 1
            self._standing.epoch += 1
            self._cautious = True
            self._ready_asked_until = monotonic() + growth.READY_ASKED_FOR
            news = self.manager_gate.shut(error, SHUTDOWN_PAUSE, tell=False)
            self._shelf.limit = self._shelf.stated_limit()  # the next manager may have another
            self._standing.managers += 1
            for connection in self._shelf.all.values():
                connection.retiring = reason
            idle = list(self._shelf.idle)
            for connection in idle:
                self._forget(connection, reason)
            wanted = self._grow()
        if news:
            self.manager_gate.tell()
        for connection in idle:
            self._close(connection, reason)
        self._open_more(wanted)

    def tend(self, now: float) -> float:
        """Do what time asks for, and return when to come again, or `math.inf`."""
        with self._lock:
            expired = self._shelf.expired(now)
            for connection in expired:
                self._forget(connection, _EXPIRED)
            lost = self._audit(now)
            self._window.rested(now)
            self._serve()
            wanted = self._grow()
            due = self._shelf.next_expiry(now)
            if self._waiters or self._opening or self._shelf.busy():
                due = min(due, now + growth.AUDIT_INTERVAL)
        with contextlib.suppress(RuntimeError):  # the next look tries again
            self._connector.ensure_thread()
        for connection in expired:
            self._close(connection, _EXPIRED)
        for connection in lost:
            connection.shut_down()
            self._close(connection, LEASE_LOST)
        self._open_more(wanted)
        return due

    def _audit(self, now: float) -> list[Connection]:
        """Find what a KeyboardInterrupt between two instructions has lost: leases, a count, and probes."""
        lost = self._shelf.lost_leases(now - growth.AUDIT_INTERVAL)
        for connection in lost:
            self._forget(connection, LEASE_LOST)
        gates = (self.auth_gate, self.manager_gate)
        opening = self._opening > 0 or any(gate.is_probed_by(self._prober) for gate in gates)
        if opening and self._connector.is_idle():
            if self._miscounted:
                self._opening = 0
                for gate in gates:
                    gate.abandon(self._prober)
            self._miscounted = not self._miscounted  # a job may just be on its way to the connector
        else:
            self._miscounted = False
        return lost

    # --- closing ---

    def refuse(self) -> None:
        """Take no new calls."""
        with self._lock:
            self._draining = True

    def drain(self, deadline: Deadline) -> None:
        """Wait for the calls under way."""
        with self._lock:
            while self._waiters or self._shelf.busy():
                left = deadline.remaining()
                if not left:
                    return
                self._calm.wait(min(left, threading.TIMEOUT_MAX))

    def close(self, error: TcmError) -> None:
        """End every wait with `error`, and every call to come; the reader closes the sockets."""
        with self._lock:
            self._draining = True
            self._ended = self._ended or error
            self._waiters.fail_newest(len(self._waiters), error)
            for connection in list(self._shelf.all.values()):
                self._forget(connection, "the client was closed")
        self._connector.stop()

    def abandon(self) -> None:
        """Close what a forked child inherited, without a lock, which another thread may have held."""
        self._abandoned = True
        for connection in self._shelf.all.values():
            connection.abandon()
