"""A socket is back in the pool after whatever ended its call, and a refusal is known before that."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest

from tcm_sync import BackpressureError, CircuitOpenError, Route, ShuttingDownError, TcmError
from tcm_sync._deadline import Deadline
from tcm_sync._logs import flush
from tcm_sync._pool import pool_state
from tcm_sync._pool.gate import Prober
from tcm_sync._transport import opener as opening
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.replies import Refusal

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import ask, connect, echo
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_until


def test_every_lease_that_is_collected_is_taken_back_at_once(monkeypatch):
    monkeypatch.setattr(pool_state, "AUDIT_INTERVAL", 600.0)  # nobody else looks for it
    with ScriptedPeer(echo, echo) as peer, connect(peer, pool_size=1) as client:
        ask(client)
        lease = client._core.running().pool.acquire(Deadline(TIMEOUT))
        del lease
        wait_until(lambda: client.stats().sockets_closed.get("its lease was lost"))
        assert ask(client, 2.0) == 2.0


def test_a_connection_that_is_closed_is_freed_without_the_collector(monkeypatch):
    class Watched(Connection):
        __slots__ = ("__weakref__",)

    monkeypatch.setattr(opening, "Connection", Watched)
    gc.collect()
    gc.disable()
    try:
        with ScriptedPeer(echo) as peer, connect(peer) as client:
            ask(client)
            seen = weakref.ref(client._core.runtime.pool.any_open())
        del client
        wait_until(lambda: seen() is None)
    finally:
        gc.enable()


def failure_of_infer(client):
    try:
        ask(client)
    except TcmError as error:
        return weakref.ref(error)


def failure_of_submit(client):
    return weakref.ref(client.submit("m", {"x": [1.0]}).exception(TIMEOUT))


def failure_of_map(client):
    return weakref.ref(next(client.map("m", [{"x": [1.0]}], on_error="return")))


def failure_that_ends_a_map(client):
    try:
        next(client.map("m", [{"x": [1.0]}]))
    except TcmError as error:
        return weakref.ref(error)


def failure_of_a_long_batch(client):
    try:
        client.infer_chunked("m", {"x": [1.0]})
    except TcmError as error:
        return weakref.ref(error)


@pytest.mark.parametrize(
    "failure",
    [
        failure_of_infer,
        failure_of_submit,
        failure_of_map,
        failure_that_ends_a_map,
        failure_of_a_long_batch,
    ],
)
def test_a_failure_is_freed_with_its_inputs_without_the_collector(failure):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.fail("TRITON_INFERENCE_FAILED")

    with ScriptedPeer(script) as peer, connect(peer) as client:
        gc.collect()
        gc.disable()
        try:
            seen = failure(client)
            wait_until(lambda: seen() is None, "the thread that made the call is done with it")
        finally:
            gc.enable()


def circuit_opens(connection):
    connection.fail("TRITON_CIRCUIT_OPEN", retriable=True)


def queue_is_full(connection):
    connection.error("Request dropped.", "BACKPRESSURE_QUEUE_FULL", dropped_type="inference")


@pytest.mark.parametrize("refuse", [circuit_opens, queue_is_full])
def test_a_handler_of_logs_that_fails_costs_no_socket(refuse):
    class Interrupting(logging.Handler):
        def emit(self, record):
            if "gate shut" in record.getMessage():
                raise KeyboardInterrupt

    def script(connection):
        connection.welcome()
        connection.recv_request()
        refuse(connection)
        connection.wait_eof()

    log, handler = logging.getLogger("tcm_sync"), Interrupting()
    with ScriptedPeer(script) as peer, connect(peer, retry=None) as client:
        client.open()
        log.addHandler(handler)
        try:
            with pytest.raises(TcmError):
                ask(client)
            assert flush(TIMEOUT)
        finally:
            log.removeHandler(handler)
        assert client.stats().busy == 0


@pytest.fixture
def runtime():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        yield client._core.running()


@pytest.fixture
def refused(runtime):
    """Let a call that has tried a gate be refused, on a connection that no other call has."""

    class Held:
        uuid, leased_at = "u", None
        connection = property(lambda self: self)

        def release(self):
            pass

        def discard(self, reason):
            pass

    def refused(error, gates, prober, target=None):
        call = type(
            "Tried", (), {"target": target, "may_have_run": False, "kind": "inference", "watch": None}
        )
        runtime.sender._end_refused(Held(), call, Refusal(error, reusable=True), gates, prober)

    return refused


def probe(gate, cause):
    gate.shut(cause, exactly=0.0)
    prober = Prober()
    gate.wait(Deadline(TIMEOUT), prober)
    return prober


def test_a_circuit_that_is_tried_amid_backpressure_stays_shut(runtime, refused):
    target = (Route("c"), "m")
    circuit = runtime.gates.circuit(target)
    prober = probe(circuit, CircuitOpenError("open"))
    refused(BackpressureError("full"), (circuit, runtime.gates.backpressure), prober, target)
    assert circuit.cause is not None
    assert runtime.gates.circuits == {target: circuit}
    assert runtime.gates.backpressure.cause is not None


def test_what_was_refused_by_a_manager_that_drains_opens_no_gate(runtime, refused):
    gate = runtime.gates.backpressure
    prober = probe(gate, BackpressureError("full"))
    refused(ShuttingDownError("bye"), (gate,), prober)
    assert gate.cause is not None
