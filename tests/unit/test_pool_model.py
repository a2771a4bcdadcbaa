"""The pool under a scheduler that switches threads at its locks: what holds in every interleaving."""

from __future__ import annotations

import pytest

from tcm_sync._pool.lease import Lease
from tcm_sync._pool.pool import Pool
from tcm_sync._pool.waiters import WaitQueue

from ..helpers import pool_model


@pytest.mark.parametrize(
    "seed",
    [
        2397,  # an audit gave up an opening that was late: the count of openings fell below zero
        10736,  # the oldest socket was about to be closed: one more in excess stayed
    ],
)
def test_an_interleaving_that_once_broke_a_rule_breaks_none(seed):
    assert pool_model.run(range(seed, seed + 1))[0] == 1


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
