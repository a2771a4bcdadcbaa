"""One budget of time, seen through a clock that the tests move."""

from __future__ import annotations

import pytest

from tcm_sync._deadline import Deadline


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr("tcm_sync._deadline.monotonic", lambda: Clock.now)
    return Clock


def test_time_runs_out(clock):
    deadline = Deadline(10.0)
    assert (deadline.remaining(), deadline.elapsed(), deadline.expired()) == (10.0, 0.0, False)
    clock.now += 9.5
    assert (deadline.remaining(), deadline.elapsed(), deadline.expired()) == (0.5, 9.5, False)
    clock.now += 0.5
    assert (deadline.remaining(), deadline.expired()) == (0.0, True)
    clock.now += 100.0
    assert (deadline.remaining(), deadline.elapsed(), deadline.expired()) == (0.0, 110.0, True)
    assert (deadline.timeout, deadline.started) == (10.0, 1000.0)


def test_none_is_no_limit(clock):
    deadline = Deadline(None)
    clock.now += 10**9
    assert (deadline.remaining(), deadline.elapsed(), deadline.expired()) == (None, 10.0**9, False)


def test_nothing_is_left_of_nothing(clock):
    assert (Deadline(0.0).remaining(), Deadline(0.0).expired()) == (0.0, True)


@pytest.mark.parametrize(
    ("timeout", "seconds", "left"),
    [(10.0, 3.0, 3.0), (10.0, 30.0, 8.0), (10.0, None, 8.0), (None, 3.0, 3.0), (None, None, None)],
)
def test_a_part_of_a_call_ends_no_later_than_the_call(clock, timeout, seconds, left):
    whole = Deadline(timeout)
    clock.now += 2.0
    part = whole.at_most(seconds)
    assert part.remaining() == left
    assert part.elapsed() == 0.0
    clock.now += 50.0
    assert part.expired() == (left is not None)


def test_it_shows_what_it_was_and_what_is_left(clock):
    assert repr(Deadline(2.5)) == "Deadline(2.5, remaining=2.5)"
    assert repr(Deadline(None)) == "Deadline(None, remaining=None)"


def test_the_real_clock_runs():
    deadline = Deadline(60.0)
    first = deadline.elapsed()
    while deadline.elapsed() == first:
        pass
    assert 0.0 < deadline.remaining() < 60.0
