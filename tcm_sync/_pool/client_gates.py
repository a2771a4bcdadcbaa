"""The gates of one client: for backpressure, and for each model with an open circuit."""

from __future__ import annotations

import logging

from tcm_sync._locks import RLock
from tcm_sync._pool.gate import Gate, Prober
from tcm_sync._wire.failures import TENANT_LIMIT
from tcm_sync.errors import BackpressureError, CircuitOpenError, RateLimitedError, TcmError
from tcm_sync.events._listeners import Listeners
from tcm_sync.settings import Route

_REFUSED_WITHIN = 0.5  # seconds: a full queue is refused at once, and not when the model is done

Target = tuple[Route, str]


class ClientGates:
    """The gates that an inference passes before it is sent. They are usually open.

    Parameters
    ----------
    manager : str
        The manager's address, for the log.
    listeners : Listeners
        Who listens to the client.

    Attributes
    ----------
    backpressure : Gate
        Shut while the manager takes no more requests. All calls pass it.
    circuits : dict
        The gates of targets whose circuit the manager has opened. Changed under the lock, read without it.
    """

    def __init__(self, manager: str, listeners: Listeners) -> None:
        self._manager = manager
        self._listeners = listeners
        self._closed = False
        self.backpressure = Gate(
            "backpressure", 0.1, 5.0, refused_within=_REFUSED_WITHIN, of=manager, listeners=listeners
        )
        self._lock = RLock()  # guards circuits, not the gates in it
        self.circuits: dict[Target, Gate] = {}

    def before(self, target: Target | None) -> tuple[Gate, ...]:
        """Return the gates that a call to `target` passes."""
        circuit = self.circuits.get(target) if self.circuits and target is not None else None
        return (self.backpressure,) if circuit is None else (circuit, self.backpressure)

    def shut(self, failure: TcmError, target: Target | None) -> Gate | None:
        """Shut the gate that a failure is about, if it is about one; which."""
        gate: Gate | None = None
        if isinstance(failure, CircuitOpenError) and target is not None:
            gate = self.circuit(target)
            gate.shut(failure, exactly=failure.retry_after)
        elif isinstance(failure, (BackpressureError, RateLimitedError)) and failure.code != TENANT_LIMIT:
            gate = self.backpressure
            gate.shut(failure)
        if gate is not None and self._closed:
            gate.open()  # no call waits there any more
        return gate

    def passed(
        self,
        target: Target | None,
        gates: tuple[Gate, ...],
        prober: Prober | None,
        shut: Gate | None = None,
    ) -> None:
        """Open the gates that `prober` has passed: the manager answered. It may have `shut` one again."""
        for gate in gates:
            if gate.cause is None or prober is None or not gate.is_probed_by(prober):
                continue
            if shut is None or gate is self.backpressure:
                gate.open()  # the manager answered: what shut this gate is over
                if target is not None:
                    self._remove_circuit(target)

    def circuit(self, target: Target) -> Gate:
        """Return the gate of a target, a new one if it has none."""
        with self._lock:
            for other in [other for other, gate in self.circuits.items() if gate.is_past()]:
                self.circuits.pop(other).report_end()
            if target not in self.circuits:
                where = f"{self._manager}, container {target[0].container_id}"
                name = f"circuit of {target[1]!r}"
                self.circuits[target] = Gate(
                    name, 1.0, 60.0, of=where, level=logging.WARNING, listeners=self._listeners
                )
            return self.circuits[target]

    def _remove_circuit(self, target: Target) -> None:
        with self._lock:
            gate = self.circuits.get(target)
            if gate is not None and gate.cause is None:
                del self.circuits[target]

    def all(self) -> list[Gate]:
        """Return all gates; it takes no lock."""
        return [self.backpressure, *self.circuits.values()]

    def close(self) -> None:
        """Open all gates, for the client is closed: calls that wait at one find that out behind it."""
        self._closed = True
        self.backpressure.open()
        with self._lock:
            circuits = list(self.circuits.values())
        for gate in circuits:
            gate.open()
