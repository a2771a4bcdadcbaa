"""The line of callers: who is next when streams may not begin, and who is failed."""

from __future__ import annotations

from math import inf

import pytest

from tcm_sync import ConnectFailedError
from tcm_sync._deadline import Deadline
from tcm_sync._pool.waiters import Waiter, WaitQueue

CAUSE = ConnectFailedError("nobody there")


class Lease:
    """What a waiter holds on to."""


def waiter(*, streaming=False, waits_for_manager=True, timeout=100.0):
    return Waiter(Lease(), Deadline(timeout), waits_for_manager=waits_for_manager, streaming=streaming)


@pytest.fixture
def line():
    return WaitQueue()


def test_who_came_first_is_next(line):
    first, second = waiter(streaming=True), waiter()
    line.append(first)
    line.append(second)
    assert line.next(1, 9) is first
    assert line.leave(first)
    assert not line.leave(first)
    assert line.next(1, 9) is second
    assert (len(line), second in line, first in line) == (1, True, False)


def test_a_stream_that_may_not_begin_lets_others_pass(line):
    stream, call = waiter(streaming=True), waiter()
    line.append(stream)
    assert line.next(0, 9) is None
    line.append(call)
    assert line.next(0, 9) is call
    assert line.next(-1, 9) is call
    assert line.next(1, 9) is stream


def test_a_call_that_may_not_begin_lets_streams_pass(line):
    call, stream = waiter(), waiter(streaming=True)
    line.append(call)
    assert line.next(1, 0) is None
    line.append(stream)
    assert line.next(1, 0) is stream
    assert line.next(0, 0) is None
    assert (line.count_servable(1, 0), line.count_servable(1, 1)) == (1, 2)


@pytest.mark.parametrize(("left", "servable"), [(-1, 2), (0, 2), (1, 3), (2, 4), (9, 5)])
def test_only_those_who_could_have_a_socket_count(line, left, servable):
    for streaming in (True, True, False, True, False):
        line.append(waiter(streaming=streaming))
    assert line.count_servable(left, 9) == servable


def test_the_newest_are_failed_and_the_others_wait_on(line):
    waiters = [waiter() for _ in range(3)]
    for each in waiters:
        line.append(each)
    line.fail_newest(2, CAUSE)
    assert [each.error is not None for each in waiters] == [False, True, True]
    assert line.next(1, 9) is waiters[0]
    assert waiters[1].error is not waiters[2].error
    assert waiters[1].resolved.acquire(timeout=0)


def test_who_cannot_wait_so_long_is_failed(line):
    waiting, hurried, impatient = waiter(), waiter(timeout=1.0), waiter(waits_for_manager=False)
    for each in (waiting, hurried, impatient):
        line.append(each)
    line.fail_short_waits(CAUSE, 5.0)
    assert [each.error is not None for each in (waiting, hurried, impatient)] == [False, True, True]
    line.fail_short_waits(CAUSE, inf)
    assert waiting.error is not None
    assert len(line) == 0
