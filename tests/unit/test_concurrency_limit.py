"""The window of requests under way: halved by a refusal, widened by answers."""

from __future__ import annotations

from time import monotonic
from types import SimpleNamespace

import pytest

from tcm_sync import BackpressureError
from tcm_sync._pool.concurrency_limit import Window

CAUSE = BackpressureError("full", code="BACKPRESSURE_QUEUE_FULL")


def leased(at=None):
    return SimpleNamespace(leased_at=monotonic() if at is None else at)


def refuse(window, under_way):
    assert window.refused(leased(), under_way, CAUSE)


def answer(window, times):
    for _ in range(times):
        window.answered(leased())


def test_it_is_no_limit_until_something_was_refused():
    window = Window(8)
    answer(window, 5)
    assert (window.width, window.cause, window.left(3)) == (None, None, 8)


@pytest.mark.parametrize(("under_way", "width"), [(8, 4), (5, 2), (2, 1), (1, 1), (0, 1)])
def test_a_refusal_leaves_half_of_what_was_under_way_and_at_least_one(under_way, width):
    window = Window(8)
    refuse(window, under_way)
    assert window.width == width
    assert [window.left(n) for n in (0, width - 1, width, 8)] == [width, 1, 0, 0]


def test_the_refusals_of_one_burst_count_once():
    window = Window(8)
    before = [leased() for _ in range(8)]
    assert window.refused(before[0], 8, CAUSE)
    assert not any(window.refused(each, 7, CAUSE) for each in before[1:])
    assert window.width == 4
    refuse(window, 8)
    assert window.width == 2  # of the window, and not of what was sent before it was narrowed


def test_answers_widen_it_slowly_until_it_is_forgotten():
    window = Window(4)
    refuse(window, 4)
    answer(window, 16)
    assert window.width == 2
    answer(window, 6)
    assert window.width == 3
    answer(window, 30)
    assert (window.width, window.cause) == (None, None)


def test_time_widens_it_by_one_where_answers_take_long():
    window = Window(4)
    refuse(window, 4)
    now = monotonic()
    window.rested(now + 4.0)
    assert window.width == 2
    for seconds in (5.5, 6.0, 9.0):
        window.rested(now + seconds)
        assert window.width == 3
    refuse(window, 4)
    assert window.width == 1, "of three"
    window.rested(monotonic() + 4.0)
    assert window.width == 1
    for seconds in (10.0, 20.0, 30.0):
        window.rested(monotonic() + seconds)
    assert window.width is None


def test_answers_to_what_was_sent_before_the_refusal_prove_nothing():
    window = Window(4)
    before = leased()
    refuse(window, 4)
    for _ in range(1000):
        window.answered(before)
    assert window.width == 2


def test_a_connection_that_is_in_no_lease_any_more_changes_nothing():
    window = Window(4)
    assert not window.refused(SimpleNamespace(leased_at=None), 4, CAUSE)
    refuse(window, 4)
    for _ in range(1000):
        window.answered(SimpleNamespace(leased_at=None))
    assert window.width == 2


def test_its_cause_is_a_copy_of_the_last_refusal():
    window = Window(4)
    refuse(window, 4)
    cause = window.cause
    assert isinstance(cause, BackpressureError)
    assert cause is not CAUSE
    assert (cause.message, cause.code) == (CAUSE.message, CAUSE.code)
