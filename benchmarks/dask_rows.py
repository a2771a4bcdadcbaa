"""A million rows over three worker processes of Dask: rows a second, the manager's share, and memory.

    python -m benchmarks dask_rows [--rows 1000000] [--columns 8]

Four ways, one after another, with the pace of a real manager: `infer_chunked` in one process, `infer_array`
without and with a limit of the cluster, and a `map_blocks` with a message a block as one writes it by hand.
Two minutes on two cores, most of them for the last; a tenth of the rows takes half a minute.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, Semaphore
from manager import local_manager

from tcm_sync import TcmClient
from tcm_sync.integrations.dask import TcmPlugin, infer_array

WORKERS = 3
MESSAGES = 484  # a second, which a manager with its default tick takes of a tenant
BLOCK = 25_000  # rows
SMALL_BLOCK = 500  # rows that surely fit a message


def peak_megabytes() -> float:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sent(dask_worker: Any, name: str) -> int:
    """Return the calls of a worker's client."""
    return int(dask_worker.plugins[name].client.stats().calls)


def lease_milliseconds(count: int = 300) -> float:
    """Return what it costs to take a free lease of a semaphore of the cluster, and to give it back."""
    semaphore = Semaphore(WORKERS, "leases")
    started = time.perf_counter()
    for _ in range(count):
        with semaphore:
            pass
    return (time.perf_counter() - started) / count * 1000


def main() -> int:
    """Run the measurement, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=8)
    options = parser.parse_args()
    wrong = 0
    with (
        local_manager() as manager,
        TcmClient(manager.uri, route=manager.route) as client,
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as local,
        Client(local) as cluster,
    ):
        plugin = TcmPlugin(client)
        cluster.register_plugin(plugin)

        def source(rows: int, block: int) -> da.Array:
            shape = (rows, options.columns)
            return da.random.default_rng(7).random(shape, np.float32, chunks=(block, -1))

        def by_hand(x: da.Array) -> da.Array:
            def run(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
                return client.infer("double", {"x": block}, output_dtypes=np.float32)["y"]

            return x.map_blocks(run, dtype=np.float32, meta=np.empty((0, 0), np.float32))

        def by_array(limit: int | None) -> Callable[[da.Array], da.Array]:
            return lambda x: infer_array(
                x, "double", client=client, input_name="x", output_dtypes=np.float32, limit=limit
            )

        def show(name: str, seconds: float, messages: int, detail: str) -> None:
            per_message = options.rows / messages
            most = MESSAGES * per_message
            print(
                f"{name:28} {seconds:6.1f} s {options.rows / seconds:9,.0f} rows/s {per_message:5.0f} rows a "
                f"message {options.rows / seconds / most:4.0%} of {most:,.0f} rows/s  {detail}",
                flush=True,
            )

        x = np.random.default_rng(7).random((options.rows, options.columns), np.float32)
        client.infer_chunked("double", {"x": x[:1000]}, output_dtypes=np.float32)
        calls, before = client.stats().calls, peak_megabytes()
        started = time.perf_counter()
        y = client.infer_chunked("double", {"x": x}, output_dtypes=np.float32)["y"]
        seconds = time.perf_counter() - started
        wrong += int((y != x * 2).sum())
        show(
            "infer_chunked, one process",
            seconds,
            client.stats().calls - calls,
            f"+{peak_megabytes() - before:.0f} MB",
        )
        del x, y

        print(f"a free lease: {cluster.submit(lease_milliseconds).result():.2f} ms")
        for name, block, method in (
            ("infer_array", BLOCK, by_array(None)),
            ("infer_array, limit=5", BLOCK, by_array(5)),
            ("map_blocks by hand", SMALL_BLOCK, by_hand),
        ):
            warm = source(options.rows // 10, block)
            (method(warm) != warm * 2).sum().compute()
            before = max(cluster.run(peak_megabytes).values())
            calls = sum(cluster.run(sent, name=plugin.name).values())
            x = source(options.rows, block)
            started = time.perf_counter()
            wrong += int((method(x) != x * 2).sum().compute())
            seconds = time.perf_counter() - started
            calls = sum(cluster.run(sent, name=plugin.name).values()) - calls
            grown = max(cluster.run(peak_megabytes).values()) - before
            show(name, seconds, calls, f"+{grown:.0f} MB over a tenth of the rows")
    print(f"max_message_bytes=65,536, tick=0.01; {wrong} values are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
