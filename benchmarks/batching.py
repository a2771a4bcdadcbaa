"""What client-side batching does against the manager's real scheduler.

    python benchmarks/batching.py [--seconds 5] [--threads 1 4 64]

A sample is 64 floats, the pool has its four sockets, the manager is a `LocalManager` with its real pacing
(five inferences every 10 ms) in a process of its own. For each number of threads it prints samples a
second, and how long a call takes, with batching and without, in one run. It ends with status 1 if an answer
was wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

from tcm_sync import BatchPolicy, TcmClient
from tcm_sync.local import LocalManager


def serve(ready: Connection) -> None:
    """Run the manager until the other end says so."""
    with LocalManager({"double": lambda inputs: {"y": inputs["x"] * 2}}) as manager:
        ready.send((manager.uri, manager.route))
        ready.recv()


def measure(ask: Callable[[np.ndarray], np.ndarray], threads: int, seconds: float) -> list[float]:
    """Ask in a closed loop from some threads; how long each call took, in seconds."""
    took: list[float] = []
    wrong: list[str] = []

    def loop(seed: int) -> None:
        random = np.random.default_rng(seed)
        while time.perf_counter() < ends:
            x = random.random(64, np.float32)
            started = time.perf_counter()
            y = ask(x)
            took.append(time.perf_counter() - started)
            if not np.array_equal(y, x * 2):
                wrong.append("a slice of somebody else's")

    ends = time.perf_counter() + seconds
    workers = [threading.Thread(target=loop, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if wrong:
        raise SystemExit(f"{len(wrong)} answers were wrong: {wrong[0]}")
    return took


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 64])
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    control, far = context.Pipe()
    manager = context.Process(target=serve, args=(far,))
    manager.start()
    uri, route = control.recv()
    with TcmClient(uri, route=route, timeout=60.0) as client:
        model = client.model("double", batch=BatchPolicy(), output_dtypes=np.float32)
        ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "without": lambda x: model.infer({"x": x[np.newaxis]})["y"][0],
            "with": lambda x: model.infer_sample({"x": x})["y"],
        }
        for ask in ways.values():
            measure(ask, 4, 0.5)
        print("threads  batching  samples/s   p50 ms   p99 ms")
        for threads in options.threads:
            rates = {}
            for name, ask in ways.items():
                took = measure(ask, threads, options.seconds)
                centiles = statistics.quantiles(took, n=100)
                rates[name] = len(took) / options.seconds
                p50, p99 = centiles[49] * 1e3, centiles[98] * 1e3
                print(f"{threads:7}  {name:8}  {rates[name]:9,.0f}  {p50:7.1f}  {p99:7.1f}")
            print(f"{'':7}  ratio     {rates['with'] / rates['without']:9.2f}")
    control.send("stop")
    manager.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
