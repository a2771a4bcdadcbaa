"""A million rows through `infer_chunked`: how long it takes, and how much memory beside input and output.

    python benchmarks/chunked.py [--rows 1000000] [--columns 8]

The manager is a `LocalManager` without its pacing, in a process of its own. It ends with status 1 if a row is
wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection

import numpy as np

from tcm_sync import TcmClient
from tcm_sync.local import LocalManager


def serve(ready: Connection) -> None:
    """Run the manager until the other end says so."""
    with LocalManager({"double": lambda inputs: {"y": inputs["x"] * 2}}, tick=0) as manager:
        ready.send((manager.uri, manager.route))
        ready.recv()


def peak_megabytes() -> float:
    """Return the most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=8)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    control, far = context.Pipe()
    manager = context.Process(target=serve, args=(far,))
    manager.start()
    uri, route = control.recv()
    x = np.random.default_rng(7).random((options.rows, options.columns), np.float32)
    with TcmClient(uri, route=route) as client:
        client.infer_chunked("double", {"x": x[:1000]}, output_dtypes=np.float32)
        before = peak_megabytes()
        started = time.perf_counter()
        y = client.infer_chunked("double", {"x": x}, output_dtypes=np.float32)["y"]
        seconds = time.perf_counter() - started
        peak = peak_megabytes() - before
    control.send("stop")
    manager.join()
    output = y.nbytes / 2**20
    print(
        f"{options.rows:,} rows of {options.columns} floats in {seconds:.1f} s: "
        f"{options.rows / seconds:,.0f} a second"
    )
    print(f"memory beside the input: {peak:.0f} MB, of which the output is {output:.0f} MB")
    right = np.array_equal(y, x * 2)
    print("every row is right" if right else "ROWS ARE WRONG")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
