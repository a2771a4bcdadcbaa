"""The time to transfer a tensor through shared memory and as JSON, compared with a plain copy.

    python benchmarks/shared_memory.py [--rounds 9] [--largest 256] [--plot docs/images/shared_memory.svg]

One thread calls a model that does not look at its input, of a `LocalManager` without pacing in a process of
its own; the two are pinned to a core each. The ways take turns within each round, so that whatever else the
machine does is shared out. What a way takes is the median over the rounds of the median call of a turn;
ratios are taken within a round. It ends with status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import numpy as np
from runner import pin

from tcm_sync import Route, TcmClient
from tcm_sync.local import LocalManager

Ways = dict[str, Callable[[], object]]
Times = dict[str, list[float]]  # seconds of the median call of each turn, by way

KIB, MIB = 2**10, 2**20
SIZES = [4 * KIB * 4**power for power in range(9)]  # 4 KiB to 256 MiB
SMALL_SIZES = [256 * 2**power for power in range(9)]  # 256 B to 64 KiB: where shared memory begins to win
LARGEST_MESSAGE = 16 * MIB  # of the manager, raised so that large tensors fit as JSON
LARGEST_AS_JSON = MIB  # some 11 MB of text
TURN = 0.1  # seconds
FEWEST = 3  # calls of a turn
FRESH_BYTES = 64 * MIB  # the most that a turn leaves mapped in the server

MEMCPY, ROUND_TRIP, AS_JSON = "memcpy", "round trip", "JSON"
REUSED, FRESH, EMPTY = "shm reused", "shm fresh", "empty_shared"
CLOSE = (ROUND_TRIP, EMPTY)  # almost equal, so they alternate call by call
COLORS = {
    AS_JSON: "#c05040",
    FRESH: "#c8963c",
    REUSED: "#4878a8",
    EMPTY: "#80a860",
    MEMCPY: "#404040",
    ROUND_TRIP: "#a0a0a0",
}


def serve(pipe: Connection, core: int | None) -> None:
    """Run the manager in a process of its own until a message arrives on the pipe."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    answer = {"y": np.ones(1, np.float32)}
    manager = LocalManager({"deaf": lambda _: answer}, tick=0, max_message_bytes=LARGEST_MESSAGE)
    with manager:
        pipe.send((manager.uri, manager.route, manager.transient_route))
        with contextlib.suppress(EOFError):
            pipe.recv()


@contextlib.contextmanager
def client_and_manager(core: int | None) -> Iterator[tuple[TcmClient, Route]]:
    """Yield a client, and the route on which a segment serves one request only."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, core))
    process.start()
    theirs.close()
    try:
        uri, route, transient = ours.recv()
        everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with TcmClient(
            uri, route=route, max_message_bytes=LARGEST_MESSAGE, shm_max_pinned=everything
        ) as client:
            yield client, transient
    finally:
        ours.close()  # the process then ends
        process.join()


def ways_to_send(client: TcmClient, once: Route, size: int) -> Ways:
    """Return the ways to compare for tensors of so many bytes."""
    random = np.random.default_rng(size)
    array = random.random(size // 4, np.float32)
    copy, few = array.copy(), array[:4]
    shared = client.empty_shared(array.shape, array.dtype)
    np.copyto(shared, array)

    def send(tensor: np.ndarray, transport: str = "shm", **options: object) -> Callable[[], object]:
        return lambda: client.infer("deaf", {"x": tensor}, transport=transport, **options)

    ways = {
        ROUND_TRIP: send(few, "json"),
        EMPTY: send(shared),
        MEMCPY: lambda: np.copyto(copy, array),
        REUSED: send(array),
        FRESH: send(array, allow_transient=True, container_id=once.container_id, vm_ip=once.vm_ip),
    }
    if size <= LARGEST_AS_JSON:
        ways[AS_JSON] = send(array, "json")
    return ways


def turn(ways: Ways, most: int | None) -> dict[str, float]:
    """Call by some ways in turns, at most `most` times; return the seconds of the median call of each."""
    took: Times = {name: [] for name in ways}
    calls, ends = 0, time.perf_counter() + TURN * len(ways)
    while calls != most and (calls < FEWEST or time.perf_counter() < ends):
        calls += 1
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            took[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in took.items()}


def compare(core: int | None, size: int, rounds: int, *names: str) -> Times:
    """Measure all ways, or those named, in turns with tensors of so many bytes, after a warm-up round."""
    times: Times = {}
    with client_and_manager(core) as (client, once):
        ways = ways_to_send(client, once, size)
        left = [name for name in ways if name not in CLOSE]
        groups = [(name,) for name in names] or [CLOSE, *((name,) for name in left)]
        for _ in range(rounds + 1):
            for group in groups:
                most = max(1, FRESH_BYTES // size) if FRESH in group else None
                for name, took in turn({name: ways[name] for name in group}, most).items():
                    times.setdefault(name, []).append(took)
    return {name: taken[1:] for name, taken in times.items()}


def ratios(times: Times, name: str, *others: str) -> list[float]:
    """Divide the time of one way by the sum of the times of others, in each round."""
    together = zip(*(times[other] for other in others), strict=True)
    return [mine / sum(theirs) for mine, theirs in zip(times[name], together, strict=True)]


def size_text(size: int) -> str:
    """Write a size with its unit."""
    unit, name = next((unit for unit in ((MIB, "MiB"), (KIB, "KiB")) if size >= unit[0]), (1, "B"))
    return f"{size // unit} {name}"


def time_text(seconds: float) -> str:
    """Write a time in milliseconds, with three significant digits, or down to 0.1 us."""
    digits = min(4, max(0, 2 - int(np.floor(np.log10(seconds * 1e3)))))
    return f"{seconds * 1e3:.{digits}f}"


def table(measured: dict[int, Times], names: list[str]) -> None:
    """Print the medians, and below each the range of its rounds."""
    print(f"{'':>8}" + "".join(f"{name:>19}" for name in names))
    for size, times in measured.items():
        medians, spreads = f"{size_text(size):>8}", " " * 8
        for name in names:
            taken = times.get(name)
            medians += f"{time_text(statistics.median(taken)) if taken else '-':>19}"
            spread = f"({time_text(min(taken))} to {time_text(max(taken))})" if taken else ""
            spreads += f"{spread:>19}"
        print(f"{medians}\n{spreads}")


def verdict(what: str, found: list[float], target: float) -> bool:
    """Print a ratio beside its target."""
    median = statistics.median(found)
    said = "met" if median <= target else "MISSED"
    print(f"{said:>6}: {what}: {median:.2f} ({min(found):.2f} to {max(found):.2f}), at most {target:.2f}")
    return median <= target


def verdicts(measured: dict[int, Times]) -> bool:
    """Compare the measurements with the targets."""
    good = True
    if (times := measured.get(64 * MIB)) is not None:
        good = verdict(
            "64 MiB, a reused segment / (memcpy + round trip)",
            ratios(times, REUSED, MEMCPY, ROUND_TRIP),
            1.5,
        )
    for size, times in measured.items():
        what = f"{size_text(size)}, empty_shared / round trip"
        good &= verdict(what, ratios(times, EMPTY, ROUND_TRIP), 1.1)
    return good


def break_even(measured: dict[int, Times], name: str) -> None:
    """Print the size from which a way is faster than JSON."""
    worth = None
    for size, times in sorted(measured.items(), reverse=True):
        if statistics.median(ratios(times, name, AS_JSON)) > 1.0:
            break
        worth = size
    since = "at none of these sizes" if worth is None else f"from {size_text(worth)} on"
    print(f"{name} is faster than JSON {since}")


def plot(measured: dict[int, Times], path: str) -> None:
    """Draw the times over the sizes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, color in COLORS.items():
        sizes = [size for size, times in measured.items() if name in times]
        taken = [statistics.median(measured[size][name]) * 1e3 for size in sizes]
        style = ":" if name in (MEMCPY, ROUND_TRIP) else "-"
        axes.loglog(sizes, taken, style, marker="o", markersize=3.5, color=color, label=name)
    axes.set_xticks(list(measured), [size_text(size) for size in measured])
    axes.minorticks_off()
    axes.set_xlabel("bytes of the tensor (FP32)")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("ms a call")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Measure, print the tables, and compare them with the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--largest", type=int, default=256, help="MiB; memory for 15 such is needed")
    parser.add_argument("--plot", metavar="FILE", help="draw it too (needs matplotlib)")
    options = parser.parse_args()
    rounds, largest = options.rounds, options.largest * MIB
    core = pin()
    print(f"numpy {np.__version__}, {rounds} rounds; ms a call, in the median (and over the rounds)\n")
    measured = {size: compare(core, size, rounds) for size in SIZES if size <= largest}
    table(measured, [ROUND_TRIP, MEMCPY, EMPTY, REUSED, FRESH, AS_JSON])
    print("\nwhere shared memory begins to be worth it:")
    small = {size: compare(core, size, rounds, REUSED, FRESH, AS_JSON) for size in SMALL_SIZES}
    table(small, [REUSED, FRESH, AS_JSON])
    for name in (REUSED, FRESH):
        break_even(small, name)
    print()
    good = verdicts(measured)
    if options.plot:
        plot(measured, options.plot)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
