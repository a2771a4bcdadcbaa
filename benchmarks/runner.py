"""What all subjects use: rounds in which contenders alternate, their results, and pinning to cores."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Result = TypeVar("Result")


class Tally(NamedTuple):
    """How many calls a contender made, and in how many seconds."""

    done: float
    seconds: float


Work = Callable[[float], Tally]  # continues for so many seconds


@dataclass(frozen=True)
class Plan:
    """How long to measure, and where.

    Parameters
    ----------
    rounds : int
        How often: a figure each.
    seconds : float
        For each contender in each round.
    short : bool
        Whether all is tiny: to see that it runs, and not how fast.
    core : int or None
        Where servers run, if this process keeps to another core.
    """

    rounds: int = 5
    seconds: float = 2.0
    short: bool = False
    core: int | None = None

    def size(self, full: int, tiny: int) -> int:
        """Return the full size, or the tiny one in a short run."""
        return tiny if self.short else full


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Parameters
    ----------
    what : str
        What was measured.
    figures : sequence of float
        One for each round. Their median is compared with the goal.
    least, most : float, optional
        The goal: one of them, or neither if there is no goal.
    unit : str
        Of the figures; "" for a ratio.
    detail : str
        The measurements that the figures were computed from.
    """

    what: str
    figures: Sequence[float]
    least: float | None = None
    most: float | None = None
    unit: str = ""
    detail: str = ""

    @property
    def figure(self) -> float:
        """The median."""
        return statistics.median(self.figures)

    @property
    def bound(self) -> float | None:
        """The goal."""
        return self.most if self.least is None else self.least

    @property
    def passed(self) -> bool | None:
        """Whether the goal is reached; None if there is none."""
        if self.bound is None:
            return None
        return self.figure <= self.bound if self.least is None else self.figure >= self.bound

    @property
    def verdict(self) -> str:
        """Whether the goal is reached, and by how much of it."""
        if not self.bound:
            return ""
        percent = 100.0 * abs(self.figure / self.bound - 1.0)
        return f"{'passed' if self.passed else 'MISSED'} by {percent:.{0 if percent >= 1.0 else 1}f} %"

    @property
    def goal(self) -> str:
        """The goal as text."""
        if self.bound is None:
            return ""
        return f"at {'most' if self.least is None else 'least'} {self.bound:g}{self.unit}"


def alternate(works: Mapping[str, Work], plan: Plan, turn: float = 0.1) -> Iterator[dict[str, float]]:
    """Yield the rate of each contender, once a round, after a turn to warm up.

    Within a round they take turns of a part of a second, so that all suffer equally from whatever else the
    machine does, and each set of turns starts with another contender.

    Parameters
    ----------
    works : mapping of str to Work
    plan : Plan
    turn : float
        Seconds. Work that takes longer is done once in a turn, and there are fewer turns.
    """
    for work in works.values():
        work(turn)
    turns = max(1, round(plan.seconds / turn))
    names = list(works)
    for _ in range(plan.rounds):
        done, seconds = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for number in range(turns):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                tally = works[name](turn)
                done[name] += tally.done
                seconds[name] += tally.seconds
            if sum(seconds.values()) >= plan.seconds * len(names):
                break  # the turns took longer than planned
        yield {name: done[name] / seconds[name] for name in names}


def again(call: Callable[[], object], batch: int = 20) -> Work:
    """Return work that repeats a call, and reads the clock after each `batch` of calls."""

    def work(seconds: float) -> Tally:
        calls = 0
        start = now = time.perf_counter()
        while now - start < seconds:
            for _ in range(batch):
                call()
            calls += batch
            now = time.perf_counter()
        return Tally(calls, now - start)

    return work


class Crew:
    """Threads that each repeat a call of their own: `Work` that records how long each call took.

    The first turn is a warm-up, and is not recorded.

    Parameters
    ----------
    calls : sequence of callables
        One for each thread.
    """

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self._calls = calls
        self._latencies: list[list[float]] = [[] for _ in calls]
        self._errors: list[BaseException] = []
        self._warm = False

    def __call__(self, seconds: float) -> Tally:
        """Have all threads call for so many seconds."""
        before = sum(map(len, self._latencies))
        ready = threading.Barrier(len(self._calls) + 1)
        threads = [
            threading.Thread(target=self._loop, args=(place, ready, seconds))
            for place in range(len(self._calls))
        ]
        for thread in threads:
            thread.start()
        ready.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - start
        if self._errors:
            raise self._errors[0]
        tally = Tally(sum(map(len, self._latencies)) - before, elapsed)
        if not self._warm:
            self._warm = True
            self.take()
        return tally

    def _loop(self, place: int, ready: threading.Barrier, seconds: float) -> None:
        call, latencies = self._calls[place], self._latencies[place]
        ready.wait()
        now = time.perf_counter()
        ends = now + seconds
        try:
            while now < ends:
                call()
                latencies.append(time.perf_counter() - now)
                now += latencies[-1]
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            self._errors.append(error)

    def take(self) -> Latencies:
        """Return what was recorded, and clear the record."""
        taken = Latencies([list(each) for each in self._latencies])
        for each in self._latencies:
            each.clear()
        return taken


@dataclass(frozen=True)
class Latencies:
    """How long the calls of each thread took, in seconds."""

    threads: list[list[float]]
    _sorted: list[float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sorted", sorted(each for thread in self.threads for each in thread))

    def percentile(self, percent: float) -> float:
        """Return the time within which so many percent of the calls ended."""
        return self._sorted[min(len(self._sorted) - 1, int(len(self._sorted) * percent / 100.0))]

    @property
    def fairness(self) -> float:
        """The number of calls of the slowest thread divided by that of the fastest."""
        counts = [len(thread) for thread in self.threads]
        return min(counts) / max(counts)

    def __str__(self) -> str:
        return f"p50 {self.percentile(50) * 1e3:.2f} ms, p99 {self.percentile(99) * 1e3:.2f} ms"


def ratios(rates: Iterable[Mapping[str, float]], above: str, below: str) -> list[float]:
    """Divide, within each round, one contender's rate by another's."""
    return [each[above] / each[below] for each in rates]


def each_took(rates: Sequence[Mapping[str, float]]) -> str:
    """Describe how long one call of each contender took: the medians."""
    return ", ".join(
        f"{name} {duration(1.0 / statistics.median(each[name] for each in rates))}" for name in rates[0]
    )


def duration(seconds: float) -> str:
    """Write a time with a unit that fits it."""
    if seconds >= 1.0:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def pin() -> int | None:
    """Pin this process to one core, and return another for servers; None if that is impossible."""
    if not hasattr(os, "sched_setaffinity"):
        print("not pinned: this system cannot, and the figures will waver", file=sys.stderr)
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("not pinned: there is one core for both, and the figures will waver", file=sys.stderr)
        return None
    os.sched_setaffinity(0, {cores[0]})
    print(f"this process on core {cores[0]}, servers on core {cores[1]}", file=sys.stderr)
    return cores[1]


@contextmanager
def instant_server(plan: Plan) -> Iterator[int]:
    """Run ``server.py`` in a process of its own; yield its port."""
    command = [sys.executable, str(Path(__file__).with_name("server.py"))]
    if plan.core is not None:
        command += ["--core", str(plan.core)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        # Leaving the block closes the standard input of the server, which then ends.


def in_a_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of a module in a fresh process, on the core of this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()
