"""What a client runs on: its reader, its pool and its gates, from the first call to the closing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from tcm_sync.config import Route, Settings
from tcm_sync.deadline import Deadline
from tcm_sync.errors import (
    BackpressureError,
    CallTimeoutError,
    CircuitOpenError,
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    RateLimitedError,
    ShuttingDownError,
    TcmError,
)
from tcm_sync.transport.connection import Connection
from tcm_sync.transport.connector import Connector
from tcm_sync.transport.gate import Gate, Prober, again
from tcm_sync.transport.lease import Lease
from tcm_sync.transport.opening import Opener
from tcm_sync.transport.pool import Pool
from tcm_sync.transport.reader import Reader
from tcm_sync.transport.replies import Refusal, ReplyFuture
from tcm_sync.wire.encode import encode_message

_EXPLANATION = 1.0  # seconds in which the reader finds out why a socket took no more
_REFUSED_WITHIN = 0.5  # seconds: a full queue is told at once, and not when the model is done

Target = tuple[Route, str]


class Runtime:
    """The moving parts of one client in one process. A fork or a closing ends it; it never starts again.

    Parameters
    ----------
    settings : Settings
        The client's.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.closed = threading.Event()
        self._connector = Connector()
        self.opener = Opener(settings, self._connector.opening)
        self.reader = Reader(settings.ping_interval)
        self.pool = Pool(settings, self.opener, self._connector, self.reader)
        self.reader.serve(self.pool)
        self._backpressure = Gate("backpressure", 0.1, 5.0, refused_within=_REFUSED_WITHIN)
        self._circuits_lock = threading.Lock()  # guards the dict, not the gates in it
        self._circuits: dict[Target, Gate] = {}
        try:
            self.reader.start()
        except RuntimeError as error:
            self.reader.abandon()
            raise ConnectFailedError(f"no thread to read the sockets with: {error}") from error

    def is_alive(self) -> bool:
        """Whether calls can be made."""
        return self.reader.is_alive()

    def sleep(self, seconds: float) -> None:
        """Pause before a repeat, or until the client is closed."""
        self.closed.wait(min(seconds, threading.TIMEOUT_MAX))

    def attempt(
        self,
        target: Target,
        payload: bytes,
        deadline: Deadline,
        read: Callable[[Connection, bytes], TcmError | None],
        *,
        patient: bool,
    ) -> None:
        """Send an inference once, behind the gates, and have its answer read.

        Parameters
        ----------
        target : (Route, str)
            Where it runs: its circuit may be open.
        payload : bytes
            JSON text of the request, without its envelope.
        deadline : Deadline
            The call's.
        read : callable
            Given the connection and the whole reply, in this thread, while the connection is still held. It
            returns the failure that the manager answered, or None; it raises if the reply is unreadable.
        patient : bool
            Whether to wait for a manager that cannot be reached.
        """
        gates = self._gates(target)
        prober = Prober()
        try:
            try:
                lease = self._enter(gates, prober, deadline, patient)
                failure = self._exchange(lease, payload, deadline, read)
                self._note(failure, target, gates, prober)
            finally:
                if self._is_any_shut():
                    _abandon(gates, prober)
        finally:
            if self._is_any_shut():
                _abandon(gates, prober)  # once more, if a KeyboardInterrupt has hit the first
        if failure is not None:
            raise failure

    def _is_any_shut(self) -> bool:
        return self._backpressure.cause is not None or bool(self._circuits)

    def _gates(self, target: Target) -> tuple[Gate, ...]:
        circuit = self._circuits.get(target) if self._circuits else None
        return (self._backpressure,) if circuit is None else (circuit, self._backpressure)

    def _enter(self, gates: tuple[Gate, ...], prober: Prober, deadline: Deadline, patient: bool) -> Lease:
        """Wait at the gates and for a connection, until both are there at once."""
        while True:
            for gate in gates:
                if gate.cause is not None and not gate.is_probed_by(prober):
                    gate.wait(deadline, prober)
            lease = self.pool.lease(deadline, patient=patient)
            for gate in gates:
                if gate.cause is not None and not gate.is_probed_by(prober):
                    lease.unused()  # it was shut meanwhile
                    break
            else:
                return lease

    def _exchange(
        self,
        lease: Lease,
        payload: bytes,
        deadline: Deadline,
        read: Callable[[Connection, bytes], TcmError | None],
    ) -> TcmError | None:
        """Send on the leased connection and wait for the answer: None if it is good, else the failure."""
        connection = lease.connection
        future = ReplyFuture()
        try:
            refusal = self._send_and_wait(connection, payload, deadline, future)
            if refusal is None:
                assert isinstance(future.outcome, bytes)
                failure = read(connection, future.outcome)
                reusable = True
            else:
                failure, reusable = refusal
        except BaseException as error:
            self.reader.pending.claim(connection.uuid)
            lease.discard(f"{type(error).__name__} while a reply was outstanding")
            if isinstance(error, TcmError):
                error.uuid = connection.uuid
                if isinstance(error, (ConnectionLostError, ClientClosedError)):
                    return error
            raise
        if isinstance(failure, RateLimitedError):
            self.pool.learn_limit(connection)
        if reusable:
            lease.release()
        else:
            lease.discard(f"refused: {failure}")
        if failure is not None:
            failure.uuid = connection.uuid
        return failure

    def _send_and_wait(
        self, connection: Connection, payload: bytes, deadline: Deadline, future: ReplyFuture
    ) -> Refusal | None:
        pending = self.reader.pending
        pending.add(connection.uuid, future)
        sent = monotonic()
        try:
            connection.send(encode_message(connection.uuid, "inference", payload), deadline, future)
        except ConnectionLostError:
            # The manager may have said why before it closed, and the reader is about to read it.
            if connection.closed and connection.loss and pending.claim(connection.uuid):
                error = again(connection.loss)  # the reader was done with it before the future was there
                error.outcome_unknown = future.started
                return Refusal(error)
            left = deadline.remaining()
            if not future.wait(_EXPLANATION if left is None else min(_EXPLANATION, left)):
                raise
        else:
            if not future.wait(deadline.remaining()) and pending.claim(connection.uuid) is not None:
                raise CallTimeoutError(
                    f"no reply within {monotonic() - sent:.3g} s of sending; the request may still run",
                    outcome_unknown=True,
                    advisories=future.advisories,
                )
        if future.outcome is None:
            future.wait(None)  # somebody has claimed it, so the outcome is a moment away
        if not isinstance(future.outcome, Refusal):
            return None
        error, reusable = future.outcome
        if isinstance(error, (ConnectionLostError, ClientClosedError)):
            error.outcome_unknown = future.started
        return Refusal(error, reusable)

    def _note(
        self, failure: TcmError | None, target: Target, gates: tuple[Gate, ...], prober: Prober
    ) -> None:
        """Let the gates know how it went."""
        shut: Gate | None = None
        if failure is None:
            self.pool.manager_gate.forgive()
        elif isinstance(failure, CircuitOpenError):
            shut = self._circuit(target)
            shut.shut(failure, exactly=failure.retry_after)
        elif isinstance(failure, (BackpressureError, RateLimitedError)):
            shut = self._backpressure
            shut.shut(failure)
        elif isinstance(failure, (ConnectionLostError, ShuttingDownError, ClientClosedError)):
            return
        if shut is not None and self.closed.is_set():
            shut.open()  # nobody is to wait there any more
        for gate in gates:
            if gate.cause is None or not gate.is_probed_by(prober):
                continue
            if shut is None or gate is self._backpressure:
                gate.open()  # the manager answered: what shut this gate is over
                self._forget_circuit(target)

    def _circuit(self, target: Target) -> Gate:
        with self._circuits_lock:
            for other in [other for other, gate in self._circuits.items() if gate.is_past()]:
                del self._circuits[other]
            return self._circuits.setdefault(target, Gate(f"circuit of {target[1]!r}", 1.0, 60.0))

    def _forget_circuit(self, target: Target) -> None:
        with self._circuits_lock:
            gate = self._circuits.get(target)
            if gate is not None and gate.cause is None:
                del self._circuits[target]

    def close(self, timeout: float) -> None:
        """Drain for up to `timeout` seconds, then end all calls and threads. Each step may be repeated."""
        if timeout > 0.0:
            self.pool.drain(timeout)
        self.stop()
        self._connector.join(1.0)
        self.reader.join(10.0)

    def stop(self) -> None:
        """Have everything end, without waiting for it."""
        self.closed.set()
        self.pool.close(ClientClosedError("the client was closed while the call waited for a socket"))
        self._backpressure.open()
        with self._circuits_lock:
            circuits = list(self._circuits.values())
        for gate in circuits:
            gate.open()
        self._connector.stop()
        self.reader.stop()

    def abandon(self) -> None:
        """Close the descriptors that a forked child inherited, without a lock, and nothing else."""
        self.pool.abandon()
        self._connector.opening.abandon()
        self.reader.abandon()


def _abandon(gates: tuple[Gate, ...], prober: Prober) -> None:
    """Give up the probes that had no outcome."""
    for gate in gates:
        if gate.cause is not None:
            gate.abandon(prober)
