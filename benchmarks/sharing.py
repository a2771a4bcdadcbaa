"""What else decides how a manager is shared: the settings that the documentation advises, measured.

    python -m benchmarks sharing [--only pool,requests,hosts,replicas,batching] [--seconds 7]

As in `turns`, a paced `LocalManager` has a core of its own and all callers share another.

pool      pool_size 4, 5, 6, 8 and 16, for one process and eight, with an instant model and a slow one
requests  max_requests 500 and 2,000, on two hosts that share a manager (processes with other turns)
hosts     the same two hosts with five turns each, and with two and three
replicas  two managers behind one address, with five turns and ten
batching  four processes of 16 threads, with ``infer_sample`` and without: a call is a sample
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from callers import HAS_TURNS, Caller, run
from manager import local_manager
from runner import pin
from turns import OFF, ON, SHM, Bench, arguments, saved_with, summary, ways

SLOW_MANAGER = {"workers": 64}


def load(
    bench: Bench, name: str, way: str, callers: Sequence[Caller], manager: dict[str, Any], factor: int = 1
) -> None:
    """Measure a load for `factor` times the usual time, and print its figures."""
    seconds = factor * bench.seconds
    results = bench.call(callers, manager, [way] * len(callers), seconds)
    row = summary(results, seconds)
    bench.keep(name, way, dataclasses.asdict(row), row)


def pool(bench: Bench) -> None:
    """Measure sizes of the pool."""
    for model, manager in (("double", {}), ("slow", SLOW_MANAGER)):
        for processes, threads in ((1, 32), (8, 4)):
            for size in (4, 5, 6, 8, 16):
                callers = [Caller(threads, {"pool_size": size}, model)] * processes
                load(bench, f"{model} {processes}x{threads} pool {size}", ways()[-1], callers, manager)


def requests(bench: Bench) -> None:
    """Measure how long sockets may live, with and without other hosts."""
    for most in (500, 2000):
        two_hosts = [Caller(4, {"max_requests": most}, folder=f"host{number % 2}") for number in range(4)]
        load(bench, f"2 hosts, max_requests {most}", ways()[-1], two_hosts, {}, 5)


def hosts(bench: Bench) -> None:
    """Measure two hosts, each of which takes all turns of the manager, or its share."""
    if not HAS_TURNS:
        return
    for shares in ((5, 5), (2, 3)):
        two_hosts = [
            Caller(4, {"turns": shares[number % 2]}, folder=f"host{number % 2}") for number in range(4)
        ]
        load(bench, f"2 hosts, turns {shares[0]} and {shares[1]}", ON, two_hosts, {}, 3)


def replicas(bench: Bench) -> None:
    """Measure two managers behind one address."""
    settings: list[dict[str, Any]] = [{"turns": "off"}, {}, {"turns": 10}] if HAS_TURNS else [{}]
    for given in settings:
        name = f"2 replicas, turns {given.get('turns', 'auto')}"
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=SHM, prefix="benchmark_tcm_"))
            managers = [stack.enter_context(local_manager(bench.core)) for _ in range(2)]
            port = stack.enter_context(forwarder([manager.uri for manager in managers]))
            callers = [Caller(4, given, folder=f"{folder}/turns")] * 4
            results = run(f"ws://127.0.0.1:{port}/ws", managers[0].route, callers, bench.seconds)
        row = summary(results, bench.seconds)
        bench.keep(name, OFF if given.get("turns") == "off" else ON, dataclasses.asdict(row), row)


@contextmanager
def forwarder(uris: list[str]) -> Iterator[int]:
    """Run a TCP forwarder that gives each new connection to the next manager; yield its port."""
    context = get_context("spawn")
    near, far = context.Pipe()
    ports = [int(uri.rpartition(":")[2].partition("/")[0]) for uri in uris]
    process = context.Process(target=forward, args=(far, ports), daemon=True)
    process.start()
    try:
        yield near.recv()
    finally:
        process.kill()
        process.join()


def forward(parent: Connection, ports: list[int]) -> None:
    """Accept connections, and copy each to a manager and back, with a thread for each direction."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        parent.send(listener.getsockname()[1])
        for port in cycle(ports):
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for pair in ((near, far), (far, near)):
                pair[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=copy, args=pair, daemon=True).start()


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy to the end."""
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def batching(bench: Bench) -> None:
    """Measure batching in each of several processes."""
    for batching in (False, True):
        for way in ways():
            callers = [Caller(16, batching=batching)] * 4
            load(bench, f"4x16 {'with' if batching else 'without'} batching", way, callers, {})


CASES: dict[str, Callable[[Bench], None]] = {
    "pool": pool,
    "requests": requests,
    "hosts": hosts,
    "replicas": replicas,
    "batching": batching,
}


def main() -> int:
    """Measure the chosen cases, and print them."""
    options = arguments(list(CASES))
    logging.getLogger("tcm_sync").setLevel(logging.ERROR)  # it warns of large pools
    bench = Bench(options.seconds, pin())
    for name in options.only:
        CASES[name](bench)
    saved_with(bench, options.save)
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
