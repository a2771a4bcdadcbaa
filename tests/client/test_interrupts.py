"""KeyboardInterrupt at every moment at which it can come: nothing is lost, and no other call is affected.

The interpreter raises it in the main thread only, at the start of a function and after a call of one that is
written in C. A profile function does the same here, so that each such moment inside the client has its turn.
Moments inside the standard library are the interpreter's own affair, but for the first of each of its
functions that the client calls (`tests.helpers.interrupts`).

Each interrupt is kept, as a notebook keeps the last traceback: the frames in it hold what they held.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import math
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tcm_sync import ConnectFailedError, TcmClient
from tcm_sync._pool import pool_state
from tcm_sync._transport import reader

from ..helpers.interrupts import InterruptAt, each_moment
from ..helpers.waiting import GUARD, wait_until

SOCKETS = 2

# What is interrupted while it is made is closed by the garbage collector, which says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


_numbers = itertools.count(1)


def ask(client, model="echo", number=None):
    number = next(_numbers) if number is None else number
    result = client.infer(model, {"x": [number]}, timeout=GUARD)
    assert result["y" if model == "gated" else "x"].tolist() == [number]


@pytest.fixture
def manager(serve, monkeypatch):
    # Some of what an interrupt loses is found by looking for it, which tests need not wait for so long.
    monkeypatch.setattr(pool_state, "AUDIT_INTERVAL", 0.01)
    meeting = threading.Barrier(SOCKETS)

    def meet(arrays):
        """Answer once as many requests are under way as there are sockets."""
        meeting.wait(GUARD)
        return arrays

    return serve({"meet": meet}, workers=8)


def client_of(manager, **settings):
    return TcmClient(manager.uri, route=manager.route, **{"pool_size": SOCKETS, **settings})


def every_socket_is_of_use(client):
    with ThreadPoolExecutor(SOCKETS) as threads:
        for future in [threads.submit(ask, client, "meet") for _ in range(SOCKETS)]:
            future.result()


def in_line(client):
    return len(client._core.runtime.pool.state.waiters)


def test_the_first_call_of_a_client(manager):
    @contextlib.contextmanager
    def prepare():
        with client_of(manager) as client:
            yield partial(ask, client)
            every_socket_is_of_use(client)

    each_moment(prepare)


def test_a_call_on_an_open_socket(manager):
    with client_of(manager) as client:

        @contextlib.contextmanager
        def prepare():
            every_socket_is_of_use(client)
            yield partial(ask, client)

        each_moment(prepare)
        every_socket_is_of_use(client)


def rest(client):
    """Close the sockets of a client, and wait until its reader has ended."""
    runtime = client._core.runtime

    def is_suspended():
        for connection in list(runtime.pool.state.inventory.all.values()):  # one may just have been opened
            runtime.pool.expire(connection, "planned")
        return runtime.reader._suspended

    wait_until(is_suspended)
    return runtime


def test_the_first_call_after_a_rest(manager, monkeypatch, caplog):
    monkeypatch.setattr(reader, "_IDLE_SECONDS", 0.001)
    monkeypatch.setattr(pool_state, "AUDIT_INTERVAL", 0.001)
    with client_of(manager) as client:
        ask(client)

        @contextlib.contextmanager
        def prepare():
            runtime = rest(client)
            yield partial(ask, client)
            ask(client)
            assert client._core.runtime is runtime

        each_moment(prepare)
    assert "reader failed" not in caplog.text


def test_the_reader_ends_soon_after_its_last_socket_though_a_pool_waits_for_another_time(
    manager, monkeypatch
):
    monkeypatch.setattr(reader, "_IDLE_SECONDS", 0.001)
    monkeypatch.setattr(pool_state, "AUDIT_INTERVAL", 0.001)
    with client_of(manager) as client:
        ask(client)
        runtime = client._core.runtime
        # A pool is to be called back when the idle socket is too old, in minutes, and no sooner.
        wait_until(lambda: time.monotonic() + GUARD * 2 < runtime.reader._pools_due < math.inf)
        rest(client)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_handler_that_raises_while_the_reader_starts(manager, monkeypatch, caplog, kind, is_first):
    monkeypatch.setattr(reader, "_IDLE_SECONDS", 0.001)
    start_thread = reader.start_thread

    def handler(_number, _frame):
        raise kind("planned")

    def start(thread):
        start_thread(thread)
        handler(2, sys._getframe())

    client = client_of(manager)
    with contextlib.closing(client):
        if not is_first:
            ask(client)
            rest(client)
        monkeypatch.setattr(reader, "start_thread", start)
        with pytest.raises(kind, match="planned"):
            ask(client)
        monkeypatch.setattr(reader, "start_thread", start_thread)
        for _ in range(3):
            ask(client)
            rest(client)
    assert "reader failed" not in caplog.text


def talk(arrays):
    """Stream words that name their caller, and then the end."""
    yield from (f"{arrays['x'].flat[0]}-{number}" for number in range(3))
    yield None


def begin_talking(client, manager, number=0):
    route = manager.transient_route
    return client.stream(
        "talk",
        {"x": [number]},
        container_id=route.container_id,
        vm_ip=route.vm_ip,
        allow_transient=True,
        timeout=GUARD,
    )


def take(client, manager, *, leave=False):
    """Take a stream, whole or not; its chunks are its own."""
    number = next(_numbers)
    with begin_talking(client, manager, number) as chunks:
        for place, chunk in enumerate(chunks):
            assert chunk == f"{number}-{place}"
            if leave:
                return
    assert place == 2


@pytest.mark.parametrize("leave", [False, True])
def test_a_stream(serve, manager, leave):
    streaming = serve({"talk": talk, "meet": manager._models["meet"].run}, workers=8)
    with client_of(streaming) as client:

        @contextlib.contextmanager
        def prepare():
            yield partial(take, client, streaming, leave=leave)
            take(client, streaming)

        every_socket_is_of_use(client)
        each_moment(prepare, kept=False)  # the frames of whoever leaves a stream open have the stream itself
        every_socket_is_of_use(client)
        futures = client._core.runtime.reader.pending
        wait_until(lambda: not futures, "nothing is waited for any more")


def test_a_stream_that_is_being_opened(serve, manager):
    streaming = serve({"talk": talk}, workers=8)
    with client_of(streaming) as client:
        opened = []

        def begin():
            opened.append(begin_talking(client, streaming))

        @contextlib.contextmanager
        def prepare():
            yield begin
            while opened:
                opened.pop().close()
            take(client, streaming)

        each_moment(prepare)


def test_an_open_that_waits_for_a_socket(manager):
    with client_of(manager) as client:

        @contextlib.contextmanager
        def prepare():
            yield client.open
            every_socket_is_of_use(client)

        each_moment(prepare)


def test_a_call_that_tries_a_gate_which_was_shut(manager):
    """Whoever is interrupted as the one to try it leaves it to the next."""

    @contextlib.contextmanager
    def prepare():
        with client_of(manager) as client:
            client.open()
            pool = client._core.runtime.pool
            pool.state.manager_gate.shut(ConnectFailedError("as if"), exactly=0.0)
            for connection in list(pool.state.inventory.all.values()):
                pool.expire(connection, "as if")
            yield partial(ask, client)
            ask(client)

    each_moment(prepare)


FUTURES = str(Path(concurrent.futures.__file__).parent)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda client: client.ready(), id="ready"),
        pytest.param(lambda client: client.submit("echo", {"x": [1]}).result(GUARD), id="submit"),
        pytest.param(lambda client: list(client.map("echo", [{"x": [1]}] * 3)), id="map"),
        pytest.param(
            lambda client: list(client.map("echo", [{"x": [1]}] * 3, ordered=False)), id="map, not ordered"
        ),
    ],
)
def test_a_future_that_is_interrupted_leaves_no_thread_waiting(manager, use):
    kept = []
    for moment in itertools.count(1):
        interrupt = InterruptAt(moment, FUTURES)
        with client_of(manager) as client:
            with interrupt:
                use(client)
            kept.append(interrupt.kept)
            ask(client)
            assert client.ready().ok
        if not interrupt.struck:
            break
    assert moment > 5, "there was hardly anything to interrupt"


@pytest.mark.parametrize("ordered", [True, False])
def test_nothing_that_waits_is_sent_though_the_end_of_a_map_is_interrupted(manager, gated, ordered):
    firsts = itertools.count(0, 10)
    with client_of(manager) as client:

        @contextlib.contextmanager
        def prepare():
            first = next(firsts)
            results = client.map("gated", ({"x": [first + number]} for number in range(9)), ordered=ordered)
            gated.open(first)
            next(results)
            wait_until(lambda: manager.stats().running == SOCKETS, "two are under way, and four wait")
            before = manager.stats().executions["gated"]
            yield results.close
            results.close()
            for number in range(9):
                gated.open(first + number)
            wait_until(
                lambda: not any(each.name == "tcm-sync-worker" for each in threading.enumerate()),
                "the threads of the map have ended",
            )
            assert manager.stats().executions["gated"] - before <= SOCKETS

        each_moment(prepare)
