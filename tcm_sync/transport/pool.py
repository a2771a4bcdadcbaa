"""Connections kept open, and callers that wait for one, first come first served."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from math import inf
from time import monotonic

from tcm_sync.config import Settings
from tcm_sync.deadline import Deadline
from tcm_sync.errors import (
    AuthenticationError,
    ClientClosedError,
    ConnectFailedError,
    PoolTimeoutError,
    ShuttingDownError,
    TcmError,
)
from tcm_sync.transport.connection import Connection
from tcm_sync.transport.connector import Connector
from tcm_sync.transport.gate import Gate, again
from tcm_sync.transport.opening import Opener
from tcm_sync.transport.reader import Reader

log = logging.getLogger("tcm_sync.pool")

#: Sockets beyond this many wait for the manager's scheduler, the youngest longest (docs/wire.rst, "Timing").
SERVED_A_TICK = 5

_SPREAD = 0.2  # by how much limits differ between sockets, so that they do not turn over together
_WINDOW = 1.02  # seconds in which a manager counts messages, and a little
_SHUTDOWN_PAUSE = 0.5  # seconds, at least, after the manager said that it is shutting down
_CONNECT_SLACK = 0.25  # seconds: the connector's own failure says more than a timeout here


class Lease:
    """A connection in the hands of one caller. One that is never ended is found by the garbage collector."""

    __slots__ = ("_pool", "connection")

    def __init__(self, pool: Pool) -> None:
        self._pool: Pool | None = pool
        self.connection: Connection

    def release(self) -> None:
        """Give the connection back: the reply came, complete and expected."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.release(self.connection)

    def unused(self) -> None:
        """Give the connection back without having sent anything."""
        self.connection.requests -= 1
        self.release()

    def discard(self, reason: str) -> None:
        """Close the connection: a reply may be outstanding on it."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.discard(self.connection, reason)

    def forget(self) -> None:
        """Leave the connection to whoever has it now."""
        self._pool = None

    def __del__(self) -> None:
        # A KeyboardInterrupt between two instructions can lose a lease.
        pool = self._pool
        if pool is not None and hasattr(self, "connection"):
            pool.reader.give_back(pool, self.connection)


class _Waiter:
    """A caller in the queue. All but the lock is guarded by the pool's lock."""

    __slots__ = ("connection", "deadline", "error", "handed", "patient", "since")

    def __init__(self, deadline: Deadline, patient: bool) -> None:
        self.handed = threading.Lock()  # held until there is an outcome; guards nothing
        self.handed.acquire()
        self.deadline = deadline
        self.patient = patient
        self.since = monotonic()
        self.connection: Connection | None = None
        self.error: TcmError | None = None

    def settle(self, connection: Connection | None, error: TcmError | None = None) -> None:
        self.connection, self.error = connection, error
        self.handed.release()


class Pool:
    """Up to ``pool_size`` authenticated connections, opened when somebody waits for one.

    Parameters
    ----------
    settings : Settings
        The client's.
    opener : Opener
        Opens one socket.
    connector : Connector
        The threads to do it on.
    reader : Reader
        Reads the sockets, and tends the pool when the time that it asked for has come.
    """

    def __init__(self, settings: Settings, opener: Opener, connector: Connector, reader: Reader) -> None:
        self.reader = reader
        self.manager_gate = Gate("manager", 0.1, 5.0)
        self.auth_gate = Gate("authentication", 1.0, 60.0)
        self._settings = settings
        self._opener = opener
        self._connector = connector
        self._lock = threading.Lock()  # guards everything below, and each connection's bookkeeping
        self._calm = threading.Condition(self._lock)  # told when a lease ends while the pool drains
        self._connections: dict[str, Connection] = {}  # every live one, by uuid
        self._idle: deque[Connection] = deque()  # the most recently used last
        self._waiters: deque[_Waiter] = deque()
        self._opening = 0  # how many are being opened
        self._cautious = False  # whether the manager was draining when last seen
        self._reached = False  # whether the manager ever let us in
        self._limit = self._messages_allowed()
        self._closed = False
        self._abandoned = False
        if settings.pool_size > SERVED_A_TICK:
            log.warning(
                "pool_size=%d: the manager serves %d sockets a tenant at a time, the others wait, the "
                "youngest longest; a smaller pool whose callers wait here is served evenly",
                settings.pool_size,
                SERVED_A_TICK,
            )

    # --- callers ---

    def lease(self, deadline: Deadline, *, patient: bool = True) -> Lease:
        """Take a connection, waiting in line for one.

        Parameters
        ----------
        deadline : Deadline
            The call's.
        patient : bool
            Whether to wait while the manager cannot be reached; without it the first failure is raised.

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
        with self._lock:
            self._check_open()
            if not self._waiters and (connection := self._take()) is not None:
                lease.connection = connection
                self._idle.remove(connection)
                connection.leased_at = monotonic()
                return lease
            waiter = _Waiter(deadline, patient)
            self._waiters.append(waiter)
            self._serve()
            wanted = self._grow()
        try:
            self._open_more(wanted)
            lease.connection = self._wait(waiter)
        except BaseException:
            lease.forget()
            self._decline(waiter)
            raise
        return lease

    def release(self, connection: Connection) -> None:
        """Take back a connection that may be used again."""
        now = monotonic()
        wanted = 0
        retired: str | None
        with self._lock:
            connection.leased_at = None
            connection.idle_since = now
            connection.requests += 1
            if connection.uuid not in self._connections:
                return  # it died meanwhile
            retired = connection.retiring
            if retired is not None:
                self._forget(connection)
            else:
                if self._worn(connection, now) and self._may_replace(connection):
                    connection.replacing = True
                    self._opening += 1
                    wanted = 1
                self._idle.append(connection)
                self._serve()
            if self._waiters:
                wanted += self._grow()
            if self._closed:
                self._calm.notify_all()
        if retired is not None:
            self.reader.close(connection, retired)
            self._log_closed(connection, retired)
        self._open_more(wanted)

    def discard(self, connection: Connection, reason: str) -> None:
        """Give up a connection, wherever it is; doing so twice is as good as once."""
        if self._abandoned:
            return
        with self._lock:
            known = self._forget(connection)
            wanted = self._grow()
        connection.shut_down()
        self.reader.close(connection, reason)
        if known:
            self._log_closed(connection, reason)
        self._open_more(wanted)

    def retire(self, connection: Connection, reason: str) -> None:
        """Close a connection that is not to be used any more: now, or when it comes back."""
        with self._lock:
            connection.retiring = reason
            idle = connection in self._idle
        if idle:
            self.discard(connection, reason)

    def learn_limit(self, connection: Connection) -> None:
        """Learn from a ``Rate limit exceeded`` how many messages a second a socket may send."""
        now = monotonic()
        counted = sum(1 for at in connection.sent_at if now - at <= 1.0) - 1  # the refused one not counted
        learned = max(1, counted - 1)
        with self._lock:
            if self._limit is not None and learned >= self._limit:
                return
            self._limit = learned
        log.warning("the manager limits messages: a socket sends at most %d a second from now on", learned)

    def _wait(self, waiter: _Waiter) -> Connection:
        settings = self._settings
        bounds = [waiter.deadline.remaining(), settings.pool_timeout]
        if not self._reached:
            bounds.append(settings.connect_timeout + _CONNECT_SLACK)
        timeout = min((bound for bound in bounds if bound is not None), default=-1)
        if not waiter.handed.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                    waiter.settle(None, self._timed_out(waiter))
        if waiter.error is not None:
            raise waiter.error
        assert waiter.connection is not None
        return waiter.connection

    def _decline(self, waiter: _Waiter) -> None:
        """Leave the line; what was handed over meanwhile goes to the next."""
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            connection = waiter.connection
        if connection is not None:
            connection.requests -= 1  # it was not used
            self.release(connection)

    def _timed_out(self, waiter: _Waiter) -> TcmError:
        waited = monotonic() - waiter.since
        if not self._connections:
            cause = self.manager_gate.cause or self.auth_gate.cause
            if cause is not None:
                return again(cause)
            return ConnectFailedError(
                f"no socket to {self._opener.endpoint.authority} within {waited:.3g} s: still connecting"
            )
        busy = [c.leased_at for c in self._connections.values() if c.leased_at is not None]
        oldest = f", the oldest for {monotonic() - min(busy):.3g} s" if busy else ""
        limited = f", {self._limit} messages a second each" if self._limit is not None else ""
        return PoolTimeoutError(
            f"no socket came free within {waited:.3g} s: {len(self._connections)} of "
            f"{self._settings.pool_size} sockets open{limited}, {len(busy)} busy{oldest}; "
            f"{len(self._waiters)} other calls wait. Raise timeout or pool_timeout, send more rows a call, "
            f"or raise pool_size up to {SERVED_A_TICK}"
        )

    # --- what the reader tells ---

    def lost(self, connection: Connection, reason: str) -> None:
        """Forget a connection that has died or was closed."""
        with self._lock:
            known = self._forget(connection)
            wanted = self._grow()
        if known:
            self._log_closed(connection, reason)
        self._open_more(wanted)

    def shutting_down(self, error: TcmError) -> None:
        """Stop the world: idle sockets are closed, and none is opened until the gate lets one through."""
        self.manager_gate.shut(again(error), _SHUTDOWN_PAUSE)
        with self._lock:
            self._cautious = True
            self._limit = self._messages_allowed()  # the next manager may have another
            for connection in self._connections.values():
                connection.retiring = "the manager is shutting down"
            idle = list(self._idle)
            for connection in idle:
                self._forget(connection)
            wanted = self._grow()
        for connection in idle:
            self.reader.close(connection, "the manager is shutting down")
            self._log_closed(connection, "the manager is shutting down")
        self._open_more(wanted)

    def tend(self, now: float) -> float:
        """Do what time asks for, and return when to come again, or `math.inf`."""
        settings = self._settings
        with self._lock:
            old = [c for c in self._idle if self._expires_at(c) <= now]
            for connection in old:
                self._forget(connection)
            self._serve()
            wanted = self._grow()
            due = [
                self._expires_at(c) if c.leased_at is None else now + settings.max_idle * c.spread
                for c in self._connections.values()
            ]
        for connection in old:
            self.reader.close(connection, "idle or old")
            self._log_closed(connection, "idle or old")
        self._open_more(wanted)
        return min(due, default=inf)

    # --- opening ---

    def warm(self) -> None:
        """Open a first connection without waiting for it."""
        with self._lock:
            self._check_open()
            if self._connections or self._opening or self.manager_gate.cause or self.auth_gate.cause:
                return
            self._opening += 1
        self._open_more(1)

    def _grow(self) -> int:
        """Count the sockets to open for those who wait, as the gates allow; they count as being opened."""
        room = self._settings.pool_size - len(self._connections) - self._opening
        wanted = min(len(self._waiters) - self._opening, room)
        if wanted <= 0 or self._closed:
            return 0
        if (seconds := self.auth_gate.try_pass()) > 0.0:
            if seconds < inf and self.auth_gate.cause is not None:
                self._refuse_newest(self.auth_gate.cause, wanted if self._connections else len(self._waiters))
            return 0
        if (seconds := self.manager_gate.try_pass()) > 0.0:
            if self.auth_gate.cause is not None:
                self.auth_gate.abandon()
            if seconds < inf:
                self.reader.wake_at(monotonic() + seconds)
                cause = self.manager_gate.cause
                if not self._connections and cause is not None:
                    self._fail_waiters(cause, seconds, permanent=False)
            return 0
        if self.manager_gate.cause is not None or self.auth_gate.cause is not None:
            wanted = 1  # the probe
        self._opening += wanted
        return wanted

    def _fail_waiters(self, cause: TcmError, seconds: float, *, permanent: bool) -> None:
        """Fail those who do not wait for a manager that cannot be reached for some seconds."""
        kept: deque[_Waiter] = deque()
        for waiter in self._waiters:
            left = waiter.deadline.remaining()
            hopeless = permanent or not waiter.patient or (left is not None and left < seconds)
            if hopeless:
                waiter.settle(None, again(cause))
            else:
                kept.append(waiter)
        self._waiters = kept

    def _refuse_newest(self, cause: TcmError, count: int) -> None:
        """Fail the callers who need a new socket; those before them wait for one that is there."""
        for _ in range(count):
            self._waiters.pop().settle(None, again(cause))

    def _open_more(self, count: int) -> None:
        for _ in range(count):
            try:
                self._connector.submit(self._open)
            except RuntimeError as error:
                self._failed(ConnectFailedError(f"no thread to open a socket with: {error}"))

    def _open(self) -> None:
        """Open one socket, on a connector's thread."""
        try:
            connection = self._opener.open(cautious=self._cautious)
        except TcmError as error:
            self._failed(error)
        except BaseException as error:
            log.exception("opening a socket failed in an unexpected way")
            self._failed(ConnectFailedError(f"opening a socket failed: {error!r}", retriable=False))
        else:
            self._opened(connection)

    def _opened(self, connection: Connection) -> None:
        settings = self._settings
        connection.pool = self
        spread = random.uniform(1.0 - _SPREAD, 1.0)  # noqa: S311 - spreads load, guards no secret
        connection.most_requests = max(1, round(settings.max_requests * spread))
        connection.spread = spread
        self.reader.register(connection)
        self.manager_gate.open(forgive=False)
        self.auth_gate.open()
        worn: Connection | None = None
        with self._lock:
            self._opening -= 1
            self._reached = True
            self._cautious = False
            refused = self._closed
            if not refused and not connection.closed:
                self._connections[connection.uuid] = connection
                self._idle.append(connection)
                worn = self._replaced()
                self._serve()
            wanted = self._grow()
            self.reader.wake_at(monotonic() + min(settings.max_idle, settings.max_lifetime) * spread)
        log.info("connection %s opened", connection.uuid)
        if refused:
            self.reader.close(connection, "the client was closed")
        if worn is not None:
            self.reader.close(worn, "worn out")
            self._log_closed(worn, "worn out")
        self._open_more(wanted)

    def _failed(self, error: TcmError) -> None:
        refused = isinstance(error, AuthenticationError)
        if refused:
            log.warning("authentication refused: %s", error)
            self.auth_gate.shut(error)
            self.manager_gate.open(forgive=False)
        else:
            self.manager_gate.shut(error, _SHUTDOWN_PAUSE if isinstance(error, ShuttingDownError) else None)
            self.auth_gate.abandon()
        hopeless = not error.retriable and not self._reached
        with self._lock:
            self._opening -= 1
            for connection in self._connections.values():
                if connection.replacing:
                    connection.replacing = False  # it goes on, and asks again when it comes back
                    break
            if not self._connections and (refused or hopeless):
                self._fail_waiters(error, inf, permanent=True)
            wanted = self._grow()
        self._open_more(wanted)

    # --- under the lock ---

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError("the client is closed, and a closed client stays closed: make another")

    def _take(self) -> Connection | None:
        """Choose an idle connection; it stays in line until the caller removes it."""
        if self._limit is None:
            return self._idle[-1] if self._idle else None
        now = monotonic()  # in turn, the longest idle first, and within its budget
        return next((c for c in self._idle if self._budget_at(c) <= now), None)

    def _budget_at(self, connection: Connection) -> float:
        """When `connection` may send its next message under the limit."""
        assert self._limit is not None
        sent = connection.sent_at
        return sent[-self._limit] + _WINDOW if len(sent) >= self._limit else 0.0

    def _serve(self) -> None:
        """Hand idle connections to those who wait."""
        while self._waiters and (connection := self._take()) is not None:
            waiter = self._waiters.popleft()
            self._idle.remove(connection)
            connection.leased_at = monotonic()
            waiter.settle(connection)
        if self._waiters and self._limit is not None and self._idle:
            self.reader.wake_at(min(self._budget_at(c) for c in self._idle))

    def _forget(self, connection: Connection) -> bool:
        """Drop `connection` from the books; whether it was in them."""
        if self._connections.pop(connection.uuid, None) is None:
            return False
        if connection in self._idle:
            self._idle.remove(connection)
        connection.leased_at = None
        self._calm.notify_all()
        return True

    def _worn(self, connection: Connection, now: float) -> bool:
        old_at = connection.opened_at + self._settings.max_lifetime * connection.spread
        return connection.requests >= connection.most_requests or now >= old_at

    def _may_replace(self, connection: Connection) -> bool:
        """Whether to open another in its place: not twice, and not while a gate is shut."""
        shut = self.manager_gate.cause or self.auth_gate.cause
        return not connection.replacing and not self._closed and shut is None

    def _expires_at(self, connection: Connection) -> float:
        """When an idle connection is closed."""
        settings = self._settings
        return min(
            connection.idle_since + settings.max_idle * connection.spread,
            connection.opened_at + settings.max_lifetime * connection.spread,
        )

    def _replaced(self) -> Connection | None:
        """Retire one connection in whose place another was opened; return it if it is to be closed now."""
        worn = next((c for c in self._connections.values() if c.replacing and c.retiring is None), None)
        if worn is None:
            return None
        worn.retiring = "worn out"
        if worn not in self._idle:
            return None  # closed when it comes back
        self._forget(worn)
        return worn

    def _messages_allowed(self) -> int | None:
        """Messages that a socket may send in a second: one fewer than the manager's limit, to be safe."""
        limit = self._settings.messages_per_second
        return None if limit is None else max(1, int(limit) - 1)

    def _log_closed(self, connection: Connection, reason: str) -> None:
        log.info("connection %s closed after %d requests: %s", connection.uuid, connection.requests, reason)

    # --- closing ---

    def drain(self, timeout: float) -> None:
        """Take no new calls, and wait for those under way, in seconds."""
        deadline = Deadline(timeout)
        with self._lock:
            self._closed = True
            while self._waiters or any(c.leased_at is not None for c in self._connections.values()):
                left = deadline.remaining()
                if not left:
                    return
                self._calm.wait(left)

    def close(self) -> None:
        """End every wait with ClientClosedError; the reader closes the sockets."""
        with self._lock:
            self._closed = True
            waiters, self._waiters = self._waiters, deque()
            for waiter in waiters:
                waiter.settle(
                    None, ClientClosedError("the client was closed while the call waited for a socket")
                )
            self._connections.clear()
            self._idle.clear()
            self._calm.notify_all()

    def abandon(self) -> None:
        """Close what a forked child inherited, without a lock, which another thread may have held."""
        self._abandoned = self._closed = True
        for connection in self._connections.values():
            connection.abandon()
