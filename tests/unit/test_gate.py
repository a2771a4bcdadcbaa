"""Gates: shut for longer each time, tried by one probe, waited at within the deadline."""

from __future__ import annotations

import logging
import math
import pickle
import random
import threading
import traceback
from collections import Counter

import pytest

from tcm_sync import BackpressureError, CircuitOpenError, ConnectFailedError, Route
from tcm_sync._deadline import Deadline
from tcm_sync._pool.gate import Gate, Prober, copy_for_call
from tcm_sync._pool.manager_state import ManagerState

TIMEOUT = 30.0
CAUSE = ConnectFailedError("nobody there")


@pytest.fixture(autouse=True)
def no_spread(monkeypatch):
    """Pauses have no jitter."""
    monkeypatch.setattr("tcm_sync._pool.gate.random.uniform", lambda low, high: low)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        @classmethod
        def pass_(cls, seconds):
            cls.now += seconds

    monkeypatch.setattr("tcm_sync._pool.gate.monotonic", lambda: Clock.now)
    monkeypatch.setattr("tcm_sync._deadline.monotonic", lambda: Clock.now)
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


def test_opening_resets_the_pause_unless_asked_not_to(gate, clock):
    gate.shut(CAUSE)
    probe(gate, clock)
    gate.open(reset_pause=False)
    assert gate.try_pass() == 0.0
    gate.shut(CAUSE)
    assert gate.try_pass() == 2.0
    probe(gate, clock)
    gate.open(reset_pause=False)
    gate.reset_pause()
    gate.shut(CAUSE)
    assert gate.try_pass() == 1.0


def test_the_pause_of_a_shut_gate_is_not_reset(gate, clock):
    gate.shut(CAUSE)
    gate.reset_pause()
    probe(gate, clock)
    gate.shut(CAUSE)
    assert gate.try_pass() == 2.0


@pytest.mark.parametrize(("asked", "pause"), [(0.1, 1.0), (5.0, 5.0), (60.0, 60.0), (None, 1.0)])
def test_a_pause_that_was_asked_for_is_the_least(gate, clock, asked, pause):
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
    monkeypatch.setattr("tcm_sync._pool.gate.random.uniform", lambda *ends: asked.append(ends) or ends[1])
    gate.shut(CAUSE)
    assert gate.try_pass() == pytest.approx(1.1)
    assert asked == [(1.0, 1.1)]


def test_an_abandoned_probe_leaves_the_way_to_the_next(gate, clock):
    gate.shut(CAUSE)
    probe(gate, clock)
    assert gate.try_pass() == math.inf
    gate.end_probe()
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


def test_a_probe_that_is_not_refused_in_time_has_passed(clock):
    gate = Gate("test", 1.0, 8.0, refused_within=2.0)
    gate.shut(CAUSE)
    probe(gate, clock)
    clock.pass_(1.5)
    assert gate.try_pass() == math.inf
    clock.pass_(0.5)
    assert gate.try_pass() == gate.try_pass() == 0.0
    assert gate.cause is None
    gate.shut(CAUSE)
    assert gate.try_pass() == 1.0  # the pause was reset


def test_a_probe_that_is_refused_in_time_shuts_it_for_longer(clock):
    gate = Gate("test", 1.0, 8.0, refused_within=2.0)
    gate.shut(CAUSE)
    probe(gate, clock)
    clock.pass_(1.5)
    gate.shut(CAUSE)
    assert gate.try_pass() == 2.0


def test_a_probe_that_outlives_its_callers_deadline_is_followed_by_another(gate, clock):
    gate.shut(CAUSE)
    clock.pass_(1.0)
    assert gate.wait(Deadline(3.0)) is True
    assert gate.try_pass() == math.inf
    clock.pass_(3.0)
    assert gate.try_pass() == 0.0
    assert gate.try_pass() == math.inf


def test_what_is_done_to_an_open_gate_leaves_it_open(gate):
    gate.end_probe()
    gate.open()
    gate.reset_pause()
    assert (gate.cause, gate.try_pass()) == (None, 0.0)


# --- waiting ---


def test_who_cannot_wait_that_long_gets_the_cause_at_once(gate, clock):
    gate.shut(CAUSE)
    for seconds in (0.0, 0.5, 0.999):
        with pytest.raises(ConnectFailedError) as caught:
            gate.wait(Deadline(seconds))
        assert str(caught.value) == "nobody there"
    assert clock.now == 1000.0


def test_each_caller_gets_the_cause_as_an_error_of_its_own(gate, clock):
    gate.shut(CAUSE)
    errors = []
    for _ in range(2):
        with pytest.raises(ConnectFailedError) as caught:
            gate.wait(Deadline(0.0))
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert CAUSE not in errors
    assert CAUSE.__traceback__ is None
    assert len(traceback.extract_tb(errors[1].__traceback__)) < 5


def test_a_copy_of_an_error_reports_what_happened_and_not_to_whom():
    error = CircuitOpenError(
        "the circuit is open",
        code="TRITON_CIRCUIT_OPEN",
        retry_after=5.0,
        attempts=3,
        history=(CAUSE,),
        outcome_unknown=True,
        model_name="m",
        route=Route("c"),
        uuid="u-1",
        elapsed=1.5,
    )
    copy = copy_for_call(error)
    assert type(copy) is CircuitOpenError
    assert (copy.message, copy.code, copy.retry_after, copy.retriable) == (
        "the circuit is open",
        "TRITON_CIRCUIT_OPEN",
        5.0,
        True,
    )
    assert (copy.history, copy.attempts, copy.outcome_unknown) == ((), 0, False)
    assert (copy.uuid, copy.elapsed, copy.model_name, copy.route) == (None, None, None, None)
    assert str(copy) == "the circuit is open"
    assert (error.uuid, error.attempts) == ("u-1", 3)
    assert str(pickle.loads(pickle.dumps(copy))) == str(copy)


class Callers:
    """Threads that wait at a gate, and what came of it."""

    def __init__(self, gate, count, deadline=TIMEOUT):
        self.passed = []
        self.failed = []
        self.some = threading.Semaphore(0)
        self._threads = [
            threading.Thread(target=self._wait, args=(gate, Deadline(deadline))) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _wait(self, gate, deadline):
        try:
            self.passed.append(gate.wait(deadline))
        except ConnectFailedError as error:
            self.failed.append(error)
        self.some.release()

    def next(self):
        assert self.some.acquire(timeout=TIMEOUT)

    def join(self):
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def test_of_many_callers_one_probes_and_its_success_lets_the_others_pass():
    gate = Gate("test", 0.01, 0.01)
    gate.shut(CAUSE)
    callers = Callers(gate, 8)
    callers.next()
    assert callers.passed == [True]
    assert not callers.some.acquire(timeout=0.05)  # nobody else, though the pause is long over
    gate.open()
    callers.join()
    assert sorted(callers.passed) == [False] * 7 + [True]
    assert gate.wait(Deadline(0.0)) is False


def test_probes_come_one_at_a_time_while_they_fail():
    gate = Gate("test", 0.01, 0.01)
    gate.shut(CAUSE)
    callers = Callers(gate, 5)
    for count in range(1, 6):
        callers.next()
        assert callers.passed == [True] * count
        gate.shut(CAUSE)
    callers.join()
    assert callers.failed == []


def test_an_abandoned_probe_wakes_the_next_caller():
    gate = Gate("test", 0.01, 0.01)
    gate.shut(CAUSE)
    callers = Callers(gate, 3)
    for count in range(1, 4):
        callers.next()
        assert callers.passed == [True] * count
        gate.end_probe()
    callers.join()


def test_a_pause_that_grows_past_the_deadline_ends_the_wait():
    gate = Gate("test", 0.01, 1000.0)
    gate.shut(CAUSE)
    assert gate.wait(Deadline(TIMEOUT)) is True
    callers = Callers(gate, 3)
    gate.shut(ConnectFailedError("still nobody there"), 500.0)
    callers.join()
    assert {error.message for error in callers.failed} == {"still nobody there"}
    assert len(callers.failed) == 3


def test_a_probe_without_end_is_waited_for_as_long_as_the_deadline_allows():
    gate = Gate("test", 0.01, 0.01)
    gate.shut(CAUSE)
    assert gate.wait(Deadline(None)) is True
    callers = Callers(gate, 2, deadline=0.05)
    callers.join()
    assert len(callers.failed) == 2


def test_without_a_deadline_there_is_no_end_to_waiting():
    gate = Gate("test", 0.01, 0.01)
    gate.shut(CAUSE)
    assert gate.wait(Deadline(None)) is True
    callers = Callers(gate, 2, deadline=None)
    assert not callers.some.acquire(timeout=0.05)
    gate.open()
    callers.join()
    assert callers.passed == [False, False]


def test_a_deadline_of_ages_is_waited_for_in_pieces():
    gate = Gate("test", 0.01, 0.01)
    gate.shut(CAUSE)
    assert gate.wait(Deadline(1e30)) is True
    callers = Callers(gate, 1, deadline=1e30)
    gate.open()
    callers.join()
    assert callers.passed == [False]


# --- what the log says ---


def test_the_log_reports_shutting_and_opening_once_each(gate, clock, caplog):
    caplog.set_level(logging.INFO, "tcm_sync.pool")
    for _ in range(3):
        gate.shut(BackpressureError("queue full"))
    gate.open()
    gate.open()
    shut, opened = (record.getMessage() for record in caplog.records)
    assert shut == "test gate shut: queue full; the next try is in 1.000 s"
    assert opened == "test gate open again, it was shut for 0.000 s: queue full"


def test_an_outage_is_one_warning_and_one_line_at_its_end_with_address_and_cause(clock, caplog):
    caplog.set_level(logging.INFO, "tcm_sync.pool")
    gate = Gate("manager", 1.0, 8.0, of="10.0.0.1:8000", level=logging.WARNING)
    for _ in range(5):
        gate.shut(CAUSE)
        probe(gate, clock)
    gate.open(reset_pause=False)  # it lets a probe in, and fails again
    gate.shut(CAUSE)
    probe(gate, clock)
    gate.open(reset_pause=False)
    gate.reset_pause()
    logged = [(record.levelname, record.getMessage()) for record in caplog.records]
    warnings = [text for level, text in logged if level == "WARNING"]
    assert warnings == ["manager gate shut at 10.0.0.1:8000: nobody there; the next try is in 1.000 s"]
    assert logged[-1] == (
        "INFO",
        "manager gate open again at 10.0.0.1:8000, it was shut for 31.000 s: nobody there",
    )
    gate.shut(CAUSE)  # another outage
    assert caplog.records[-1].levelname == "WARNING"


def test_a_probe_that_passed_by_silence_is_logged_too(clock, caplog):
    caplog.set_level(logging.INFO, "tcm_sync.pool")
    gate = Gate("test", 1.0, 8.0, refused_within=2.0)
    gate.shut(CAUSE)
    probe(gate, clock)
    clock.pass_(2.0)
    assert gate.wait(Deadline(0.0)) is False
    assert caplog.messages[-1] == "test gate open again, it was shut for 3.000 s: nobody there"


# --- the gate in front of a manager that cannot be reached ---


@pytest.mark.parametrize("jitter", [min, max])
def test_a_manager_is_probed_within_a_second_however_long_it_was_away(clock, monkeypatch, jitter):
    monkeypatch.setattr("tcm_sync._pool.gate.random.uniform", lambda low, high: jitter(low, high))
    gate = ManagerState("10.0.0.1:8000").manager_gate
    pauses = []
    for _ in range(50):
        gate.shut(CAUSE)
        pauses.append(probe(gate, clock))
    assert 0.1 <= min(pauses) < 0.2
    assert 0.6 < max(pauses) <= 1.0


def test_sixty_four_processes_knock_seldom_and_not_together(clock, monkeypatch):
    chance = random.Random(4711)
    monkeypatch.setattr("tcm_sync._pool.gate.random.uniform", chance.uniform)
    began = clock.now
    gates = [ManagerState("10.0.0.1:8000").manager_gate for _ in range(64)]
    for gate in gates:  # all lose the manager at once
        gate.shut(CAUSE)
    knocks = []
    while clock.now < began + 60.0:
        clock.now = min(gate._opens_at for gate in gates)
        gate = next(gate for gate in gates if gate._opens_at == clock.now)
        assert gate.try_pass() == 0.0
        knocks.append(clock.now)
        gate.shut(CAUSE)
    settled = [at for at in knocks if at >= began + 10.0]
    assert 64 * 50 <= len(settled) <= 64 * 50 * 1.5
    tenths = Counter(int(at * 10) for at in settled)
    assert max(tenths.values()) < 3 * len(settled) / 500  # three times their mean


def test_callers_that_wait_are_woken_by_the_end_of_a_probe(gate, monkeypatch):
    """At once, and not when they happen to look again."""
    monkeypatch.setattr("tcm_sync._pool.gate._AUDIT_INTERVAL", 3600.0)
    gate.shut(CAUSE, exactly=0.0)
    assert gate.try_pass() == 0.0
    passed = []
    waiter = threading.Thread(target=lambda: passed.append(gate.wait(Deadline(None))))
    waiter.start()
    while not gate._changed._waiters:
        assert waiter.is_alive()
    gate.end_probe()
    waiter.join(TIMEOUT)
    assert passed == [True]


def test_a_probe_is_over_when_whoever_made_it_is_gone(gate):
    gate.shut(CAUSE, exactly=0.0)
    prober = Prober()
    assert gate.try_pass(prober) == 0.0
    assert gate.try_pass() == math.inf
    del prober
    assert gate.try_pass() == 0.0


def test_a_gate_says_why_it_is_shut_and_nothing_while_it_is_open():
    gate = Gate("manager", 100.0, 100.0)
    assert gate.describe() is None
    gate.shut(ConnectFailedError("nobody there"))
    assert gate.describe().startswith("shut for 1")
    assert gate.describe().endswith(" s: nobody there")
    gate.open()
    assert gate.describe() is None


def test_a_pause_is_as_long_on_a_machine_that_has_just_begun(clock):
    clock.now = 0.25
    gate = Gate("test", 8.0, 8.0)
    gate.shut(CAUSE)
    assert gate.try_pass() == 8.0
    clock.pass_(7.0)
    assert gate.try_pass() == 1.0
