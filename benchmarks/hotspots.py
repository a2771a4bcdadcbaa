"""Where the time of our client goes: by thread, by function, or as flame graphs.

    python -m benchmarks hotspots [one sixteen many image reply] [--seconds 3] [--flames docs/performance/]

The calls and the server are those of the table. Without `--flames` it prints the processor time of each
thread, undisturbed, and then the functions of the calling thread under cProfile, if there is but one (from
Python 3.12 on it mixes in the others). With it, py-spy (in the extra ``bench``) samples all threads from
outside.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import os
import pstats
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import bare
import image
from bare import ARRAY
from machine import commit
from runner import Crew, Plan, Work, again, instant_server, pin

PROFILE_LINES = 30
SAMPLES_A_SECOND = 500


def one(uri: str) -> Iterator[Work]:
    """Call from one thread, one small call after another."""
    with bare.our_client(uri) as client:
        infer = bare.our_infer(client)
        yield again(lambda: infer(ARRAY))


def sixteen(uri: str) -> Iterator[Work]:
    """Call from 16 threads on 16 sockets."""
    with bare.our_client(uri, pool_size=16) as client:
        infer = bare.our_infer(client)
        yield Crew([lambda: infer(ARRAY)] * 16)


def many(uri: str) -> Iterator[Work]:
    """Call from 64 threads on eight sockets."""
    with bare.our_client(uri, pool_size=8) as client:
        infer = bare.our_infer(client)
        yield Crew([lambda: infer(ARRAY)] * 64)


def picture(uri: str) -> Iterator[Work]:
    """Send the image as JSON."""
    pixels = image.image()
    with bare.our_client(uri, max_message_bytes=image.MAX_BYTES) as client:
        infer = image.our_json_infer(client)
        yield again(lambda: infer(pixels), batch=1)


def reply(uri: str) -> Iterator[Work]:
    """Receive a million values."""
    with bare.our_client(uri, "decimals.1000000") as client:
        infer = bare.our_infer(client)
        yield again(lambda: infer(ARRAY), batch=1)


#: The kinds of work that can be examined, by name.
PATHS: dict[str, Callable[[str], Iterator[Work]]] = {
    "one": one,
    "sixteen": sixteen,
    "many": many,
    "image": picture,
    "reply": reply,
}


@contextmanager
def warm(name: str, plan: Plan) -> Iterator[Work]:
    """Start a server, and yield the work of the client, warmed up."""
    with instant_server(plan) as port, contextmanager(PATHS[name])(bare.address(port)) as work:
        work(0.3)
        yield work


def cpu_times() -> dict[str, float]:
    """Read the processor seconds that the threads of this process have used, by their name."""
    times: dict[str, float] = defaultdict(float)
    for thread in threading.enumerate():
        assert thread.ident is not None
        times[thread.name] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return times


def by_thread(work: Work, seconds: float) -> None:
    """Print the processor time of each thread a call, and how often the process was switched."""
    before, usage, cpu = cpu_times(), resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    calls, elapsed = work(seconds)
    after, usage_after, cpu_after = cpu_times(), resource.getrusage(resource.RUSAGE_SELF), time.process_time()

    print(f"{calls / elapsed:,.0f} calls a second, {elapsed / calls * 1e6:.1f} µs each, of which")
    for name in after:
        used = after[name] - before.get(name, 0.0)
        print(f"  {used / calls * 1e6:8.1f} µs  in thread {name}")
    living = sum(after[name] - before.get(name, 0.0) for name in after)
    print(f"  {(cpu_after - cpu - living) / calls * 1e6:8.1f} µs  in threads that have ended")
    print(f"  {(elapsed - (cpu_after - cpu)) / calls * 1e6:8.1f} µs  in none: the server, and waking up")
    kernel = (usage_after.ru_stime - usage.ru_stime) / calls * 1e6
    voluntary = (usage_after.ru_nvcsw - usage.ru_nvcsw) / calls
    forced = (usage_after.ru_nivcsw - usage.ru_nivcsw) / calls
    print(f"  {kernel:8.1f} µs  of the threads' time was the kernel's")
    print(f"  switches a call: {voluntary:.2f} voluntary, {forced:.2f} forced")


def by_function(work: Work, seconds: float) -> None:
    """Print the functions of the calling thread, by their own time; cProfile makes all of it slower."""
    profiler = cProfile.Profile()
    profiler.enable()
    calls, elapsed = work(seconds)
    profiler.disable()

    print(f"\nunder cProfile, {elapsed / calls * 1e6:.1f} µs each (own time, with callees)")
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = sorted(stats.items(), key=lambda item: -item[1][2])
    for (file, line, function), (_, count, own, total, _) in rows[:PROFILE_LINES]:
        place = f"{short(file)}:{line} {function}" if line else function
        print(f"  {own / calls * 1e6:8.2f} {total / calls * 1e6:9.2f} µs  {count / calls:7.2f} x  {place}")


def short(file: str) -> str:
    """Name a file by its last two parts; ``~`` is cProfile's name for C code."""
    return "built in" if file == "~" else "/".join(Path(file).parts[-2:])


def flame(name: str, seconds: float, folder: Path) -> None:
    """Sample a process that does only this work with py-spy, and write ``flame-NAME.svg``."""
    path = folder / f"flame-{name}.svg"
    beside = str(Path(sys.executable).parent)
    spy = shutil.which("py-spy", path=os.pathsep.join([beside, os.environ.get("PATH", "")])) or "py-spy"
    watch = [spy, "record", "--output", str(path), "--rate", str(SAMPLES_A_SECOND), "--function"]
    watched = [sys.executable, __file__, name, "--seconds", str(seconds), "--run"]
    subprocess.run([*watch, "--", *watched], check=True, stdout=subprocess.DEVNULL)
    title = f"{(PATHS[name].__doc__ or name).rstrip('.')} (commit {commit()})"
    drawn = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r'(<text id="title"[^>]*>)[^<]*', rf"\g<1>{title}", drawn), encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Examine some kinds of work, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", choices=[*PATHS, []], metavar="NAME", help="some; all, if left out"
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--flames", type=Path, metavar="FOLDER", help="draw flame graphs (needs py-spy)")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("tcm_sync").setLevel(logging.ERROR)  # it warns of large pools
    if options.flames:
        for name in options.names or PATHS:
            flame(name, options.seconds, options.flames)
        return
    plan = Plan(core=pin())
    for name in options.names or PATHS:
        with warm(name, plan) as work:
            if options.run:
                work(options.seconds)
                continue
            print(f"\n{name}: {PATHS[name].__doc__}")
            by_thread(work, options.seconds)
            if not isinstance(work, Crew):
                by_function(work, options.seconds)


if __name__ == "__main__":
    main()
