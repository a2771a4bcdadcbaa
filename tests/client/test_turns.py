"""Calls and their turns to send: what takes one, how long, and what happens while a call waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import BackpressureError, ClientClosedError, PoolTimeoutError, RetryPolicy, TcmClient
from tcm_sync._pool import turns

from ..helpers.waiting import GUARD, wait_until

ONE = {"x": np.array([1.0])}
TWO = {"x": np.array([2.0])}


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def client(serve, client_of, monkeypatch):
    """A client of a manager, with one turn, which ends with the reply alone."""
    monkeypatch.setattr(turns, "LONG_AGE_NS", 10**15)
    return client_of(serve(), turns=1)


def waiting(client):
    (these,) = client._core.runtime.turns.by_tenant.values()
    return these.waiting()


@pytest.fixture
def held(client, gated, threads):
    """A call that has the only turn until the test opens its gate."""
    call = threads.submit(client.infer, "gated", ONE)
    wait_until(lambda: client.stats().messages_sent == 1, "the first call was sent")
    yield call
    gated.open_all()


def queue(client, threads, *args, **how):
    call = threads.submit(client.infer, *args, **how)
    wait_until(lambda: waiting(client) == 1, "the second call waits for its turn")
    return call


def test_a_second_call_waits_for_the_reply_of_the_first_and_is_counted(client, held, gated, threads):
    second = queue(client, threads, "echo", TWO)
    assert client.stats().messages_sent == 1
    gated.open(1.0)
    assert (held.result()["y"].item(), second.result()["x"].item()) == (1.0, 2.0)
    stats = client.stats()
    assert stats.turn_waits == 1
    assert 0 < stats.turn_wait_seconds < GUARD
    assert stats.turn_processes == 1
    assert "turns: 1 process; 1 time " in repr(stats)


def test_two_clients_of_one_process_share_their_turns(client, held, gated, threads):
    settings = client._core.settings
    other = TcmClient(settings.uri, route=settings.route, turns=1)
    with other:
        second = threads.submit(other.infer, "echo", TWO)
        wait_until(lambda: waiting(client) == 1, "the other client's call waits")
        gated.open(1.0)
        assert second.result()["x"].item() == 2.0


@pytest.mark.parametrize("how", [{"timeout": 0.05}, {"pool_timeout": 0.05}])
def test_a_call_that_gets_no_turn_in_time_was_not_sent(serve, client_of, gated, threads, monkeypatch, how):
    monkeypatch.setattr(turns, "LONG_AGE_NS", 10**15)
    monkeypatch.setattr(turns, "SHORT_AGE_NS", 10**15)  # of a model whose last reply was slow
    client = client_of(serve(), turns=1)
    first = threads.submit(client.infer, "gated", ONE)
    wait_until(lambda: client.stats().messages_sent == 1)
    second = queue(client, threads, "echo", TWO)  # a second connection is opened for it
    gated.open(1.0)
    first.result(), second.result()
    first = threads.submit(client.infer, "gated", {"x": np.array([3.0])})
    wait_until(lambda: client.stats().messages_sent == 3)
    if "pool_timeout" in how:
        client._core.runtime.turns._longest_wait = how["pool_timeout"]
    with pytest.raises(PoolTimeoutError, match="the callers of this process share 1 messages") as caught:
        client.infer("echo", TWO, **{k: v for k, v in how.items() if k == "timeout"})
    assert not caught.value.outcome_unknown
    gated.open(3.0)
    first.result()
    assert client.stats().messages_sent == 3
    assert client.infer("echo", TWO)["x"].item() == 2.0


def test_queries_and_probes_take_no_turn(client, held):
    assert client.queue_stats(timeout=GUARD).unfinished is not None
    assert client.health()


def test_a_stream_gives_its_turn_back_when_it_starts(client, talker):
    talker.hold_before = 1
    with client.stream(
        "llm",
        {"text": np.array(["a b EMPTY"], object)},
        idle_timeout=None,
        container_id="local-transient",
        allow_transient=True,
    ) as stream:
        assert next(stream) == "a"
        assert client.infer("echo", TWO)["x"].item() == 2.0
        talker.go_on()
        assert list(stream) == ["b"]


def test_a_gate_that_is_shut_meanwhile_is_waited_for_before_anything_is_sent(client, held, gated, threads):
    second = queue(client, threads, "echo", TWO, retry=RetryPolicy(attempts=1))
    gate = client._core.runtime.gates.backpressure
    gate.shut(BackpressureError("planted"), exactly=10.0)
    gated.open(1.0)
    held.result()
    wait_until(lambda: waiting(client) == 0, "it has left the queue of the turns")
    assert client.stats().messages_sent == 1
    gate.open()
    assert second.result().attempts == 1
    assert client.stats().messages_sent == 2


def test_a_socket_that_is_lost_meanwhile_is_replaced_and_costs_no_attempt(client, held, gated, threads):
    second = queue(client, threads, "echo", TWO, retry=RetryPolicy(attempts=1))
    idle = next(c for c in client._core.runtime.pool.state.inventory.all.values() if not c.messages_sent)
    idle.shut_down()
    wait_until(lambda: idle.closed, "the reader has noticed")
    gated.open(1.0)
    assert second.result().attempts == 1
    assert held.result()["y"].item() == 1.0


def test_closing_the_client_ends_the_wait(client, held, gated, threads):
    second = queue(client, threads, "echo", TWO)
    client.close()
    with pytest.raises(ClientClosedError) as caught:
        second.result()
    assert not caught.value.outcome_unknown
    with pytest.raises(ClientClosedError):
        held.result()


def test_without_turns_nobody_waits(serve, client_of, gated, threads):
    client = client_of(serve(), turns="off")
    first = threads.submit(client.infer, "gated", ONE)
    wait_until(lambda: client.stats().messages_sent == 1)
    for _ in range(20):
        assert client.infer("echo", TWO)["x"].item() == 2.0
    stats = client.stats()
    assert (stats.turn_waits, stats.turn_processes) == (0, 0)
    gated.open(1.0)
    first.result()


# --- processes ---

WORKER = """
    import sys, threading
    import numpy as np
    from tcm_sync import Route, TcmClient

    uri, container, address, number, calls, how = sys.argv[1:]
    number, calls, failures = int(number), int(calls), []
    client = TcmClient(uri, route=Route(container, address))
    client.infer("echo", {"x": np.array([0.0])})
    print("ready", flush=True)
    sys.stdin.readline()
    if how == "busy":
        threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()

    def work(thread):
        for call in range(calls):
            value = number * 1e6 + thread * 1e4 + call
            if client.infer("echo", {"x": np.array([value])}, timeout=60.0)["x"].item() != value:
                failures.append(value)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(len(failures), client.stats().calls, client.stats().turn_processes, flush=True)
    client.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="turns are shared on Linux")
@pytest.mark.parametrize("fate", ["none", "killed", "stopped", "busy"])
def test_processes_serve_all_their_calls_whatever_becomes_of_one(serve, fate):
    manager = serve(tick=0.002)
    where = [manager.uri, manager.route.container_id, manager.route.vm_ip]
    workers = []
    try:
        for number in range(3):
            how = "busy" if fate == "busy" and number == 0 else "plain"
            calls = 10**6 if number == 0 and fate in ("killed", "stopped") else 40
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-c", textwrap.dedent(WORKER), *where, str(number), str(calls), how],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go on\n")
            worker.stdin.flush()
        others = workers[1:]
        if fate in ("killed", "stopped"):
            wait_until(lambda: manager.stats().executions["echo"] > 30, "all are at work")
            os.kill(workers[0].pid, signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
        else:
            others = workers
        for worker in others:
            failures, calls, processes = map(int, worker.stdout.readline().split())
            assert (failures, calls) == (0, 121)
            assert processes >= 2
            assert worker.wait(GUARD) == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdin.close()
            worker.stdout.close()
