"""Two managers behind nginx, clients in several processes, and each manager restarted in turn.

``python examples/nginx/run.py --seconds 60`` needs nginx (Debian's package) and the extra ``local``. All
addresses are 127.0.0.1. It prints the calls, their errors by class, and how many were sent again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from tcm_sync import Route, TcmClient, TcmError
from tcm_sync.local.digits import load_samples, model_file

CONFIG = Path(__file__).with_name("nginx.conf")


def free_port() -> int:
    """Return a port that nothing listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Replica:
    """One manager, in a process of its own, on a fixed port."""

    def __init__(self, port: int, model: Path) -> None:
        self.port = port
        self.model = model
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start it, and return when it serves."""
        command = [sys.executable, "-m", "tcm_sync.local", "--port", str(self.port), "--no-shm"]
        self.process = subprocess.Popen(
            [*command, "--model", f"digits={self.model}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if "serving" not in self.process.stdout.readline():
            raise RuntimeError(f"the manager on port {self.port} did not start")
        self.starts += 1

    def stop(self) -> None:
        """Have it finish its requests and end, as a deployment does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.process.stdout.close()


@contextlib.contextmanager
def running_nginx(port: int, replicas: list[Replica]):
    """Run nginx before the replicas, with all of its files in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        text = CONFIG.read_text(encoding="utf-8").replace("@PORT@", str(port))
        for name, replica in zip(("@FIRST@", "@SECOND@"), replicas, strict=True):
            text = text.replace(name, str(replica.port))
        config = Path(folder) / "nginx.conf"
        config.write_text(text, encoding="utf-8")
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        process = subprocess.Popen([program, "-p", folder, "-c", str(config)])
        try:
            wait_for_port(port)
            yield
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait(30)


def wait_for_port(port: int) -> None:
    """Wait until something listens."""
    until = time.monotonic() + 20.0
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


def call_until(uri: str, threads: int, over, results) -> None:
    """Call from some threads with one client until it is over, and check every answer."""
    counts: Counter[str] = Counter()
    slowest = [0.0]
    image = load_samples()[0].image.reshape(1, -1)
    with TcmClient(uri, route=Route("local", "127.0.0.1"), timeout=30.0) as client:
        expected = client.infer("digits", {"image": image})["probabilities"]

        def call() -> None:
            while not over.is_set():
                began = time.monotonic()
                try:
                    result = client.infer("digits", {"image": image})
                except TcmError as error:
                    counts[f"error {type(error).__name__}"] += 1
                else:
                    counts["calls"] += 1
                    counts["sent again"] += result.attempts > 1
                    counts["wrong"] += not np.array_equal(result["probabilities"], expected)
                slowest[0] = max(slowest[0], time.monotonic() - began)

        workers = [threading.Thread(target=call) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    results.put((dict(counts), slowest[0]))


def main() -> int:
    """Run it all, and return 1 if a call failed or was answered wrongly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=4, help="of clients (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=4, help="in each (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=3.0, help="between restarts (default: %(default)s)")
    options = parser.parse_args()
    port, context = free_port(), multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(model_file())
        replicas = []
        for _ in range(2):
            replicas.append(Replica(free_port(), model))
            stack.callback(replicas[-1].stop)
        with running_nginx(port, replicas):
            over, results = context.Event(), context.Queue()
            arguments = (f"ws://127.0.0.1:{port}/ws", options.threads, over, results)
            clients = [
                context.Process(target=call_until, args=arguments, daemon=True)
                for _ in range(options.processes)
            ]
            for client in clients:
                client.start()
            until, turn = time.monotonic() + options.seconds, 0
            while time.monotonic() < until:
                time.sleep(options.pause)
                replicas[turn % 2].stop()
                replicas[turn % 2].start()
                turn += 1
            over.set()
            found = [results.get(timeout=60.0) for _ in clients]
            for client in clients:
                client.join(60.0)
    counts = sum((Counter(each) for each, _ in found), Counter())
    summary = {
        "calls": 0,
        "wrong": 0,
        "sent again": 0,
        **counts,
        "restarts": sum(replica.starts - 1 for replica in replicas),
        "slowest call, s": round(max(slowest for _, slowest in found), 2),
    }
    print(json.dumps(summary))
    failed = counts["wrong"] + sum(n for name, n in counts.items() if name.startswith("error"))
    return 1 if failed or not counts["calls"] else 0


if __name__ == "__main__":
    sys.exit(main())
