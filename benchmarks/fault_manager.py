"""The manager of `faults`, in a process of its own: models whose replies name their caller, and restarts.

The commands on standard input, one a line, are ``stop`` and ``kill`` (the manager is started again) and
``status``; each is answered with a line of JSON.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tcm_sync.local import LocalManager

Arrays = dict[str, "np.ndarray[Any, Any]"]
MAX_BYTES = 2**20  # of a message
ECHOED = 500  # the most elements that a reply repeats
SLOW = 0.1  # seconds


def answer(x: np.ndarray[Any, Any]) -> Arrays:
    """Return what model ``mix`` must reply: the ids in the input, some of its data, and a checksum of all."""
    return {
        "who": x[:2].copy(),
        "y": x[:ECHOED][::-1].copy(),
        "crc": np.array([zlib.crc32(np.ascontiguousarray(x))]),
    }


class Models:
    """The models, and how often an input has changed while a model ran."""

    def __init__(self) -> None:
        self.spoilt = 0

    def mix(self, arrays: Arrays) -> Arrays:
        """Answer at once."""
        return answer(arrays["x"])

    def slow(self, arrays: Arrays) -> Arrays:
        """Answer late, and look whether the input is what it was."""
        before = answer(arrays["x"])
        time.sleep(SLOW)
        if answer(arrays["x"])["crc"] != before["crc"]:
            self.spoilt += 1
        return before

    def rows(self, arrays: Arrays) -> Arrays:
        """Answer for each row by itself, for batches of samples."""
        return {"who": arrays["x"][:, :2].copy(), "sum": arrays["x"].sum(axis=1)}

    def talk(self, arrays: Arrays) -> Iterator[str | None]:
        """Stream five chunks."""
        yield from chunks(arrays["x"].tolist())
        yield None


def chunks(who: list[float]) -> list[str]:
    """Return the chunks that model ``talk`` must stream."""
    return [f"{who}-{number}" for number in range(5)]


def serve() -> None:
    """Run a manager, and carry out commands until standard input ends."""
    logging.disable()  # connections are cut on purpose
    models = Models()
    served = {"mix": models.mix, "slow": models.slow, "rows": models.rows, "talk": models.talk}
    manager = LocalManager(served, workers=8, max_message_bytes=MAX_BYTES)
    manager.start()
    figures = {"port": manager.port, "vm_ip": manager.route.vm_ip, "route": manager.route.container_id}
    print(json.dumps({**figures, "transient": manager.transient_route.container_id}), flush=True)
    for line in sys.stdin:
        if line.strip() in ("stop", "kill"):
            getattr(manager, line.strip())()
            manager.start()
        mapped = manager.shared_memory.mapped_bytes
        connected = manager.stats().connected
        print(json.dumps({"spoilt": models.spoilt, "mapped": mapped, "connected": connected}), flush=True)
    manager.stop()


class Served:
    """A process that prints a line of JSON at its start, and one for each command."""

    def __init__(self, script: Path | str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        figures: dict[str, Any] = json.loads(self._process.stdout.readline())
        return figures

    def command(self, name: str) -> dict[str, Any]:
        """Have a command carried out, and return what is answered."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return self._read()

    def end(self) -> int:
        """End the process, and return its exit status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait()


if __name__ == "__main__":
    serve()
