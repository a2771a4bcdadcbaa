"""The limit of requests under way: halved by a refusal, widened by answers."""

from __future__ import annotations

from time import monotonic
from types import SimpleNamespace

import pytest

from tcm_sync import BackpressureError
from tcm_sync._pool.concurrency_limit import ConcurrencyLimit

CAUSE = BackpressureError("full", code="BACKPRESSURE_QUEUE_FULL")


def leased(at=None):
    return SimpleNamespace(leased_at=monotonic() if at is None else at)


def refuse(limit, under_way):
    assert limit.lower(leased(), under_way, CAUSE)


def answer(limit, times):
    for _ in range(times):
        limit.count_reply(leased())


def test_it_is_no_limit_until_something_was_refused():
    limit = ConcurrencyLimit(8)
    answer(limit, 5)
    assert (limit.max_requests, limit.cause, limit.room(3)) == (None, None, 8)


@pytest.mark.parametrize(("under_way", "width"), [(8, 4), (5, 2), (2, 1), (1, 1), (0, 1)])
def test_a_refusal_leaves_half_of_what_was_under_way_and_at_least_one(under_way, width):
    limit = ConcurrencyLimit(8)
    refuse(limit, under_way)
    assert limit.max_requests == width
    assert [limit.room(n) for n in (0, width - 1, width, 8)] == [width, 1, 0, 0]


def test_the_refusals_of_one_burst_count_once():
    limit = ConcurrencyLimit(8)
    before = [leased() for _ in range(8)]
    assert limit.lower(before[0], 8, CAUSE)
    assert not any(limit.lower(each, 7, CAUSE) for each in before[1:])
    assert limit.max_requests == 4
    refuse(limit, 8)
    assert limit.max_requests == 2  # of the limit, and not of what was sent before it was narrowed


def test_answers_widen_it_slowly_until_it_is_forgotten():
    limit = ConcurrencyLimit(4)
    refuse(limit, 4)
    answer(limit, 16)
    assert limit.max_requests == 2
    answer(limit, 6)
    assert limit.max_requests == 3
    answer(limit, 30)
    assert (limit.max_requests, limit.cause) == (None, None)


def test_time_widens_it_by_one_where_answers_take_long():
    limit = ConcurrencyLimit(4)
    refuse(limit, 4)
    now = monotonic()
    limit.raise_after_quiet(now + 4.0)
    assert limit.max_requests == 2
    for seconds in (5.5, 6.0, 9.0):
        limit.raise_after_quiet(now + seconds)
        assert limit.max_requests == 3
    refuse(limit, 4)
    assert limit.max_requests == 1, "of three"
    limit.raise_after_quiet(monotonic() + 4.0)
    assert limit.max_requests == 1
    for seconds in (10.0, 20.0, 30.0):
        limit.raise_after_quiet(monotonic() + seconds)
    assert limit.max_requests is None


def test_answers_to_what_was_sent_before_the_refusal_prove_nothing():
    limit = ConcurrencyLimit(4)
    before = leased()
    refuse(limit, 4)
    for _ in range(1000):
        limit.count_reply(before)
    assert limit.max_requests == 2


def test_a_connection_that_is_in_no_lease_any_more_changes_nothing():
    limit = ConcurrencyLimit(4)
    assert not limit.lower(SimpleNamespace(leased_at=None), 4, CAUSE)
    refuse(limit, 4)
    for _ in range(1000):
        limit.count_reply(SimpleNamespace(leased_at=None))
    assert limit.max_requests == 2


def test_its_cause_is_a_copy_of_the_last_refusal():
    limit = ConcurrencyLimit(4)
    refuse(limit, 4)
    cause = limit.cause
    assert isinstance(cause, BackpressureError)
    assert cause is not CAUSE
    assert (cause.message, cause.code) == (CAUSE.message, CAUSE.code)
