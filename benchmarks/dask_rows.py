"""A million rows over three worker processes of Dask: rows a second, the manager's share, and memory.

    python -m benchmarks dask_rows [--rows 1000000] [--columns 8] [--block 25000] [--rounds 1] [--pin]
                                   [--hosts] [--form NAME]...

The forms, one after another and with the pace of a real manager: `infer_chunked` in one process;
`infer_array` as it is by default and with a limit of five; and two forms of `map_blocks` as one writes them
by hand. The last one sends a message a block, takes longest, and therefore gets a tenth of the rows. Forms in
"JSON" do what all do where the manager is on another machine: without shared memory.

With `--rounds` the forms take turns, and the end shows the median of each beside that of the fastest by hand.
A number of blocks that is a multiple of five and of six, such as 30 (`--rows 375000 --block 12500`), leaves
neither leases nor threads unused at the end.
With `--pin` the manager has a core to itself, and all others share the next one. With `--hosts` the workers
share no turns, as if each was on a host of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, Semaphore
from manager import local_manager

from tcm_sync import TcmClient
from tcm_sync._pool.turn_keys import shared_table
from tcm_sync.integrations.dask import TcmPlugin, infer_array

WORKERS = 3
MESSAGES = 484  # a second, which a manager with its default tick takes of a tenant
MESSAGE_ROWS = 600  # which fit a message of 65,536 bytes: what one finds by hand


@dataclass(frozen=True)
class Form:
    """A way to get the rows through the model."""

    run: Callable[[da.Array], da.Array]
    block: int | None = None  # rows, if not those of the others
    share: int = 1  # it gets one row in so many


def peak_megabytes() -> float:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sent(dask_worker: Any, name: str) -> int:
    """Return the calls of a worker's client."""
    return int(dask_worker.plugins[name].client.stats().calls)


def use_turns_in(folder: str) -> None:
    """Have this process share turns with those that use the same folder."""
    os.environ["TCM_TURNS_DIR"] = folder  # os.environ.update would be sent with a copy of os.environ


def lease_milliseconds(count: int = 300) -> float:
    """Return what it costs to take a free lease of a semaphore of the cluster, and to give it back."""
    semaphore = Semaphore(WORKERS, "leases")
    started = time.perf_counter()
    for _ in range(count):
        with semaphore:
            pass
    return (time.perf_counter() - started) / count * 1000


def forms_with(client: TcmClient) -> dict[str, Form]:
    """Return what is compared."""

    def by_array(client: TcmClient = client, **options: Any) -> Callable[[da.Array], da.Array]:
        return lambda x: infer_array(
            x, "double", client=client, input_name="x", output_dtypes=np.float32, **options
        )

    def by_hand(run: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[da.Array], da.Array]:
        return lambda x: x.map_blocks(run, dtype=np.float32, meta=np.empty((0, 0), np.float32))

    as_json = client.with_options(transport="json")

    def in_messages_of(client: TcmClient) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
        def run(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            starts = range(0, len(block), MESSAGE_ROWS)
            inputs = ({"x": block[start : start + MESSAGE_ROWS]} for start in starts)
            return np.concatenate([r["y"] for r in client.map("double", inputs, output_dtypes=np.float32)])

        return run

    def in_one_message(block: np.ndarray[Any, Any]) -> Any:
        return client.infer("double", {"x": block}, output_dtypes=np.float32)["y"]

    return {
        "infer_array": Form(by_array()),
        "infer_array, limit=5": Form(by_array(limit=5)),
        "map_blocks, client.map": Form(by_hand(in_messages_of(client))),
        "infer_array, JSON": Form(by_array(as_json)),
        "infer_array, limit=5, JSON": Form(by_array(as_json, limit=5)),
        "map_blocks, client.map, JSON": Form(by_hand(in_messages_of(as_json))),
        "map_blocks, a message a block": Form(by_hand(in_one_message), block=MESSAGE_ROWS, share=10),
    }


rates: dict[str, list[float]] = {}  # rows a second of each form, a number a round


def show(name: str, rows: int, seconds: float, messages: int, detail: str) -> None:
    """Print a line of figures, and keep the rate."""
    rates.setdefault(name, []).append(rows / seconds)
    per_message = rows / messages
    most = MESSAGES * per_message
    print(
        f"{name:30} {rows:9,} rows {seconds:6.1f} s {rows / seconds:9,.0f} rows/s {per_message:5.0f} rows a "
        f"message {rows / seconds / most:4.0%} of {most:,.0f} rows/s  {detail}",
        flush=True,
    )


def in_one_process(client: TcmClient, rows: int, columns: int) -> int:
    """Measure `infer_chunked`, and return how many values are wrong."""
    x = np.random.default_rng(7).random((rows, columns), np.float32)
    client.infer_chunked("double", {"x": x[:1000]}, output_dtypes=np.float32)
    calls, before = client.stats().calls, peak_megabytes()
    started = time.perf_counter()
    y = client.infer_chunked("double", {"x": x}, output_dtypes=np.float32)["y"]
    seconds = time.perf_counter() - started
    calls, grown = client.stats().calls - calls, peak_megabytes() - before
    show("infer_chunked", rows, seconds, calls, f"+{grown:.0f} MB")
    return int((y != x * 2).sum())


def over_a_cluster(
    cluster: Client, name: str, form: Form, plugin: str, rows: int, columns: int, block: int
) -> int:
    """Measure a form over a cluster, and return how many values are wrong."""

    def source(rows: int) -> da.Array:
        return da.random.default_rng(7).random((rows, columns), np.float32, chunks=(form.block or block, -1))

    warm = source(rows // 10)
    (form.run(warm) != warm * 2).sum().compute()
    before = max(cluster.run(peak_megabytes).values())
    calls = sum(cluster.run(sent, name=plugin).values())
    x = source(rows)
    started = time.perf_counter()
    wrong = int((form.run(x) != x * 2).sum().compute())
    seconds = time.perf_counter() - started
    calls = sum(cluster.run(sent, name=plugin).values()) - calls
    grown = max(cluster.run(peak_megabytes).values()) - before
    show(name, rows, seconds, calls, f"+{grown:.0f} MB over a tenth of the rows")
    return wrong


def show_ratios() -> None:
    """Print the median of each form beside that of the fastest by hand, with JSON and without."""
    medians = {name: statistics.median(each) for name, each in rates.items()}
    for suffix in ("", ", JSON"):
        same = {name: rate for name, rate in medians.items() if name.endswith(", JSON") == bool(suffix)}
        by_hand = [rate for name, rate in same.items() if name.startswith("map_blocks")]
        for name, rate in same.items():
            spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
            ratio = f"{rate / max(by_hand):5.2f} of the fastest by hand" if by_hand else ""
            print(f"{name:30} median {rate:9,.0f} rows/s ({spread})  {ratio}", flush=True)


def main() -> int:
    """Run the measurement, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--block", type=int, default=25_000, help="rows of a block")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pin", action="store_true", help="give the manager a core to itself")
    parser.add_argument("--hosts", action="store_true", help="let no worker share turns with another one")
    parser.add_argument("--form", action="append", help="only this one; may be given several times")
    options = parser.parse_args()
    core = None
    if options.pin:
        core, other, *_ = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {other})  # inherited by the workers
    with (
        tempfile.TemporaryDirectory() as folders,
        local_manager(core) as manager,
        TcmClient(manager.uri, route=manager.route) as client,
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as local,
        Client(local) as cluster,
    ):
        if options.hosts:
            for number, worker in enumerate(cluster.nthreads()):
                cluster.run(use_turns_in, os.path.join(folders, str(number)), workers=[worker])
        forms = forms_with(client)
        chosen = options.form or ["infer_chunked", *forms]
        if unknown := set(chosen) - {"infer_chunked", *forms}:
            parser.error(f"no form {', '.join(unknown)}; there are infer_chunked; {'; '.join(forms)}")
        plugin = TcmPlugin(client)
        cluster.register_plugin(plugin)
        tables = len(set(cluster.run(shared_table).values()))
        if tables != (WORKERS if options.hosts else 1):
            raise RuntimeError(f"the {WORKERS} workers have {tables} tables of turns")
        print(f"a free lease: {cluster.submit(lease_milliseconds).result():.2f} ms", flush=True)
        wrong = 0
        for name in chosen * options.rounds:
            if name == "infer_chunked":
                wrong += in_one_process(client, options.rows, options.columns)
            else:
                form = forms[name]
                rows = options.rows // form.share
                wrong += over_a_cluster(
                    cluster, name, form, plugin.name, rows, options.columns, options.block
                )
    show_ratios()
    print(f"max_message_bytes=65,536, tick=0.01; {wrong} values are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
