"""The gates of a client: which an answer opens, which a failure shuts, and what waits there is given back."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace

import pytest

from tcm_sync import BackpressureError, CircuitOpenError, InputError, Route
from tcm_sync._deadline import Deadline
from tcm_sync._pool.attempt import CallSender
from tcm_sync._pool.call import Call
from tcm_sync._pool.client_gates import ClientGates
from tcm_sync._pool.gate import Prober
from tcm_sync.events._listeners import NO_LISTENERS

from ..helpers.bare_pool import bare_pool

TARGET = (Route("vm", "c"), "m")
FULL = BackpressureError("the queue is full")
BROKEN = CircuitOpenError("the circuit is open")


@pytest.fixture
def gates():
    return ClientGates("h", NO_LISTENERS)


def try_at(gate, prober):
    """Pass a gate as its probe, as if its pause were over."""
    gate._opens_at = 0.0
    assert gate.try_pass(prober) == 0.0
    assert gate.is_probed_by(prober)


# --- what an answer opens ---


def test_an_answer_opens_every_gate_that_its_call_has_tried(gates):
    prober = Prober()
    circuit = gates.shut(BROKEN, TARGET)
    gates.shut(FULL, TARGET)
    for gate in gates.before(TARGET):
        try_at(gate, prober)
    gates.passed(TARGET, gates.before(TARGET), prober)
    assert (circuit.cause, gates.backpressure.cause) == (None, None)
    assert gates.circuits == {}


def test_an_answer_opens_no_gate_that_another_call_tries(gates):
    circuit, prober, other = gates.shut(BROKEN, TARGET), Prober(), Prober()
    try_at(circuit, other)
    gates.passed(TARGET, (circuit,), prober)
    gates.passed(TARGET, (circuit,), None)
    assert circuit.is_probed_by(other)
    assert gates.circuits == {TARGET: circuit}


def test_a_full_queue_says_nothing_about_the_model_whose_circuit_was_tried(gates):
    prober = Prober()
    circuit = gates.shut(BROKEN, TARGET)
    try_at(circuit, prober)
    gates.passed(TARGET, gates.before(TARGET), prober, gates.shut(FULL, TARGET))
    assert circuit.cause is not None
    assert gates.backpressure.cause is not None


def test_an_open_circuit_says_that_the_queue_which_was_tried_takes_requests(gates):
    prober = Prober()
    gates.shut(FULL, TARGET)
    try_at(gates.backpressure, prober)
    circuit = gates.shut(BROKEN, TARGET)
    gates.passed(TARGET, gates.before(TARGET), prober, circuit)
    assert gates.backpressure.cause is None
    assert circuit.cause is not None
    assert gates.circuits == {TARGET: circuit}


def test_a_job_without_a_target_opens_what_it_has_tried(gates):
    prober = Prober()
    gates.shut(FULL, None)
    try_at(gates.backpressure, prober)
    gates.passed(None, gates.before(None), prober)
    assert gates.backpressure.cause is None


def test_the_pauses_of_a_full_queue_begin_with_a_tenth_of_a_second_and_grow_to_five(gates, monkeypatch):
    monkeypatch.setattr("tcm_sync._pool.gate.random.uniform", lambda low, high: low)
    pauses = []
    for _ in range(8):
        gates.shut(FULL, None)
        pauses.append(gates.backpressure._pause)
        gates.backpressure._opens_at = 0.0
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


# --- attempts that reach no manager ---


class Unwritten(Call):
    """A call whose payload cannot be made."""

    def write(self, connection):
        raise InputError("no such array")


def sender_over(pool, gates):
    nobody = SimpleNamespace(pending={})
    counts = SimpleNamespace(waited_at_gate=lambda _: None)
    return CallSender(nobody, pool, pool, gates, None, None, counts)


def call(kind=Call):
    return kind((), Deadline(30.0 if kind is Unwritten else 0.001), waits_for_manager=True, target=TARGET)


def shut_after_acquire(pool, gates, monkeypatch):
    def acquire(*waits, acquire=pool.acquire, **how):
        lease = acquire(*waits, **how)
        gates.backpressure.shut(FULL)
        return lease

    monkeypatch.setattr(pool, "acquire", acquire)


@pytest.mark.parametrize("tried", [False, True])
def test_a_connection_that_comes_as_the_gate_is_shut_goes_back_unused(gates, tried, monkeypatch):
    pool = bare_pool()
    if tried:
        gates.backpressure.shut(FULL)
        gates.backpressure._opens_at = 0.0
    shut_after_acquire(pool, gates, monkeypatch)
    with pytest.raises(BackpressureError, match="the queue is full"):
        sender_over(pool, gates).attempt(call())
    (connection,) = pool.state.inventory.idle
    assert connection.requests == 0
    assert pool.reader.closed == []


def test_a_call_that_fails_before_it_is_sent_leaves_the_gate_to_be_tried_by_the_next(gates):
    pool = bare_pool()
    gates.backpressure.shut(FULL)
    gates.backpressure._opens_at = 0.0
    with pytest.raises(InputError) as caught:  # kept with its frames, which hold what tried the gate
        sender_over(pool, gates).attempt(call(Unwritten))
    assert gates.backpressure.try_pass() == 0.0
    assert caught.value.message == "no such array"
    (connection,) = pool.state.inventory.idle
    assert connection.requests == 0


def test_a_try_that_was_collected_is_found_within_a_second(gates, monkeypatch):
    gate = gates.backpressure
    gate._refused_within = None
    gate.shut(FULL)
    prober = Prober()
    try_at(gate, prober)
    gate._probe_ends = inf
    waits = []

    def wait(seconds):
        nonlocal prober
        waits.append(seconds)
        prober = None  # lost, and nobody says so

    monkeypatch.setattr(gate._changed, "wait", wait)
    assert gate.wait(Deadline(None), Prober())
    assert len(waits) == 1
    assert waits[0] <= 1.0
