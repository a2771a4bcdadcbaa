"""What a lease that is over can do to its connection, which somebody else may have by then: nothing."""

from __future__ import annotations

import gc
import weakref

import pytest

from tcm_sync._deadline import Deadline

from ..helpers.bare_pool import bare_pool


@pytest.fixture
def pool():
    """A pool of one, whose socket is there."""
    return bare_pool()


def lease_twice(pool):
    """Return a lease whose socket was taken back, as after an interrupt, and the next lease of it."""
    first = pool.acquire(Deadline(0.0))
    pool.release(first.connection, first, used=False)
    second = pool.acquire(Deadline(0.0))
    assert second.connection is first.connection
    return first, second


def is_leased_to(lease):
    return lease.connection.lease() is lease and lease.connection.leased_at is not None


def test_an_earlier_lease_releases_nothing(pool):
    first, second = lease_twice(pool)
    first.release()
    assert is_leased_to(second)
    assert list(pool.state.inventory.idle) == []
    assert second.connection.requests == 0


def test_an_earlier_lease_discards_nothing(pool):
    first, second = lease_twice(pool)
    first.discard("a reply was outstanding")
    assert is_leased_to(second)
    assert second.connection.closing_reason is None
    assert pool.reader.closed == []


def test_an_earlier_lease_discards_nothing_soon(pool):
    first, second = lease_twice(pool)
    first.discard_soon("its stream was left early")
    assert is_leased_to(second)
    assert pool.reader.closed == []


def test_an_earlier_lease_that_was_collected_discards_nothing(pool):
    first, second = lease_twice(pool)
    pool.discard_lost(first.connection, weakref.ref(first), "its lease was lost")
    assert is_leased_to(second)
    assert pool.reader.closed == []


def test_a_lease_is_released_once(pool):
    lease = pool.acquire(Deadline(0.0))
    lease.release()
    lease.release()
    lease.discard("the call was interrupted")
    assert lease.connection.requests == 1
    assert list(pool.state.inventory.idle) == [lease.connection]
    assert pool.reader.closed == []


def test_a_lease_is_discarded_once(pool):
    lease = pool.acquire(Deadline(0.0))
    lease.discard("the first reason")
    lease.discard("another one")
    lease.release()
    assert pool.reader.closed == [(lease.connection, "the first reason")]
    assert pool.state.inventory.all == {}


def test_what_a_lease_discards_soon_is_closed_by_the_reader(pool):
    lease = pool.acquire(Deadline(0.0))
    connection = lease.connection
    lease.discard_soon("its stream was left early")
    lease.release()
    assert pool.reader.closed == [(connection, "its stream was left early")]
    assert pool.state.inventory.all == {}


def test_a_forked_child_discards_nothing(pool):
    lease = pool.acquire(Deadline(0.0))
    pool.close_inherited()
    lease.discard("a child has no use for it")
    assert lease.connection.abandoned
    assert pool.reader.closed == []
    gc.collect()
