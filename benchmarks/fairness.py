"""Whether processes that share a manager get equal service.

    python -m benchmarks fairness [--seconds 60] [--processes 4] [--threads 4] [--max-requests 500 1000000000]

Each process has one client with its default settings, used by a few threads in a closed loop, against a
`LocalManager` with the real scheduler (five inferences every 10 ms, the oldest uuids first) in a process of
its own. It prints the number of answers of each process and how long calls took, once with sockets that are
replaced after 500 requests and once with sockets that are never replaced. It ends with status 1 if an answer
was wrong or a call failed while sockets were replaced.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import threading
import time
from multiprocessing.connection import Connection

import numpy as np
from manager import local_manager

from tcm_sync import Route, TcmClient

NEVER = 10**9


def work(uri: str, route: Route, threads: int, seconds: float, max_requests: int, report: Connection) -> None:
    """Call in a closed loop from some threads; report how long each call took, and the errors."""
    elapsed: list[float] = []
    wrong: list[str] = []

    def loop(client: TcmClient, seed: int) -> None:
        random = np.random.default_rng(seed)
        while time.monotonic() < ends:
            x = random.integers(0, 2**40, (1, 4))
            started = time.monotonic()
            try:
                y = client.infer("double", {"x": x}, output_dtypes=np.int64)["y"]
            except Exception as error:  # noqa: BLE001 - it is what is measured
                wrong.append(repr(error))
                continue
            elapsed.append(time.monotonic() - started)
            if not np.array_equal(y, x * 2):
                wrong.append(f"{y} is not twice {x}")

    with TcmClient(uri, route=route, max_requests=max_requests) as client:
        ends = time.monotonic() + seconds
        loops = [threading.Thread(target=loop, args=(client, seed)) for seed in range(threads)]
        for thread in loops:
            thread.start()
        for thread in loops:
            thread.join()
    report.send((elapsed, wrong))


def main() -> int:
    """Run the measurement, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--max-requests", type=int, nargs="+", default=[500, NEVER])
    options = parser.parse_args()
    return max(run(options, most) for most in options.max_requests)


def run(options: argparse.Namespace, max_requests: int) -> int:
    """Have all processes call for a while; return the exit status."""
    print(
        "sockets are never replaced" if max_requests >= NEVER else f"replaced after {max_requests} requests"
    )
    context = multiprocessing.get_context("spawn")
    with local_manager() as manager:
        workers = []
        for _ in range(options.processes):
            near, end = context.Pipe()
            where = (manager.uri, manager.route)
            worker = context.Process(
                target=work, args=(*where, options.threads, options.seconds, max_requests, end)
            )
            worker.start()
            workers.append((near, worker))
        results = [near.recv() for near, _ in workers]
        for _, worker in workers:
            worker.join()

    counts = [len(elapsed) for elapsed, _ in results]
    every = sorted(seconds for elapsed, _ in results for seconds in elapsed)
    wrong = [problem for _, problems in results for problem in problems]
    for number, (elapsed, _) in enumerate(results):
        print(f"process {number}: {len(elapsed):6,} calls, the slowest {max(elapsed, default=0.0):6.2f} s")
    print(f"the slowest process was served {min(counts) / max(counts):.2f} of the fastest")
    centiles = statistics.quantiles(every, n=100)
    print(
        f"{sum(counts) / options.seconds:.0f} calls a second; median {centiles[49] * 1e3:.1f} ms, "
        f"99 of 100 within {centiles[98]:.2f} s, the slowest {every[-1]:.2f} s; {manager.uuids} uuids"
    )
    print(f"{len(wrong)} failed or wrong", *wrong[:5], sep="\n  ")
    return 1 if wrong and max_requests < NEVER else 0


if __name__ == "__main__":
    sys.exit(main())
