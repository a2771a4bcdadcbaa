"""How tests wait: for what must happen, and never for a length of time."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

GUARD = 30.0  #: Seconds; only what hangs takes so long.


def wait_for(event: threading.Event) -> None:
    """Wait for an event that another thread sets."""
    assert event.wait(GUARD), "it did not happen"


def wait_until(condition: Callable[[], Any], what: str = "it is true") -> None:
    """Wait for a condition that no event reports."""
    deadline = time.monotonic() + GUARD
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {GUARD:.0f} s for: {what}")
        time.sleep(0.001)


def wait_until_all_go_on(counts: list[int], threads: list[Future[Any]]) -> None:
    """Wait until each count is higher than now. What ended the thread that counts is raised."""
    before = list(counts)

    def all_went_on() -> bool:
        for thread in threads:
            if thread.done():
                thread.result()
        return all(now > then for now, then in zip(counts, before, strict=True))

    wait_until(all_went_on, "each thread has gone on")


def end(manager, how: str, client) -> None:
    """Have a manager `stop`, or `kill` it, and wait until the sockets of its client are gone."""
    getattr(manager, how)()
    wait_until(lambda: not client._core.runtime.pool.state.inventory.all, "the client has noticed")


def collected_while_held(held: list[Any], lock: Any) -> bool:
    """Return whether another thread can collect what a list holds while this one holds a lock."""

    def collect() -> None:
        held.clear()
        gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    with lock:
        thread.start()
        thread.join(GUARD / 3)
        collected = not thread.is_alive()
    thread.join(GUARD)
    return collected
