"""How a pool grows: who opens its connections when, and what becomes of an opening."""

from __future__ import annotations

import threading
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, cast

from tcm_sync._logs import Log
from tcm_sync._pool.concurrency_limit import Window
from tcm_sync._pool.connector import Connector
from tcm_sync._pool.gate import Prober, again
from tcm_sync._pool.inventory import Shelf
from tcm_sync._pool.manager_state import Standing
from tcm_sync._pool.waiters import Line
from tcm_sync._transport.authentication import Opener
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.counters import PoolCounts
from tcm_sync._transport.reader import Reader
from tcm_sync.errors import (
    AuthenticationError,
    ClientClosedError,
    ConnectFailedError,
    ShuttingDownError,
    TcmError,
)
from tcm_sync.settings import Settings

if TYPE_CHECKING:
    from tcm_sync._pool.pool import Pool

log = Log("tcm_sync.pool", queued=True)

WORN_OUT = "worn out"  # why most sockets are closed
LEASE_LOST = "its lease was lost"
SHUTDOWN_PAUSE = 0.5  # seconds, at least, after the manager said that it is shutting down
READY_ASKED_FOR = 5.0  # seconds after that in which a 503 of /ready holds callers back
LONGEST_ASKED_FOR = 60.0  # seconds: a refusal may ask for more, and is tried again after that all the same
AUDIT_INTERVAL = 5.0  # seconds between two looks for what was lost, while something is under way


class Growth:
    """The books of a pool, and the connections that are being opened for it.

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
        standing: Standing,
        counts: PoolCounts,
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
        self._pace = standing.pace
        self._prober = Prober()  # of both gates: an opening
        self._settings = settings
        self._opener = opener
        self._connector = connector
        self._lock = threading.RLock()  # guards everything below, and each connection's bookkeeping
        self._calm = threading.Condition(self._lock)  # told when a lease ends while the pool drains
        self._shelf = Shelf(settings, size)
        self._counts = counts
        self._window = Window(size)
        self._waiters = Line()
        self._opening = 0  # how many are being opened
        self._shutdowns = 0  # how often the manager said that it is shutting down
        self._miscounted = False  # whether the count was wrong when last looked at
        self._cautious = False  # whether the manager was draining when last seen
        self._ready_asked_until = 0.0  # until when /ready is asked before a socket is opened
        self._draining = False  # whether new calls are refused
        self._ended: TcmError | None = None  # why no call is served any more
        self._abandoned = False

    def warm(self) -> None:
        """Open a first connection without waiting for it."""
        with self._lock:
            if self._ended is not None or self._draining:
                raise self._ending()
            if self._shelf.all or self._opening or self._shut() is not None:
                return
            self._opening += 1
        self._open_more(1)

    def _grow(self) -> int:
        """Count the sockets to open for those who wait, as the gates allow; they count as being opened."""
        room = self.size - len(self._shelf.all) - self._opening
        if room <= 0 or self._ended is not None:
            return 0
        wanted = min(self._waiters.servable(*self._left()) - self._opening, room)
        if self._pace.active:  # more sockets would send no more
            wanted = 0 if self._shelf.idle or self._opening else min(wanted, 1)
        if wanted <= 0:
            return 0
        if (seconds := self.auth_gate.try_pass(self._prober)) > 0.0:
            if seconds < inf and self.auth_gate.cause is not None:
                # Those who need a new socket fail; those before them wait for one that is there.
                newest = wanted if self._shelf.all else len(self._waiters)
                self._waiters.fail_newest(newest, self.auth_gate.cause)
            return 0
        if (seconds := self.manager_gate.try_pass(self._prober)) > 0.0:
            if self.auth_gate.cause is not None:
                self.auth_gate.abandon(self._prober)
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
            eager = not self._standing.reached and isinstance(cause, ConnectFailedError)
            self._waiters.fail_hurried(cause, seconds, eager=eager)

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
            ask_ready = self._cautious and monotonic() < self._ready_asked_until
            connection = self._opener.open(cautious=self._cautious, ask_ready=ask_ready)
        except TcmError as error:
            self._failed(error)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            kind = type(error).__name__  # its text may hold the token
            log.error("opening a socket failed in an unexpected way: %s", kind)
            self._failed(ConnectFailedError(f"opening a socket failed: {kind}", retriable=False))
        else:
            try:
                self._opened(connection, shutdowns)
            finally:
                self._opener.opened(connection)

    def _opened(self, connection: Connection, shutdowns: int) -> None:
        connection.pool = cast("Pool", self)
        with self._lock:
            stale = shutdowns != self._shutdowns
            if stale:
                self._opening -= 1
                self.auth_gate.abandon(self._prober)
                wanted = self._grow()
            else:  # before the reader can tell of a shutdown on this very socket
                was_shut = self._shut() is not None
                self.manager_gate.open(forgive=False, tell=False)
                self.auth_gate.open(tell=False)
        if stale:
            connection.close()  # to the manager that is shutting down: it proves nothing
            self.reader.wake_at(monotonic())
            self._open_more(wanted)
            return
        if was_shut:
            self.manager_gate.tell()
            self.auth_gate.tell()
            self.reader.wake_at(monotonic())  # another pool may wait for it
        self.reader.register(connection)
        worn: Connection | None = None
        with self._lock:
            self._opening -= 1
            self._standing.reached = True
            self._cautious = self._cautious and shutdowns != self._shutdowns
            ended = self._ended is not None
            if not ended and not connection.doomed:
                connection.epoch = self._standing.epoch
                connection.when_lost = partial(
                    self.reader.take_back, cast("Pool", self), connection, reason=LEASE_LOST
                )
                self._shelf.add(connection)
                self._counts.opened += 1
                worn = self._replaced()
                self._serve()
            wanted = self._grow()
            self.reader.wake_at(min(self._shelf.next_expiry(monotonic()), monotonic() + AUDIT_INTERVAL))
        log.info("connection %s opened", connection.uuid)
        if ended:
            self.reader.close(connection, "the client was closed")
        if worn is not None:
            self._close(worn, WORN_OUT)
        self._open_more(wanted)

    def _failed(self, error: TcmError) -> None:
        refused = isinstance(error, AuthenticationError)
        if refused:
            self.auth_gate.shut(error)
            self.manager_gate.open(forgive=False)
        else:
            self.manager_gate.shut(error, _pause_after(error))
            self.auth_gate.abandon(self._prober)
        with self._lock:
            self._opening -= 1
            replacing = next((c for c in self._shelf.all.values() if c.replacing), None)
            if replacing is not None:
                replacing.replacing = False  # it goes on, and asks again when it comes back
            if not refused:
                self._shelf.limit = self._shelf.stated_limit()  # the next manager may have another
                self._standing.managers += 1
            if refused or (not error.retriable and not self._standing.reached):
                self._fail_waiters(error, inf)
            wanted = self._grow()
        self.reader.wake_at(monotonic())  # another pool may have waited for what became of it
        self._open_more(wanted)

    # --- the books, under the lock ---

    def _ending(self) -> TcmError:
        """Say why no call is taken any more."""
        if self._ended is not None:
            return again(self._ended)
        return ClientClosedError("the client is closed, and a closed client stays closed: make another")

    def _shut(self) -> TcmError | None:
        return self.manager_gate.cause or self.auth_gate.cause

    def _may_replace(self, connection: Connection) -> bool:
        """Whether to open another in its place: not twice, and while a gate is shut only as its probe.

        Where nobody waits for a socket no other probe is made: the gate would stay shut.
        """
        if connection.replacing or self._draining or self.auth_gate.try_pass(self._prober) > 0.0:
            return False
        if self.manager_gate.try_pass(self._prober) > 0.0:
            self.auth_gate.abandon(self._prober)
            return False
        return True

    def _serve(self) -> None:
        """Hand idle connections to those who wait."""
        shelf = self._shelf
        while shelf.idle and self._waiters and (waiter := self._waiters.next(*self._left())) is not None:
            connection = shelf.choose()
            if connection is None:
                break
            if self._pace.active and (seconds := self._pace.admit()) > 0.0:
                self.reader.wake_at(monotonic() + seconds)
                break
            self._waiters.leave(waiter)
            shelf.lend(connection, waiter.lease, streaming=waiter.streaming)
            self._counts.waited(monotonic() - waiter.since)
            waiter.settle(connection)
        if self._waiters and shelf.limit is not None:
            self.reader.wake_at(shelf.next_budget())

    def _left(self) -> tuple[int, int]:
        """Count the streams, and the other calls, that may begin."""
        others = self.size if self._window.exact is None else self._window.left(self._under_way())
        return self._streams_left(), others

    def _streams_left(self) -> int:
        return self.most_streams - len(self._shelf.with_streams)

    def _under_way(self) -> int:
        """Count the requests that are no streams."""
        return len(self._shelf.busy()) - len(self._shelf.with_streams)

    def _replaced(self) -> Connection | None:
        """Retire a connection in whose place another was opened; return it if it is to be closed now."""
        worn = self._shelf.replaced()
        if worn is None:
            return None
        worn.retiring = WORN_OUT
        if worn not in self._shelf.idle:
            return None  # closed when it comes back
        self._forget(worn, WORN_OUT)
        return worn

    def _forget(self, connection: Connection, reason: str) -> bool:
        """Drop a connection from the books; whether it was in them."""
        if not self._shelf.forget(connection):
            return False
        self._calm.notify_all()
        counts = self._counts
        counts.closed[(connection.retiring or reason).partition(":")[0]] += 1
        counts.messages_sent += connection.messages_sent
        counts.bytes_sent += connection.bytes_sent
        return True

    def _close(self, connection: Connection, reason: str) -> None:
        self.reader.close(connection, reason)
        self._log_closed(connection, reason)

    def _log_closed(self, connection: Connection, reason: str) -> None:
        why = connection.retiring or reason
        log.info("connection %s closed after %d requests: %s", connection.uuid, connection.requests, why)


def _pause_after(error: TcmError) -> float | None:
    """Say for how long, at least, no socket is to be opened after `error`."""
    if error.retry_after is not None:
        return min(error.retry_after, LONGEST_ASKED_FOR)
    return SHUTDOWN_PAUSE if isinstance(error, ShuttingDownError) else None
