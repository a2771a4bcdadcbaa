"""The pool under a scheduler that switches threads at its locks: what holds in every interleaving."""

from __future__ import annotations

import pytest

from tcm_sync._pool.lease import Lease
from tcm_sync._pool.pool import Pool
from tcm_sync._pool.waiters import WaitQueue

from ..helpers import pool_model


def test_an_opening_that_an_audit_gave_up_is_not_counted_twice():
    assert pool_model.run(range(5463, 5464))[0] == 1  # the count of openings fell below zero


def test_a_wait_shorter_than_the_resolution_of_the_clock_ends():
    assert pool_model.run(range(3338, 3339))[0] == 1  # it was repeated, and no time went by


def test_no_interleaving_breaks_a_rule():
    done, switches = pool_model.run(range(1, 1501))
    assert done == 1500
    assert switches > 100 * done


def leave_waiting(pool, waiter):
    """Forget a caller that was interrupted, as if it could never have been served."""


def serve_the_last(queue, streams_left, others_left):
    return queue[-1] if queue else None


def forget(lease, reason):
    lease._pool = None


@pytest.mark.parametrize(
    ("owner", "name", "bug"),
    [(Pool, "_leave", leave_waiting), (WaitQueue, "next", serve_the_last), (Lease, "discard", forget)],
    ids=["an interrupted caller stays in the queue", "the last is served first", "a socket is lost"],
)
def test_a_bug_breaks_a_rule(monkeypatch, owner, name, bug):
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises(AssertionError, match="the interleaving of seed"):
        pool_model.run(range(1, 1501))


def test_a_seed_repeats_its_interleaving():
    first, again = (pool_model.run(range(7, 27)) for _ in range(2))
    assert first == again
