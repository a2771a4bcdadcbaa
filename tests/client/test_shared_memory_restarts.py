"""Shared memory when the manager ends and comes back: its segments are gone, and its keys are refused."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tcm_sync import ConnectionLostError, RetryPolicy
from tcm_sync.local.mapping import is_usable

from ..helpers.segments import total
from ..helpers.waiting import GUARD, end, wait_until, wait_until_all_go_on

pytestmark = pytest.mark.skipif(not is_usable(), reason="there is no /dev/shm here")

SIZE = 5000
HOW = pytest.mark.parametrize("how", ["stop", "kill"])


@pytest.fixture
def manager(serve):
    return serve({"sum": total})


def ask(client, fill=1.0, size=SIZE, **how):
    found = client.infer("sum", {"x": np.full(size, fill)}, **how)
    assert found["sum"].item() == fill * size


def keys(manager):
    return {key[1:] for key in manager.shared_memory.keys}


def restart(manager, how, client):
    end(manager, how, client)
    manager.start()


@HOW
def test_the_next_manager_is_sent_new_segments_alone(connect, manager, ours, how):
    client = connect(manager)
    before = set()
    for fill in range(5):
        ask(client, float(fill))
        ask(client, float(fill), 2 * SIZE)
        names = keys(manager)
        assert len(names) == 2
        assert names == ours()
        assert not names & before
        before |= names
        restart(manager, how, client)
    ask(client)
    stats = client.stats()
    assert (stats.shm_sends, stats.shm_declined, stats.failures) == (11, {}, {})
    assert stats.shm_segments == 1


@HOW
def test_what_the_manager_never_attached_is_retired_too(connect, manager, ours, how):
    """It cannot be known what it had attached."""
    client = connect(manager)
    ask(client)
    left = client._core.shm._arena.acquire(manager.route, 100, 0)
    client._core.shm._arena.release(left)
    restart(manager, how, client)
    assert left.name in ours()
    ask(client)
    assert left.name not in ours()
    assert ours() == keys(manager)


def test_a_manager_that_ends_with_no_socket_open_is_found_out_by_its_files(connect, manager, ours):
    """All sockets were closed for being idle, so that none was lost."""
    client = connect(manager)
    ask(client)
    before = ours()
    for connection in list(client._core.runtime.pool.state.inventory.all.values()):
        client._core.runtime.pool.expire(connection, "as if idle for long")
    restart(manager, "stop", client)
    ask(client, 2.0)
    assert client.stats().shm_sends == 2, "none was refused"
    assert not ours() & before


def test_a_key_that_triton_still_has_is_replaced(connect, manager, ours):
    """The manager died and could not unlink, and the client had no socket to lose."""
    client = connect(manager, retry=None)
    ask(client)
    before = ours()
    for connection in list(client._core.runtime.pool.state.inventory.all.values()):
        client._core.runtime.pool.expire(connection, "as if idle for long")
    memory = manager._server.shared_memory
    os.kill(memory._cleanup.pid, signal.SIGKILL)
    memory._cleanup.wait()
    restart(manager, "kill", client)
    assert ours() == before
    ask(client, 2.0)
    stats = client.stats()
    assert (stats.shm_sends, stats.shm_declined, stats.failures) == (3, {}, {}), "one was refused"
    assert not ours() & before
    assert ours() == keys(manager)


def test_a_killed_manager_takes_the_segments_of_what_was_under_way(connect, manager, gated, ours):
    client = connect(manager, retry=None)
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(client.infer, "gated", {"x": np.full(SIZE, 7.0)})
        wait_until(lambda: manager.stats().executions.get("gated"), "it runs")
        manager.kill()
        with pytest.raises(ConnectionLostError):
            call.result(GUARD)
    assert ours() == set()
    gated.open_all()
    manager.start()
    ask(client)
    assert len(ours()) == 1


@HOW
def test_pinned_bytes_are_counted_over_restarts_since_triton_runs_on(connect, manager, how):
    client = connect(manager)
    for _ in range(3):
        ask(client)
        restart(manager, how, client)
    assert client.stats().shm_pinned == 3 * 8 * SIZE


@HOW
def test_under_restarts_and_load_nothing_fails_and_each_has_its_own_sums(connect, serve, ours, how):
    manager = serve({"sum": total}, linger=0.05)
    policy = RetryPolicy() if how == "stop" else RetryPolicy(attempts=100)
    client = connect(manager, pool_size=3, retry=policy, timeout=3 * GUARD)
    numbers = itertools.count(1)
    over = threading.Event()
    done = [0] * 4

    def load(thread):
        own = client.empty_shared(SIZE, np.float64)
        while not over.is_set():
            number = next(numbers)
            ask(client, float(number), SIZE + number % 3)
            own[:] = number
            assert client.infer("sum", {"x": own})["sum"].item() == number * SIZE
            done[thread] += 1

    with ThreadPoolExecutor(4) as threads:
        loads = [threads.submit(load, thread) for thread in range(4)]
        try:
            for _ in range(6):
                wait_until_all_go_on(done, loads)
                getattr(manager, how)()
                manager.start()
            wait_until_all_go_on(done, loads)
        finally:
            over.set()
        for each in loads:
            each.result(3 * GUARD)
    stats = client.stats()
    assert stats.failures == {}
    assert stats.shm_sends >= 2 * sum(done) - sum(stats.shm_declined.values())
    assert len(ours()) == stats.shm_segments


def test_mappings_of_what_is_retired_are_let_go(connect, manager, ours):
    client = connect(manager)
    ask(client)
    [name] = ours()
    restart(manager, "stop", client)
    ask(client)
    assert name not in Path("/proc/self/maps").read_text()
