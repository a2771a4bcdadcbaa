"""What a reply of nearly 64 MB costs: time, memory, and how long other threads are held up.

    python benchmarks/large_replies.py [--bytes N] [KIND ...]

Each kind of reply (`server.TEXTS`) is measured in a process of its own. Printed are: the seconds of the call;
the peak memory above that before the call, without the array that is returned, for each byte of text; and the
longest time that another thread, which wakes every millisecond, had to wait. A call that fails is shown too.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import bare
from memory import RESET_PEAK, resident
from runner import Plan, in_a_fresh_process, instant_server
from server import TEXTS

CRUMBS = "crumbs"  # fragments of two bytes
MB = 2**20


@contextmanager
def watched() -> Iterator[list[float]]:
    """Have a thread wake every millisecond in the block; the list has the longest time between two wakes."""
    longest = [0.0]
    over = threading.Event()

    def watch() -> None:
        before = time.perf_counter()
        while not over.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest[0] = max(longest[0], now - before)
            before = now

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield longest
    finally:
        over.set()
        thread.join()


def measure(uri: str, kind: str, size: int) -> str:
    """Make one call in a fresh process, and describe it."""
    with bare.our_client(uri, "small") as client:
        bare.our_infer(client)(bare.ARRAY)  # loads what is loaded once only
    with bare.our_client(uri, f"{kind}.{size}", timeout=120.0, retry=None) as client:
        client.open()

        RESET_PEAK.write_text("5")  # resets the peak to the present memory
        start = resident("VmRSS")
        with watched() as longest:
            began = time.perf_counter()
            try:
                array = client.infer(bare.MODEL, {"x": bare.ARRAY})["y"]
                outcome, kept = f"{array.dtype}{list(array.shape)}", array.nbytes
            except Exception as error:  # noqa: BLE001 - it is what is shown
                outcome, kept = f"{type(error).__name__}: {str(error)[:60]!r}", 0
            took = time.perf_counter() - began
        extra = (resident("VmHWM") - start - kept) / size
    return f"{kind:8} {took:6.2f} s, {extra:5.2f} bytes a byte, held up {longest[0] * 1e3:6.0f} ms: {outcome}"


def main() -> None:
    """Measure the kinds that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bytes", type=int, default=63 * MB)
    parser.add_argument("kinds", nargs="*", default=[*TEXTS, CRUMBS])
    options = parser.parse_args()
    with instant_server(Plan()) as port:
        for kind in options.kinds:
            size = options.bytes // 16 if kind == CRUMBS else options.bytes
            print(in_a_fresh_process(measure, bare.address(port), kind, size), flush=True)


if __name__ == "__main__":
    main()
