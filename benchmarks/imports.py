"""The time of ``import tcm_sync`` against importing its dependencies, in fresh processes in turns."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from statistics import median

from runner import Plan, Row, duration

IMPORTS = {
    "tcm_sync": "tcm_sync",
    "its dependencies": "numpy, msgspec, websocket, tenacity, orjson",
}
PROGRAM = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def rows(plan: Plan) -> Iterator[Row]:
    """Import both in turns. The figure of a round is the median of several imports."""
    with tempfile.TemporaryDirectory() as cache:
        for modules in IMPORTS.values():
            seconds_to_import(modules, cache)  # compiles them
        rounds = []
        for _ in range(plan.rounds):
            turns = plan.size(7, 1)
            taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
            for _ in range(turns):
                for name, modules in IMPORTS.items():
                    taken[name].append(seconds_to_import(modules, cache))
            rounds.append({name: median(seconds) for name, seconds in taken.items()})
    yield Row(
        "import tcm_sync / importing numpy, msgspec, websocket, tenacity, orjson",
        [each["tcm_sync"] / each["its dependencies"] for each in rounds],
        most=1.3,
        detail=", ".join(f"{name} {duration(median(each[name] for each in rounds))}" for name in IMPORTS),
    )


def seconds_to_import(modules: str, cache: str) -> float:
    """Import modules in a fresh process, with compiled code cached as in an installation."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = cache
    command = [sys.executable, "-c", PROGRAM.format(modules)]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
