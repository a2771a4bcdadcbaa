"""One attempt of a call: wait at the gates, for a connection and for a turn; send; receive the answer."""

from __future__ import annotations

from time import monotonic

from tcm_sync._pool.call import Call
from tcm_sync._pool.client_gates import ClientGates
from tcm_sync._pool.client_turns import ClientTurns
from tcm_sync._pool.gate import Gate, Prober, copy_for_call
from tcm_sync._pool.lease import Lease
from tcm_sync._pool.pool import Pool
from tcm_sync._pool.stream_turns import StreamTurns
from tcm_sync._pool.turns import Turns
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.reader import Reader
from tcm_sync._transport.replies import Future, Refusal
from tcm_sync._wire.encode import encode_message
from tcm_sync._wire.failures import TENANT_LIMIT
from tcm_sync.errors import (
    BackpressureError,
    CallTimeoutError,
    ClientClosedError,
    ConnectionLostError,
    MessageTooLargeError,
    ProtocolError,
    RateLimitedError,
    ShuttingDownError,
    TcmError,
)

_CLOSE_REASON_TIMEOUT = 1.0  # seconds to wait until the reader has read why the manager closed the socket
# Why a lease is discarded that nothing else has released: a kept traceback would keep it.
_INTERRUPTED = "the call was interrupted"


class CallSender:
    """Makes the attempts of a client's calls, each in the thread of its caller.

    Parameters
    ----------
    reader : Reader
        Reads the answers.
    pool, management : Pool
        The connections of inferences and queries, and those of management jobs.
    gates : ClientGates
        Hold calls back while the manager refuses them.
    turns : ClientTurns
        Limit what waits at the manager.
    manager_gate : Gate
        Shut while the manager cannot be reached.
    counts : Counts
        Where waits are counted.

    Attributes
    ----------
    stream_turns : StreamTurns
        Which stream of a container runs, where its model serves one at a time.
    """

    def __init__(
        self,
        reader: Reader,
        pool: Pool,
        management: Pool,
        gates: ClientGates,
        turns: ClientTurns,
        manager_gate: Gate,
        counts: Counts,
    ) -> None:
        self._pending = reader.pending
        self._pool = pool
        self._management = management
        self._gates = gates
        self._turns = turns
        self._manager_gate = manager_gate
        self._counts = counts
        self.stream_turns = StreamTurns()

    def attempt(self, call: Call) -> None:
        """Send a call once, behind the gates, and have its answer read.

        Raises
        ------
        TcmError
            What came in place of a good answer. It has a ``uuid`` if it came from a socket.
        """
        if call.watch is not None:
            call.watch.enter("socket")
        backpressure, circuits = self._gates.backpressure, self._gates.circuits
        while backpressure.cause is None and not (circuits and call.target in circuits):
            lease = self._acquire(call)
            try:
                if backpressure.cause is None and not (circuits and call.target in circuits):
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
        gates = self._gates.before(call.target)
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
                _end_probes(gates, prober)
        finally:
            _end_probes(gates, prober)  # once more, if a KeyboardInterrupt has hit the first

    def _pool_of(self, call: Call) -> Pool:
        return self._management if call.kind == "management" else self._pool

    def _acquire(self, call: Call) -> Lease:
        pool = self._management if call.kind == "management" else self._pool
        return pool.acquire(
            call.deadline,
            waits_for_manager=call.waits_for_manager,
            streaming=call.streaming,
            watch=call.watch,
        )

    def _enter(self, gates: tuple[Gate, ...], prober: Prober, call: Call) -> Lease:
        """Wait at the gates and for a connection, until both are there at once."""
        while True:
            for gate in gates:
                if gate.cause is not None and not gate.is_probed_by(prober):
                    began = monotonic()
                    if call.watch is not None:
                        call.watch.waits("gate")
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
                turns = self._turns.by_tenant.get(connection.tenant) or self._turns.join(connection)
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
        pending = self._pending
        if watch is not None:
            watch.sends(payload)
        try:
            pending[connection.uuid] = future
            try:
                connection.send(encode_message(connection.uuid, call.kind, payload), call.deadline, future)
            except ConnectionLostError as lost:
                refusal: Refusal | None = self._failure_of_send(lost, connection, call, future)
            else:
                if watch is not None:
                    watch.enter("reply")
                refusal = call.receive(connection, pending, future)
        except BaseException as error:
            pending.claim(connection.uuid)
            self._end_unanswered(lease, call, future, error)
            raise
        finally:
            if call.turn is not None:
                call.turn.release()
        if refusal is not None:
            raise self._end_refused(lease, call, refusal, gates, prober)
        if turns is not None and not call.streaming:
            turns.replied(call.target, connection.last_sent, connection.last_received)
        call.accept(lease)
        self._manager_gate.reset_pause()
        if gates:
            self._gates.passed(call.target, gates, prober)
        return True

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
        deadline = self._turns.deadline(call.deadline)
        turn = call.turn = turns.acquire(call.target, deadline, self._turns.closed, call.watch)
        if turn is None or not turn.waited:
            return True
        self._counts.waited_for_turn(turn.waited)
        shut = [gate for gate in gates or self._gates.before(call.target) if gate.cause is not None]
        given_up = connection.closed or connection.closing_reason is not None
        if not given_up and all(prober is not None and gate.is_probed_by(prober) for gate in shut):
            return True
        turn.release()
        call.turn = None
        if call.watch is not None:
            call.watch.enter("socket")
        return False

    def _end_unanswered(self, lease: Lease, call: Call, future: Future, error: BaseException) -> None:
        """Discard the connection of an attempt that ended without an answer, and note that in `error`."""
        connection = lease.connection
        if isinstance(error, CallTimeoutError):
            self._check_others(connection)
        lease.discard(f"a reply was outstanding: {type(error).__name__}")
        call.may_have_run = call.may_have_run or future.started
        if isinstance(error, TcmError):
            _note_call(error, connection, call)
            error.outcome_unknown = future.started

    def _check_others(self, connection: Connection) -> None:
        """Have idle connections checked after a call timed out on one on which nothing came since."""
        sent_at = connection.sent_at[-1]
        if connection.last_received < sent_at:
            for pool in (self._pool, self._management):
                pool.check_silent(sent_at)

    def _end_refused(
        self, lease: Lease, call: Call, refusal: Refusal, gates: tuple[Gate, ...], prober: Prober | None
    ) -> TcmError:
        """Return the failure. The gates and the pool note it before others get the connection."""
        failure = refusal.error
        connection = lease.connection
        _note_call(failure, connection, call)
        call.may_have_run = call.may_have_run or failure.outcome_unknown
        try:
            if not isinstance(failure, (ConnectionLostError, ShuttingDownError, ClientClosedError)):
                shut = self._gates.shut(failure, call.target)
                self._gates.passed(call.target, gates, prober, shut)
            pool = self._pool_of(call)
            if isinstance(failure, RateLimitedError):
                pool.limits.learn_socket_limit(connection)
            elif failure.code == TENANT_LIMIT:
                pool.limits.learn_tenant_limit(connection, failure)
            elif isinstance(failure, BackpressureError) and pool is self._pool:
                pool.limits.lower_concurrency(connection, failure)  # not of jobs, which take minutes
        finally:
            if refusal.reusable:
                lease.release()
            else:
                lease.discard(f"refused: {failure}")
        return failure

    def _failure_of_send(
        self, lost: ConnectionLostError, connection: Connection, call: Call, future: Future
    ) -> Refusal:
        """Find out why the request could not be sent, or raise `lost`.

        The manager may have said why before it closed, and the reader is about to read it.
        """
        if connection.closed and connection.close_error and self._pending.claim(connection.uuid):
            # The reader closed the socket before the future was there.
            error = copy_for_call(connection.close_error)
            error.outcome_unknown = future.started
            return Refusal(_failure_to_send(error, future))
        left = call.deadline.remaining()
        refusal = future.refusal(_CLOSE_REASON_TIMEOUT if left is None else min(_CLOSE_REASON_TIMEOUT, left))
        if refusal is None:
            raise lost
        return Refusal(_failure_to_send(refusal.error, future), refusal.reusable)


def _note_call(error: TcmError, connection: Connection, call: Call) -> None:
    """Note of a failed attempt on which socket it was and which call it is of, for the log and listeners."""
    error.uuid = connection.uuid
    if call.target is not None:
        error.route, error.model_name = call.target
    if call.watch is not None:
        call.watch.attempt_failed(error)


def _failure_to_send(error: TcmError, future: Future) -> TcmError:
    """Return why a connection could not be sent on, for the call that found it so."""
    if not future.started and isinstance(error, (ProtocolError, MessageTooLargeError)):
        return ConnectionLostError(f"the connection was lost before anything was sent: {error.message}")
    if isinstance(error, (ConnectionLostError, ClientClosedError)) or not future.started:
        error.outcome_unknown = future.started
    return error


def _end_probes(gates: tuple[Gate, ...], prober: Prober) -> None:
    """End the probes that had no outcome."""
    for gate in gates:
        if gate.cause is not None:
            gate.end_probe(prober)
