"""How many messages are sent and refused when the manager is overloaded.

    python -m benchmarks storm [--seconds 8]

Three loads against a `LocalManager` in this process: 60 calls a second over four sockets where the manager
takes 20 messages a second of each; 32 threads on 32 sockets (a pool that large only for this) where one
worker has a queue of four; and 100 threads whose model's circuit is open for five seconds. It prints
messages sent for each call that succeeded, and ends with status 1 if a call failed.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tcm_sync import TcmClient, TcmError
from tcm_sync.local import LocalManager, ModelFailure

Arrays = dict[str, Any]


def slow(arrays: Arrays) -> Arrays:
    """Work for 5 ms."""
    time.sleep(0.005)
    return arrays


class Sick:
    """A model whose circuit is open from second 2 to second 7."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def __call__(self, arrays: Arrays) -> Arrays:
        """Fail while it is open."""
        age = time.monotonic() - self.began
        if 1.0 < age < 6.0:
            raise ModelFailure("TRITON_CIRCUIT_OPEN", "open", retry_after_seconds=max(0.1, 6.0 - age))
        return arrays


class Load:
    """Threads that call until the time is up."""

    def __init__(self, client: TcmClient, seconds: float) -> None:
        self._client = client
        self._ends = time.monotonic() + seconds
        self._lock = threading.Lock()  # guards the two attributes below
        self.done = 0
        self.failed: list[TcmError] = []

    def run(self, threads: int, pause: Callable[[int, int], None]) -> None:
        """Call from so many threads, each of which pauses after its call number n."""
        everybody = [threading.Thread(target=self._loop, args=(place, pause)) for place in range(threads)]
        for thread in everybody:
            thread.start()
        for thread in everybody:
            thread.join()

    def _loop(self, place: int, pause: Callable[[int, int], None]) -> None:
        count = 0
        while time.monotonic() < self._ends:
            try:
                self._client.infer("model", {"x": [place]})
            except TcmError as error:
                with self._lock:
                    self.failed.append(error)
            else:
                with self._lock:
                    self.done += 1
            count += 1
            pause(place, count)


def steadily(rate: float, threads: int) -> Callable[[int, int], None]:
    """Return the pauses with which all threads together make so many calls a second."""
    began = time.monotonic()

    def pause(place: int, count: int) -> None:
        due = began + place / rate + count * threads / rate
        time.sleep(max(0.0, due - time.monotonic()))

    return pause


def no_pause(_place: int, _count: int) -> None:
    """Do not pause."""


def short_pause(_place: int, _count: int) -> None:
    """Pause for 50 ms."""
    time.sleep(0.05)


def main() -> int:
    """Run the loads and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    seconds = parser.parse_args().seconds
    loads: dict[str, tuple[Any, dict[str, Any], dict[str, Any], int, Callable[[int, int], None]]] = {
        "60 calls a second, 20 messages a second and socket": (
            lambda arrays: arrays,
            {"messages_per_second": 20},
            {},
            16,
            steadily(60.0, 16),
        ),
        "32 sockets, one worker with a queue of four": (
            slow,
            {"workers": 1, "executor_queue_size": 4, "quantum": 32},
            {"pool_size": 32},
            32,
            no_pause,
        ),
        "a circuit open for 5 s under 100 threads": (
            Sick(),
            {"tick": 0},
            {},
            100,
            short_pause,
        ),
    }
    failed = 0
    for name, (model, manager_settings, client_settings, threads, pause) in loads.items():
        with LocalManager({"model": model}, **manager_settings) as manager:
            if isinstance(model, Sick):
                model.began = time.monotonic()
            with TcmClient(manager.uri, route=manager.route, timeout=60.0, **client_settings) as client:
                load = Load(client, seconds)
                load.run(threads, pause)
            stats = manager.stats()
        print(
            f"{name}: {load.done:,} succeeded, {stats.messages / load.done:.3f} messages each, "
            f"{sum(stats.nacks.values())} refused, {len(stats.uuids)} uuids, {len(load.failed)} failed"
        )
        failed += len(load.failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
