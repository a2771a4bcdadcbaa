"""Test for hours, with all kinds of failures, that calls through shared memory are right and leak nothing.

    python benchmarks/soak.py [--calls 100000] [--short] [--room 64]

A `LocalManager` in a process of its own, a client in this one, and four forked children, three threads each.
They send tensors of random sizes, some in arrays of ``empty_shared``, and check a checksum. Some calls time
out, sockets are cut, and the manager is stopped or killed and started again. ``--room`` runs all of it on a
/dev/shm of so many MB (which needs the right to mount), ``--short`` makes 5,000 calls.

It prints what the processes hold at intervals, and ends with status 1 if a checksum was wrong, a process
died, something is left in /dev/shm, or anything has grown since the warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import mmap
import os
import random
import socket
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tcm_sync import (
    CallTimeoutError,
    ConnectFailedError,
    ConnectionLostError,
    PoolTimeoutError,
    Route,
    ShuttingDownError,
    TcmClient,
    TcmError,
)
from tcm_sync.local import LocalManager

CHILDREN, THREADS = 4, 3
SMALLEST, LARGEST = 4096, 2**20
MOST_BYTES = 2**23  # of a message: tensors that get no shared memory are sent as JSON
SAMPLES, WARM_UP = 40, 0.4
OWN = 300_000  # bytes of each thread's array in shared memory
SLOW, TIMEOUT = 0.1, 0.03  # seconds that a model takes, and that its callers wait
KINDS = ("calls", "good", "timeouts", "lost", "other", "wrong")

#: How much each figure may grow after the warm-up in addition to a tenth, since all depend on the random
#: sizes. If there is no room for segments the manager may hold a dozen messages of 3 MB as lists of floats.
SLACK = {"client MB": 10, "client fds": 40, "client maps": 60, "manager MB": 100, "manager fds": 20}
SLACK |= {"manager maps": 60, "/dev/shm MB": 20, "files": 60}


# --- the manager's process ---


class Models:
    """The models, and how often an input has changed while a model ran."""

    def __init__(self) -> None:
        self.spoilt = 0

    def crc(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Return a checksum."""
        return {"crc": [zlib.crc32(np.ascontiguousarray(arrays["x"]))]}

    def slow(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Compute the checksum twice; meanwhile the call times out."""
        before = self.crc(arrays)
        time.sleep(SLOW)
        if self.crc(arrays) != before:
            self.spoilt += 1
        return before


def serve() -> None:
    """Run a manager, and carry out the commands on standard input, one a line."""
    logging.disable()  # sockets are cut on purpose
    models = Models()
    manager = LocalManager(
        {"crc": models.crc, "slow": models.slow}, tick=0, workers=8, max_message_bytes=MOST_BYTES
    )
    manager.start()
    for line in sys.stdin:
        if line.strip() in ("stop", "kill"):
            getattr(manager, line.strip())()
            manager.start()
        mapped = manager.shared_memory
        figures = {"uri": manager.uri, "spoilt": models.spoilt, "keys": len(mapped.keys)}
        print(json.dumps({**figures, "mapped": mapped.mapped_bytes}), flush=True)
    manager.stop()


class ManagerProcess:
    """The process with the manager in it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--manager"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def command(self, name: str) -> dict[str, Any]:
        """Send ``stop`` or ``kill`` (the manager is started again) or ``status``; return its figures."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        figures: dict[str, Any] = json.loads(self._process.stdout.readline())
        return figures

    def end(self) -> int:
        """End the process, and return its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait()


# --- the callers ---


class Caller:
    """A thread that calls, and counts results in memory that all processes share."""

    def __init__(self, client: TcmClient, number: int, counts: np.ndarray[Any, Any]) -> None:
        self._client = client
        self._random = random.Random(number)
        self._counts = counts
        self._serial = number << 40
        self._noise = np.random.default_rng(number).integers(0, 256, 2 * LARGEST, np.uint8)
        self._own: np.ndarray[Any, Any] | None = None

    def run(self, calls: int) -> None:
        """Make so many calls."""
        for _ in range(calls):
            self._count(self._one())
            self._count("calls")

    def _count(self, kind: str) -> None:
        self._counts[KINDS.index(kind)] += 1

    def _one(self) -> str:
        x = self._tensor()
        dice = self._random.random()
        if dice < 0.005:
            cut_a_socket(self._client)
        try:
            if dice > 0.99:
                found = self._client.infer("slow", {"x": x}, timeout=TIMEOUT)
            else:
                found = self._client.infer("crc", {"x": x})
        except (CallTimeoutError, PoolTimeoutError):
            kind = "timeouts"
        except (ConnectionLostError, ConnectFailedError, ShuttingDownError):
            kind = "lost"
        except TcmError as error:
            print(f"{type(error).__name__}: {error}"[:300], flush=True)
            kind = "other"
        else:
            return "good" if found["crc"].item() == zlib.crc32(x) else "wrong"
        self._own = None  # from now on each call would copy it
        return kind

    def _tensor(self) -> np.ndarray[Any, Any]:
        """Make a unique tensor of a random size, or one in an array of shared memory."""
        size = round(SMALLEST * (LARGEST / SMALLEST) ** self._random.random())
        if self._random.random() < 0.3:
            size = 2 ** (size.bit_length() - 1)  # a common size, so that segments are used again
        start = self._random.randrange(LARGEST)
        if self._random.random() < 0.1:
            x = self._shared()
            x[:] = self._noise[start : start + OWN]
        else:
            x = self._noise[start : start + size].copy()
        self._serial += 1
        x[:8] = np.frombuffer(self._serial.to_bytes(8, "little"), np.uint8)
        return x

    def _shared(self) -> np.ndarray[Any, Any]:
        if self._own is None:
            try:
                self._own = self._client.empty_shared(OWN, np.uint8)
            except TcmError:  # /dev/shm is full
                return np.empty(OWN, np.uint8)
        return self._own


def cut_a_socket(client: TcmClient) -> None:
    """Cut one of the connections to the manager, as a failing network would."""
    port = int(str(client).partition(" open")[0].rpartition(":")[2].partition("/")[0])
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as end:
                    if end.family == socket.AF_INET and end.getpeername()[1] == port:
                        end.shutdown(socket.SHUT_RDWR)
                        return


def call(client: TcmClient, process: int, calls: int, counts: np.ndarray[Any, Any]) -> None:
    """Divide the calls among the threads of this process, and wait for them."""
    callers = [
        Caller(client, process * THREADS + thread, counts[process, thread]) for thread in range(THREADS)
    ]
    threads = [threading.Thread(target=caller.run, args=(calls // THREADS,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def fork(client: TcmClient, process: int, calls: int, counts: np.ndarray[Any, Any]) -> int:
    """Fork a child that calls with the client that it inherits; return its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later: there are other threads
        pid = os.fork()
    if pid:
        return pid
    try:
        call(client, process, calls, counts)
        shm = {kind: number for kind, number in vars_of(client).items() if "shm" in kind}
        print(f"child {process}: {shm}", flush=True)
        client.close()
        os._exit(0)
    finally:
        os._exit(1)


def vars_of(client: TcmClient) -> dict[str, Any]:
    """Return the figures of a client by name."""
    stats = client.stats()
    return {name: getattr(stats, name) for name in stats.__struct_fields__}


# --- what the processes hold ---


def held(pid: int) -> tuple[float, int, int]:
    """Return the MB of memory of its own, the descriptors and the maps of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    anonymous = int(status.partition("RssAnon:")[2].split()[0])
    maps = Path(f"/proc/{pid}/maps").read_text().count("\n")
    return anonymous / 1024, len(os.listdir(f"/proc/{pid}/fd")), maps


def files_of(pids: list[int]) -> list[str]:
    """Return the names of what some processes have in /dev/shm."""
    ours = tuple(f"tcm_{pid}_" for pid in pids)
    return [name for name in os.listdir("/dev/shm") if name.startswith(ours)]


def sample(pids: list[int], manager: ManagerProcess) -> dict[str, float]:
    """Return what the manager and, on average, the clients hold."""
    clients = []
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):  # it has ended
            clients.append(held(pid))
    files = files_of(pids)
    found = os.statvfs("/dev/shm")
    figures = manager.command("status")
    memory, descriptors, maps = held(manager.pid)
    return {
        "client MB": sum(each[0] for each in clients) / len(clients),
        "client fds": sum(each[1] for each in clients) / len(clients),
        "client maps": sum(each[2] for each in clients) / len(clients),
        "manager MB": memory,
        "manager fds": descriptors,
        "manager maps": maps,
        "mapped MB": figures["mapped"] / 1e6,
        "files": len(files),
        "/dev/shm MB": (found.f_blocks - found.f_bfree) * found.f_frsize / 1e6,
    }


def grown(samples: list[dict[str, float]]) -> list[str]:
    """List what has grown between the first and the second half of the samples after the warm-up.

    For memory the minima are compared, since reading large JSON makes peaks; for the rest the maxima, since
    the manager holds almost nothing after a restart.
    """
    after = samples[int(len(samples) * WARM_UP) :]
    early, late = after[: len(after) // 2], after[len(after) // 2 :]
    lines = []
    for name, slack in SLACK.items():
        bound = min if name in ("client MB", "manager MB") else max
        before, now = bound(each[name] for each in early), bound(each[name] for each in late)
        if now > before * 1.1 + slack:
            lines.append(f"{name} grew from {before:.1f} to {now:.1f}")
    return lines


# --- the soak ---


def watch(
    pids: list[int],
    own: threading.Thread,
    manager: ManagerProcess,
    counts: np.ndarray[Any, Any],
    calls: int,
    restarts: int,
) -> list[dict[str, float]]:
    """Sample the processes at intervals, and restart the manager, until all calls are made."""
    samples: list[dict[str, float]] = []
    done = restarted = 0
    began = time.monotonic()
    while done < calls:
        time.sleep(0.05)
        done = int(counts[:, :, 0].sum())
        if done * restarts > (restarted + 1) * calls:
            restarted += 1
            manager.command("stop" if restarted % 2 else "kill")
        if done * SAMPLES >= (len(samples) + 1) * calls:
            samples.append(sample(pids, manager))
            if len(samples) == 1:
                print("    calls  seconds" + "".join(f"{name:>14}" for name in samples[0]))
            figures = "".join(f"{value:14.1f}" for value in samples[-1].values())
            print(f"{done:9,}{time.monotonic() - began:9.0f}{figures}", flush=True)
        if all(ended(pid) for pid in pids[1:]) and not own.is_alive():
            break  # early: a process has died
    return samples


def ended(pid: int) -> bool:
    """Return whether a child has ended, without waiting for it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def soak(calls: int, restarts: int, **settings: Any) -> list[str]:
    """Run the test with some settings of the client, and return what went wrong."""
    share = calls // (CHILDREN + 1)
    total = share // THREADS * THREADS * (CHILDREN + 1)
    shape = (CHILDREN + 1, THREADS, len(KINDS))
    counts = np.frombuffer(mmap.mmap(-1, 8 * int(np.prod(shape))), np.int64).reshape(shape)
    manager = ManagerProcess()
    uri = manager.command("status")["uri"]
    route = Route("local", "127.0.0.1")
    settings = {"pool_size": THREADS, "max_message_bytes": MOST_BYTES, "timeout": 60.0, **settings}
    with TcmClient(uri, route=route, **settings) as client:
        client.infer("crc", {"x": np.zeros(LARGEST, np.uint8)})  # so that the children inherit something
        pids = [fork(client, number + 1, share, counts) for number in range(CHILDREN)]
        own = threading.Thread(target=call, args=(client, 0, share, counts))
        own.start()
        samples = watch([os.getpid(), *pids], own, manager, counts, total, restarts)
        own.join()
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(client.stats())
    left = files_of([os.getpid(), *pids])
    spoilt = manager.command("status")["spoilt"]
    statuses.append(manager.end())
    made = Counter(dict(zip(KINDS, map(int, counts.sum(axis=(0, 1))), strict=True)))
    print(", ".join(f"{number:,} {kind}" for kind, number in made.items()), f"{restarts} restarts", sep=", ")
    wrong = grown(samples)
    wrong += [f"{made['wrong']} wrong checksums"] * (made["wrong"] > 0)
    wrong += [f"{made['other']} calls failed unexpectedly"] * (made["other"] > 0)
    wrong += [f"{spoilt} inputs changed while a model looked at them"] * (spoilt > 0)
    wrong += [f"a process ended with {status}" for status in statuses if status]
    wrong += [f"{len(left)} files are left in /dev/shm"] * bool(left)
    return wrong


def in_a_room(size: int, arguments: list[str]) -> None:
    """Replace this process by one with a /dev/shm of so many MB."""
    mount = f'mount -t tmpfs -o size={size}m tmpfs /dev/shm && exec "$0" "$@"'
    os.environ["MALLOC_ARENA_MAX"] = "2"  # not to count the memory that malloc keeps for many threads
    os.execvp("unshare", ["unshare", "-m", "sh", "-c", mount, sys.executable, __file__, *arguments])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--short", action="store_true", help="5,000 calls")
    parser.add_argument("--room", type=int, help="MB of a /dev/shm of its own")
    parser.add_argument("--crowded", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--manager", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.manager:
        serve()
        return 0
    calls = 5000 if options.short else options.calls
    if options.room is not None:
        in_a_room(options.room, ["--calls", str(calls), "--crowded"])
    crowded = {"shm_max_pinned": 2**40} if options.crowded else {}  # so that /dev/shm is what runs out
    wrong = soak(calls, restarts=max(4, calls // 1000), **crowded)
    print("\n".join(wrong) or "nothing wrong, and nothing has grown")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
