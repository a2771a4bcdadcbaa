"""Processes of threads that call a manager in a closed loop, for subjects with several processes."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from tcm_sync import BatchPolicy, Route, TcmClient
from tcm_sync._transport import connection as transport

#: Whether this client has turns, which can be switched off.
HAS_TURNS = "turns" in inspect.signature(TcmClient).parameters

READY_WITHIN = 60.0  # seconds for a process to start and to make its first calls
STOPPED_FOR = 3.0  # seconds


@dataclass(frozen=True)
class Caller:
    """One process.

    Parameters
    ----------
    threads : int
    settings : dict
        Of its `TcmClient`.
    model : str
        Of the manager: see ``manager.py``.
    folder : str, optional
        Where its turns are. Processes with different folders share no turns, as on different hosts.
    batching : bool
        Whether its threads call ``infer_sample``.
    mishap : {"", "killed", "stopped", "forked"}
        What happens to it a second after the start, right after it has sent a message.
    """

    threads: int
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "double"
    folder: str | None = None
    batching: bool = False
    mishap: str = ""


@dataclass(frozen=True)
class Served:
    """The result of a process.

    Attributes
    ----------
    done : int
        How many calls ended within the time.
    latencies : list of float
        Seconds of each call, those that ended later included.
    problems : list of str
        Errors and wrong answers.
    cpu : float
        Seconds of processor time.
    """

    done: int = 0
    latencies: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cpu: float = 0.0


def run(uri: str, route: Route, callers: Sequence[Caller], seconds: float) -> list[Served]:
    """Have processes call for so long, and return what each of them got, in their order.

    They begin together, after each of their threads has made a call. A process that was killed got nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["callers"])
    processes: list[tuple[BaseProcess, Connection]] = []
    try:
        for caller in callers:
            near, far = context.Pipe()
            process = context.Process(target=_work, args=(uri, route, caller, seconds, far), daemon=True)
            process.start()
            far.close()
            processes.append((process, near))
        for _, near in processes:
            if not near.poll(READY_WITHIN):
                raise RuntimeError("a process was not ready in time")
            near.recv()
        start = time.monotonic() + 0.2
        for _, near in processes:
            near.send(start)
        for (process, _), caller in zip(processes, callers, strict=True):
            if caller.mishap == "stopped":
                time.sleep(max(0.0, start + 1.0 + STOPPED_FOR - time.monotonic()))
                os.kill(process.pid or 0, signal.SIGCONT)
        return [_result(near, caller) for (_, near), caller in zip(processes, callers, strict=True)]
    finally:
        for process, near in processes:
            near.close()
            process.join(2.0)
            process.kill()
            process.join()


def _result(near: Connection, caller: Caller) -> Served:
    try:
        served: Served = near.recv()
    except (EOFError, ConnectionResetError):
        if caller.mishap != "killed":
            raise RuntimeError("a process has ended early") from None
        return Served()
    return served


def _work(uri: str, route: Route, caller: Caller, seconds: float, parent: Connection) -> None:
    """Call from some threads until the time is up."""
    if caller.folder is not None:
        os.environ["TCM_TURNS_DIR"] = caller.folder
    with TcmClient(uri, route=route, **{"timeout": 60.0, **caller.settings}) as client:
        call = sampling(client, caller.model) if caller.batching else inferring(client, caller.model)
        results: list[tuple[list[float], list[str]]] = [([], []) for _ in range(caller.threads)]
        begin = threading.Event()
        ready = threading.Barrier(caller.threads + 1)
        until = [0.0]

        def loop(seed: int, latencies: list[float], problems: list[str]) -> None:
            random = np.random.default_rng(seed)
            try:
                call(random)
            finally:
                ready.wait()
            begin.wait()
            now = time.monotonic()
            while now < until[0]:
                try:
                    call(random)
                except Exception as error:  # noqa: BLE001 - it is what is measured
                    problems.append(repr(error))
                    time.sleep(0.001)
                now, before = time.monotonic(), now
                latencies.append(now - before)

        threads = [
            threading.Thread(target=loop, args=(number, *result), daemon=True)
            for number, result in enumerate(results)
        ]
        for thread in threads:
            thread.start()
        ready.wait()
        parent.send("ready")
        start = parent.recv()
        until[0] = start + seconds
        time.sleep(max(0.0, start - time.monotonic()))
        cpu = time.process_time()
        begin.set()
        problems: list[str] = []
        if caller.mishap:
            time.sleep(1.0)
            problems += MISHAPS[caller.mishap](call)
        for thread in threads:
            thread.join()
        cpu = time.process_time() - cpu
    latencies = [each for latencies, _ in results for each in latencies]
    problems += [each for _, some in results for each in some]
    parent.send(Served(len(latencies) - caller.threads, latencies, problems, cpu))


Call = Callable[[np.random.Generator], None]


def inferring(client: TcmClient, model: str) -> Call:
    """Return a call of ``infer`` that checks its answer."""

    def call(random: np.random.Generator) -> None:
        x = random.integers(0, 2**40, (1, 4))
        y = client.infer(model, {"x": x}, output_dtypes=np.int64)["y"]
        if not np.array_equal(y, x * 2):
            raise RuntimeError(f"{y} is not twice {x}")

    return call


def sampling(client: TcmClient, name: str) -> Call:
    """Return a call of ``infer_sample`` that checks its answer."""
    model = client.model(name, batch=BatchPolicy(), output_dtypes=np.int64)

    def call(random: np.random.Generator) -> None:
        x = random.integers(0, 2**40, 4)
        y = model.infer_sample({"x": x})["y"]
        if not np.array_equal(y, x * 2):
            raise RuntimeError(f"{y} is not twice {x}")

    return call


def after_next_send(action: Callable[[], None]) -> None:
    """Have the thread that sends the next message do something when all of it is written."""
    send = transport.Connection.send
    once = threading.Lock()

    def send_and_act(self: transport.Connection, *arguments: Any) -> None:
        send(self, *arguments)
        if once.acquire(blocking=False):
            transport.Connection.send = send  # type: ignore[method-assign]
            action()

    transport.Connection.send = send_and_act  # type: ignore[method-assign]


def killed(_: Call) -> list[str]:
    """Be killed."""
    after_next_send(lambda: os.kill(os.getpid(), signal.SIGKILL))
    return []


def stopped(_: Call) -> list[str]:
    """Be stopped; the parent process has it continue."""
    after_next_send(lambda: os.kill(os.getpid(), signal.SIGSTOP))
    return []


def forked(call: Call) -> list[str]:
    """Fork, and have the child call as well, for two seconds."""
    sent = threading.Event()
    after_next_send(sent.set)
    sent.wait()
    child = os.fork()
    if not child:
        status = 1
        try:
            random = np.random.default_rng()
            ends = time.monotonic() + 2.0
            while time.monotonic() < ends:
                call(random)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return ["the calls of the forked child failed"] if status else []


MISHAPS = {"killed": killed, "stopped": stopped, "forked": forked}
