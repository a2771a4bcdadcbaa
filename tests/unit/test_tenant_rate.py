"""The rate of messages under a tenant's limit: lowered by each refusal, kept, and raised slowly."""

from __future__ import annotations

import heapq
import random

import pytest

from tcm_sync import BackpressureError
from tcm_sync._pool.tenant_rate import TenantRate
from tcm_sync.local.limits import TokenBucket

REFUSAL = BackpressureError("quota", code="BACKPRESSURE_TENANT_LIMIT_REACHED")


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("tcm_sync._pool.tenant_rate.monotonic", clock)
    return clock


@pytest.fixture
def limit(clock):
    return TenantRate()


def test_without_a_refusal_there_is_no_limit(limit):
    assert [limit.admit() for _ in range(1000)] == [0.0] * 1000
    assert (limit.active, limit.rate, limit.cause) == (False, None, None)


def test_a_refusal_leaves_four_fifths_of_what_was_accepted(limit, clock):
    assert limit.lower(clock.now, 30, REFUSAL) == pytest.approx(24.0)
    assert limit.rate == pytest.approx(24.0)
    assert str(limit.cause) == "quota"
    assert limit.cause is not REFUSAL


def test_messages_go_one_after_another(limit, clock):
    limit.lower(clock.now, 5, REFUSAL)  # 4 a second
    assert limit.admit() == pytest.approx(0.25)
    clock.now += 0.25
    assert [limit.admit(), limit.admit()] == [0.0, pytest.approx(0.25)]
    sent = 0
    for _ in range(1000):
        clock.now += 0.01
        sent += limit.admit() == 0.0
    assert sent == pytest.approx(40, abs=1)


def test_a_rest_saves_up_one_message_and_no_more(limit, clock):
    limit.lower(clock.now, 5, REFUSAL)
    clock.now += 10.0
    assert [limit.admit(), limit.admit()] == [0.0, 0.0]
    assert limit.admit() == pytest.approx(0.25)


def test_a_burst_of_refusals_lowers_it_once(limit, clock):
    sent_at = clock.now
    clock.now += 0.01
    limit.lower(sent_at, 30, REFUSAL)
    assert limit.lower(sent_at, 30, REFUSAL) is None
    assert limit.rate == pytest.approx(24.0)
    clock.now += 1.0
    assert limit.lower(clock.now, 24, REFUSAL) == pytest.approx(19.2)


def test_it_grows_slowly_after_a_rest_from_refusals(limit, clock):
    limit.lower(clock.now, 30, REFUSAL)
    clock.now += 30.0
    assert limit.rate == pytest.approx(24.0)
    clock.now += 25.0
    assert limit.rate == pytest.approx(30.0)


def test_a_rate_that_grew_unused_is_cut_to_what_was_used(limit, clock):
    limit.lower(clock.now, 30, REFUSAL)
    clock.now += 3600.0
    assert limit.lower(clock.now, 9, REFUSAL) == pytest.approx(8.0)


def test_a_process_whose_first_message_is_refused_may_send_one_soon_and_gets_its_share_in_time(limit, clock):
    assert limit.lower(clock.now, 0, REFUSAL) == pytest.approx(0.8)
    assert limit.admit() == pytest.approx(1.25)
    clock.now += 130.0
    assert limit.rate == pytest.approx(3.8)


def test_it_never_stops_altogether(limit, clock):
    for _ in range(100):
        clock.now += 0.1
        limit.lower(clock.now, 0, REFUSAL)
    assert limit.rate == pytest.approx(0.1)


@pytest.mark.parametrize(("processes", "most"), [(1, 5), (8, 40)])
def test_refusals_end_however_many_processes_share_the_limit(clock, processes, most):
    """Each of them would send as fast as it can: 100 messages a second, while the limit is 30 for all."""
    chance = random.Random(4711)
    bucket = TokenBucket(30, clock=clock)
    rates = [TenantRate() for _ in range(processes)]
    sent = [[] for _ in rates]
    turns = [(clock.now + chance.random(), number) for number in range(processes)]
    refused_at, began = [], clock.now
    while clock.now < began + 60.0:
        clock.now, number = heapq.heappop(turns)
        pause = rates[number].admit()
        if pause == 0.0:
            if bucket.admit():
                sent[number].append(clock.now)
            else:
                refused_at.append(clock.now)
                accepted = sum(at > clock.now - 1.0 for at in sent[number])
                rates[number].lower(clock.now, accepted, REFUSAL)
        heapq.heappush(turns, (clock.now + max(pause, 0.01), number))
    assert processes <= len(refused_at) <= most
    assert sum(at > began + 10.0 for at in refused_at) <= processes
    assert sum(map(len, sent)) > 0.7 * 30 * 60
