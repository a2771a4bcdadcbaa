"""How LocalManager's scheduler divides its time among sockets, compared with a real manager.

Each socket sends an inference of an instant model, waits for the reply, and sends the next. The manager
serves five uuids a tick, the oldest first: with more than five busy sockets the youngest starve.

    python -m benchmarks starvation [--seconds 6] [--only 5 8 16] [--plot docs/images/starvation.svg]

The manager has a process and a core of its own. The expected counts and worst latencies are for 6 s; those of
shorter runs cannot be compared with them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
import uuid
from dataclasses import dataclass, field

import websockets
from manager import local_manager
from runner import pin
from websockets.asyncio.client import connect

WORKERS = 8


@dataclass(frozen=True)
class Row:
    """A load, and what was measured with it on a real manager in 6 seconds."""

    sockets: int
    rate: int
    served: str
    median_ms: int
    worst: str
    replaced_after: int | None = None

    @property
    def name(self) -> str:
        """The name in the table."""
        return f"{self.sockets}" + (f", replaced after {self.replaced_after}" if self.replaced_after else "")


ROWS = [
    Row(1, 98, "even", 10, "20 ms"),
    Row(2, 196, "even", 10, "20 ms"),
    Row(4, 391, "even", 10, "20 ms"),
    Row(5, 473, "565, 572", 10, "22 ms"),
    Row(8, 482, "4, 576", 10, "3.7 s"),
    Row(16, 484, "1, 578", 10, "6.0 s"),
    Row(16, 479, "5, 204", 10, "4.3 s", replaced_after=200),
    Row(16, 475, "151, 201", 10, "1.6 s", replaced_after=50),
    Row(16, 472, "162, 186", 10, "0.6 s", replaced_after=20),
]


@dataclass
class Socket:
    """The latencies of one place of the load, over all the sockets that had it; in seconds."""

    latencies: list[float] = field(default_factory=list)
    asked_at: float | None = None
    unanswered: float = 0.0  # how long the last request had waited at the end


async def keep_busy(uri: str, socket: Socket, replaced_after: int | None) -> None:
    """Repeat a request, each after the answer to the last."""
    while True:
        name = uuid.uuid4().hex
        inputs = [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]
        payload = {"container_id": "local", "model_name": "double", "request": {"inputs": inputs}}
        request = json.dumps({"uuid": name, "type": "inference", "payload": payload})
        async with connect(uri, compression=None) as connection:
            await connection.send(json.dumps({"uuid": name, "type": "auth", "payload": {}}))
            await connection.recv()
            served = 0
            while replaced_after is None or served < replaced_after:
                socket.asked_at = time.perf_counter()
                await connection.send(request)
                while '"COMPLETED"' not in await connection.recv():
                    pass  # a note that the request is delayed
                socket.latencies.append(time.perf_counter() - socket.asked_at)
                socket.asked_at = None
                served += 1


async def load(uri: str, row: Row, seconds: float) -> list[Socket]:
    """Keep the sockets of a row busy for so long, and return the latencies of each."""
    sockets = [Socket() for _ in range(row.sockets)]
    tasks = [asyncio.create_task(keep_busy(uri, socket, row.replaced_after)) for socket in sockets]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    end = time.perf_counter()
    for socket in sockets:
        if socket.asked_at is not None:
            socket.unanswered = end - socket.asked_at
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(result, asyncio.CancelledError):
            raise RuntimeError("a socket stopped asking") from result
    return sockets


@dataclass(frozen=True)
class Measured:
    """The result of a row."""

    rate: float
    fewest: int
    most: int
    median: float
    worst: float


def measure(row: Row, seconds: float, core: int | None) -> Measured:
    """Start a manager, put the load on it, and summarise the results."""
    with local_manager(core, workers=WORKERS) as manager:
        sockets = asyncio.run(load(manager.uri, row, seconds))
    served = [len(socket.latencies) for socket in sockets]
    latencies = [latency for socket in sockets for latency in socket.latencies]
    worst = max([*latencies, *(socket.unanswered for socket in sockets)])
    return Measured(len(latencies) / seconds, min(served), max(served), statistics.median(latencies), worst)


def plot(measured: dict[Row, Measured], path: str) -> None:
    """Draw requests a second, and the shares of the sockets, over the number of sockets."""
    from matplotlib.figure import Figure

    rows = [row for row in measured if row.replaced_after is None]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = range(len(rows))
    names = [row.name for row in rows]
    left.bar(places, [measured[row].rate for row in rows], color="#4878a8")
    left.set_ylabel("requests a second, all sockets")
    for offset, label, color in ((-0.2, "fewest", "#c05040"), (0.2, "most", "#80a860")):
        heights = [measured[row].fewest if label == "fewest" else measured[row].most for row in rows]
        right.bar([place + offset for place in places], heights, 0.4, label=label, color=color)
    right.set_ylabel("served of one socket")
    right.legend(loc="lower left")
    for axes in (left, right):
        axes.set_xticks(list(places), names)
        axes.set_xlabel("busy sockets")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure every row, and print it beside the expected figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each row (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="draw it too (needs matplotlib)")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="the rows of so many sockets")
    options = parser.parse_args()
    seconds = options.seconds
    core = pin()
    print(
        f"websockets {websockets.__version__}, {seconds:g} s a row; measured here | on a real manager in 6 s"
    )
    layout = "{:<26}{:>12}{:>22}{:>18}{:>20}"
    print(layout.format("sockets", "requests/s", "fewest, most served", "median latency", "worst latency"))
    measured = {}
    for row in ROWS:
        if options.only and row.sockets not in options.only:
            continue
        found = measured[row] = measure(row, seconds, core)
        worst = f"{found.worst:.1f} s" if found.worst > 0.1 else f"{found.worst * 1e3:.0f} ms"
        print(
            layout.format(
                row.name,
                f"{found.rate:.0f} | {row.rate}",
                f"{found.fewest}, {found.most} | {row.served}",
                f"{found.median * 1e3:.0f} ms | {row.median_ms} ms",
                f"{worst} | {row.worst}",
            ),
            flush=True,
        )
    if options.plot:
        plot(measured, options.plot)


if __name__ == "__main__":
    main()
