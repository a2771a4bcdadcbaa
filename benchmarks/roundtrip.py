"""What a call costs: the client against bare loops over the same socket traffic.

    python benchmarks/roundtrip.py [--seconds 2] [--rounds 5] [--profile]

Every contender does the same work, one request after another in one thread: build an inference request
from a small FP32 array, send it, wait for the reply, and make an FP32 array of it. The server
(``echo_server.py``) is a process of its own that answers at once, so what is measured is the client,
the kernel, and the server's read and write. The two processes are pinned to a core each: unpinned, what
a round trip takes depends on where the scheduler happens to put them.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import resource
import secrets
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np
import websocket
from echo_server import OUTPUT

from tcm_sync import Route, TcmClient
from tcm_sync.transport.frames import TEXT, FrameDecoder, encode_frame

Infer = Callable[[np.ndarray], np.ndarray]
Contender = Callable[[int], AbstractContextManager[Infer]]

ARRAY = np.array([[1.5, -0.25, 3.0, 0.125]], np.float32)
ANSWER = np.array(OUTPUT["y"], np.float32)
NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
PROFILE_LINES = 30
TURN = 0.1  # seconds
BATCH = 20  # calls between two looks at the clock


class Tensor(msgspec.Struct):
    """One input, for the bare loops."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[list[float]]


class Request(msgspec.Struct):
    """What is asked of the model, for the bare loops."""

    inputs: tuple[Tensor, ...]
    protocol: str = "http"


class Payload(msgspec.Struct):
    """The payload of an inference, for the bare loops."""

    container_id: str
    vm_ip: str
    model_name: str
    request: Request


class Message(msgspec.Struct):
    """An inference with its envelope, for the bare loops."""

    uuid: str
    type: str
    payload: Payload


class ReplyPayload(msgspec.Struct):
    """The payload of a reply, for the bare loops."""

    status: str
    model_name: str
    data: dict[str, list[list[float]]]


class Reply(msgspec.Struct):
    """A reply with its envelope, for the bare loops."""

    uuid: str
    type: str
    payload: ReplyPayload


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Reply).decode


def request_text(uuid: str, array: np.ndarray) -> bytes:
    """Write the request that the client writes for the same array."""
    tensor = Tensor("x", array.shape, "FP32", array.tolist())
    return encode(Message(uuid, "inference", Payload("c", "127.0.0.1", "m", Request((tensor,)))))


def reply_array(text: str | bytes, uuid: str) -> np.ndarray:
    """Read a reply into an FP32 array, once it is known to be the one that was waited for."""
    reply = decode(text)
    if reply.uuid != uuid or reply.payload.status != "COMPLETED":
        raise RuntimeError(f"not the reply: {reply}")
    return np.array(reply.payload.data["y"], np.float32)


def auth_text(uuid: str) -> bytes:
    """Write the first message of a socket."""
    return encode({"uuid": uuid, "type": "auth", "payload": {"capability": ["json"]}})


@contextmanager
def bare_websocket_client(port: int, **options: bool) -> Iterator[Infer]:
    """Loop over websocket-client's send and recv."""
    uuid = f"bench-{secrets.token_hex(12)}"
    connection = websocket.create_connection(f"ws://127.0.0.1:{port}/ws", sockopt=(NO_DELAY,), **options)
    connection.send(auth_text(uuid), TEXT)
    connection.recv()

    def infer(array: np.ndarray) -> np.ndarray:
        connection.send(request_text(uuid, array), TEXT)
        return reply_array(connection.recv(), uuid)

    try:
        yield infer
    finally:
        connection.close()


def tuned_websocket_client(port: int) -> AbstractContextManager[Infer]:
    """Do the same without its check of UTF-8 and its locks: the most it can do."""
    return bare_websocket_client(port, skip_utf8_validation=True, enable_multithread=False)


@contextmanager
def bare_socket(port: int) -> Iterator[Infer]:
    """Loop over a blocking socket with our own frames: no thread, no pool, no deadline."""
    uuid = f"bench-{secrets.token_hex(12)}"
    handshake = websocket.create_connection(f"ws://127.0.0.1:{port}/ws", sockopt=(NO_DELAY,))
    connection = handshake.sock
    frames = FrameDecoder(2**20)

    def exchange(message: bytes) -> bytes:
        connection.sendall(encode_frame(TEXT, message))
        while not (events := frames.feed(connection.recv(65536))):
            pass
        return events[0][1]

    def infer(array: np.ndarray) -> np.ndarray:
        return reply_array(exchange(request_text(uuid, array)), uuid)

    exchange(auth_text(uuid))
    try:
        yield infer
    finally:
        connection.close()


@contextmanager
def our_client(port: int) -> Iterator[Infer]:
    """Call `TcmClient.infer`, with its settings as they come."""
    with TcmClient(f"ws://127.0.0.1:{port}/ws", route=Route("c", "127.0.0.1")) as client:

        def infer(array: np.ndarray) -> np.ndarray:
            return client.infer("m", {"x": array}, output_dtypes=np.float32)["y"]

        yield infer


OURS = "TcmClient.infer"
CONTENDERS: dict[str, Contender] = {
    "websocket-client, msgspec": bare_websocket_client,
    "websocket-client tuned, msgspec": tuned_websocket_client,
    "plain socket, our frames, msgspec": bare_socket,
    OURS: our_client,
}


def run(infer: Infer, seconds: float) -> tuple[int, float]:
    """Call again and again; return how often, and the seconds it took."""
    calls = 0
    start = now = time.perf_counter()
    while now - start < seconds:
        for _ in range(BATCH):
            answer = infer(ARRAY)
        calls += BATCH
        now = time.perf_counter()
    if answer.dtype != np.float32 or not np.array_equal(answer, ANSWER):
        raise RuntimeError(f"a wrong answer: {answer!r}")
    return calls, now - start


def measure(port: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Measure the rates of all contenders, once a round.

    Within a round they take turns by the tenth of a second, so that whatever else the machine does
    meanwhile is shared out evenly.
    """
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    turns = max(1, round(seconds / TURN))
    with ExitStack() as stack:
        loops = {name: stack.enter_context(connect(port)) for name, connect in CONTENDERS.items()}
        for infer in loops.values():
            run(infer, TURN)
        for _ in range(rounds):
            totals = {name: np.zeros(2) for name in loops}
            for _ in range(turns):
                for name, infer in loops.items():
                    totals[name] += run(infer, TURN)
            for name, (calls, elapsed) in totals.items():
                rates[name].append(calls / elapsed)
    return rates


def report(rates: dict[str, list[float]]) -> None:
    """Print the median rates, and the ratios of what was measured in the same round."""
    width = max(map(len, rates))
    print(f"{'':{width}}  requests/s  us each")
    for name, figures in rates.items():
        median = statistics.median(figures)
        print(f"{name:{width}}  {median:10,.0f}  {1e6 / median:7.1f}")
    print(f"\n{OURS}, as a multiple of: median (lowest to highest of {len(rates[OURS])} rounds)")
    for name in (name for name in rates if name != OURS):
        ratios = [ours / other for ours, other in zip(rates[OURS], rates[name], strict=True)]
        print(f"{name:{width}}  {statistics.median(ratios):10.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


@contextmanager
def echo_server(core: int | None) -> Iterator[int]:
    """Run the server in a process of its own; yield its port."""
    command = [sys.executable, str(Path(__file__).with_name("echo_server.py"))]
    if core is not None:
        command += ["--core", str(core)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield int(server.stdout.readline())
        # Leaving the block closes its standard input, which ends it.


def pin() -> int | None:
    """Stay on one core, and choose another for the server: None where that cannot be done."""
    if not hasattr(os, "sched_setaffinity"):
        print("not pinned: this system cannot, and the figures will waver")
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("not pinned: there is one core for both, and the figures will waver")
        return None
    os.sched_setaffinity(0, {cores[0]})
    print(f"this process on core {cores[0]}, the server on core {cores[1]}")
    return cores[1]


def profile(infer: Infer, seconds: float) -> None:
    """Print where the time of calls goes that this thread makes one after another.

    First by thread and undisturbed, then by function under cProfile.

    Parameters
    ----------
    infer : callable
        Makes one call.
    seconds : float
        How long to run for each.
    """
    run(infer, seconds / 10)
    by_thread(infer, seconds)
    by_function(infer, seconds)


def cpu_times() -> dict[str, float]:
    """Read the processor seconds that each thread of this process has used, by its name."""
    return {
        thread.name: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
    }


def by_thread(infer: Infer, seconds: float) -> None:
    """Print the processor time of each thread a call, and how often the process was switched."""
    before, usage = cpu_times(), resource.getrusage(resource.RUSAGE_SELF)
    calls, elapsed = run(infer, seconds)
    after, usage_after = cpu_times(), resource.getrusage(resource.RUSAGE_SELF)

    print(f"\n{calls / elapsed:,.0f} calls a second, {elapsed / calls * 1e6:.1f} us each, of which")
    busy = 0.0
    for name in after:
        used = after[name] - before.get(name, 0.0)
        busy += used
        print(f"  {used / calls * 1e6:6.1f} us  in thread {name}")
    print(f"  {(elapsed - busy) / calls * 1e6:6.1f} us  in none: the server, and waking up")
    kernel = (usage_after.ru_stime - usage.ru_stime) / calls * 1e6
    voluntary = (usage_after.ru_nvcsw - usage.ru_nvcsw) / calls
    forced = (usage_after.ru_nivcsw - usage.ru_nivcsw) / calls
    print(f"  {kernel:6.1f} us  of the threads' time was the kernel's")
    print(f"  switches a call: {voluntary:.2f} voluntary, {forced:.2f} forced")


def by_function(infer: Infer, seconds: float) -> None:
    """Print the functions of the calling thread, by their own time; cProfile makes all of it slower."""
    profiler = cProfile.Profile()
    profiler.enable()
    calls, elapsed = run(infer, seconds)
    profiler.disable()

    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    print(f"\nunder cProfile, {elapsed / calls * 1e6:.1f} us each (calling thread; own time, with callees)")
    rows = sorted(stats.items(), key=lambda item: -item[1][2])
    for (file, line, function), (_, count, own, total, _) in rows[:PROFILE_LINES]:
        place = f"{short(file)}:{line} {function}" if line else function
        print(f"  {own / calls * 1e6:6.2f} {total / calls * 1e6:7.2f} us  {count / calls:5.2f} x  {place}")
    by_file: dict[str, float] = defaultdict(float)
    for (file, _, _), (_, _, own, _, _) in rows:
        by_file[short(file)] += own
    print("\nby file")
    for file, own in sorted(by_file.items(), key=lambda item: -item[1])[:PROFILE_LINES]:
        print(f"  {own / calls * 1e6:6.2f} us  {file}")


def short(file: str) -> str:
    """Name a file by its last two parts; ``~`` is what cProfile calls C."""
    return "built in" if file == "~" else "/".join(Path(file).parts[-2:])


def main() -> None:
    """Measure, or profile."""
    parser = argparse.ArgumentParser(description="What a call costs.")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each contender in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="show where the time of our client goes")
    arguments = parser.parse_args()
    with echo_server(pin()) as port:
        if arguments.profile:
            with our_client(port) as infer:
                profile(infer, arguments.seconds)
        else:
            report(measure(port, arguments.rounds, arguments.seconds))


if __name__ == "__main__":
    main()
