"""Leaving the line for a socket."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tcm_sync import TcmClient
from tcm_sync.local import LocalManager

from ..helpers.waiting import GUARD, wait_until


def test_who_is_interrupted_in_the_line_leaves_it_and_costs_no_socket():
    go_on = threading.Event()

    def gated(arrays):
        assert go_on.wait(GUARD)
        return arrays

    with (
        LocalManager({"gated": gated}, tick=0) as manager,
        TcmClient(manager.uri, route=manager.route, pool_size=1) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        first = threads.submit(client.infer, "gated", {"x": [1.0]})
        wait_until(lambda: manager.stats().running == 1, "the only socket is busy")
        line = client._core.runtime.pool.state.waiters

        def interrupt():
            wait_until(lambda: len(line) == 1, "it waits in the line")
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        interrupter = threads.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.infer("gated", {"x": [2.0]}, timeout=GUARD)
        interrupter.result()
        assert len(line) == 0
        go_on.set()
        assert first.result()["x"].item() == 1.0
        assert client.infer("gated", {"x": [3.0]})["x"].item() == 3.0
    assert manager.stats().connections == 1
