"""How many bytes of a message a batch still has, as samples join and leave."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tcm_sync import BatchPolicy
from tcm_sync._calls.batching import Batcher
from tcm_sync._calls.samples import Sample
from tcm_sync._deadline import Deadline
from tcm_sync._reentry import Callers
from tcm_sync._tensors import check_call


@pytest.fixture
def batcher():
    core = SimpleNamespace(callers=Callers(), row_limits=SimpleNamespace(rows=lambda target, nbytes: None))
    options = SimpleNamespace(route=None, model_name="m")
    return Batcher(core, options, BatchPolicy(max_size=100))


def sample(text):
    return Sample(check_call({"x": [text]}, sample=True, infinities=True), Deadline(100.0))


def test_a_sample_adds_its_text_and_a_comma_for_each_input():
    assert sample("abc").size == len(b'["abc"]') + 1


def test_samples_fill_a_message_to_its_last_byte(batcher):
    first, second = sample("a"), sample("bc")
    batcher._join(first, first.size + second.size)
    batcher._join(second, first.size + second.size)
    assert first.batch is second.batch
    assert first.batch.room == 0


def test_a_sample_that_is_a_byte_too_long_begins_another_batch(batcher):
    first, second = sample("a"), sample("bc")
    batcher._join(first, first.size + second.size - 1)
    batcher._join(second, first.size + second.size - 1)
    assert first.batch.samples == [first]
    assert second.batch.samples == [second]
    assert (first.batch.open, second.batch.open) == (False, True)
    assert second.batch.room == first.size - 1


def test_who_leaves_gives_its_room_back(batcher):
    first, second, third = sample("a"), sample("bc"), sample("de")
    room = first.size + second.size
    batcher._join(first, room)
    batcher._join(second, room)
    batcher._leave(second)
    batcher._join(third, room)
    assert third.batch is first.batch
    assert first.batch.samples == [first, third]
    assert first.batch.room == 0


def test_the_next_leads_when_the_leader_leaves(batcher):
    first, second = sample("a"), sample("b")
    batcher._join(first, 1000)
    batcher._join(second, 1000)
    batcher._leave(first)
    assert second.batch.leader is second
    assert second.wakeup.acquire(timeout=0.0)
