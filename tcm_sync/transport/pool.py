"""Connections kept open, and callers that wait for one, first come first served."""

from __future__ import annotations

import logging
import threading
import weakref
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
from tcm_sync.transport.gate import Prober, again
from tcm_sync.transport.lease import Lease
from tcm_sync.transport.line import Line, Waiter
from tcm_sync.transport.opening import Opener
from tcm_sync.transport.reader import Reader
from tcm_sync.transport.shelf import Shelf
from tcm_sync.transport.standing import Standing

log = logging.getLogger("tcm_sync.pool")

#: Sockets beyond this many wait for the manager's scheduler, the youngest longest (docs/wire.rst, "Timing").
SERVED_A_TICK = 5

_SHUTDOWN_PAUSE = 0.5  # seconds, at least, after the manager said that it is shutting down
_AUDIT_INTERVAL = 5.0  # seconds between two looks for what was lost, while something is under way
_CONNECT_SLACK = 0.25  # seconds: the connector's own failure says more than a timeout here


class Pool:
    """Up to so many authenticated connections, opened when somebody waits for one.

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
    standing : Standing
        Shared by the client's pools.
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
        standing: Standing,
        *,
        size: int,
        setting: str,
    ) -> None:
        self.reader = reader
        self.size = size
        self.most_streams = max(1, size - 1)  # so that they cannot starve the others
        self._setting = setting
        self._standing = standing
        self.manager_gate, self.auth_gate = standing.manager_gate, standing.auth_gate
        self._prober = Prober()  # of both gates: an opening
        self._settings = settings
        self._opener = opener
        self._connector = connector
        self._lock = threading.Lock()  # guards everything below, and each connection's bookkeeping
        self._calm = threading.Condition(self._lock)  # told when a lease ends while the pool drains
        self._shelf = Shelf(settings, size)
        self._waiters = Line()
        self._opening = 0  # how many are being opened
        self._shutdowns = 0  # how often the manager said that it is shutting down
        self._miscounted = False  # whether the count was wrong when last looked at
        self._cautious = False  # whether the manager was draining when last seen
        self._draining = False  # whether new calls are refused
        self._ended: TcmError | None = None  # why no call is served any more
        self._abandoned = False

    # --- callers ---

    def lease(self, deadline: Deadline, *, patient: bool = True, streaming: bool = False) -> Lease:
        """Take a connection, waiting in line for one.

        Parameters
        ----------
        deadline : Deadline
            The call's.
        patient : bool
            Whether to wait while the manager cannot be reached; without it the first failure is raised.
        streaming : bool
            Whether it is for a stream. At most ``size - 1`` have a connection at a time.

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
                self._check_open()
                if not self._waiters and not streaming and (connection := self._shelf.choose()) is not None:
                    self._shelf.lend(connection, lease)
                    return lease
                waiter = Waiter(lease, deadline, patient=patient, streaming=streaming)
                self._waiters.join(waiter)
                self._serve()
                wanted = self._grow()
            self._open_more(wanted)
            self._wait(waiter)
        except BaseException:
            if waiter is not None:
                self._decline(waiter)
            raise
        return lease

    def release(self, connection: Connection, *, used: bool = True) -> None:
        """Take back a connection that may be used again."""
        now = monotonic()
        wanted = 0
        with self._lock:
            if connection.leased_at is None:
                return  # it died meanwhile
            connection.requests += used
            retired = connection.retiring
            if retired is not None:
                self._forget(connection)
            else:
                if self._shelf.worn(connection, now) and self._may_replace(connection):
                    connection.replacing = True
                    self._opening += 1
                    wanted = 1
                self._shelf.put_back(connection, now)
                self._serve()
            if self._waiters:
                wanted += self._grow()
            if self._draining:
                self._calm.notify_all()
        if retired is not None:
            self._close(connection, retired)
        self._open_more(wanted)

    def discard(self, connection: Connection, reason: str) -> None:
        """Give up a connection, wherever it is; doing so twice is as good as once."""
        if self._abandoned:
            return
        with self._lock:
            known = self._forget(connection)
            self._serve()  # the end of a stream may let another one begin
            wanted = self._grow()
        connection.shut_down()
        self.reader.close(connection, reason)
        if known:
            self._log_closed(connection, reason)
        self._open_more(wanted)

    def reclaim(self, connection: Connection, hold: weakref.ref[Lease]) -> None:
        """Close a connection if the lease that was collected without having been ended is still its last."""
        with self._lock:
            lost = connection.lease is hold and self._forget(connection)
            self._serve()
            wanted = self._grow()
        if lost:
            connection.shut_down()
            self._close(connection, "its lease was lost")
        self._open_more(wanted)

    def retire(self, connection: Connection, reason: str) -> None:
        """Close a connection that is not to be used any more: now, or when it comes back."""
        with self._lock:
            connection.retiring = reason
            idle = connection in self._shelf.idle and self._forget(connection)
        if idle:
            self._close(connection, reason)

    def learn_limit(self, connection: Connection) -> None:
        """Learn from a ``Rate limit exceeded`` how many messages a second a socket may send."""
        with self._lock:
            learned = self._shelf.learn_limit(connection)
        if learned is not None:
            log.warning(
                "the manager limits messages: a socket sends at most %d a second from now on", learned
            )

    def _wait(self, waiter: Waiter) -> None:
        """Wait until a connection or an error is handed over, or until there is no time left."""
        while not waiter.handed.acquire(timeout=self._patience(waiter)):
            with self._lock:
                if waiter in self._waiters and self._patience(waiter) == 0.0:
                    self._waiters.leave(waiter)
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
        """Leave the line; what was handed over meanwhile goes to the next."""
        with self._lock:
            if self._waiters.leave(waiter):
                self._calm.notify_all()
            connection = waiter.connection
        if connection is not None:
            self.release(connection, used=False)

    def _timed_out(self, waiter: Waiter) -> TcmError:
        waited = monotonic() - waiter.since
        shelf = self._shelf
        if not shelf.all:
            cause = self.manager_gate.cause or self.auth_gate.cause
            if cause is not None:
                return again(cause)
            return ConnectFailedError(
                f"no socket to {self._opener.endpoint.authority} within {waited:.3g} s: still connecting"
            )
        return PoolTimeoutError(
            f"no socket came free within {waited:.3g} s: {self._state()}. {self._advice(waiter)}"
        )

    def _state(self) -> str:
        """Describe who has the sockets, and how many wait."""
        shelf = self._shelf
        busy = shelf.busy()
        oldest = f", the oldest for {monotonic() - min(busy):.3g} s" if busy else ""
        limited = f", {shelf.limit} messages a second each" if shelf.limit is not None else ""
        streams = f", {shelf.streams()} of them with streams" if shelf.streams() else ""
        return (
            f"{len(shelf.all)} of {self.size} sockets open{limited}, {len(busy)} busy{streams}{oldest}; "
            f"{len(self._waiters)} other calls wait"
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

    # --- what the reader tells ---

    def lost(self, connection: Connection, reason: str) -> None:
        """Forget a connection that has died or was closed."""
        with self._lock:
            known = self._forget(connection)
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
            self._cautious = True
            news = self.manager_gate.shut(error, _SHUTDOWN_PAUSE, tell=False)
            self._shelf.limit = self._shelf.stated_limit()  # the next manager may have another
            for connection in self._shelf.all.values():
                connection.retiring = reason
            idle = list(self._shelf.idle)
            for connection in idle:
                self._forget(connection)
            wanted = self._grow()
        if news:
            self.manager_gate.tell()
        for connection in idle:
            self._close(connection, reason)
        self._open_more(wanted)

    def tend(self, now: float) -> float:
        """Do what time asks for, and return when to come again, or `math.inf`."""
        with self._lock:
            expired = self._shelf.take_expired(now)
            lost = self._audit(now)
            self._serve()
            wanted = self._grow()
            due = self._shelf.next_expiry(now)
            if self._waiters or self._opening or self._shelf.busy():
                due = min(due, now + _AUDIT_INTERVAL)
        for connection in expired:
            self._close(connection, "idle or old")
        for connection in lost:
            connection.shut_down()
            self._close(connection, "whoever had it is gone")
        self._open_more(wanted)
        return due

    def _audit(self, now: float) -> list[Connection]:
        """Find what a KeyboardInterrupt between two instructions has lost: leases, and a count."""
        lost = self._shelf.lost_leases(now - _AUDIT_INTERVAL)
        for connection in lost:
            self._forget(connection)
        if self._opening and self._connector.idle():
            if self._miscounted:
                self._opening = 0
            self._miscounted = not self._miscounted  # a job may just be on its way to the connector
        else:
            self._miscounted = False
        return lost

    # --- opening ---

    def warm(self) -> None:
        """Open a first connection without waiting for it."""
        with self._lock:
            self._check_open()
            if self._shelf.all or self._opening or self._shut() is not None:
                return
            self._opening += 1
        self._open_more(1)

    def _grow(self) -> int:
        """Count the sockets to open for those who wait, as the gates allow; they count as being opened."""
        room = self.size - len(self._shelf.all) - self._opening
        wanted = min(self._waiters.servable(self._streams_left()) - self._opening, room)
        if wanted <= 0 or self._ended is not None:
            return 0
        if (seconds := self.auth_gate.try_pass(self._prober)) > 0.0:
            if seconds < inf and self.auth_gate.cause is not None:
                # Those who need a new socket fail; those before them wait for one that is there.
                newest = wanted if self._shelf.all else len(self._waiters)
                self._waiters.fail_newest(newest, self.auth_gate.cause)
            return 0
        if (seconds := self.manager_gate.try_pass(self._prober)) > 0.0:
            if self.auth_gate.cause is not None:
                self.auth_gate.abandon()
            if seconds < inf:
                self.reader.wake_at(monotonic() + seconds)
                self._fail_waiters(self.manager_gate.cause, seconds)
            return 0
        if self._shut() is not None:
            wanted = 1  # the probe
        self._opening += wanted
        return wanted

    def _fail_waiters(self, cause: TcmError | None, seconds: float) -> None:
        """Fail those who cannot wait so long for a manager that cannot be reached."""
        if not self._shelf.all and cause is not None:
            self._waiters.fail_hurried(cause, seconds)

    def _open_more(self, count: int) -> None:
        for _ in range(count):
            try:
                self._connector.submit(self._open)
            except RuntimeError as error:
                self._failed(ConnectFailedError(f"no thread to open a socket with: {error}"))

    def _open(self) -> None:
        """Open one socket, on a connector's thread."""
        shutdowns = self._shutdowns
        try:
            connection = self._opener.open(cautious=self._cautious)
        except TcmError as error:
            self._failed(error)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            kind = type(error).__name__  # its text may hold the token
            log.error("opening a socket failed in an unexpected way: %s", kind)
            self._failed(ConnectFailedError(f"opening a socket failed: {kind}", retriable=False))
        else:
            self._opened(connection, shutdowns)

    def _opened(self, connection: Connection, shutdowns: int) -> None:
        connection.pool = self
        with self._lock:
            stale = shutdowns != self._shutdowns
            if stale:
                self._opening -= 1
                wanted = self._grow()
            else:  # before the reader can tell of a shutdown on this very socket
                was_shut = self._shut() is not None
                self.manager_gate.open(forgive=False, tell=False)
                self.auth_gate.open(tell=False)
        if stale:
            connection.close()  # to the manager that is shutting down: it proves nothing
            self._open_more(wanted)
            return
        if was_shut:
            self.manager_gate.tell()
            self.reader.wake_at(monotonic())  # another pool may wait for it
        self.reader.register(connection)
        worn: Connection | None = None
        with self._lock:
            self._opening -= 1
            self._standing.reached = True
            self._cautious = self._cautious and shutdowns != self._shutdowns
            ended = self._ended is not None
            if not ended and not connection.doomed:
                self._shelf.add(connection)
                worn = self._shelf.replaced()
                self._serve()
            wanted = self._grow()
            self.reader.wake_at(min(self._shelf.next_expiry(monotonic()), monotonic() + _AUDIT_INTERVAL))
        log.info("connection %s opened", connection.uuid)
        if ended:
            self.reader.close(connection, "the client was closed")
        if worn is not None:
            self._close(worn, "worn out")
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
        with self._lock:
            self._opening -= 1
            replacing = next((c for c in self._shelf.all.values() if c.replacing), None)
            if replacing is not None:
                replacing.replacing = False  # it goes on, and asks again when it comes back
            if not refused:
                self._shelf.limit = self._shelf.stated_limit()  # the next manager may have another
            if refused or (not error.retriable and not self._standing.reached):
                self._fail_waiters(error, inf)
            wanted = self._grow()
        self.reader.wake_at(monotonic())  # another pool may have waited for what became of it
        self._open_more(wanted)

    # --- under the lock ---

    def _check_open(self) -> None:
        if self._ended is not None:
            raise again(self._ended)
        if self._draining:
            raise ClientClosedError("the client is closed, and a closed client stays closed: make another")

    def _shut(self) -> TcmError | None:
        return self.manager_gate.cause or self.auth_gate.cause

    def _may_replace(self, connection: Connection) -> bool:
        """Whether to open another in its place: not twice, and not while a gate is shut."""
        return not connection.replacing and not self._draining and self._shut() is None

    def _serve(self) -> None:
        """Hand idle connections to those who wait."""
        shelf = self._shelf
        while self._waiters and (waiter := self._waiters.next(self._streams_left())) is not None:
            connection = shelf.choose()
            if connection is None:
                break
            self._waiters.leave(waiter)
            shelf.lend(connection, waiter.lease, streaming=waiter.streaming)
            waiter.settle(connection)
        if self._waiters and shelf.limit is not None:
            self.reader.wake_at(shelf.next_budget())

    def _streams_left(self) -> int:
        return self.most_streams - self._shelf.streams()

    def _forget(self, connection: Connection) -> bool:
        self._calm.notify_all()
        return self._shelf.forget(connection)

    # --- closing ---

    def _close(self, connection: Connection, reason: str) -> None:
        self.reader.close(connection, reason)
        self._log_closed(connection, reason)

    def _log_closed(self, connection: Connection, reason: str) -> None:
        log.info("connection %s closed after %d requests: %s", connection.uuid, connection.requests, reason)

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
                self._forget(connection)
        self._connector.stop()

    def abandon(self) -> None:
        """Close what a forked child inherited, without a lock, which another thread may have held."""
        self._abandoned = True
        for connection in self._shelf.all.values():
            connection.abandon()
