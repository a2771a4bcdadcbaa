"""Streams of the client, through the whole of it, beside everything else that it does."""

from __future__ import annotations

import gc
import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import (
    CallTimeoutError,
    ClientClosedError,
    ConnectionLostError,
    InferenceError,
    PoolTimeoutError,
    StreamTimeoutError,
    TcmClient,
)
from tcm_sync._pool import pool_state

from ..helpers.waiting import GUARD, wait_until

_marks = itertools.count(1)


def words(arrays):
    """Stream the words of a text; END at its end is a response that holds no text."""
    for word in str(arrays["text"].flat[0]).split():
        yield None if word == "END" else word


def forever(arrays):
    """Stream marked numbers until the manager ends."""
    for number in itertools.count():
        yield f"{arrays['text'].flat[0]}-{number}"


@pytest.fixture(autouse=True)
def _no_audit(monkeypatch):
    """What is lost is to be found at once, and not by the pool's look at it every few seconds."""
    monkeypatch.setattr(pool_state, "AUDIT_INTERVAL", 100 * GUARD)


@pytest.fixture
def manager(serve):
    return serve({"words": words}, workers=16)


@pytest.fixture
def client_of():
    clients = []

    def make(manager, **settings):
        clients.append(TcmClient(manager.uri, route=manager.transient_route, timeout=GUARD, **settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def stream(client, text, model="words", **options):
    options.setdefault("timeout", GUARD)
    return client.stream(model, {"text": [text]}, allow_transient=True, **options)


def test_a_model_that_reports_its_end_completes(manager, client_of):
    with stream(client_of(manager), "to be or not END") as chunks:
        assert list(chunks) == ["to", "be", "or", "not"]
    assert chunks.ended_by == "completed"


def test_a_model_that_just_ends_runs_into_the_limit_of_the_manager(serve, client_of):
    chunks = stream(client_of(serve({"words": words}, stream_timeout=0.0)), "to be")
    with pytest.raises(StreamTimeoutError, match="idle_timeout=") as caught:
        list(chunks)
    assert caught.value.chunks == ("to", "be")
    assert chunks.ended_by == "failed"


def test_a_model_that_just_ends_is_over_after_silence(serve, client_of):
    manager = serve({"words": words}, stream_timeout=10 * GUARD)
    client = client_of(manager)
    chunks = stream(client, "to be", idle_timeout=GUARD, on_idle="end")
    assert [next(chunks), next(chunks)] == ["to", "be"]
    chunks._call._idle_timeout = 0.1
    assert list(chunks) == []
    assert chunks.ended_by == "idle"
    chunks = stream(client, "or not", idle_timeout=GUARD)
    assert [next(chunks), next(chunks)] == ["or", "not"]
    chunks._call._idle_timeout = 0.1
    with pytest.raises(CallTimeoutError, match="idle_timeout") as caught:
        next(chunks)
    assert caught.value.chunks == ("or", "not")
    assert client.infer("echo", {"x": [1]}, allow_transient=True)["x"].tolist() == [1]
    manager.kill()


def test_a_registered_server_does_not_stream(manager):
    with (
        TcmClient(manager.uri, route=manager.route) as client,
        pytest.raises(InferenceError, match="allow_transient=True"),
    ):
        client.stream("words", {"text": ["a"]})


def test_a_model_that_raises_fails_its_stream_with_the_chunks(serve, client_of):
    def breaks(arrays):
        yield "a"
        raise RuntimeError("model says no")

    chunks = stream(client_of(serve({"breaks": breaks}, stream_timeout=0.0)), "x", model="breaks")
    with pytest.raises(InferenceError, match="model says no") as caught:
        list(chunks)
    assert caught.value.chunks == ("a",)


def test_many_chunks_come_whole_and_in_order(serve, client_of):
    def count(arrays):
        yield from map(str, range(30_000))
        yield None

    chunks = stream(client_of(serve({"count": count})), "x", model="count")
    assert list(chunks) == [str(number) for number in range(30_000)]
    assert chunks.ended_by == "completed"


def test_a_client_that_closes_drains_its_streams_first(serve, client_of, gated):
    def held(arrays):
        yield "a"
        gated(arrays)
        yield "b"
        yield None

    client = client_of(serve({"held": held}))
    chunks = client.stream("held", {"x": [1]}, allow_transient=True, timeout=GUARD)
    assert next(chunks) == "a"
    with ThreadPoolExecutor(1) as thread:
        closing = thread.submit(client.close, GUARD)
        wait_until(lambda: _refuses(client), "new calls are refused")
        gated.open_all()
        assert list(chunks) == ["b"]
        closing.result(GUARD)
    assert chunks.ended_by == "completed"


def _refuses(client):
    try:
        client.infer("echo", {"x": [1]}, allow_transient=True)
    except ClientClosedError:
        return True
    return False


# --- many at once ---


def take_all(client, kept):
    """Take whole streams; every chunk must be of this very stream."""
    for _ in range(5):
        mark = next(_marks)
        text = " ".join(f"{mark}-{number}" for number in range(random.randint(1, 20)))
        kept.append(list(stream(client, f"{text} END")) == text.split())


def leave_early(client, kept):
    """Leave streams in each of the ways that there are."""
    for way in ("break", "block", "drop", "close"):
        mark = next(_marks)
        chunks = stream(client, str(mark), model="forever")
        seen = [next(chunks) for _ in range(random.randint(1, 50))]
        if way == "block":
            with chunks:
                seen += itertools.islice(chunks, 3)
        elif way == "close":
            chunks.close()
        del chunks
        kept.append(seen == [f"{mark}-{number}" for number in range(len(seen))])


def infer(client, kept):
    for _ in range(20):
        x = np.arange(next(_marks) * 4, dtype=np.int64)[-4:]
        kept.append(client.infer("echo", {"x": x}, allow_transient=True)["x"].tolist() == x.tolist())


def test_streams_and_calls_of_many_threads_never_mix(serve, client_of):
    """Sixteen threads on four sockets: whole streams, streams that are left, and plain calls."""
    over = threading.Event()

    def until_over(arrays):
        for number, text in enumerate(forever(arrays)):
            if over.is_set() or number > 500:
                return
            yield text

    manager = serve({"words": words, "forever": until_over}, workers=32)
    client = client_of(manager)
    kept: list[bool] = []
    jobs = [take_all, leave_early, infer, infer] * 4
    try:
        with ThreadPoolExecutor(len(jobs)) as threads:
            for job in [threads.submit(job, client, kept) for job in jobs]:
                job.result(3 * GUARD)
    finally:
        over.set()
    assert len(kept) == 4 * (5 + 4 + 40)
    assert all(kept)
    inventory = client._core.runtime.pool.state.inventory
    wait_until(lambda: not inventory.leased_since(), "every socket is back or closed")
    assert not client._core.runtime.reader.pending.claim_all()


def suspended(client):
    with stream(client, "to be or not END") as chunks:
        yield from chunks


def test_a_stream_may_be_collected_while_its_thread_holds_any_lock(manager, client_of):
    client = client_of(manager)
    runtime = client._core.runtime or client._core.running()
    for lock in (
        runtime.pool.state.lock,
        runtime.reader._waker_lock,
        runtime.manager_state.manager_gate._lock,
    ):
        chunks = stream(client, "to be or not END")
        assert next(chunks) == "to"
        with lock:
            del chunks
            gc.collect()
        kept = suspended(client)
        next(kept)
        with lock:
            del kept  # its with block closes the stream
            gc.collect()
        assert list(stream(client, "to be END")) == ["to", "be"]
    wait_until(lambda: not runtime.pool.state.inventory.leased_since(), "every socket is back or closed")


def test_streams_wait_for_streams_and_calls_do_not(serve, client_of):
    over = threading.Event()

    def talk(arrays):
        yield "a"
        over.wait(GUARD)
        yield None

    client = client_of(serve({"talk": talk}, workers=8), pool_size=3)
    opened = [stream(client, "x", model="talk") for _ in range(2)]
    with pytest.raises(PoolTimeoutError, match="Streams have at most 2 sockets"):
        stream(client, "x", model="talk", timeout=0.2)
    assert client.infer("echo", {"x": [5]}, allow_transient=True)["x"].tolist() == [5]
    over.set()
    assert [list(chunks) for chunks in opened] == [["a"], ["a"]]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_manager_that_ends_under_streams(serve, client_of, how):
    """Each stream is whole, or fails with the chunks so far; the next ones work with the next manager."""
    go_on = threading.Event()

    def halting(arrays):
        yield "a"
        go_on.wait(GUARD)
        yield from "bc"
        yield None

    manager = serve({"words": words, "halting": halting})
    client = client_of(manager)
    chunks = stream(client, "x", model="halting")
    assert next(chunks) == "a"
    with ThreadPoolExecutor(1) as thread:
        ending = thread.submit(getattr(manager, how))
        if how == "stop":  # it waits for what runs
            wait_until(lambda: manager._server is None or manager._server.core.draining, "it drains")
            go_on.set()
            assert list(chunks) == ["b", "c"]
            assert chunks.ended_by == "completed"
        else:
            with pytest.raises(ConnectionLostError) as caught:
                list(chunks)
            assert caught.value.chunks == ("a",)
            go_on.set()
        ending.result(GUARD)
    manager.start()
    assert list(stream(client, "to be END")) == ["to", "be"]
