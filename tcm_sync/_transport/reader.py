"""The one background thread of a client: it reads every socket, and closes those that are to be closed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Protocol

from tcm_sync._locks import RLock
from tcm_sync._logs import Log
from tcm_sync._process import start_thread
from tcm_sync._reentry import Callers, is_entry_point
from tcm_sync._transport import frames
from tcm_sync._transport.connection import Connection, ConnectionOwner
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.incoming import Incoming, connection_lost_error
from tcm_sync._transport.liveness import TICK, Liveness
from tcm_sync._transport.poller import READ, WRITE, make_poller
from tcm_sync._transport.replies import PendingReplies, Refusal, StreamReplies
from tcm_sync._transport.sockets import NO_SIGNAL
from tcm_sync._transport.tls_errors import WOULD_BLOCK
from tcm_sync.errors import ClientClosedError, ConnectionLostError, TcmError

log = Log("tcm_sync.reader", queued=True)

_BUFFER_BYTES = 64 * 1024  # what is read of one socket before the others have their turn
_TLS_READS = 4  # of 16 KiB at most
_MAX_SLEEP = 86_400.0  # seconds; epoll takes less than 25 days
_IDLE_SECONDS = 5.0  # seconds without a socket after which the thread ends until there is work again

# What the system ends a connection with that no packet came back for.
_UNANSWERED = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})


class PoolOfReader(ConnectionOwner, Protocol):
    """A pool whose connections are read."""

    def on_timer(self, now: float) -> float:
        """Do what is due, and return when to be called again, or `math.inf`."""

    def manager_shuts_down(self, error: TcmError) -> None:
        """Open no connection before the next manager is there."""

    def close(self, error: TcmError) -> None:
        """End every wait with `error`."""

    def is_idle(self) -> bool:
        """Whether it has no connection, opens none, and nobody waits for one."""


class Reader:
    """Waits on all sockets, and has what each one receives handled (`Incoming`).

    It runs no user code, never blocks on one socket, and opens none. No other thread closes a socket that
    was registered: its number could be given to another socket while a thread is still inside send.

    While no socket is there and no call is under way, it has neither a thread nor descriptors: who begins a
    call looks at `is_reading`, and has it started again.

    Parameters
    ----------
    ping_interval : float
        Seconds of quiet after which a socket is pinged; one that stays quiet three times as long is dead.
    counts : Counts
        Where it counts what comes in.
    callers : Callers
        The threads that are inside the client. This one always is: a call would wait for itself.
    """

    def __init__(self, ping_interval: float, counts: Counts, callers: Callers) -> None:
        self.callers = callers
        self.pending = PendingReplies()
        self._counts = counts
        # Work for the reader, from any thread; appending and popping are atomic.
        self._commands: deque[Callable[[], None]] = deque()
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._connections: dict[int, Connection] = {}  # by the number of their descriptor
        self._pools: list[PoolOfReader] = []
        self._incoming = Incoming(
            self.pending, counts, self._close, self._pause, self._watch_writing, self._manager_shuts_down
        )
        self._liveness = Liveness(ping_interval, self._watch_writing, self._close_dead)
        self._pools_due = inf  # when the pools are called back next
        self._due = inf  # when that is, or the connections are looked at
        # Guards _ended, _suspended, _thread, and _waker: it is not closed while a thread writes. Re-entrant,
        # for finalizers. They may run anywhere, so that no thread is started under it.
        self._waker_lock = RLock()
        self._ended = False
        self._suspended = False  # whether there is no thread, and no descriptor, until there is work again
        self.is_reading = False  # whether the thread runs; a caller who sees False has it started
        self.stopping = False  # whether it is to end, or has ended
        self.failure: BaseException | None = None
        self._pid = os.getpid()
        self._thread = self._new_thread()
        self._open()

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="tcm-sync-reader", daemon=True)

    def _open(self) -> None:
        """Open what the thread waits on."""
        self._poller = make_poller()
        try:
            self._wakeup, self._waker = socket.socketpair()
        except OSError:
            self._poller.close()
            raise
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._poller.register(self._wakeup.fileno(), READ)

    # --- for any thread ---

    def start(self) -> None:
        """Start the thread if there is none. The client's lock is held, so that one thread does so at a time.

        Raises
        ------
        RuntimeError
            There can be no more threads, or the interpreter is ending.
        OSError
            There are no descriptors left.
        """
        with self._waker_lock:
            if self._ended or (self._thread.is_alive() and not self._suspended):
                return
            thread = self._new_thread()
            if self._suspended:
                self._open()
            self._thread = thread  # before the next line: an interrupt may come
            self._suspended = False
        try:
            start_thread(thread)
        except BaseException:  # an interrupt, too, after which the thread may run
            with self._waker_lock:
                if thread.ident is None:
                    self._thread = self._new_thread()  # the other one ends at once, should it start later
                    self._suspend()
            raise
        self._wake()  # for what was left to do meanwhile

    def add_pool(self, pool: PoolOfReader) -> None:
        """Call `pool` back when the time that it asks for has come."""
        self._pools.append(pool)

    def register(self, connection: Connection) -> None:
        """Read `connection` from now on."""
        connection.reader = self
        self.run_soon(lambda: self._register(connection))
        if self._ended:
            connection.close()

    def close(self, connection: Connection, reason: str) -> None:
        """Close `connection`, which the pool has removed, or is about to."""
        close_frame = frames.encode_close(1000)
        self.run_soon(lambda: self._close(connection, close_frame, connection_lost_error(reason), reason))

    def watch_writing(self, connection: Connection) -> None:
        """Write the control frames of `connection` as soon as its socket takes them."""
        self.run_soon(lambda: self._watch_writing(connection, connection.flush()))

    def resume(self, connection: Connection) -> None:
        """Read `connection` again, whose stream was taken."""
        self.run_soon(lambda: self._resume(connection))

    def run_soon(self, command: Callable[[], None]) -> None:
        """Have the reader's thread run `command`. Safe in a finalizer: it waits for nothing."""
        self._commands.append(command)
        self._wake()

    def wake_at(self, when: float) -> None:
        """Call the pools back at `when`, a time of `time.monotonic`, or sooner."""
        if when < self._pools_due:
            self.run_soon(lambda: self._set_due(when))

    def check(self, connections: list[Connection]) -> None:
        """Find out whether these are dead; no call gets them until then."""
        self.run_soon(lambda: self._check(connections))

    def stop(self) -> None:
        """Close every socket and end every call with ClientClosedError. Safe in a finalizer: no wait."""
        self.stopping = True
        self.is_reading = False
        self._wake()

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end, in seconds; whether it has."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def is_inherited(self) -> bool:
        """Whether this is a child process, and the thread its parent's."""
        return self._pid != os.getpid()

    def close_inherited(self) -> None:
        """Close the descriptors that a forked child inherited; nothing is written, unregistered or joined."""
        self._waker_lock = RLock()  # another thread may have held it
        self._ended = True
        for connection in self._connections.values():
            connection.close_inherited()
        self._poller.close()
        self._wakeup.close()
        self._waker.close()

    def _wake(self) -> None:
        # The lock may be held by a thread that runs no more, or is a parent's, as the reader is then.
        if sys.is_finalizing() or self.is_inherited():
            return
        with self._waker_lock:
            if self._suspended:
                self._ended = self.stopping  # there is no thread to do it
            elif not self._ended:
                with contextlib.suppress(OSError):  # it is full, so the reader will wake anyway
                    self._waker.send(b"\0", NO_SIGNAL)

    # --- the thread ---

    @is_entry_point
    def _run(self) -> None:
        with self._waker_lock:
            if self._thread is not threading.current_thread():
                return  # its start was interrupted, and another one started in its place
            self.is_reading = not self.stopping
        is_suspended = False
        try:
            self.callers.add(threading.get_ident())
            while not (self.stopping or is_suspended):
                is_suspended = self._poll_once()
        except BaseException as error:  # noqa: BLE001 - it is logged, and ends every call
            self.failure = error
            log.error(
                "the reader failed; its calls end with an error, the next call starts another", failure=error
            )
        finally:
            try:
                if not is_suspended:
                    self.stopping, self.is_reading = True, False
                    self._close_all()
            finally:
                self.callers.discard(threading.get_ident())

    def _poll_once(self) -> bool:
        """Wait for something to do, and do it; return whether the thread is to end, as there is nothing."""
        left = self._due - monotonic()
        if not 0.0 <= left < _MAX_SLEEP:
            longest = _MAX_SLEEP if self._connections else _IDLE_SECONDS
            left = max(0.0, min(left, longest))  # below zero, epoll would wait without a limit
        events = self._poller.poll(left)
        if not (events or self._commands or self._connections) and self._due == inf:
            return self._suspend_if_idle()
        for fd, ready in events:
            connection = self._connections.get(fd)
            if connection is None:  # or it was closed a moment ago
                with contextlib.suppress(BlockingIOError):
                    self._wakeup.recv(4096)
                continue
            if ready & WRITE:
                self._watch_writing(connection, connection.flush())
            if ready & ~WRITE and not connection.closed:  # a read finds out about a hang-up
                self._read(connection)
        if self._commands:
            for _ in range(len(self._commands)):  # what they add waits for its turn
                self._commands.popleft()()
        if left <= 0.0:  # after what was there to be read: it may be the pong of a process that was stopped
            self._run_timers()
        return False

    def _suspend_if_idle(self) -> bool:
        """Suspend the reader if no call is under way; return whether it is.

        A caller is noted before it looks at `is_reading`. So it is seen here, or it finds that nobody reads,
        and its `start` waits for the lock.
        """
        with self._waker_lock:
            self.is_reading = False
            alone = self.callers <= {threading.get_ident()}
            idle = not self._commands and all(pool.is_idle() for pool in self._pools)
            if alone and idle and not self.stopping:
                self._suspend()
                return True
            self.is_reading = not self.stopping
            return False

    def _suspend(self) -> None:
        """Close the descriptors until the next start."""
        self._suspended = True
        self._ended = self.stopping
        self._wakeup.close()
        self._waker.close()
        self._poller.close()

    def _close_all(self) -> None:
        with self._waker_lock:
            self._ended = True
            self._waker.close()
        while self._commands:  # sockets that were about to be registered, too
            with contextlib.suppress(Exception):
                self._commands.popleft()()
        close_frame = frames.encode_close(1000)
        for connection in list(self._connections.values()):
            with contextlib.suppress(Exception):
                self._close(connection, close_frame, self._closing_error(), "the client was closed")
        for pool in self._pools:
            pool.close(self._closing_error())
        for future in self.pending.claim_all():
            future.resolve(Refusal(self._closing_error()))
        self._wakeup.close()
        self._poller.close()

    def _closing_error(self) -> TcmError:
        if self.failure is None:
            return ClientClosedError("the client was closed while the call waited for its reply")
        return ConnectionLostError(f"the client's reader failed: {self.failure!r}")

    def _manager_shuts_down(self, error: TcmError) -> None:
        for pool in self._pools:
            pool.manager_shuts_down(error)

    def _set_due(self, when: float) -> None:
        self._pools_due = min(self._pools_due, when)
        self._due = min(self._due, when)

    def _run_timers(self) -> None:
        """Do what is due: look for dead connections, and do what the pools ask for."""
        now = monotonic()
        if now >= self._pools_due:
            self._pools_due = inf  # first, so that no wake_at is missed meanwhile
            self._set_due(min((pool.on_timer(now) for pool in self._pools), default=inf))
        self._due = min(self._pools_due, self._liveness.look(list(self._connections.values()), now))

    def _check(self, connections: list[Connection]) -> None:
        self._liveness.check(connections)
        self._due = min(self._due, monotonic())

    def _close_dead(self, connection: Connection, reason: str) -> None:
        """Close a connection that does not answer, and have the others checked: its network may be gone."""
        for pool in self._pools:  # first: the call on this one may be repeated on one of those at once
            pool.check_silent(monotonic() - TICK)
        self._close(connection, None, connection_lost_error(reason), reason)

    def _register(self, connection: Connection) -> None:
        self._connections[connection.fileno()] = connection
        self._poller.register(connection.fileno(), READ)
        self._due = min(self._due, monotonic() + min(TICK, self._liveness.ping_interval))
        if self._incoming.handle_frames(connection, connection.early):
            self._read(connection)  # a TLS object may hold decrypted bytes, which the poller does not report

    def _watch_writing(self, connection: Connection, wanted: bool) -> None:
        if not connection.closed and not connection.paused:
            self._poller.modify(connection.fileno(), READ | (WRITE if wanted else 0))

    def _close(self, connection: Connection, close_frame: bytes | None, error: TcmError, reason: str) -> None:
        """Close a socket, report it to its pool, and end the call that waits on it with `error`."""
        fd = connection.fileno()
        if self._connections.get(fd) is not connection:
            return
        del self._connections[fd]
        if not self._connections:
            self._set_due(monotonic())  # what the pools asked for may have been about this one alone
        if not connection.paused:
            self._poller.unregister(fd)
        connection.closing = True
        try:
            if connection.pool is not None:
                connection.pool.lost(connection, reason)
        finally:
            # First closed, then claimed: a call that adds a future from now on finds the socket closed.
            connection.close(close_frame, error)
            future = self.pending.claim(connection.uuid)
            if future is not None:
                future.resolve(Refusal(error))

    # --- reading a socket ---

    def _read(self, connection: Connection) -> None:
        for _ in range(_TLS_READS if connection.is_tls else 1):
            try:
                size = connection.receive_into(self._buffer)
            except WOULD_BLOCK:
                return
            except OSError as error:
                if error.errno in _UNANSWERED:
                    self._close_dead(connection, f"no sign of life: {error}")
                else:
                    self._close(connection, None, connection_lost_error(str(error)), f"lost: {error}")
                return
            if size == 0:
                reason = "closed by the manager without a close frame"
                self._close(connection, None, connection_lost_error(reason), reason)
                return
            connection.last_received = monotonic()
            self._counts.bytes_received += size
            if not self._incoming.receive(connection, self._buffer[:size]) or connection.paused:
                return
        if connection.is_tls:  # it may hold decrypted bytes, which the poller does not report
            self.run_soon(lambda: None if connection.closed or connection.paused else self._read(connection))

    def _pause(self, connection: Connection, stream: StreamReplies) -> None:
        """Stop reading a socket whose stream is not taken fast enough: TCP flow control slows the manager."""
        if not connection.paused:
            connection.paused = True
            self._poller.unregister(connection.fileno())
            log.debug("%s: paused, its stream is not taken as fast as it comes", connection.uuid)
        if stream.size <= stream.bound:  # the caller took it before it could see the pause
            self.resume(connection)  # later: what was read with this comes first

    def _resume(self, connection: Connection) -> None:
        if connection.paused and not connection.closed:
            connection.paused = False
            connection.last_received = monotonic()  # it was not read meanwhile
            self._poller.register(connection.fileno(), READ)
            self._watch_writing(connection, connection.flush())
            self._read(connection)  # a TLS object may hold decrypted bytes, which the poller does not report
