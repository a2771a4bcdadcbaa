"""Calls whose tensors go through shared memory: what arrives, and what becomes of the segments."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from tcm_sync import CallTimeoutError, ClientClosedError, ConnectionLostError, InferenceError, RetryPolicy
from tcm_sync._shm import arena as arenas
from tcm_sync.local import ModelFailure
from tcm_sync.local.mapping import is_usable

from ..helpers.peer_scripts import timing_out
from ..helpers.segments import total
from ..helpers.waiting import GUARD, wait_until

pytestmark = pytest.mark.skipif(not is_usable(), reason="there is no /dev/shm here")

SIZE = 10_000  # elements: of any datatype but the smallest it is worth sharing
_AT_ONCE = RetryPolicy(initial=0.0, maximum=0.0)


def weighted(arrays):
    """Sum each input, so that two that were exchanged show."""
    return {name: [int(np.sum(array, dtype=np.int64))] for name, array in arrays.items()}


@pytest.fixture
def models():
    return {"sum": total, "weighted": weighted}


@pytest.fixture
def manager(serve, models):
    return serve(models)


@pytest.fixture
def client(connect, manager):
    return connect(manager, retry=None)


def numbers(fill=1.0, size=SIZE, dtype=np.float64):
    return np.full(size, fill, dtype)


def ask(client, fill=1.0, size=SIZE, **how):
    """Send so many numbers, check that it is these that were summed, and say whether they were shared."""
    before = client.stats().shm_sends
    assert client.infer("sum", {"x": numbers(fill, size)}, **how)["sum"].item() == fill * size
    return client.stats().shm_sends - before


def keys(manager):
    """Return the names of the files that the manager has mapped."""
    return {key[1:] for key in manager.shared_memory.keys}


# --- what arrives ---


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"], ids=str
)
def test_each_datatype_arrives_as_it_was(connect, serve, dtype):
    got = []
    manager = serve({"keep": lambda arrays: got.append(arrays["x"].copy()) or {"n": [1]}})
    sent = np.random.default_rng(1).integers(0, 2, (3, 5, 7)).astype(dtype)
    client = connect(manager)
    client.infer("keep", {"x": sent}, transport="shm")
    assert client.stats().shm_sends == 1
    assert got[0].dtype == sent.dtype
    assert got[0].tolist() == sent.tolist()


def test_what_json_has_no_form_for_arrives_bit_by_bit(connect, serve):
    got = []
    manager = serve({"keep": lambda arrays: got.append(arrays["x"].tobytes()) or {"n": [1]}})
    sent = np.array([np.inf, -np.inf, np.nan, -0.0, 5e-324])
    connect(manager).infer("keep", {"x": sent})
    assert got == [sent.tobytes()]


def test_any_layout_arrives_in_order(client):
    table = np.arange(2 * SIZE, dtype=np.float64).reshape(2, SIZE)
    for view in (table.T, table[:, ::-3], np.asfortranarray(table), table.astype(">f8"), table[1:]):
        assert client.infer("sum", {"x": view})["sum"].item() == view.sum()
    assert client.stats().shm_sends == 5


def test_two_inputs_are_two_segments_also_when_they_are_one_array(client, manager):
    x = numbers(2, dtype=np.int64)
    for inputs in ({"a": x, "b": 3 * x}, {"a": x, "b": x}):
        found = client.infer("weighted", inputs)
        assert {name: array.item() for name, array in found.items()} == {
            name: array.sum() for name, array in inputs.items()
        }
    assert len(keys(manager)) == 2


def test_the_message_has_no_tensor_in_it(client):
    ask(client)
    before = client.stats().bytes_sent
    ask(client, size=10 * SIZE)
    assert client.stats().bytes_sent - before < 1000


def test_figures_tell_what_went_that_way(client):
    ask(client)
    ask(client)
    stats = client.stats()
    assert (stats.shm_sends, stats.shm_sent_bytes) == (2, 2 * 8 * SIZE)
    assert (stats.shm_segments, stats.shm_bytes, stats.shm_pinned) == (1, 8 * SIZE, 8 * SIZE)
    assert stats.shm_declined == {}
    assert "shared: 2 sends, 160 kB; 1 segments, 80 kB, 80 kB pinned" in repr(stats)
    client.stats(reset=True)
    stats = client.stats()
    assert (stats.shm_sends, stats.shm_segments, stats.shm_pinned) == (0, 1, 8 * SIZE)


# --- used again ---


def test_a_segment_is_used_again_and_its_new_contents_are_seen(client, manager, ours):
    for fill in range(10):
        assert ask(client, float(fill)) == 1
    assert keys(manager) == ours()
    assert len(ours()) == 1


def test_each_size_and_each_route_has_its_own(client, manager, ours):
    for _ in range(2):
        assert ask(client) == 1
        assert ask(client, size=SIZE + 1) == 1
        assert ask(client, vm_id="another") == 1
    assert len(ours()) == 3


def test_a_failure_before_anything_ran_costs_no_segment(connect, serve, gated, ours):
    """The queue is full: the refusal says that nobody reads the segment."""
    manager = serve({"sum": total}, workers=1, executor_queue_size=1, queue_size=1)
    client = connect(manager, pool_size=4, retry=RetryPolicy(initial=0.001, maximum=0.01))
    with ThreadPoolExecutor(4) as threads:
        held = threads.submit(client.infer, "gated", {"x": numbers(7.0)})
        wait_until(lambda: manager.stats().executions, "the first one runs")
        others = [threads.submit(client.infer, "sum", {"x": numbers(size=SIZE)}) for _ in range(3)]
        wait_until(lambda: manager.stats().waiting == 3, "the others wait")
        gated.open_all()
        held.result(GUARD)
        for other in others:
            assert other.result(GUARD)["sum"].item() == SIZE
    stats = client.stats()
    assert stats.repeats["BACKPRESSURE_EXECUTOR_FULL"] > 0
    assert stats.shm_pinned == len(ours()) * 8 * SIZE, "none was unlinked"


# --- never used again ---


def hold(client, gated_value=7.0, **how):
    """Ask for what is not answered until the gate is opened."""
    return client.infer("gated", {"x": numbers(gated_value)}, **how)


def in_flight(manager, count=1):
    """Wait until so many have been given to the model, which has their segments by then."""
    wait_until(lambda: manager.stats().executions.get("gated") == count, "it runs")


def is_not_used_again(client, manager, before):
    """Whether the segments that were mapped are never named again, and their files are gone."""
    assert before
    for fill in range(3):
        assert ask(client, float(fill)) == 1
    used = keys(manager) - before
    assert len(used) == 1
    return True


def test_after_a_timeout_it_is_unlinked_and_not_written_to(client, manager, gated, ours):
    client.open()
    with pytest.raises(CallTimeoutError), timing_out(lambda: manager.stats().executions.get("gated")):
        hold(client)
    assert ours() == set()
    before = keys(manager)
    assert is_not_used_again(client, manager, before)


def test_what_the_model_of_a_call_that_timed_out_still_reads_is_not_changed(connect, serve, ours):
    go_on, entered = threading.Event(), threading.Event()
    seen = []

    def slow(arrays):
        entered.set()
        assert go_on.wait(GUARD)
        seen.append(set(arrays["x"].tolist()))
        return {"n": [1]}

    manager = serve({"slow": slow, "sum": total})
    client = connect(manager, retry=None).open()
    try:
        with pytest.raises(CallTimeoutError), timing_out(entered.is_set):
            client.infer("slow", {"x": numbers(7.0)})
        for fill in range(5):
            ask(client, float(fill))
    finally:
        go_on.set()
    wait_until(lambda: seen, "it has looked")
    assert seen == [{7.0}]


def test_after_a_lost_connection(client, manager, gated, ours):
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(hold, client)
        in_flight(manager)
        before = keys(manager)
        [connection] = client._core.runtime.pool.state.inventory.all.values()
        connection.shut_down()
        with pytest.raises(ConnectionLostError):
            call.result(GUARD)
    assert ours() == set()
    assert is_not_used_again(client, manager, before)


def test_a_repeat_after_a_lost_connection_has_a_segment_of_its_own(connect, manager, gated):
    client = connect(manager, retry=_AT_ONCE)
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(hold, client)
        in_flight(manager)
        before = keys(manager)
        [connection] = client._core.runtime.pool.state.inventory.all.values()
        connection.shut_down()
        in_flight(manager, 2)
        assert len(keys(manager) - before) == 1
        gated.open(7.0)
        assert call.result(GUARD)["y"].sum() == 7.0 * SIZE


def test_after_a_failed_reply(connect, serve, ours):
    def fail(arrays):
        raise ModelFailure("TRITON_INFERENCE_FAILED", "no")

    manager = serve({"fail": fail, "sum": total})
    client = connect(manager)
    with pytest.raises(InferenceError):
        client.infer("fail", {"x": numbers()})
    assert ours() == set()
    assert is_not_used_again(client, manager, keys(manager))


def test_a_repeat_after_a_failed_reply_has_a_segment_of_its_own(connect, serve, ours):
    failures = iter([ModelFailure("TRITON_TIMEOUT", "late"), None])

    def fail_once(arrays):
        if failure := next(failures):
            raise failure
        return total(arrays)

    manager = serve({"sum": fail_once})
    client = connect(manager, retry=_AT_ONCE)
    assert client.infer("sum", {"x": numbers()})["sum"].item() == SIZE
    assert len(keys(manager)) == 2
    assert len(ours()) == 1


def test_after_a_keyboard_interrupt(client, manager, gated, ours, monkeypatch):
    """As it comes in the main thread while it waits."""
    from tcm_sync._pool.call import Call

    def interrupted(call, future):
        in_flight(manager)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Call, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hold(client)
    assert ours() == set()
    assert is_not_used_again(client, manager, keys(manager))


def test_after_the_client_was_closed_in_the_middle(client, manager, gated, ours):
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(hold, client)
        in_flight(manager)
        client.close()
        with pytest.raises(ClientClosedError):
            call.result(GUARD)
    assert ours() == set()


def test_a_map_that_is_left_early_leaves_no_segment_acquired(connect, manager, gated, ours):
    client = connect(manager, pool_size=2)
    results = client.map("gated", ({"x": numbers(float(n))} for n in range(50)), concurrency=2)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(next, results, None)
        in_flight(manager, 2)
        gated.open_all()
        assert first.result(GUARD) is not None
    results.close()
    wait_until(lambda: not client.stats().busy, "what was under way has ended")
    wait_until(lambda: len(ours()) == client.stats().shm_segments, "and nothing is lent")
    arena = client._core.shm._arena
    wait_until(lambda: len(arena._idle) == len(ours()), "all that there are are idle")


# --- later ---


def test_arrays_may_be_changed_after_submit(connect, manager, gated):
    client = connect(manager, pool_size=1)
    x = numbers(7.0)
    first = client.submit("gated", {"x": x})
    second = client.submit("sum", {"x": x})
    x[:] = 0.0
    gated.open_all()
    assert first.result(GUARD)["y"].sum() == 7.0 * SIZE
    assert second.result(GUARD)["sum"].item() == 7.0 * SIZE
    assert client.stats().shm_sends == 2


def test_arrays_may_be_changed_while_a_map_continues(connect, manager):
    client = connect(manager, pool_size=2)
    x = numbers()

    def frames():
        for fill in range(20):
            x[:] = fill
            yield {"x": x}

    sums = [result["sum"].item() for result in client.map("sum", frames(), transport="shm")]
    assert sums == [fill * SIZE for fill in range(20)]
    assert client.stats().shm_sends == 20


def test_an_array_of_shared_memory_may_be_changed_after_submit(connect, manager, gated):
    client = connect(manager, pool_size=1)
    x = client.empty_shared(SIZE, np.float64)
    x[:] = 7.0
    held = client.submit("gated", {"x": x})
    asked = client.submit("sum", {"x": x})
    x[:] = 0.0
    gated.open_all()
    assert held.result(GUARD)["y"].sum() == 7.0 * SIZE
    assert asked.result(GUARD)["sum"].item() == 7.0 * SIZE


def test_a_submitted_call_that_was_cancelled_before_its_turn_makes_no_segment(connect, manager, gated, ours):
    client = connect(manager, pool_size=1)
    running = client.submit("gated", {"x": numbers(7.0)})
    in_flight(manager)
    waiting = client.submit("sum", {"x": numbers()})
    assert waiting.cancel()
    gated.open_all()
    running.result(GUARD)
    assert len(keys(manager)) == 1


# --- many threads ---


def test_each_thread_gets_its_own_sums_under_reuse(connect, serve, ours, monkeypatch):
    """Sizes are few, so that segments go from hand to hand, and some calls fail or time out on the way."""
    monkeypatch.setattr(arenas, "_MAX_IDLE", 3)

    def sometimes(arrays):
        found = weighted(arrays)
        if found["x"][0] % 11 == 0:
            raise ModelFailure("TRITON_INFERENCE_FAILED", "no")
        return found

    manager = serve({"sum": sometimes}, workers=4)
    client = connect(manager, pool_size=4, retry=None)
    counted = SimpleNamespace(good=0, failed=0)

    def work(thread):
        random = np.random.default_rng(thread)
        for number in range(100):
            x = random.integers(0, 1000, SIZE + 8 * int(random.integers(3)))
            with contextlib.suppress(InferenceError):
                found = client.infer("sum", {"x": x}, transport="shm")["x"].item()
                assert found == x.sum(), f"thread {thread}, call {number}"
                counted.good += 1
                continue
            assert x.sum() % 11 == 0
            counted.failed += 1

    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(work, thread) for thread in range(4)]:
            future.result(10 * GUARD)
    assert counted.failed > 5
    assert len(ours()) == client.stats().shm_segments <= 3
