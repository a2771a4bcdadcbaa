"""A million rows through `infer_chunked`: how long it takes, and how much memory besides input and output.

    python -m benchmarks chunked [--rows 1000000] [--columns 8] [--frame pandas|polars|pyarrow]

With `--frame` they are a data frame, and go through `infer_frame`.

The manager is a `LocalManager` without its pacing, in a process of its own. It ends with status 1 if a row is
wrong.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
import time
from functools import partial
from typing import Any

import numpy as np
from manager import local_manager

from tcm_sync import TcmClient


def peak_megabytes() -> float:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def frame_of(library: str, x: np.ndarray) -> Any:
    """Return a matrix as a data frame of some library, with columns c0, c1 and so on."""
    columns = {f"c{place}": np.ascontiguousarray(x[:, place]) for place in range(x.shape[1])}
    if library == "pyarrow":
        return importlib.import_module(library).table(columns)
    return importlib.import_module(library).DataFrame(columns)


def matrix_of(frame: Any) -> np.ndarray:
    """Return the columns of a data frame of any library as a matrix."""
    names = getattr(frame, "column_names", None) or list(frame.columns)
    return np.stack([np.asarray(frame[name]) for name in names], axis=1)


def main() -> int:
    """Run the measurement, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--frame", choices=("pandas", "polars", "pyarrow"))
    options = parser.parse_args()
    x = np.random.default_rng(7).random((options.rows, options.columns), np.float32)
    with (
        local_manager(tick=0) as manager,
        TcmClient(manager.uri, route=manager.route) as client,
    ):
        run, inputs = client.infer_chunked, {"x": x}
        run("double", {"x": x[:1000]}, output_dtypes=np.float32)
        if options.frame:
            inputs = frame_of(options.frame, x)
            run = partial(client.infer_frame, stack="x")
            run("double", inputs[:1000], output_dtypes=np.float32)
        before = peak_megabytes()
        started = time.perf_counter()
        outputs = run("double", inputs, output_dtypes=np.float32)
        seconds = time.perf_counter() - started
        peak = peak_megabytes() - before
    y = matrix_of(outputs) if options.frame else outputs["y"]
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
