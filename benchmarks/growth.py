"""Latency and throughput as threads, sockets and messages grow: a plot each.

    python -m benchmarks growth [--plot docs/performance/] [--seconds 1] [--rounds 3] [--only threads ...]

The calls go to the server that answers at once, which has a process and a core of its own. Every figure is
printed; `--plot` draws them (matplotlib, in the extra ``bench``), with the commit and the machine.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

import bare
import numpy as np
from bare import ARRAY, Infer
from image import our_json_infer
from machine import stamp
from runner import Crew, Plan, Work, again, alternate, duration, instant_server, pin

THREADS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SOCKETS = (1, 2, 4, 8, 16, 32, 64)
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 64_000_000)  # bytes of JSON, roughly
MAX_BYTES = 128 * 2**20
DIGITS = 11  # bytes of a number in the JSON of a request or reply, roughly

COLOURS = ("#4878a8", "#80a860", "#c05040")


class Point(NamedTuple):
    """One point of two curves: medians over the rounds."""

    at: float
    rate: float  # a second: calls, or bytes
    p50: float
    p99: float | None = None


Curves = dict[str, list[Point]]


def points(plan: Plan, sizes: Sequence[int]) -> Sequence[int]:
    """Return all sizes, or only the smaller ones in a short run."""
    return sizes[: plan.size(len(sizes), 3)]


def of_threads(plan: Plan, uri: str) -> Curves:
    """Measure more and more threads: on the default pool, on sixteen sockets, and as bare loops."""
    curves: Curves = {"four sockets, the default": [], "sixteen sockets": [], "bare loops, a socket each": []}
    with ExitStack() as stack:
        pools = [stack.enter_context(bare.our_client(uri, pool_size=size)) for size in (4, 16)]
        loops = [stack.enter_context(bare.websocket_client(uri)) for _ in range(max(points(plan, THREADS)))]
        for threads in points(plan, THREADS):
            infers = [[bare.our_infer(client)] * threads for client in pools] + [loops[:threads]]
            measure(plan, curves, threads, dict(zip(curves, infers, strict=True)))
    return curves


def of_sockets(plan: Plan, uri: str) -> Curves:
    """Measure more and more sockets, with a thread for each, beside as many bare loops."""
    curves: Curves = {"TcmClient, a thread for each socket": [], "bare loops": []}
    with ExitStack() as stack:
        loops = [stack.enter_context(bare.websocket_client(uri)) for _ in range(max(points(plan, SOCKETS)))]
        for sockets in points(plan, SOCKETS):
            with bare.our_client(uri, pool_size=sockets) as client:
                infers = [[bare.our_infer(client)] * sockets, loops[:sockets]]
                measure(plan, curves, sockets, dict(zip(curves, infers, strict=True)))
    return curves


def measure(plan: Plan, curves: Curves, at: int, infers: Mapping[str, list[Infer]]) -> None:
    """Have all contenders call from threads of their own, in turns; add a point to each curve."""
    crews = {
        name: Crew([lambda infer=infer: infer(ARRAY) for infer in calls])  # type: ignore[misc]
        for name, calls in infers.items()
    }
    rates, p50, p99 = ({name: [] for name in crews} for _ in range(3))
    for each in alternate(crews, plan, min(0.5, plan.seconds)):
        for name, crew in crews.items():
            latencies = crew.take()
            rates[name].append(each[name])
            p50[name].append(latencies.percentile(50))
            p99[name].append(latencies.percentile(99))
    for name in crews:
        point = Point(at, median(rates[name]), median(p50[name]), median(p99[name]))
        curves[name].append(point)
        times = f"p50 {duration(point.p50):>8}  p99 {duration(median(p99[name])):>8}"
        print(f"{at:4} {name:36} {point.rate:9,.0f}/s  {times}")


def of_size(plan: Plan, uri: str) -> Curves:
    """Measure longer and longer messages, sent and received."""
    curves: Curves = {"the request, from FP32": [], "the reply, to FP32": []}
    limits = {"max_message_bytes": MAX_BYTES, "max_reply_bytes": MAX_BYTES}
    for size in points(plan, SIZES):
        values = max(1, size // DIGITS)
        array = np.random.default_rng(7).random((1, values), np.float32)
        with (
            bare.our_client(uri, **limits) as sender,
            bare.our_client(uri, f"decimals.{values}", **limits) as receiver,
        ):
            ways = dict(zip(curves, ((sender, array), (receiver, ARRAY)), strict=True))
            works: dict[str, Work] = {}
            bytes_each: dict[str, float] = {}
            for name, (client, given) in ways.items():
                infer = our_json_infer(client)
                infer(given)
                before = client.stats()
                infer(given)
                after = client.stats()
                moved = (after.bytes_sent - before.bytes_sent, after.bytes_received - before.bytes_received)
                bytes_each[name] = moved[client is receiver]
                works[name] = again(lambda infer=infer, given=given: infer(given), batch=1)  # type: ignore[misc]
            rates = list(alternate(works, plan))
        for name in works:
            rate = median(each[name] for each in rates)
            curves[name].append(Point(bytes_each[name], rate * bytes_each[name], 1.0 / rate))
            print(
                f"{bytes_each[name]:11,.0f} bytes  {name:24} {duration(1.0 / rate):>8}"
                f"  {rate * bytes_each[name] / 1e6:7.1f} MB/s"
            )
    return curves


def draw(curves: Curves, path: Path, axis: str, unit: str, scale: float) -> None:
    """Draw throughput on the left and latency on the right.

    Parameters
    ----------
    curves : Curves
    path : Path
        The file to write.
    axis : str
        The quantity that grows.
    unit : str
        The unit of the throughput.
    scale : float
        The number by which the throughput is divided to be in that unit.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
        at = [point.at for point in points]
        left.plot(at, [point.rate / scale for point in points], "o-", color=colour, label=name)
        right.plot(at, [point.p50 * 1e3 for point in points], "o-", color=colour, label=f"{name}: median")
        if points[0].p99 is not None:
            slow = [point.p99 * 1e3 for point in points if point.p99 is not None]
            right.plot(at, slow, "o:", color=colour, label="99 of 100 within", markersize=3)
    left.set_ylabel(unit)
    left.set_ylim(bottom=0)
    right.set_ylabel("milliseconds a call")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xscale("log", base=10 if "bytes" in axis else 2)
        axes.set_xlabel(axis)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        if "bytes" not in axis:
            axes.xaxis.set_major_formatter("{x:.0f}")
    figure.supxlabel(stamp(), fontsize=6, color="#606060")
    figure.savefig(path, metadata={"Date": None})


#: The function that measures each kind, and its axes.
KINDS: dict[str, tuple[Callable[[Plan, str], Curves], str, str, float]] = {
    "threads": (of_threads, "threads", "calls a second", 1.0),
    "sockets": (of_sockets, "sockets", "calls a second", 1.0),
    "size": (of_size, "bytes of the message", "MB a second", 1e6),
}


def main() -> None:
    """Measure, print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw them too (needs matplotlib)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each point in each round (1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="the three smallest alone, and hardly measured")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    logging.getLogger("tcm_sync").setLevel(logging.ERROR)  # it warns of large pools
    plan = Plan(1, 0.05, True, pin()) if options.short else Plan(options.rounds, options.seconds, core=pin())
    for kind in options.only:
        of_kind, axis, unit, scale = KINDS[kind]
        with instant_server(plan) as port:
            curves = of_kind(plan, bare.address(port))
        if options.plot:
            draw(curves, options.plot / f"growth-{kind}.svg", axis, unit, scale)


if __name__ == "__main__":
    main()
