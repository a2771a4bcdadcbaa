"""The reader, the pools and the gates of a client, and one attempt of a call on them."""

from __future__ import annotations

import logging
import threading
from time import monotonic

from tcm_sync._deadline import Deadline
from tcm_sync._handlers import is_of_handler
from tcm_sync._logs import Log
from tcm_sync._pool.call import Call
from tcm_sync._pool.connector import Connector
from tcm_sync._pool.gate import Gate, Prober, again
from tcm_sync._pool.lease import Lease
from tcm_sync._pool.manager_state import ManagerState
from tcm_sync._pool.pool import Pool
from tcm_sync._pool.stream_turns import StreamTurns
from tcm_sync._pool.turn_keys import turns_of
from tcm_sync._pool.turns import Turns
from tcm_sync._reentry import Callers
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.authentication import Opener
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.counters import Counts, PoolCounts
from tcm_sync._transport.reader import Reader
from tcm_sync._transport.replies import Future, Refusal
from tcm_sync._wire.encode import encode_message
from tcm_sync._wire.failures import TENANT_LIMIT
from tcm_sync.errors import (
    BackpressureError,
    CallTimeoutError,
    CircuitOpenError,
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    MessageTooLargeError,
    ProtocolError,
    RateLimitedError,
    ShuttingDownError,
    TcmError,
)
from tcm_sync.events._listeners import NOBODY, Listeners
from tcm_sync.settings import SERVED_A_TICK, Route, Settings

log = Log("tcm_sync.pool", queued=True)

_EXPLANATION = 1.0  # seconds in which the reader finds out why a socket took no more
# Why a lease is discarded that nothing else has released: a kept traceback would hold it for good.
_INTERRUPTED = "the call was interrupted"
_MOST_TENANTS = 16  # whose turns a client keeps, where a callable hands out tokens of several
_REFUSED_WITHIN = 0.5  # seconds: a full queue is refused at once, and not when the model is done

Target = tuple[Route, str]


class Runtime:
    """What the calls of one client share in one process. A fork or a closing ends it; it never starts again.

    Parameters
    ----------
    settings : Settings
        The client's.
    counts : Counts
        Where it counts.
    callers : Callers
        The threads that are inside the client.
    addresses : Addresses
        What was learned about the manager's addresses.
    listeners : Listeners
        Who listens to the client.
    """

    def __init__(
        self,
        settings: Settings,
        counts: Counts,
        callers: Callers,
        addresses: Addresses,
        listeners: Listeners = NOBODY,
    ) -> None:
        self.settings = settings
        self._counts = counts
        self.closed = threading.Event()
        self._connector = Connector(callers)
        self.opener = Opener(settings, self._connector.opening, counts, addresses)
        try:
            self.reader = Reader(settings.ping_interval, counts, callers)
        except OSError as error:
            raise ConnectFailedError(f"no descriptors to read sockets with: {error}") from error
        self.manager_state = ManagerState(self.opener.endpoint.authority, listeners)
        self.pool = self._new_pool("pool_size", settings.pool_size, counts.pools[0])
        self.management = self._new_pool("management_sockets", settings.management_sockets, counts.pools[1])
        self.stream_turns = StreamTurns()
        self._turns: dict[str, Turns] = {}  # by tenant; what is made twice by two threads is the same
        self._backpressure = Gate(
            "backpressure",
            0.1,
            5.0,
            refused_within=_REFUSED_WITHIN,
            of=self.opener.endpoint.authority,
            listeners=listeners,
        )
        self._circuits_lock = threading.RLock()  # guards _circuits, not the gates in it
        self._circuits: dict[Target, Gate] = {}
        try:
            self.reader.start()
        except RuntimeError as error:
            self.reader.abandon()
            if is_of_handler(error):
                raise
            raise ConnectFailedError(f"no thread to read the sockets with: {error}") from error

    def _new_pool(self, setting: str, size: int, counts: PoolCounts) -> Pool:
        pool = Pool(
            self.settings,
            self.opener,
            self._connector,
            self.reader,
            self.manager_state,
            counts,
            size=size,
            setting=setting,
        )
        self.reader.add_pool(pool)
        if size > SERVED_A_TICK and setting == "pool_size" and self.settings.turn_count is None:
            log.warning(
                '%s=%d with turns="off": the manager serves %d sockets of a tenant at a time, the others '
                "wait, the youngest longest; turns, or a smaller pool whose callers wait here, serve evenly",
                setting,
                size,
                SERVED_A_TICK,
            )
        return pool

    def sleep(self, seconds: float) -> None:
        """Pause before a repeat, or until the client is closed."""
        self.closed.wait(min(seconds, threading.TIMEOUT_MAX))

    def attempt(self, call: Call) -> None:
        """Send a call once, behind the gates, and have its answer read.

        Raises
        ------
        TcmError
            What came in place of a good answer. It has a ``uuid`` if it came from a socket.
        """
        if call.watch is not None:
            call.watch.enter("socket")
        backpressure = self._backpressure
        while backpressure.cause is None and not (self._circuits and call.target in self._circuits):
            lease = self._acquire(call)
            try:
                if backpressure.cause is None and not (self._circuits and call.target in self._circuits):
                    if self._exchange(lease, call):
                        return
                else:
                    lease.release(used=False)  # it was shut meanwhile
            except BaseException:
                lease.discard(_INTERRUPTED)
                raise
        while not self._attempt_gated(call):
            pass

    def _attempt_gated(self, call: Call) -> bool:
        """Make an attempt while a gate of its own is shut, perhaps as the probe; whether it was sent."""
        gates = self._gates(call.target)
        prober = Prober()
        try:
            try:
                lease = self._enter(gates, prober, call)
                try:
                    return self._exchange(lease, call, gates, prober)
                except BaseException:
                    lease.discard(_INTERRUPTED)
                    raise
            finally:
                _abandon(gates, prober)
        finally:
            _abandon(gates, prober)  # once more, if a KeyboardInterrupt has hit the first

    def _pool_of(self, call: Call) -> Pool:
        return self.management if call.kind == "management" else self.pool

    def _acquire(self, call: Call) -> Lease:
        pool = self.management if call.kind == "management" else self.pool
        return pool.acquire(call.deadline, waits_for_manager=call.waits_for_manager, streaming=call.streaming)

    def _gates(self, target: Target | None) -> tuple[Gate, ...]:
        circuit = self._circuits.get(target) if self._circuits and target is not None else None
        return (self._backpressure,) if circuit is None else (circuit, self._backpressure)

    def _enter(self, gates: tuple[Gate, ...], prober: Prober, call: Call) -> Lease:
        """Wait at the gates and for a connection, until both are there at once."""
        while True:
            for gate in gates:
                if gate.cause is not None and not gate.is_probed_by(prober):
                    began = monotonic()
                    try:
                        gate.wait(call.deadline, prober)
                    finally:
                        self._counts.waited_at_gate(monotonic() - began)
            lease = self._acquire(call)
            try:
                for gate in gates:
                    if gate.cause is not None and not gate.is_probed_by(prober):
                        lease.release(used=False)  # it was shut meanwhile
                        break
                else:
                    return lease
            except BaseException:
                lease.discard(_INTERRUPTED)
                raise

    def _exchange(
        self, lease: Lease, call: Call, gates: tuple[Gate, ...] = (), prober: Prober | None = None
    ) -> bool:
        """Send on the leased connection and wait for the answer; `prober` has passed `gates` for it.

        Returns
        -------
        bool
            False if nothing was sent and the lease was released: a gate was shut or the connection given up
            while the call waited for its turn.
        """
        connection = lease.connection
        watch = call.watch
        if watch is not None:
            watch.enter("encoding")
        if call.deadline.expired():
            lease.release(used=False)
            raise CallTimeoutError("the deadline passed before the request could be sent")
        try:
            payload = call.write(connection)
            turns = None
            if call.kind == "inference":
                turns = self._turns.get(connection.tenant) or self._turns_for(connection)
            if (
                turns is not None
                and turns.is_needed
                and not self._take_turn(turns, call, connection, gates, prober)
            ):
                lease.release(used=False)
                return False
        except BaseException:
            lease.release(used=False)
            raise
        future = call.future()
        pending = self.reader.pending
        if watch is not None:
            watch.sends(payload)
        try:
            pending[connection.uuid] = future
            try:
                connection.send(encode_message(connection.uuid, call.kind, payload), call.deadline, future)
            except ConnectionLostError as lost:
                refusal: Refusal | None = self._explain(lost, connection, call, future)
            else:
                if watch is not None:
                    watch.enter("reply")
                refusal = call.receive(connection, pending, future)
        except BaseException as error:
            pending.claim(connection.uuid)
            if isinstance(error, CallTimeoutError):
                self._doubt_others(connection)
            lease.discard(f"a reply was outstanding: {type(error).__name__}")
            call.may_have_run = call.may_have_run or future.started
            if isinstance(error, TcmError):
                _name(error, connection, call)
                error.outcome_unknown = future.started
            raise
        finally:
            if call.turn is not None:
                call.turn.release()
        if refusal is not None:
            raise self._refused(lease, call, refusal, gates, prober)
        if turns is not None and not call.streaming:
            turns.replied(call.target, connection.last_received - connection.last_sent)
        call.accept(lease)
        self.manager_state.manager_gate.forgive()
        if gates:
            self._passed(call.target, gates, prober)
        return True

    def _turns_for(self, connection: Connection) -> Turns | None:
        """Return the turns that a connection's requests take from now on, None if they take none."""
        count = self.settings.turn_count
        if count is None:
            return None
        if len(self._turns) >= _MOST_TENANTS:
            self.leave_turns()
        turns = turns_of(self.opener.endpoint, connection.tenant, count)
        turns.join(self)
        self._turns[connection.tenant] = turns
        if self.closed.is_set():
            self.leave_turns()  # `stop` may have done so before they were there
        return turns

    def _take_turn(
        self,
        turns: Turns,
        call: Call,
        connection: Connection,
        gates: tuple[Gate, ...],
        prober: Prober | None,
    ) -> bool:
        """Wait for a call's turn to send; whether the connection and the gates are as they were."""
        if call.watch is not None:
            call.watch.enter("turn")
        bound = self.settings.pool_timeout
        deadline = call.deadline if bound is None else call.deadline.at_most(bound)
        turn = call.turn = turns.acquire(call.target, deadline, self.closed)
        if turn is None or not turn.waited:
            return True
        self._counts.waited_for_turn(turn.waited)
        shut = [gate for gate in gates or self._gates(call.target) if gate.cause is not None]
        given_up = connection.closed or connection.closing_reason is not None
        if not given_up and all(prober is not None and gate.is_probed_by(prober) for gate in shut):
            return True
        turn.release()
        call.turn = None
        if call.watch is not None:
            call.watch.enter("socket")
        return False

    def leave_turns(self) -> None:
        """Use turns no more, without a lock: their table is closed with its last user."""
        turns, self._turns = self._turns, {}
        for each in turns.values():
            each.leave(self)

    def turn_processes(self) -> int:
        """Count the processes of this host that share turns, this one included; 0 before the first turn."""
        return max((turns.others + 1 for turns in list(self._turns.values())), default=0)

    def _doubt_others(self, connection: Connection) -> None:
        """Have idle connections checked after a call timed out on one on which nothing came since."""
        sent_at = connection.sent_at[-1]
        if connection.last_received < sent_at:
            for pool in (self.pool, self.management):
                pool.doubt(sent_at)

    def _refused(
        self, lease: Lease, call: Call, refusal: Refusal, gates: tuple[Gate, ...], prober: Prober | None
    ) -> TcmError:
        """Return the failure. The gates and the pool note it before others get the connection."""
        failure = refusal.error
        connection = lease.connection
        _name(failure, connection, call)
        call.may_have_run = call.may_have_run or failure.outcome_unknown
        try:
            if not isinstance(failure, (ConnectionLostError, ShuttingDownError, ClientClosedError)):
                self._passed(call.target, gates, prober, self._shut(failure, call.target))
            pool = self._pool_of(call)
            if isinstance(failure, RateLimitedError):
                pool.learn_limit(connection)
            elif failure.code == TENANT_LIMIT:
                pool.learn_tenant_limit(connection, failure)
            elif isinstance(failure, BackpressureError) and pool is self.pool:
                pool.narrow(connection, failure)  # not of jobs, which take minutes
        finally:
            if refusal.reusable:
                lease.release()
            else:
                lease.discard(f"refused: {failure}")
        return failure

    def _explain(
        self, lost: ConnectionLostError, connection: Connection, call: Call, future: Future
    ) -> Refusal:
        """Find out why the request could not be sent, or raise `lost`.

        The manager may have said why before it closed, and the reader is about to read it.
        """
        if connection.closed and connection.loss and self.reader.pending.claim(connection.uuid):
            error = again(connection.loss)  # the reader was done with it before the future was there
            error.outcome_unknown = future.started
            return Refusal(_late(error, future))
        left = call.deadline.remaining()
        refusal = future.refusal(_EXPLANATION if left is None else min(_EXPLANATION, left))
        if refusal is None:
            raise lost
        return Refusal(_late(refusal.error, future), refusal.reusable)

    def _shut(self, failure: TcmError, target: Target | None) -> Gate | None:
        """Shut the gate that a failure is about, if it is about one; which."""
        gate: Gate | None = None
        if isinstance(failure, CircuitOpenError) and target is not None:
            gate = self._circuit(target)
            gate.shut(failure, exactly=failure.retry_after)
        elif isinstance(failure, (BackpressureError, RateLimitedError)) and failure.code != TENANT_LIMIT:
            gate = self._backpressure
            gate.shut(failure)
        if gate is not None and self.closed.is_set():
            gate.open()  # no call waits there any more
        return gate

    def _passed(
        self,
        target: Target | None,
        gates: tuple[Gate, ...],
        prober: Prober | None,
        shut: Gate | None = None,
    ) -> None:
        """Open the gates that `prober` has passed: the manager answered. It may have `shut` one anew."""
        for gate in gates:
            if gate.cause is None or prober is None or not gate.is_probed_by(prober):
                continue
            if shut is None or gate is self._backpressure:
                gate.open()  # the manager answered: what shut this gate is over
                if target is not None:
                    self._remove_circuit(target)

    def _circuit(self, target: Target) -> Gate:
        with self._circuits_lock:
            for other in [other for other, gate in self._circuits.items() if gate.is_past()]:
                self._circuits.pop(other).report_end()
            if target not in self._circuits:
                where = f"{self.opener.endpoint.authority}, container {target[0].container_id}"
                name = f"circuit of {target[1]!r}"
                listeners = self.manager_state.listeners
                self._circuits[target] = Gate(
                    name, 1.0, 60.0, of=where, level=logging.WARNING, listeners=listeners
                )
            return self._circuits[target]

    def _remove_circuit(self, target: Target) -> None:
        with self._circuits_lock:
            gate = self._circuits.get(target)
            if gate is not None and gate.cause is None:
                del self._circuits[target]

    def gates(self) -> dict[str, str]:
        """Describe each gate that is shut; it takes no lock."""
        circuits = list(self._circuits.values())
        gates = (self.manager_state.manager_gate, self.manager_state.auth_gate, self._backpressure, *circuits)
        texts = ((gate.name, gate.describe()) for gate in gates)
        return {name: text for name, text in texts if text is not None}

    def close(self, timeout: float) -> None:
        """Drain for up to `timeout` seconds, then end all calls and threads. Each step may be repeated."""
        if timeout > 0.0:
            deadline = Deadline(timeout)
            for pool in (self.pool, self.management):
                pool.refuse()
            for pool in (self.pool, self.management):
                pool.drain(deadline)
        self.stop()
        self._connector.join(1.0)
        self.reader.join(10.0)

    def stop(self) -> None:
        """Have everything end, without waiting for it."""
        self.closed.set()
        for pool in (self.pool, self.management):
            pool.close(ClientClosedError("the client was closed while the call waited for a socket"))
        self._backpressure.open()
        self.stream_turns.close()
        for turns in list(self._turns.values()):
            turns.wake_all()
        self.leave_turns()
        with self._circuits_lock:
            circuits = list(self._circuits.values())
        for gate in circuits:
            gate.open()
        self.manager_state.manager_gate.report_end()
        self.manager_state.auth_gate.report_end()
        self._connector.stop()
        self.reader.stop()

    def abandon(self) -> None:
        """Close the descriptors that a forked child inherited, without a lock, and nothing else."""
        self.pool.abandon()
        self.management.abandon()
        self._connector.opening.abandon()
        self.reader.abandon()


def _name(error: TcmError, connection: Connection, call: Call) -> None:
    """Note of a failed attempt on which socket it was and which call it is of, for the log and listeners."""
    error.uuid = connection.uuid
    if call.target is not None:
        error.route, error.model_name = call.target
    if call.watch is not None:
        call.watch.attempt_failed(error)


def _late(error: TcmError, future: Future) -> TcmError:
    """Return why a connection could not be sent on, for the call that found it so."""
    if not future.started and isinstance(error, (ProtocolError, MessageTooLargeError)):
        return ConnectionLostError(f"the connection was lost before anything was sent: {error.message}")
    if isinstance(error, (ConnectionLostError, ClientClosedError)) or not future.started:
        error.outcome_unknown = future.started
    return error


def _abandon(gates: tuple[Gate, ...], prober: Prober) -> None:
    """End the probes that had no outcome."""
    for gate in gates:
        if gate.cause is not None:
            gate.abandon(prober)
