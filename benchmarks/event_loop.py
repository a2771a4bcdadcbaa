"""How late an event loop is while 200 inferences are awaited at once, in each way that the client offers.

    python -m benchmarks event_loop [--rounds 20]

A task sleeps for a millisecond at a time and notes how much later than that it is woken. Four connections, a
sample of 64 floats, and a `LocalManager` that is paced as a real one, in a process of its own. Every answer
is checked. The first line is the loop without any calls.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bare
import numpy as np
from manager import local_manager
from runner import pin

from tcm_sync import BatchPolicy, TcmClient

CALLS = 200
STEP = 0.001  # seconds
Ask = Callable[[np.ndarray], Awaitable[Any]]


def ways(client: TcmClient) -> dict[str, Ask | None]:
    """Return the ways to await an inference; None is without calls."""
    model = client.model("double", batch=BatchPolicy(), output_dtypes=np.float32)
    return {
        "idle": None,
        "to_thread(infer)": lambda x: asyncio.to_thread(model.infer, {"x": x[np.newaxis]}),
        "wrap_future(submit)": lambda x: asyncio.wrap_future(model.submit({"x": x[np.newaxis]})),
        "to_thread(infer_sample)": lambda x: asyncio.to_thread(model.infer_sample, {"x": x}),
        "wrap_future(submit_sample)": lambda x: asyncio.wrap_future(model.submit_sample({"x": x})),
    }


async def note_lateness(lateness: list[float], finished: asyncio.Event) -> None:
    """Note how late the loop wakes, in seconds."""
    while not finished.is_set():
        due = time.perf_counter() + STEP
        await asyncio.sleep(STEP)
        lateness.append(time.perf_counter() - due)


async def call(ask: Ask, x: np.ndarray) -> None:
    """Make a call, and check the answer."""
    if not np.array_equal((await ask(x))["y"].ravel(), x * 2):
        raise RuntimeError("an answer of somebody else's")


async def measure(ask: Ask | None, rounds: int) -> tuple[list[float], float]:
    """Return the lateness of the loop, and the seconds that 200 calls took."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))
    random = np.random.default_rng(1)
    lateness: list[float] = []
    finished = asyncio.Event()
    noting = asyncio.create_task(note_lateness(lateness, finished))
    start = time.perf_counter()
    for _ in range(rounds):
        if ask is None:
            await asyncio.sleep(0.2)
        else:
            await asyncio.gather(*(call(ask, random.random(64, np.float32)) for _ in range(CALLS)))
    seconds = (time.perf_counter() - start) / rounds
    finished.set()
    await noting
    return sorted(lateness), seconds


def main() -> None:
    """Measure each way, after a round that is not counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks event_loop")
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    core = pin()
    with local_manager(core) as manager, bare.our_client(manager.uri, route=manager.route) as client:
        for name, ask in ways(client).items():
            asyncio.run(measure(ask, 1))
            late, seconds = asyncio.run(measure(ask, rounds))
            p50, p99 = (1e3 * late[int(part * len(late))] for part in (0.5, 0.99))
            print(
                f"{name:28} {seconds * 1e3:6.0f} ms for {CALLS} calls; "
                f"loop late by {p50:.2f} ms (median), {p99:.2f} ms (p99), {late[-1] * 1e3:.2f} ms (most)"
            )


if __name__ == "__main__":
    main()
