"""A million rows through `infer_chunked`: how long it takes, and how much memory besides input and output.

    python -m benchmarks chunked [--rows 1000000] [--columns 8]

The manager is a `LocalManager` without its pacing, in a process of its own. It ends with status 1 if a row is
wrong.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np
from manager import local_manager

from tcm_sync import TcmClient


def peak_megabytes() -> float:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Run the measurement, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=8)
    options = parser.parse_args()
    x = np.random.default_rng(7).random((options.rows, options.columns), np.float32)
    with (
        local_manager(tick=0) as manager,
        TcmClient(manager.uri, route=manager.route) as client,
    ):
        client.infer_chunked("double", {"x": x[:1000]}, output_dtypes=np.float32)
        before = peak_megabytes()
        started = time.perf_counter()
        y = client.infer_chunked("double", {"x": x}, output_dtypes=np.float32)["y"]
        seconds = time.perf_counter() - started
        peak = peak_megabytes() - before
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
