"""Gates: shut for longer each time, tried by one probe, waited at within the deadline."""

from __future__ import annotations

import math

import pytest

from tcm_sync import ConnectFailedError
from tcm_sync.deadline import Deadline
from tcm_sync.transport.gate import Gate

PATIENCE = 30.0
CAUSE = ConnectFailedError("nobody there")


@pytest.fixture(autouse=True)
def no_spread(monkeypatch):
    """Pauses are spread by a tenth; here they are what they are."""
    monkeypatch.setattr("tcm_sync.transport.gate.random.uniform", lambda low, high: low)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        @classmethod
        def pass_(cls, seconds):
            cls.now += seconds

    monkeypatch.setattr("tcm_sync.transport.gate.monotonic", lambda: Clock.now)
    monkeypatch.setattr("tcm_sync.deadline.monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def gate():
    return Gate("test", 1.0, 8.0)


def probe(gate, clock):
    """Wait for the pause to end and pass."""
    left = gate.try_pass()
    clock.pass_(left)
    assert gate.try_pass() == 0.0
    return left


def test_an_open_gate_lets_everybody_pass(gate):
    assert gate.cause is None
    assert [gate.try_pass() for _ in range(3)] == [0.0] * 3
    assert gate.wait(Deadline(0.0)) is False


def test_a_shut_gate_says_how_long_to_wait_and_then_lets_one_pass(gate, clock):
    gate.shut(CAUSE)
    assert str(gate.cause) == "nobody there"
    assert gate.try_pass() == 1.0
    clock.pass_(0.75)
    assert gate.try_pass() == 0.25
    clock.pass_(0.25)
    assert gate.try_pass() == 0.0  # the probe
    assert gate.try_pass() == math.inf
    gate.open()
    assert gate.try_pass() == gate.try_pass() == 0.0
    assert gate.cause is None


def test_pauses_double_up_to_the_longest(gate, clock):
    pauses = []
    for _ in range(6):
        gate.shut(CAUSE)
        pauses.append(probe(gate, clock))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_a_burst_of_failures_shuts_it_once(gate, clock):
    for _ in range(10):
        gate.shut(ConnectFailedError("one of many"))
    assert gate.try_pass() == 1.0
    clock.pass_(0.9)
    gate.shut(CAUSE)  # started before, failed late
    assert gate.try_pass() == pytest.approx(0.1)
    assert str(gate.cause) == "one of many"
    clock.pass_(0.2)
    gate.shut(CAUSE)  # a failure after the pause is another one
    assert gate.try_pass() == 2.0
    assert str(gate.cause) == "nobody there"


def test_success_makes_the_next_pause_short_again(gate, clock):
    for _ in range(3):
        gate.shut(CAUSE)
        probe(gate, clock)
    gate.open()
    gate.shut(CAUSE)
    assert gate.try_pass() == 1.0


def test_opening_does_not_forgive_by_itself_if_so_asked(gate, clock):
    gate.shut(CAUSE)
    probe(gate, clock)
    gate.open(forgive=False)
    assert gate.try_pass() == 0.0
    gate.shut(CAUSE)
    assert gate.try_pass() == 2.0
    probe(gate, clock)
    gate.open(forgive=False)
    gate.forgive()
    gate.shut(CAUSE)
    assert gate.try_pass() == 1.0


def test_a_shut_gate_is_not_forgiven(gate, clock):
    gate.shut(CAUSE)
    gate.forgive()
    probe(gate, clock)
    gate.shut(CAUSE)
    assert gate.try_pass() == 2.0


@pytest.mark.parametrize(("asked", "pause"), [(0.1, 1.0), (5.0, 5.0), (60.0, 60.0), (None, 1.0)])
def test_a_pause_that_somebody_knows_is_the_least(gate, clock, asked, pause):
    gate.shut(CAUSE, asked)
    assert gate.try_pass() == pause


def test_a_known_pause_doubles_too_but_not_over_the_longest_of_its_own(gate, clock):
    gate.shut(CAUSE, 3.0)
    probe(gate, clock)
    gate.shut(CAUSE, 3.0)
    assert probe(gate, clock) == 6.0
    gate.shut(CAUSE, 3.0)
    assert probe(gate, clock) == 8.0
    gate.shut(CAUSE, 30.0)
    assert gate.try_pass() == 30.0


def test_pauses_are_spread_by_a_tenth(gate, clock, monkeypatch):
    asked = []
    monkeypatch.setattr("tcm_sync.transport.gate.random.uniform", lambda *ends: asked.append(ends) or ends[1])
    gate.shut(CAUSE)
    assert gate.try_pass() == pytest.approx(1.1)
    assert asked == [(1.0, 1.1)]


def test_an_abandoned_probe_leaves_the_way_to_the_next(gate, clock):
    gate.shut(CAUSE)
    probe(gate, clock)
    assert gate.try_pass() == math.inf
    gate.abandon()
    assert gate.try_pass() == 0.0
    assert gate.try_pass() == math.inf
    gate.shut(CAUSE)
    assert gate.try_pass() == 2.0


def test_a_gate_keeps_no_frames_of_the_failure(gate):
    try:
        raise ConnectFailedError("nobody there") from OSError("refused")
    except ConnectFailedError as error:
        gate.shut(error)
    assert gate.cause.__traceback__ is None
    assert gate.cause.__cause__ is None


def test_a_gate_is_past_when_it_would_have_opened_long_ago(gate, clock):
    assert gate.is_past()
    gate.shut(CAUSE)
    clock.pass_(9.0)
    assert not gate.is_past()
    clock.pass_(0.5)
    assert gate.is_past()
    gate.open()
    assert gate.is_past()
