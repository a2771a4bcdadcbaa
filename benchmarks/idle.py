"""The cost of 64 open sockets while no calls are made: processor time, and memory for each socket."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator

import bare
from memory import resident
from runner import Plan, Row, in_a_fresh_process, instant_server

from tcm_sync import TcmClient

SOCKETS = 64
WINDOW = 21.0  # seconds: in each of them, every socket is pinged once


def rows(plan: Plan) -> Iterator[Row]:
    """Measure processor time of one client over some periods, and memory of a fresh client in each round."""
    sockets = plan.size(SOCKETS, 8)
    with instant_server(plan) as port:
        uri = bare.address(port)
        window = 0.5 if plan.short else WINDOW
        shares = in_a_fresh_process(processor_shares, uri, sockets, plan.rounds, window)
        yield Row(
            "64 idle sockets: processor time, of one core",
            [100.0 * share for share in shares],
            most=0.1,
            unit=" %",
            detail=f"windows of {window:g} s, in which each socket is pinged once",
        )
        each = [in_a_fresh_process(bytes_a_socket, uri, sockets) for _ in range(plan.rounds)]
        yield Row(
            "64 idle sockets: resident memory a socket", [size / 1e3 for size in each], most=100, unit=" kB"
        )


def fill(client: TcmClient, sockets: int) -> None:
    """Call from so many threads until all sockets are open."""
    infer = bare.our_infer(client)
    filled = threading.Event()

    def call() -> None:
        while not filled.is_set():
            infer(bare.ARRAY)
            if client.stats().sockets >= sockets:
                filled.set()

    threads = [threading.Thread(target=call) for _ in range(sockets)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def processor_shares(uri: str, sockets: int, windows: int, seconds: float) -> list[float]:
    """Open the sockets and sleep; return the share of a core that this process used in each period."""
    logging.getLogger("tcm_sync").setLevel(logging.ERROR)  # it warns of such a pool
    shares = []
    with bare.our_client(uri, pool_size=sockets) as client:
        fill(client, sockets)
        for _ in range(windows):
            busy, start = time.process_time(), time.perf_counter()
            time.sleep(seconds)
            shares.append((time.process_time() - busy) / (time.perf_counter() - start))
        if client.stats().sockets != sockets:
            raise RuntimeError(f"not idle: {client.stats().sockets} sockets are left")
    return shares


def bytes_a_socket(uri: str, sockets: int) -> float:
    """Return how many bytes for each socket a process grows when a client opens many.

    The memory of the threads is not counted: as many have called before, through a client with one socket.
    """
    logging.getLogger("tcm_sync").setLevel(logging.ERROR)
    with bare.our_client(uri, pool_size=1) as one:
        one.infer(bare.MODEL, {"x": bare.ARRAY})
        threads = [threading.Thread(target=bare.our_infer(one), args=(bare.ARRAY,)) for _ in range(sockets)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        before = resident("VmRSS")
        with bare.our_client(uri, pool_size=sockets) as many:
            fill(many, sockets)
            gc.collect()
            return (resident("VmRSS") - before) / sockets
