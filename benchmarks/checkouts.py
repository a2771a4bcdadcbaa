"""Small calls of this checkout beside those of another one, in turns in one run.

    python benchmarks/checkouts.py OTHER [--listener] [--rounds N] [--calls N] [--kinds infer named ...]

OTHER is a directory with another state of this repository, for instance one made by ``git worktree add``.
Each checkout runs in a process of its own, on the same core; the server has the other core. Printed for each
kind of call: the median of the rounds' ratios of this checkout's time to the other's, with its confidence
interval of 95 %, the lowest and the highest. Both use this interpreter and its packages. With ``--listener``
this checkout has a `PrometheusListener`; ``.`` as OTHER then shows what that costs.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent

#: Reads a kind and a number of calls from standard input, line by line, and makes those calls.
CLIENT = """
import sys, time
import numpy as np
from tcm_sync import Route, TcmClient
from tcm_sync.local import LocalManager  # noqa: F401 - so that both have loaded the same
port = int(sys.argv[1])
x = np.array([[0.5, -1.25, 2.0, 8.75]], np.float32)
with TcmClient(f"ws://127.0.0.1:{port}/ws", route=Route("c", vm_ip="127.0.0.1"), pool_size=1) as client:
    if sys.argv[2:] == ["listener"]:
        from tcm_sync.events import add_listener
        from tcm_sync.integrations.prometheus import PrometheusListener
        add_listener(PrometheusListener())
    model = client.model("m")
    bodies = {
        "infer": lambda: client.infer("m", {"x": x}),
        "named": lambda: client.infer("m", {"x": x}, container_id="d", vm_ip="127.0.0.1"),
        "bound": lambda: model.infer({"x": x}),
        "submit": lambda: client.submit("m", {"x": x}).result(),
    }
    bodies["infer"]()
    for line in sys.stdin:
        kind, count = line.split()
        body = bodies[kind]
        began = time.perf_counter()
        for _ in range(int(count)):
            body()
        print((time.perf_counter() - began) / int(count), flush=True)
"""


def start(checkout: Path, port: int, *arguments: str) -> subprocess.Popen[str]:
    """Start the process that makes calls with the package of one checkout."""
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(port), *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
    )


def ask(client: subprocess.Popen[str], kind: str, calls: int) -> float:
    """Have one process make some calls; return the seconds for each."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(f"{kind} {calls}\n")
    client.stdin.flush()
    return float(client.stdout.readline())


def interval(ordered: list[float]) -> tuple[float, float]:
    """Return the confidence interval of 95 % of the median, by the binomial distribution of ranks."""
    count = len(ordered)
    aside = 0.98 * math.sqrt(count)
    return ordered[max(0, math.floor(count / 2 - aside))], ordered[
        min(count - 1, math.ceil(count / 2 + aside))
    ]


def main() -> None:
    """Compare, and print a line for each kind of call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--listener", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--kinds", nargs="+", default=["infer", "named", "bound", "submit"])
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, str(HERE / "server.py"), "--core", str(min(os.sched_getaffinity(0)))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    port = int(server.stdout.readline())
    ours = ["listener"] if options.listener else []
    clients = [start(ROOT, port, *ours), start(options.other.resolve(), port)]
    try:
        for kind in options.kinds:
            took = []
            for each in range(options.rounds):
                order = (0, 1) if each % 2 == 0 else (1, 0)
                by_place = {place: ask(clients[place], kind, options.calls) for place in order}
                took.append((by_place[0], by_place[1]))
            ratios = sorted(ours / theirs for ours, theirs in took)
            low, high = interval(ratios)
            here, there = (statistics.median(times) * 1e6 for times in zip(*took, strict=True))
            print(
                f"{kind:8} {statistics.median(ratios):.3f} (95 %: {low:.3f} to {high:.3f}; "
                f"all: {ratios[0]:.3f} to {ratios[-1]:.3f}), {here:.1f} us here, {there:.1f} us there"
            )
    finally:
        for client in clients:
            assert client.stdin is not None
            client.stdin.close()
            client.wait(10)
        server.stdin.close()
        server.wait(10)


if __name__ == "__main__":
    main()
