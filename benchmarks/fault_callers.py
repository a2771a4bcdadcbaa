"""The callers of `faults`: a process whose threads make calls of all kinds, check them, and count results.

The main thread is interrupted again and again while it calls; another thread forks children, which call with
the client that they inherit, some of them from a child of their own. At the end the process looks for what
is left over, and prints it as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import logging
import mmap
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from fault_manager import MAX_BYTES, answer, chunks

from tcm_sync import (
    BatchPolicy,
    ConnectionLostError,
    InferResult,
    RetryPolicy,
    Route,
    ShuttingDownError,
    TcmClient,
    TcmError,
)

THREADS, ROWS = 4, 16  # of a process: its threads, then those of a child, then those of a grandchild
CHILD_THREADS, CHILD_CALLS = 2, 10
FULL_TIMEOUT, LATE = 30.0, 0.25  # seconds: the usual timeout of a call, and how late its end may be
STARTS = 1.0  # seconds in which `map` starts its threads: the timeout of a call counts from its turn
ATTEMPT = 5.0  # seconds of an attempt in every other process
HUNG = 90.0  # seconds after which a child counts as hung
KINDS = {"infer": 30, "short": 20, "shared": 12, "own": 5, "slow": 3, "map": 6, "sample": 12, "stream": 8}
KINDS |= {"submit": 4, "probe": 2}
OUTCOMES = ("good", "failed", "gave up", "broken", "wrong", "interrupted", "late")
SMALL, LARGE = 2000, 60_000  # elements

Array = np.ndarray[Any, Any]


class Ledger:
    """Counts in a file that all processes map, with a row for each thread and thus one writer."""

    COLUMNS = tuple(f"{kind} {outcome}" for kind in KINDS for outcome in OUTCOMES)

    def __init__(self, path: str, rows: int) -> None:
        width = 2 * len(self.COLUMNS) + 1
        size = 8 * (rows + 1) * width
        with open(path, "r+b") as file:
            file.truncate(size)
            cells = np.frombuffer(mmap.mmap(file.fileno(), size), np.int64).reshape(rows + 1, width)
        self._flags, self._cells = cells[0], cells[1:]

    @property
    def over(self) -> bool:
        """Whether callers are to stop."""
        return bool(self._flags[0])

    @property
    def damaging(self) -> bool:
        """Whether bytes may be damaged on their way."""
        return bool(self._flags[1])

    def set(self, *, over: bool = False, damaging: bool = False) -> None:
        """Set what callers look at."""
        self._flags[0] |= over
        self._flags[1] |= damaging

    def count(self, row: int, what: str, damaged: bool) -> None:
        """Count an outcome of a kind of call."""
        self._cells[row, self.COLUMNS.index(what) + damaged * len(self.COLUMNS)] += 1

    def overshoot(self, row: int, seconds: float) -> None:
        """Note how long after its deadline a call ended."""
        self._cells[row, -1] = max(self._cells[row, -1], int(seconds * 1e6))

    def totals(self, damaged: bool, processes: Collection[int] | None = None) -> dict[str, int]:
        """Return the counts of all processes, or of some."""
        cells = self._cells.reshape(-1, ROWS, self._cells.shape[1])
        chosen = cells if processes is None else cells[list(processes)]
        sums = chosen.sum(axis=(0, 1))[damaged * len(self.COLUMNS) :]
        return dict(zip(self.COLUMNS, map(int, sums), strict=False))

    @property
    def latest(self) -> float:
        """The longest overshoot, in seconds."""
        return float(self._cells[:, -1].max()) / 1e6


DEATHS: list[str] = []  # of threads of this process that an unexpected exception ended


def remember_death(args: threading.ExceptHookArgs) -> None:
    """Print the exception that ends a thread, and remember it."""
    DEATHS.append(f"a thread died of {args.exc_type.__name__}: {args.exc_value}"[:300])
    sys.__excepthook__(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)


class WrongAnswerError(Exception):
    """A reply is not the one to this request."""


def check(right: bool, what: str) -> None:
    """Raise if a reply is wrong."""
    if not right:
        raise WrongAnswerError(what)


def check_mix(x: Array, result: InferResult) -> None:
    """Compare a reply with what the model must say to this input."""
    for name, array in answer(x).items():
        check(np.array_equal(result[name], array), f"{name}: {result[name]!r} for {x[:2]}"[:300])


class Caller:
    """A thread that calls."""

    def __init__(self, client: TcmClient, ledger: Ledger, row: int, options: argparse.Namespace) -> None:
        self._client = client
        self._ledger = ledger
        self._row = row
        self._options = options
        self._draw = random.Random(f"{options.seed}/{row}/{os.getpid()}")
        self._noise = np.random.default_rng(row).random(2 * LARGE).round(6)
        self._serial = 0
        self._own: Array | None = None
        self._chunks = 0
        self._model = client.model("rows", container_id=options.route, batch=BatchPolicy())
        self._kinds: dict[str, Callable[[float], None]] = {
            "infer": self._infer,
            "short": self._infer,
            "shared": self._infer_shared,
            "own": self._infer_own,
            "slow": self._infer_slow,
            "map": self._map,
            "sample": self._sample,
            "stream": self._stream,
            "submit": self._submit,
            "probe": self._probe,
        }
        self.in_call = False

    def run(self, calls: int | None = None) -> None:
        """Call until the ledger says that it is over, or so many times."""
        made = 0
        while not self._ledger.over and made != calls:
            (kind,) = self._draw.choices(list(KINDS), list(KINDS.values()))
            self.one(kind)
            made += 1
            time.sleep(self._draw.expovariate(1 / self._options.pause))

    def one(self, kind: str) -> None:
        """Make one call and count what comes of it."""
        timeout = self._draw.uniform(0.03, 1.5) if kind in ("short", "slow", "probe") else FULL_TIMEOUT
        damaged = self._ledger.damaging
        began = time.monotonic()
        elapsed = 0.0  # of the call that failed, of those of a `map`
        try:
            self.in_call = True
            try:
                self._kinds[kind](timeout)
            finally:
                self.in_call = False
            outcome = "good"
        except KeyboardInterrupt:
            outcome = "interrupted"
        except (WrongAnswerError, LookupError) as error:  # an output has another name
            outcome = "wrong"
            if not (damaged or self._ledger.damaging):
                self._report(kind, error, began)
        except TcmError as error:
            elapsed = error.elapsed or 0.0
            outcome = self._kind_of_failure(kind, error, timeout)
            if outcome == "failed" and not (damaged or self._ledger.damaging):
                self._report(kind, error, began)
        over = time.monotonic() - began - timeout
        if kind == "map":
            over = max(over - STARTS, elapsed - timeout)
        damaged = damaged or self._ledger.damaging
        self._ledger.count(self._row, f"{kind} {outcome}", damaged)
        if outcome != "interrupted":
            self._ledger.overshoot(self._row, over)
            if over > LATE:
                self._ledger.count(self._row, f"{kind} late", damaged)
                said = f"{kind} ended {over:.3f} s after its timeout of {timeout:.3f} s"
                print(f"{stamp()} process {os.getpid()}, {said}: {outcome}", file=sys.stderr, flush=True)

    def _kind_of_failure(self, kind: str, error: TcmError, timeout: float) -> str:
        self._own = None  # it may be in use by the manager: a further call would copy it
        if kind == "stream" and self._chunks and isinstance(error, ConnectionLostError):
            return "broken"  # nobody can repeat a stream of which a part was handed out
        expected = isinstance(error, (ConnectionError, TimeoutError, ShuttingDownError))
        return "gave up" if expected and timeout < FULL_TIMEOUT else "failed"

    def drop_array(self) -> None:
        """Give back the array in shared memory, which is the caller's own."""
        self._own = None

    def _report(self, kind: str, error: Exception, began: float) -> None:
        """Print what is wrong with a call."""
        seconds = time.monotonic() - began
        said = f"{kind} after {seconds:.1f} s: {type(error).__name__}: {error}"
        print(f"{stamp()} process {os.getpid()}, {said}"[:400], file=sys.stderr, flush=True)

    # --- what is called ---

    def _tensor(self, size: int, x: Array | None = None) -> Array:
        """Make a tensor that no other call has: it begins with the thread's number and a serial number."""
        start = self._draw.randrange(LARGE)
        x = np.empty(size) if x is None else x
        x[:] = self._noise[start : start + size]
        self._serial += 1
        x[:2] = self._row * 2**22 + os.getpid() % 2**22, self._serial
        return x

    def _infer(self, timeout: float) -> None:
        x = self._tensor(self._draw.randint(2, SMALL))
        check_mix(x, self._client.infer("mix", {"x": x}, timeout=timeout))

    def _infer_shared(self, timeout: float) -> None:
        size = (
            2 ** self._draw.randint(13, 15) if self._draw.random() < 0.5 else self._draw.randint(SMALL, LARGE)
        )
        x = self._tensor(size)
        check_mix(x, self._client.infer("mix", {"x": x}, timeout=timeout))

    def _infer_own(self, timeout: float) -> None:
        if self._own is None:
            try:
                self._own = self._client.empty_shared(LARGE // 2, np.float64)
            except TcmError:  # /dev/shm is full, or no socket has the permission at this moment
                self._own = np.empty(LARGE // 2)
        x = self._tensor(LARGE // 2, self._own)
        check_mix(x, self._client.infer("mix", {"x": x}, timeout=timeout))

    def _infer_slow(self, timeout: float) -> None:
        """Give up, mostly, while the model looks at the tensor."""
        x = self._tensor(self._draw.randint(SMALL, LARGE))
        check_mix(x, self._client.infer("slow", {"x": x}, timeout=timeout))

    def _map(self, timeout: float) -> None:
        many = [self._tensor(self._draw.randint(2, 50)) for _ in range(self._draw.randint(2, 12))]
        results = self._client.map("mix", [{"x": x} for x in many], timeout=timeout)
        for x, result in zip(many, results, strict=True):
            check_mix(x, result)

    def _sample(self, timeout: float) -> None:
        x = self._tensor(8)
        x[2:] = self._draw.sample(range(10**6), 6)  # whole numbers: their sum is exact
        result = self._model.infer_sample({"x": x}, timeout=timeout)
        check(np.array_equal(result["who"], x[:2]), f"who: {result['who']!r} for {x[:2]}")
        check(result["sum"].item() == x.sum(), f"sum: {result['sum']!r} for {x!r}")

    def _stream(self, timeout: float) -> None:
        x = self._tensor(2)
        right = chunks(x.tolist())
        route = {"container_id": self._options.transient, "vm_ip": self._options.vm_ip}
        self._chunks = 0
        with self._client.stream("talk", {"x": x}, allow_transient=True, timeout=timeout, **route) as stream:
            for chunk in stream:
                check(chunk in right[self._chunks : self._chunks + 1], f"chunk {chunk!r} of {right}")
                self._chunks += 1
        check(self._chunks == len(right), f"{self._chunks} chunks")

    def _submit(self, timeout: float) -> None:
        x = self._tensor(self._draw.randint(2, SMALL))
        check_mix(x, self._client.submit("mix", {"x": x}, timeout=timeout).result())

    def _probe(self, timeout: float) -> None:
        self._client.health(timeout=timeout)


def call(client: TcmClient, ledger: Ledger, row: int, options: argparse.Namespace) -> None:
    """Call in threads of a child, so many times in each, and close its copy of the client."""
    callers = [Caller(client, ledger, row + thread, options) for thread in range(CHILD_THREADS)]
    threads = [threading.Thread(target=caller.run, args=(CHILD_CALLS,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    if DEATHS:
        raise RuntimeError(DEATHS[0])


def has_attempt_timeout(number: int) -> bool:
    """Whether the policy of a process has an ``attempt_timeout``."""
    return number % 2 == 1


def stamp() -> str:
    """Return the time of day, to compare what the processes print."""
    return time.strftime("%H:%M:%S")


def forked(work: Callable[[], None]) -> int:
    """Run some work in a forked child, and return its exit status, or -1000 where it hung."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later: there are other threads
        pid = os.fork()
    if not pid:
        DEATHS.clear()
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - this process must not continue as its parent does
            traceback.print_exc()
            os._exit(1)
    ends = time.monotonic() + HUNG
    while time.monotonic() < ends:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1000


def fork_again_and_again(
    client: TcmClient, ledger: Ledger, row: int, options: argparse.Namespace, outcome: dict[str, Any]
) -> None:
    """Fork children that call, one after another; every fourth forks one of its own."""

    def child() -> None:
        call(client, ledger, row, options)

    def parent_of_another() -> None:
        if status := forked(lambda: call(client, ledger, row + CHILD_THREADS, options)):
            raise RuntimeError(f"a grandchild ended with {status}")
        child()

    while not ledger.over:
        outcome["forks"] += 1
        if status := forked(parent_of_another if outcome["forks"] % 4 == 0 else child):
            outcome["left"].append(f"a child ended with {status}")
        time.sleep(options.pause)


def interrupt_again_and_again(
    caller: Caller, ledger: Ledger, draw: random.Random, outcome: dict[str, Any]
) -> None:
    """Interrupt the main thread while it is in a call."""
    main = threading.main_thread().ident
    assert main is not None
    while not ledger.over:
        time.sleep(draw.uniform(0.05, 0.5))
        if caller.in_call:
            signal.pthread_kill(main, signal.SIGINT)
            outcome["interrupts"] += 1


def descriptors() -> Counter[str]:
    """Return what the descriptors of this process point to."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
    return found


def left_over(before: Counter[str]) -> list[str]:
    """Return what this process has beside its main thread, after its client was closed."""
    ends = time.monotonic() + 10.0
    while True:
        threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        extra = list((descriptors() - before).elements())
        files = [name for name in os.listdir("/dev/shm") if name.startswith(f"tcm_{os.getpid()}_")]
        if not (threads or extra or files) or time.monotonic() > ends:
            return [
                *(f"thread {name}" for name in threads),
                *(f"descriptor of {name}" for name in extra),
                *(f"/dev/shm/{name}" for name in files),
            ]
        time.sleep(0.05)
        gc.collect()  # an exception of an interrupted call may be part of a cycle


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Call in all threads until the ledger says that it is over."""
    ledger = Ledger(options.ledger, options.rows)
    outcome: dict[str, Any] = {"forks": 0, "interrupts": 0, "left": DEATHS}
    before = descriptors()
    first = options.number * ROWS
    retry = RetryPolicy(attempt_timeout=ATTEMPT if has_attempt_timeout(options.number) else None)
    route = Route(options.route, options.vm_ip)
    uri = f"ws://127.0.0.1:{options.port}/ws"
    client = TcmClient(uri, route=route, timeout=FULL_TIMEOUT, retry=retry, max_message_bytes=MAX_BYTES)
    callers = [Caller(client, ledger, first + thread, options) for thread in range(THREADS)]
    main = callers[0]

    def interrupted(*_: object) -> None:
        if main.in_call:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    threads = [threading.Thread(target=caller.run) for caller in callers[1:]]
    children = (client, ledger, first + THREADS, options, outcome)
    threads.append(threading.Thread(target=fork_again_and_again, args=children))
    draw = random.Random(f"{options.seed}/{options.number}")
    threads.append(threading.Thread(target=interrupt_again_and_again, args=(main, ledger, draw, outcome)))
    for thread in threads:
        thread.start()
    main.run()
    for thread in threads:
        thread.join()
    stats = client.stats()
    outcome["left"] += [f"{stats.busy} busy, {stats.waiting} waiting"] * bool(stats.busy or stats.waiting)
    client.close()
    for caller in callers:
        caller.drop_array()
    outcome["left"] += left_over(before)
    outcome["repeats"] = sum(stats.repeats.values())
    outcome["sockets"] = stats.sockets_opened
    outcome["shm"] = stats.shm_sends
    outcome["turns"] = stats.turn_waits
    return outcome


def main() -> None:
    """Run the command line, which `faults` writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("number", "port", "rows"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("seed", "ledger", "route", "transient", "vm_ip"):
        parser.add_argument(f"--{name.replace('_', '-')}")
    parser.add_argument("--pause", type=float)
    options = parser.parse_args()
    logging.getLogger("tcm_sync").setLevel(logging.CRITICAL)  # connections are cut on purpose
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    threading.excepthook = remember_death
    print(json.dumps(run(options)), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
