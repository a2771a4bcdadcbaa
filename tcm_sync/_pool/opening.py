"""How a pool's connections are opened: on the connector's threads, and what each attempt leads to."""

from __future__ import annotations

import weakref
from functools import partial
from math import inf
from time import monotonic
from typing import Protocol

from tcm_sync._logs import Log
from tcm_sync._pool import pool_state
from tcm_sync._pool.connector import Connector
from tcm_sync._pool.lease import Lease
from tcm_sync._pool.pool_state import LEASE_LOST, WORN_OUT, PoolState
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.opener import Opener
from tcm_sync._transport.reader import PoolOfReader, Reader
from tcm_sync.errors import AuthenticationError, ConnectFailedError, ShuttingDownError, TcmError
from tcm_sync.events._listeners import wake

log = Log("tcm_sync.pool", queued=True)

SHUTDOWN_PAUSE = 0.5  # seconds, at least, after the manager said that it is shutting down


class PoolOwner(PoolOfReader, Protocol):
    """The pool that the connections belong to."""

    def discard_lost(self, connection: Connection, lease: weakref.ref[Lease], reason: str) -> None:
        """Close a connection if this lease of it, which was collected, is still its last."""


class PoolOpening:
    """Opens a pool's connections, and adds them to its state.

    Parameters
    ----------
    owner : PoolOwner
        The pool.
    state : PoolState
        What it holds. Its lock is taken here, and not held while a socket is opened.
    opener : Opener
        Opens one socket.
    connector : Connector
        The threads to do it on.
    reader : Reader
        Reads the connections.
    """

    def __init__(
        self, owner: PoolOwner, state: PoolState, opener: Opener, connector: Connector, reader: Reader
    ) -> None:
        self._owner = owner
        self._state = state
        self._opener = opener
        self._connector = connector
        self._reader = reader

    def open_first(self) -> None:
        """Open a first connection without waiting for it."""
        state = self._state
        with state.lock:
            if state.ended is not None or state.draining:
                raise state.closed_error()
            if state.inventory.all or state.opening or state.gate_cause() is not None:
                return
            state.opening += 1
        self.start(1)

    def start(self, count: int) -> None:
        """Open so many connections, which the state counts as being opened."""
        for _ in range(count):
            try:
                self._connector.submit(self._open)
            except RuntimeError as error:
                self._failed(ConnectFailedError(f"no thread to open a socket with: {error}"))

    def _open(self) -> None:
        """Open one socket, on a connector's thread."""
        state = self._state
        shutdowns = state.shutdowns
        began = monotonic()
        try:
            ask_ready = state.manager_was_draining and monotonic() < state.ready_asked_until
            connection = self._opener.open(was_draining=state.manager_was_draining, ask_ready=ask_ready)
        except TcmError as error:
            self._failed(error)
        except BaseException as error:  # noqa: BLE001 - those who wait get it
            kind = type(error).__name__  # its text may hold the token
            log.error("opening a socket failed in an unexpected way: %s", kind)
            self._failed(ConnectFailedError(f"opening a socket failed: {kind}", retriable=False))
        else:
            try:
                self._opened(connection, shutdowns, monotonic() - began)
            finally:
                self._opener.opened(connection)

    def _opened(self, connection: Connection, shutdowns: int, seconds: float) -> None:
        state = self._state
        connection.pool = self._owner
        with state.lock:
            stale = shutdowns != state.shutdowns
            if stale:
                state.opening_ended()
                state.auth_gate.end_probe(state.prober)
                wanted = state.reserve_openings()
            else:  # before the reader can report a shutdown on this very socket
                was_shut = state.gate_cause() is not None
                state.manager_gate.open(reset_pause=False, log_now=False)
                state.auth_gate.open(log_now=False)
        if stale:
            connection.close()  # it was opened to a manager that has shut down since
            self._reader.wake_at(monotonic())
            self.start(wanted)
            return
        if was_shut:
            state.manager_gate.write_log()
            state.auth_gate.write_log()
            self._reader.wake_at(monotonic())  # another pool may wait for it
        self._reader.register(connection)
        replaced: Connection | None = None
        with state.lock:
            state.opening_ended()
            state.manager_state.reached = True
            state.manager_was_draining = state.manager_was_draining and shutdowns != state.shutdowns
            ended = state.ended is not None
            if not ended and not connection.closing:
                connection.epoch = state.manager_state.epoch
                connection.on_lease_lost = partial(self._lease_lost, connection)
                state.inventory.add(connection)
                self._opener.opened(connection)  # before a caller has it: closing aborts what is being opened
                state.counts.opened += 1
                state.report_opened(connection, seconds)
                replaced = state.take_replaced()
                state.serve_waiters()
            wanted = state.reserve_openings()
            due = min(state.inventory.next_expiry(monotonic()), monotonic() + pool_state.AUDIT_INTERVAL)
            self._reader.wake_at(due)
        log.info("connection %s opened", connection.uuid)
        wake()
        if ended:
            self._reader.close(connection, "the client was closed")
        if replaced is not None:
            self._reader.close(replaced, WORN_OUT)
            log_closed(replaced, WORN_OUT)
        self.start(wanted)

    def _lease_lost(self, connection: Connection, lease: weakref.ref[Lease]) -> None:
        """Have the reader discard what a collected lease held; a finalizer must wait for no lock."""
        self._reader.run_soon(partial(self._owner.discard_lost, connection, lease, LEASE_LOST))

    def _failed(self, error: TcmError) -> None:
        state = self._state
        if state.ended is not None:  # the client was closed, which ends what is being opened: no gate shuts
            with state.lock:
                state.opening_ended()
            return
        refused = isinstance(error, AuthenticationError)
        if refused:
            state.auth_gate.shut(error)
            state.manager_gate.open(reset_pause=False)
        else:
            state.manager_gate.shut(error, _pause_after(error))
            state.auth_gate.end_probe(state.prober)
        with state.lock:
            state.opening_ended()
            replacing = next((c for c in state.inventory.all.values() if c.replacing), None)
            if replacing is not None:
                replacing.replacing = False  # it stays in use, and is replaced after its next release
            if not refused:
                state.forget_manager_limits()
            if refused or (not error.retriable and not state.manager_state.reached):
                state.fail_waiters(error, inf)
            wanted = state.reserve_openings()
        self._reader.wake_at(monotonic())  # another pool may have waited for the outcome
        self.start(wanted)


def _pause_after(error: TcmError) -> float | None:
    """Return for how long, at least, no socket is opened after `error`."""
    if error.retry_after is not None:
        return error.retry_after
    return SHUTDOWN_PAUSE if isinstance(error, ShuttingDownError) else None


def log_closed(connection: Connection, reason: str) -> None:
    """Log that a connection was closed, and why, and have its event delivered."""
    wake()
    why = connection.closing_reason or reason
    log.info("connection %s closed after %d requests: %s", connection.uuid, connection.requests, why)
