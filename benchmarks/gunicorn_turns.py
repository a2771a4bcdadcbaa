"""What callers of a web server get whose workers share a manager: real gunicorn, with turns and without.

    python -m benchmarks gunicorn_turns [--seconds 15] [--workers 4] [--threads 4] [--callers 16]

gunicorn runs a small WSGI application that calls `TcmClient.infer`, in workers of gthread threads. Callers
ask it in a closed loop, once over a new connection for each request and once over connections that they
keep. The `LocalManager` is paced as a real manager; it has a core of its own, and workers and callers share
another. Every answer is checked; the status is 1 if one failed or was wrong.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from callers import Served
from manager import Manager, local_manager
from runner import in_a_fresh_process, pin
from turns import SHM, summary, turns, ways

from tcm_sync import Route, TcmClient

STARTS_WITHIN = 60.0  # seconds

Headers = list[tuple[str, str]]


@functools.cache
def client() -> TcmClient:
    """Return the client of this worker, which is made on its first request."""
    given = json.loads(os.environ["BENCHMARK"])
    return TcmClient(given["uri"], route=Route(*given["route"]), timeout=60.0, **given["settings"])


def app(environ: dict[str, Any], start_response: Callable[[str, Headers], object]) -> list[bytes]:
    """Double a number by asking the manager."""
    x = int(parse_qs(environ["QUERY_STRING"])["x"][0])
    y = client().infer("double", {"x": np.array([x])}, output_dtypes=np.int64)["y"]
    body = str(int(y[0])).encode()
    start_response("200 OK", [("Content-Length", str(len(body))), ("X-Worker", str(os.getpid()))])
    return [body]


@contextmanager
def web_server(manager: Manager, way: str, workers: int, threads: int) -> Iterator[int]:
    """Run gunicorn, and yield its port."""
    with (
        tempfile.TemporaryDirectory(dir=SHM, prefix="benchmark_tcm_") as folder,
        socket.create_server(("127.0.0.1", 0), backlog=128) as listener,
    ):
        route = manager.route
        given = {
            "uri": manager.uri,
            "route": [route.container_id, route.vm_ip],
            "settings": turns(way),
        }
        command = f"-m gunicorn --workers {workers} --threads {threads} --worker-class gthread"
        command += (
            f" --bind fd://{listener.fileno()} --log-level warning --no-control-socket gunicorn_turns:app"
        )
        environment = {"BENCHMARK": json.dumps(given), "TCM_TURNS_DIR": f"{folder}/turns"}
        with subprocess.Popen(
            [sys.executable, *command.split()],
            cwd=os.path.dirname(__file__),
            pass_fds=[listener.fileno()],
            env={**os.environ, **environment},
        ) as server:
            try:
                port: int = listener.getsockname()[1]
                wait_for(port, workers)
                yield port
            finally:
                server.send_signal(signal.SIGTERM)


def wait_for(port: int, workers: int) -> None:
    """Ask until every worker has answered."""
    ends = time.monotonic() + STARTS_WITHIN
    seen: set[str] = set()
    while len(seen) < workers:
        if time.monotonic() > ends:
            raise RuntimeError(f"{len(seen)} of {workers} workers have answered")
        seen |= set(call(port, callers=4, seconds=0.5, keep=False)[1])


def call(port: int, callers: int, seconds: float, keep: bool) -> tuple[list[Served], dict[str, int]]:
    """Ask from some threads for so long; return what each got, and how many answers each worker gave."""
    results = [Served() for _ in range(callers)]
    workers: Counter[str] = Counter()
    lock = threading.Lock()  # guards `workers`
    ready = threading.Barrier(callers)

    def loop(result: Served, seed: int) -> None:
        random = np.random.default_rng(seed)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90.0)
        mine: Counter[str] = Counter()
        ready.wait()
        now = time.monotonic()
        ends = now + seconds
        while now < ends:
            x = int(random.integers(0, 2**40))
            try:
                connection.request("GET", f"/?x={x}", headers={} if keep else {"Connection": "close"})
                with connection.getresponse() as response:
                    body = response.read()
                    mine[response.headers["X-Worker"]] += 1
                if body != str(2 * x).encode():
                    raise RuntimeError(f"{body!r} is not twice {x}")
            except Exception as error:  # noqa: BLE001 - it is what is measured
                result.problems.append(repr(error))
                connection.close()
            if not keep:
                connection.close()
            now, before = time.monotonic(), now
            result.latencies.append(now - before)
        connection.close()
        with lock:
            workers.update(mine)

    threads = [threading.Thread(target=loop, args=each) for each in zip(results, range(callers), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served = [Served(len(each.latencies) - 1, each.latencies, each.problems) for each in results]
    return served, dict(workers)


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="for each load (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=4, help="of each worker")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--connections", choices=("new", "kept"), help="only these (default: both)")
    options = parser.parse_args()
    if importlib.util.find_spec("gunicorn") is None:
        parser.error("gunicorn is missing: pip install 'tcm-sync[bench]'")
    core, failed = pin(), 0
    for connections in [options.connections] if options.connections else ["new", "kept"]:
        for way in ways():
            with (
                local_manager(core) as manager,
                web_server(manager, way, options.workers, options.threads) as port,
            ):
                results, workers = in_a_fresh_process(
                    call, port, options.callers, options.seconds, connections == "kept"
                )
            row = summary(results, options.seconds)
            failed += row.failed
            print(
                f"{connections:4} connections, turns {way:3} {row}; answers of each worker: "
                f"{', '.join(map(str, sorted(workers.values())))}",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
