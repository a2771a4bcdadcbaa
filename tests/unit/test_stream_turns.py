"""Streams take turns after a refusal, and not for ever: the server may have been replaced."""

from __future__ import annotations

import pytest

from tcm_sync import StreamBusyError
from tcm_sync import _ttl_cache as ttl_cache
from tcm_sync._deadline import Deadline
from tcm_sync._pool.stream_turns import StreamTurns


class Stream:
    def __init__(self):
        self.deadline = Deadline(0.0)


def test_streams_run_side_by_side_again_some_time_after_a_refusal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ttl_cache, "monotonic", lambda: now[0])
    turns, first, second = StreamTurns(), Stream(), Stream()
    turns.enter("c", first)
    turns.refused("c", StreamBusyError("one at a time"))
    with pytest.raises(StreamBusyError):
        turns.enter("c", second)
    now[0] += 601.0
    turns.enter("c", second)
    turns.leave("c", first)
    turns.leave("c", second)


def test_that_a_stream_was_collected_is_found_within_a_second(monkeypatch):
    turns, first, second = StreamTurns(), Stream(), Stream()
    turns.enter("c", first)
    turns.refused("c", StreamBusyError("one at a time"))
    second.deadline = Deadline(None)
    waits = []

    def wait(seconds):
        nonlocal first
        waits.append(seconds)
        first = None  # dropped without being closed

    monkeypatch.setattr(turns._changed, "wait", wait)
    turns.enter("c", second)
    assert waits == [1.0]


def test_a_stream_that_leaves_ends_no_other_streams_turn():
    turns, first, second, third = StreamTurns(), Stream(), Stream(), Stream()
    turns.enter("c", first)
    turns.enter("c", second)
    turns.refused("c", StreamBusyError("one at a time"))
    turns.leave("c", second)
    with pytest.raises(StreamBusyError):
        turns.enter("c", third)
    turns.leave("c", first)
    turns.enter("c", third)
