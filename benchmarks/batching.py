"""Client-side batching against the manager's real scheduler: samples a second with it and without.

A sample is 64 floats, the pool has its four sockets, and the manager is paced as a real one: five
inferences every 10 ms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import bare
import numpy as np
from manager import local_manager
from runner import Crew, Latencies, Plan, Row, alternate, ratios

from tcm_sync import BatchPolicy, Model

TURN = 1.0  # seconds: a hundred ticks of the manager


def rows(plan: Plan) -> Iterator[Row]:
    """Measure one, four and 64 threads; only the last has a goal."""
    with (
        local_manager(plan.core) as manager,
        bare.our_client(manager.uri, route=manager.route, timeout=60.0) as client,
    ):
        model = client.model("double", batch=BatchPolicy(), output_dtypes=np.float32)
        for threads, least in ((1, None), (4, None), (64, 8)):
            yield one_row(plan, model, threads, least)


def asking(ask: Callable[[np.ndarray], np.ndarray]) -> Callable[[], None]:
    """Return a call with a sample of its own, which checks the reply."""
    own = threading.local()

    def call() -> None:
        if not hasattr(own, "random"):
            own.random = np.random.default_rng()
        x = own.random.random(64, np.float32)
        if not np.array_equal(ask(x), x * 2):
            raise RuntimeError("a slice of somebody else's")

    return call


def one_row(plan: Plan, model: Model, threads: int, least: float | None) -> Row:
    """Have so many threads call with batching and without, in turns."""
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "without": lambda x: model.infer({"x": x[np.newaxis]})["y"][0],
        "with": lambda x: model.infer_sample({"x": x})["y"],
    }
    crews = {name: Crew([asking(ask)] * threads) for name, ask in ways.items()}
    rates = []
    latencies: dict[str, list[Latencies]] = {name: [] for name in ways}
    for each in alternate(crews, plan, min(TURN, plan.seconds)):
        rates.append(each)
        for name, members in crews.items():
            latencies[name].append(members.take())
    detail = "; ".join(
        f"{name} {sorted(each[name] for each in rates)[len(rates) // 2]:,.0f}/s, {latencies[name][-1]}"
        for name in ways
    )
    what = f"samples a second with batching / without, {threads} thread{'s' * (threads > 1)}"
    return Row(what, ratios(rates, "with", "without"), least, detail=detail)
