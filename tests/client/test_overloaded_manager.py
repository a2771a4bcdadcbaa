"""A manager that has too much to do: the refused messages stay a fraction of the answered ones."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from tcm_sync import RetryPolicy, TcmClient
from tcm_sync.local import ModelFailure

from ..helpers.waiting import GUARD

THREADS, CALLS = 16, 12


def slow(arrays):
    time.sleep(0.002)  # work, and no synchronisation
    return arrays


def everybody(call):
    """Have many threads make calls, and return their answers."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(call, range(THREADS * CALLS)))


def test_sixteen_sockets_against_a_queue_of_four(serve):
    manager = serve({"slow": slow}, workers=1, executor_queue_size=4, tick=0.01, quantum=16)
    with TcmClient(manager.uri, route=manager.route, pool_size=16, timeout=GUARD) as client:

        def call(number):
            return client.infer("slow", {"x": [number]})["x"].tolist()

        assert everybody(call) == [[number] for number in range(THREADS * CALLS)]
    stats = manager.stats()
    sends = stats.messages / (THREADS * CALLS)
    assert stats.nacks["BACKPRESSURE_EXECUTOR_FULL"] > 0, "nothing was refused: this tests nothing"
    assert sends < 1.5


def test_a_circuit_that_opens_under_a_hundred_threads_is_asked_by_few(serve):
    opens, lock, sick = threading.Event(), threading.Lock(), [12]

    def model(arrays):
        if opens.is_set():
            with lock:
                sick[0] -= 1
                if sick[0] >= 0:
                    raise ModelFailure("TRITON_CIRCUIT_OPEN", "open", retry_after_seconds=0.2)
        return arrays

    manager = serve({"sick": model})
    enough = RetryPolicy(attempts=1 + sick[0])  # one call may meet every refusal
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD, retry=enough) as client:
        client.infer("sick", {"x": [0]})
        opens.set()
        with ThreadPoolExecutor(100) as threads:
            answers = list(threads.map(lambda n: client.infer("sick", {"x": [n]})["x"][0], range(400)))
    assert answers == list(range(400))
    assert manager.stats().messages <= 401 + 12 + 8, "more were sent than a probe at a time"
