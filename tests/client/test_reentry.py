"""Calls inside calls, as signal handlers, finalizers and log handlers make them: refused at once, or good."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading

import numpy as np
import pytest

from tcm_sync import BatchPolicy, ClientClosedError, ClientStats, ReentrantCallError
from tcm_sync._pool import pool_state
from tcm_sync._transport import reader

from ..helpers.interrupts import Moments
from ..helpers.waiting import GUARD, wait_until

SHARED = np.arange(8192.0)


def refused_or(work):
    """Return what some work returns, or None where it is refused."""
    try:
        return work()
    except ReentrantCallError:
        return None


def uses(client, model):
    return {
        "infer": lambda: client.infer("echo", {"x": [7]})["x"].tolist() == [7],
        "shared": lambda: np.array_equal(client.infer("echo", {"x": SHARED}, transport="shm")["x"], SHARED),
        "submit": lambda: client.submit("echo", {"x": [7]}).result(GUARD)["x"].tolist() == [7],
        "map": lambda: [one["x"].tolist() for one in client.map("echo", [{"x": [7]}])] == [[7]],
        "infer_sample": lambda: model.infer_sample({"x": [7]})["x"].tolist() == [7],
        "submit_sample": lambda: model.submit_sample({"x": [7]}).result(GUARD)["x"].tolist() == [7],
        "open": lambda: client.open() is client,
        "empty_shared": lambda: client.empty_shared(4, "f4").tolist() == [0.0] * 4,
        "explain": lambda: client.explain({"x": SHARED}, transport="shm").startswith("through shared memory"),
        "queue_stats": lambda: client.queue_stats() is not None,
    }


@pytest.mark.parametrize(
    "outer",
    [
        "infer",
        "shared",
        "submit",
        "map",
        "infer_sample",
        "submit_sample",
        "open",
        "empty_shared",
        "queue_stats",
    ],
)
def test_a_handler_at_every_moment_of_a_call_is_answered_or_refused_and_the_call_is_good(
    serve, connect, outer
):
    client = connect(serve(workers=8), pool_size=1, timeout=None)  # a call that waits here never returns
    model = client.model("echo", container_id="local", batch=BatchPolicy(max_size=4, max_wait=0.0))
    calls = uses(client, model)
    inner = itertools.cycle(calls.values())
    outcomes = []

    def handler(_):
        assert isinstance(client.stats(), ClientStats)
        assert repr(client).startswith("<TcmClient")
        outcomes.append(refused_or(next(inner)))

    for _ in range(2):  # the first starts what calls run on
        with Moments(handler) as every:
            assert calls[outer]()
    assert every.number > 20
    assert set(outcomes) == {None, True}
    assert all(refused_or(call) for call in calls.values())


def test_closing_in_a_handler_ends_the_call_that_it_interrupted_at_every_moment(serve, connect):
    manager = serve(workers=8)
    for moment in itertools.count(1):
        client = connect(manager, pool_size=1, timeout=None)

        def handler(number, client=client, moment=moment):
            if number == moment:
                client.close()

        with Moments(handler) as every, contextlib.suppress(ClientClosedError):
            assert client.infer("echo", {"x": [7]})["x"].tolist() == [7]
        if every.number < moment:
            client.close()
        with pytest.raises(ClientClosedError):
            client.infer("echo", {"x": [7]})
        client.close()
        if every.number < moment:
            break
    assert moment > 20


def test_closing_in_a_handler_before_a_reader_that_rests_is_started_again_ends_everything(
    serve, connect, monkeypatch
):
    monkeypatch.setattr(reader, "_IDLE_SECONDS", 0.001)
    monkeypatch.setattr(pool_state, "AUDIT_INTERVAL", 0.01)
    manager = serve(workers=8)
    for moment in itertools.count(1):
        client = connect(manager, pool_size=1, timeout=None)
        assert client.infer("echo", {"x": SHARED}, transport="shm")["x"].shape == SHARED.shape
        runtime = client._core.runtime
        (connection,) = runtime.pool.state.inventory.all.values()  # pool_size=1
        runtime.pool.expire(connection, "planned")
        wait_until(lambda runtime=runtime: runtime.reader._suspended)

        def handler(number, client=client, moment=moment):
            if number == moment:
                client.close()

        with Moments(handler) as every, contextlib.suppress(ClientClosedError):
            client._core.background()
        is_over = every.number < moment
        if is_over:
            client.close()
        wait_until(runtime.turns.closed.is_set)
        wait_until(lambda client=client: client.stats().shm_segments == 0)
        if is_over:
            break
    assert moment > 5


def test_thousands_of_signals_while_calls_are_made(serve, connect):
    client = connect(serve(workers=8), pool_size=1, timeout=None)
    outcomes = []

    def handler(number, frame):
        assert client.stats().calls >= 0
        assert repr(client)
        outcomes.append(refused_or(lambda: client.infer("echo", {"x": [0]})["x"].tolist() == [0]))

    before = signal.signal(signal.SIGUSR1, handler)
    over = threading.Event()
    main = threading.get_ident()

    def send():
        while not over.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)
            over.wait(0.0005)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        number = 0
        while len(outcomes) < 2000:
            number += 1
            assert client.infer("echo", {"x": [number]})["x"].tolist() == [number]
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert set(outcomes) <= {None, True}


def test_a_mark_that_an_interrupt_left_behind_refuses_nobody(serve, connect):
    client = connect(serve())
    client._core.callers.add(threading.get_ident())
    assert client.infer("echo", {"x": [7]})["x"].tolist() == [7]
    assert not client._core.callers & {threading.get_ident()}
