"""Counters: nothing is counted before it happened, and what live connections count is included."""

from __future__ import annotations

from types import SimpleNamespace

from tcm_sync._transport.counters import Counts, PoolCounts


def test_nothing_is_counted_before_it_happened():
    assert not any(PoolCounts().read(()).values())


def test_what_live_connections_count_is_added_to_what_removed_ones_did():
    counts = PoolCounts()
    counts.messages_sent, counts.bytes_sent = 10, 1000
    live = [SimpleNamespace(leased_at=at, messages_sent=2, bytes_sent=30) for at in (None, 0.0, 5.0)]
    read = counts.read(live)
    assert (read["sockets"], read["busy"]) == (3, 2)
    assert (read["messages_sent"], read["bytes_sent"]) == (16, 1090)


def test_waits_are_counted_one_by_one():
    counts, pool = Counts(), PoolCounts()
    counts.waited_at_gate(0.5)
    counts.waited_at_gate(0.25)
    counts.waited_for_turn(2.0)
    pool.waited(1.0)
    assert (counts.gate_waits, counts.gate_wait_seconds) == (2, 0.75)
    assert (counts.turn_waits, counts.turn_wait_seconds) == (1, 2.0)
    assert (pool.waits, pool.wait_seconds) == (1, 1.0)
