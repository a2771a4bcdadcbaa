"""What is kept for a while: it ends by itself, and there is never more than a bound of it."""

from __future__ import annotations

import pytest

from tcm_sync import _ttl_cache as module
from tcm_sync._ttl_cache import TtlCache


@pytest.fixture
def now(monkeypatch):
    """The time, in a list for a test to change."""
    moment = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: moment[0])
    return moment


def test_a_value_is_kept_until_its_time_is_over(now):
    kept = TtlCache[str, bool](30.0)
    kept.put("a", False)
    now[0] += 29.9
    assert kept.get("a") is False
    assert "a" in kept
    now[0] += 0.1
    assert kept.get("a") is None
    assert len(kept) == 0


def test_a_value_that_is_put_again_is_kept_longer(now):
    kept = TtlCache[str, int](30.0)
    kept.put("a", 1)
    now[0] += 20.0
    kept.put("a", 2)
    now[0] += 20.0
    assert kept.get("a") == 2


def test_a_full_cache_is_emptied_and_an_entry_is_replaced(now):
    kept = TtlCache[int, int](30.0, 3)
    for number in range(3):
        kept.put(number, number)
    kept.put(2, 7)
    assert [kept.get(number) for number in range(3)] == [0, 1, 7]
    kept.put(3, 3)
    assert [kept.get(number) for number in range(4)] == [None, None, None, 3]
