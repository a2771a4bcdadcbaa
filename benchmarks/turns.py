"""What turns give to the processes that share a manager: each case with turns and without.

    python -m benchmarks turns [--only 4x4,stopped,...] [--seconds 7] [--save FILE] [--plot FILE]

Processes of threads call in a closed loop through clients with default settings, against a `LocalManager`
that is paced as a real manager. It has a process and a core of its own; all callers share another core.
Every answer is checked. `4x4` is four processes of four threads. A case takes some 20 s. `--save` adds the
figures to a JSON file, from which `--plot` draws them, so that a run can be done in parts. The status is 1
if a call failed or was wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import bare
from callers import HAS_TURNS, Caller, Served, run
from machine import stamp
from manager import local_manager
from runner import Plan, Tally, Work, again, alternate, duration, instant_server, pin

SHM = "/dev/shm"  # where turns are by default
ON, OFF = "on", "off"
COLOURS = {OFF: "#c05040", ON: "#4878a8"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A load, which is measured with turns and without.

    Parameters
    ----------
    callers : list of Caller
        The processes.
    manager : dict
        Settings of the `LocalManager`.
    floors : dict
        The goals with turns: the least ``rate`` and ``evenness``, the most ``p99`` and ``slowest`` (seconds).
    """

    callers: list[Caller]
    manager: dict[str, Any] = dataclasses.field(default_factory=dict)
    floors: dict[str, float] = dataclasses.field(default_factory=dict)


FLOORS_4X4 = {"rate": 460, "p99": 0.125, "slowest": 0.25, "evenness": 0.9}
MISHAP_FLOORS = {"slowest": 1.0}


def processes(count: int, threads: int, **more: Any) -> list[Caller]:
    """Return so many equal processes."""
    return [Caller(threads, **more) for _ in range(count)]


def with_mishap(mishap: str) -> list[Caller]:
    """Return four processes of four threads, one of which has a mishap."""
    return [Caller(4, mishap=mishap), *processes(3, 4)]


CASES: dict[str, Case] = {
    "1x4": Case(processes(1, 4)),
    "2x4": Case(processes(2, 4)),
    "4x4": Case(processes(4, 4), floors=FLOORS_4X4),
    "8x4": Case(processes(8, 4), floors={"slowest": 0.4}),
    "16x4": Case(processes(16, 4)),
    "1x16": Case(processes(1, 16), floors={"rate": 460}),
    "killed": Case(with_mishap("killed"), floors=MISHAP_FLOORS),
    "stopped": Case(with_mishap("stopped"), floors=MISHAP_FLOORS),
    "forked": Case(with_mishap("forked"), floors=MISHAP_FLOORS),
    "slow-4x4": Case(processes(4, 4, model="slow"), {"workers": 16}),
    "slow-8x8": Case(processes(8, 8, model="slow"), {"workers": 64}),
    "no-tick": Case(processes(4, 4), {"tick": 0}),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of a load; those of a process with a mishap are not in them."""

    rate: float
    p50: float
    p99: float
    p999: float
    slowest: float
    evenness: float
    failed: int

    def missed(self, floors: dict[str, float]) -> list[str]:
        """Name the figures that are worse than a floor."""
        least = ("rate", "evenness")
        return [
            name
            for name, floor in floors.items()
            if (getattr(self, name) < floor if name in least else getattr(self, name) > floor)
        ]

    def __str__(self) -> str:
        times = [duration(each) for each in (self.p50, self.p99, self.p999, self.slowest)]
        return (
            f"{self.rate:7,.0f}/s  p50 {times[0]:>8}  p99 {times[1]:>8}  p99.9 {times[2]:>8}  "
            f"slowest {times[3]:>8}  evenness {self.evenness:.2f}"
            + f"  {self.failed} FAILED"
            * bool(self.failed)
        )


def summary(results: Sequence[Served], seconds: float) -> Row:
    """Summarise what some processes got."""
    every = sorted(latency for result in results for latency in result.latencies)
    counts = [result.done for result in results]
    for problem in [each for result in results for each in result.problems][:3]:
        print(f"    {problem}", file=sys.stderr)
    return Row(
        rate=sum(counts) / seconds,
        p50=every[len(every) // 2],
        p99=every[int(len(every) * 0.99)],
        p999=every[int(len(every) * 0.999)],
        slowest=every[-1],
        evenness=min(counts) / max(counts),
        failed=sum(len(result.problems) for result in results),
    )


class Bench:
    """Measures loads, and keeps their figures.

    Parameters
    ----------
    seconds : float
        For each load.
    core : int or None
        Of the manager.
    """

    def __init__(self, seconds: float, core: int | None) -> None:
        self.seconds = seconds
        self.core = core
        self.rows: dict[str, dict[str, Any]] = {}  # figures by case and way

    def call(
        self,
        callers: Sequence[Caller],
        manager: dict[str, Any],
        ways: Sequence[str],
        seconds: float | None = None,
    ) -> list[Served]:
        """Have processes call a new manager, each with turns or without.

        Parameters
        ----------
        callers : sequence of Caller
        manager : dict
            Settings of the manager.
        ways : sequence of str
            `ON` or `OFF`, for each process.
        seconds : float, optional
        """
        with (
            tempfile.TemporaryDirectory(dir=SHM, prefix="benchmark_tcm_") as folder,
            local_manager(self.core, **manager) as running,
        ):
            switched = [
                dataclasses.replace(
                    caller,
                    settings={**turns(way), **caller.settings},
                    folder=f"{folder}/{caller.folder or 'turns'}",
                )
                for caller, way in zip(callers, ways, strict=True)
            ]
            return run(running.uri, running.route, switched, seconds or self.seconds)

    def keep(self, name: str, way: str, figures: dict[str, Any], text: object) -> None:
        """Keep and print the figures of a load."""
        self.rows.setdefault(name, {})[way] = figures
        print(f"{name:10} {way:4} {text}", flush=True)

    @property
    def failed(self) -> int:
        """How many calls failed or were wrong."""
        return sum(figures.get("failed", 0) for ways in self.rows.values() for figures in ways.values())


def turns(way: str) -> dict[str, Any]:
    """Return the setting of a client with turns, or without."""
    return {"turns": "auto" if way == ON else "off"} if HAS_TURNS else {}


def ways() -> list[str]:
    """Return the ways in which a case is measured."""
    return [OFF, ON] if HAS_TURNS else [OFF]


def measure(bench: Bench, name: str) -> None:
    """Measure a case of the table."""
    case = CASES[name]
    for way in ways():
        results = bench.call(case.callers, case.manager, [way] * len(case.callers))
        others = [result for result, caller in zip(results, case.callers, strict=True) if not caller.mishap]
        row = summary(others, bench.seconds)
        failed = sum(len(result.problems) for result in results)
        row = dataclasses.replace(row, failed=failed)
        verdict = ""
        if way == ON and case.floors:
            missed = row.missed(case.floors)
            verdict = f"  MISSED {', '.join(missed)}" if missed else "  reached"
        bench.keep(name, way, dataclasses.asdict(row), f"{row}{verdict}")


def alone(bench: Bench) -> None:
    """Measure what turns cost a process that is alone, in small calls of one thread that alternate."""
    if not HAS_TURNS:
        return
    plan = Plan(5, bench.seconds / 5, core=bench.core)
    with contenders(bench, plan) as works:
        rates = list(alternate(works, plan))
    ratio = median(rate[ON] / rate[OFF] for rate in rates)
    each = {way: median(1.0 / rate[way] for rate in rates) for way in (ON, OFF)}
    text = f"no tick, a call: on {duration(each[ON])}, off {duration(each[OFF])}; rate on / off {ratio:.3f}"
    bench.keep("alone", "wall", {"rate_ratio": ratio, **each}, text)
    with contenders(bench, plan, paced=True) as works:
        timed = {way: processor_time(work) for way, work in works.items()}
        rates = list(alternate(timed, plan, turn=bench.seconds / 10))
    each = {way: median(1.0 / rate[way] for rate in rates) for way in (ON, OFF)}
    more = (each[ON] - each[OFF]) * 1e6
    times = ", ".join(f"{way} {duration(each[way])}" for way in (ON, OFF))
    text = f"10 ms tick, processor time of a call: {times}; {more:+.1f} µs"
    bench.keep("alone", "cpu", each, text)


@contextmanager
def contenders(bench: Bench, plan: Plan, *, paced: bool = False) -> Iterator[dict[str, Work]]:
    """Yield loops of small calls, with turns and without, to a server that has a tick or answers at once."""
    with ExitStack() as stack:
        os.environ["TCM_TURNS_DIR"] = stack.enter_context(
            tempfile.TemporaryDirectory(dir=SHM, prefix="benchmark_tcm_")
        )
        if paced:
            manager = stack.enter_context(local_manager(bench.core))
            uri, route = manager.uri, manager.route
        else:
            uri, route = bare.address(stack.enter_context(instant_server(plan))), bare.ROUTE
        works = {}
        for way in (OFF, ON):
            infer = bare.our_infer(stack.enter_context(bare.our_client(uri, route=route, **turns(way))))
            works[way] = again(lambda infer=infer: infer(bare.ARRAY), batch=5)  # type: ignore[misc]
        yield works


def processor_time(work: Work) -> Work:
    """Return work whose seconds are those of this process's processor time."""

    def timed(seconds: float) -> Tally:
        before = time.process_time()
        return Tally(work(seconds).done, time.process_time() - before)

    return timed


def waiting(bench: Bench) -> None:
    """Measure the processor time of calls while no process waits for its turn, one, and 64."""
    for count in (1, 6, 69):
        for way in ways():
            results = bench.call(processes(count, 1), {}, [way] * count)
            done = sum(result.done for result in results)
            cost = sum(result.cpu for result in results) / done * 1e3
            row = summary(results, bench.seconds)
            text = f"{row}; {cost:.3f} s of processor time in 1,000 calls"
            bench.keep(f"{max(0, count - 5)} waiting", way, {**dataclasses.asdict(row), "cpu": cost}, text)


def mixed(bench: Bench) -> None:
    """Measure two processes with turns beside two without, against four without.

    The oldest sockets are served first, so each kind is started first as often as the other, and each load is
    measured for longer than a socket lasts.
    """
    got: dict[str, list[Served]] = {way: [] for way in ways()}
    rest: dict[str, list[Served]] = {way: [] for way in ways()}
    for polite in (slice(0, 2), slice(2, 4)):
        for way in ways():
            kinds = [OFF] * 4
            kinds[polite] = [way] * 2
            results = bench.call(processes(4, 4), {}, kinds, 2 * bench.seconds)
            got[way] += results[polite]
            del results[polite]
            rest[way] += results
    for way in ways():
        row = summary(got[way], 4 * bench.seconds)
        other = summary(rest[way], 4 * bench.seconds)
        share = sum(each.done for each in got[way]) / sum(each.done for each in got[OFF])
        text = f"{row}; {share:.2f} of what they get without turns; the others {other}"
        bench.keep("mixed", way, {**dataclasses.asdict(row), "share": share}, text)


#: What is not one load with turns and without.
OTHERS: dict[str, Callable[[Bench], None]] = {"alone": alone, "waiting": waiting, "mixed": mixed}


def draw(saved: dict[str, Any], path: Path) -> None:
    """Draw slowest call and 99th percentile over the number of processes of four threads."""
    from matplotlib.figure import Figure

    names = [name for name in ("1x4", "2x4", "4x4", "8x4", "16x4") if name in saved["cases"]]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for way, colour in COLOURS.items():
        rows = [(name, saved["cases"][name][way]) for name in names if way in saved["cases"][name]]
        at = [int(name.partition("x")[0]) for name, _ in rows]
        label = f"turns {way}"
        left.plot(at, [row["rate"] for _, row in rows], "o-", color=colour, label=label)
        right.plot(at, [row["slowest"] for _, row in rows], "o-", color=colour, label=f"{label}: slowest")
        slow = [row["p99"] for _, row in rows]
        right.plot(at, slow, "o:", color=colour, markersize=3, label=f"{label}: 99 of 100 within")
    left.set_ylabel("calls a second, all processes")
    left.set_ylim(bottom=0)
    right.set_ylabel("seconds a call")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("processes of four threads")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.supxlabel(f"{saved['machine']}; {saved['seconds']:g} s each", fontsize=6, color="#606060")
    figure.savefig(path, metadata={"Date": None})


def arguments(names: Sequence[str], *, plot: bool = False) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="CASES", help=",".join(names))
    parser.add_argument("--seconds", type=float, default=7.0, help="for each load (default: %(default)s)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="add the figures to this JSON file")
    if plot:
        parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures (needs matplotlib)")
    options = parser.parse_args()
    options.only = options.only or list(names)
    if unknown := set(options.only) - set(names):
        parser.error(f"no case: {', '.join(sorted(unknown))}")
    return options


def saved_with(bench: Bench, path: Path | None) -> dict[str, Any]:
    """Return the figures together with those of a file, and write them there."""
    saved: dict[str, Any] = {"machine": stamp(), "seconds": bench.seconds, "cases": {}}
    if path is not None and path.exists():
        saved["cases"] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    for name, rows in bench.rows.items():
        saved["cases"].setdefault(name, {}).update(rows)
    if path is not None:
        path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    return saved


def main() -> int:
    """Measure the chosen cases, and print them."""
    options = arguments([*CASES, *OTHERS], plot=True)
    logging.getLogger("tcm_sync").setLevel(logging.ERROR)  # it warns of large pools
    if not HAS_TURNS:
        print("this client has no turns", file=sys.stderr)
    bench = Bench(options.seconds, pin())
    for name in options.only:
        if name in OTHERS:
            OTHERS[name](bench)
        else:
            measure(bench, name)
    saved = saved_with(bench, options.save)
    if options.plot:
        draw(saved, options.plot)
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
