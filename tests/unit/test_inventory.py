"""The books of a pool: ages and budgets of its connections."""

import contextlib
import socket
from time import monotonic
from types import SimpleNamespace

import pytest

from tcm_sync._pool.inventory import Inventory
from tcm_sync._pool.pool_limits import PoolLimits
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.frames import FrameDecoder
from tcm_sync.settings import Settings


class Holder(SimpleNamespace):
    """What holds a lease, as far as the books care."""


@pytest.fixture
def connections():
    """Connections over sockets of their own."""
    ends = []

    def make(count):
        made = []
        for number in range(count):
            one, other = socket.socketpair()
            ends.extend((one, other))
            made.append(Connection(one, f"u-{number}", frozenset(("json",)), FrameDecoder(100), []))
        return made

    yield make
    for end in ends:
        end.close()


def shelf_of(connections, **settings):
    settings = Settings("ws://h/ws", **settings)
    inventory = Inventory(settings, settings.pool_size)
    for connection in connections:
        inventory.add(connection)
    return inventory


def test_only_idle_connections_expire(connections):
    idle, lent = made = connections(2)
    inventory = shelf_of(made, max_idle=10.0, max_lifetime=20.0)
    holder = Holder()
    inventory.acquire(lent, holder)
    assert inventory.expired(monotonic() + 5.0) == []
    assert inventory.expired(monotonic() + 100.0) == [idle]
    assert inventory.remove(idle)
    assert list(inventory.all.values()) == [lent]
    inventory.release(lent, monotonic())
    assert inventory.expired(monotonic() + 100.0) == [lent]


def test_the_most_recently_used_is_chosen_and_in_turn_under_a_limit(connections):
    first, second, third = made = connections(3)
    inventory = shelf_of(made)
    assert inventory.choose() is third
    inventory.rate_limit = 2
    assert inventory.choose() is first
    now = monotonic()
    first.sent_at.extend((now, now))
    second.sent_at.append(now)
    assert inventory.choose() is second
    second.sent_at.append(now)
    third.sent_at.extend((now - 5.0, now - 4.0))
    assert inventory.choose() is third
    third.sent_at.extend((now, now))
    assert inventory.choose() is None
    assert now + 1.0 < inventory.next_budget() < now + 1.1


def test_whichever_is_leased_the_others_stay_idle(connections):
    first, second, third = made = connections(3)
    inventory, holder = shelf_of(made), Holder()
    inventory.acquire(second, holder)
    assert list(inventory.idle) == [first, third]
    inventory.acquire(third, holder)
    assert list(inventory.idle) == [first]


def test_a_limit_is_learned_from_what_was_sent_in_the_second_before_the_refusal(connections):
    (one,) = made = connections(1)
    inventory = shelf_of(made)
    now = monotonic()
    # Long ago by now: the refusal came late.
    one.sent_at.extend(now - 50.0 + 0.04 * number for number in range(21))
    assert inventory.learn_rate_limit(one) == 19
    assert inventory.learn_rate_limit(one) is None


def test_a_lease_that_was_collected_is_found(connections):
    one, other = made = connections(2)
    inventory = shelf_of(made)
    kept, lost = Holder(), Holder()
    inventory.acquire(one, kept)
    inventory.acquire(other, lost)
    assert inventory.lost_leases(monotonic() + 1.0) == []
    del lost
    assert inventory.lost_leases(monotonic() + 1.0) == [other]
    assert inventory.lost_leases(monotonic() - 60.0) == []
    assert kept.connection is one


def test_one_in_excess_is_retired_once_another_took_its_place(connections):
    old, *_ = made = connections(3)
    inventory = shelf_of(made, pool_size=2)
    assert inventory.replaced() is old
    assert inventory.remove(old)
    assert inventory.replaced() is None


def test_one_in_excess_is_retired_though_the_oldest_is_about_to_be_closed(connections):
    leaving, old, *_ = made = connections(4)
    inventory = shelf_of(made, pool_size=2)
    leaving.closing_reason = "worn out"
    assert inventory.replaced() is old
    assert inventory.remove(old)
    assert inventory.replaced() is None


def test_one_that_another_was_opened_for_is_retired_before_the_oldest(connections):
    _, worn, _ = made = connections(3)
    inventory = shelf_of(made, pool_size=3)
    worn.replacing = True
    assert inventory.replaced() is worn
    worn.closing_reason = "worn out"
    assert inventory.replaced() is None


def test_what_was_sent_in_the_second_before_a_refusal_counts_against_the_limit_of_a_tenant(connections):
    one, other = made = connections(2)
    inventory, refusals = shelf_of(made), []
    now = monotonic()
    one.sent_at.extend((now - 1.5, now - 0.9, now))  # the last one was refused
    other.sent_at.extend((now - 1.1, now - 0.5))
    state = SimpleNamespace(
        lock=contextlib.nullcontext(),
        inventory=inventory,
        tenant_rate=SimpleNamespace(lower=lambda *refusal: refusals.append(refusal)),
    )
    PoolLimits(state).learn_tenant_limit(one, "the refusal")
    assert refusals == [(now, 2, "the refusal")]


def test_what_the_last_sixteen_removed_connections_sent_is_still_counted(connections):
    made = connections(17)
    inventory = shelf_of(made, pool_size=17)
    now = monotonic()
    for connection in made:
        connection.sent_at.append(now)
        assert inventory.remove(connection)
    assert inventory.sent_since(now - 1.0) == 16
    assert inventory.sent_since(now) == 0


def test_the_limits_of_connections_differ_by_a_fifth_at_most_and_none_is_exceeded(connections):
    made = connections(20)
    shelf_of(made, max_requests=1000, max_lifetime=100.0)
    spreads = [connection.jitter for connection in made]
    assert len(set(spreads)) > 1
    for connection in made:
        assert 0.8 <= connection.jitter <= 1.0
        assert connection.max_requests == round(1000 * connection.jitter)
        assert connection.lifetime_ends_at == connection.opened_at + 100.0 * connection.jitter


def test_an_idle_connection_expires_after_its_share_of_the_longest_idleness(connections):
    (one,) = connections(1)
    inventory = shelf_of([one], max_idle=10.0, max_lifetime=1000.0)
    last = one.idle_since + 10.0 * one.jitter
    assert inventory.next_expiry(one.idle_since) == last
    assert inventory.expired(last - 0.001) == []
    assert inventory.expired(last) == [one]


def test_a_connection_that_was_checked_is_leased_again_once(connections):
    (one,) = connections(1)
    inventory = shelf_of([one])
    assert inventory.take_silent(monotonic() + 1.0) == [one]
    assert list(inventory.idle) == []
    assert inventory.passed_check(one)
    assert not inventory.passed_check(one)
    assert list(inventory.idle) == [one]
