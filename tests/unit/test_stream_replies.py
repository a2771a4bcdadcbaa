"""What hands a stream from the reader to its caller: nothing lost, nothing twice, in order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tcm_sync import ConnectionLostError
from tcm_sync._transport.replies import PendingReplies, Refusal, ReplyFuture, StreamReplies

GUARD = 30.0


@pytest.fixture
def replies():
    return StreamReplies(100)


def test_all_that_is_there_is_taken_at_once(replies):
    replies.resolve(b"ab")
    replies.resolve(b"c")
    assert replies.size == 3
    assert replies.take(0.0) == [b"ab", b"c"]
    assert replies.size == 0
    assert replies.take(0.0) == []


def test_a_refusal_comes_behind_what_was_there(replies):
    refusal = Refusal(ConnectionLostError("gone"))
    replies.resolve(b"a")
    replies.resolve(refusal)
    assert replies.take(None) == [b"a", refusal]


def test_a_refusal_in_place_of_everything_is_found(replies):
    assert replies.refusal(0.0) is None
    refusal = Refusal(ConnectionLostError("gone"))
    replies.resolve(refusal)
    assert replies.refusal(GUARD) is refusal


def test_who_waits_is_woken(replies):
    with ThreadPoolExecutor(1) as thread:
        taken = thread.submit(replies.take, GUARD)
        while not replies._waiting:
            pass
        replies.resolve(b"a")
        assert taken.result() == [b"a"]


def test_a_wait_that_ends_as_something_comes_loses_nothing(replies):
    """Timeouts of next to nothing against a thread that brings numbers."""
    count = 20_000
    over = threading.Event()

    def bring():
        for number in range(count):
            replies.resolve(b"%d" % number)
        over.set()

    taken = []
    with ThreadPoolExecutor(1) as thread:
        bringing = thread.submit(bring)
        while not over.is_set() or replies.size:
            taken += replies.take(1e-6)
        bringing.result()
    assert taken + replies.take(0.0) == [b"%d" % number for number in range(count)]
    assert not replies._waiting
    assert not replies._arrived.acquire(blocking=False), "a wake-up was left over"


def test_every_call_that_waits_is_claimed_once():
    first, second = ReplyFuture(), StreamReplies(10)
    pending = PendingReplies(a=first, b=second)
    assert pending.claim_all() == [first, second]
    assert pending.claim_all() == []
    assert pending == {}
