"""The peak memory of a call besides its tensors, relative to the JSON text that it sends or receives.

The goal is for resident memory, measured in a fresh process that has made one tiny call: it includes the
memory of every allocator, and only memory that was used. The kernel counts it in pages and with a delay,
with an error of some 0.1 MB. The figure of tracemalloc is printed too: it is exact, but leaves out libraries
with allocators of their own, and includes memory that is reserved and never used.
"""

from __future__ import annotations

import contextlib
import gc
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import bare
import image
from runner import Plan, Row, in_a_fresh_process, instant_server

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


class Peak(NamedTuple):
    """The peak memory of a call above that before it, and the length of its JSON text; in bytes."""

    extra: int
    text: int

    @property
    def ratio(self) -> float:
        """The bytes of memory for each byte of text."""
        return self.extra / self.text


def rows(plan: Plan) -> Iterator[Row]:
    """Measure a large request and a large reply."""
    shape = (1, 3, plan.size(224, 32), plan.size(224, 32))
    count = plan.size(1_000_000, 20_000)
    with instant_server(plan) as port:
        uri = bare.address(port)
        yield row(plan, "a call with the image", 2.3, uri, "small", shape)
        yield row(plan, "a call with a reply of a million values", 4.5, uri, f"decimals.{count}", (1, 4))


def row(plan: Plan, what: str, most: float, uri: str, kind: str, shape: tuple[int, ...]) -> Row:
    """Measure each round in a process of its own, and once more with tracemalloc."""
    peaks = [in_a_fresh_process(measure, uri, kind, shape, False) for _ in range(plan.rounds)]
    traced = in_a_fresh_process(measure, uri, kind, shape, True)
    return Row(
        f"peak memory of {what}, above its tensors / its JSON text",
        [peak.ratio for peak in peaks],
        most=most,
        detail=f"text {traced.text / 1e6:.2f} MB; tracemalloc saw {traced.ratio:.2f} times that",
    )


def resident(what: str) -> int:
    """Read from the kernel how many bytes of this process are in memory (VmRSS), or were at most (VmHWM)."""
    kilobytes = re.search(rf"^{what}:\s+(\d+)", STATUS.read_text(), re.M)
    assert kilobytes is not None
    return int(kilobytes[1]) * 1024


def measure(uri: str, kind: str, shape: tuple[int, ...], traced: bool) -> Peak:
    """Make one call in a fresh process.

    Parameters
    ----------
    uri : str
        The address of the server.
    kind : str
        The kind of the reply.
    shape : tuple of int
        The shape of the input.
    traced : bool
        Whether to measure with tracemalloc, in place of the kernel.
    """
    pixels = image.image(shape)
    with bare.our_client(uri, "small", max_message_bytes=image.MAX_BYTES) as client:
        image.our_json_infer(client)(bare.ARRAY)  # allocates what is allocated once only
    with bare.our_client(uri, kind, max_message_bytes=image.MAX_BYTES) as client:
        client.open()
        infer = image.our_json_infer(client)
        before = client.stats()
        gc.collect()
        with tracing() if traced else contextlib.nullcontext():
            if not traced:
                RESET_PEAK.write_text("5")  # resets the peak to the present memory
            start = tracemalloc.get_traced_memory()[0] if traced else resident("VmRSS")
            answer = infer(pixels)
            peak = tracemalloc.get_traced_memory()[1] if traced else resident("VmHWM")
        after = client.stats()
    text = max(after.bytes_sent - before.bytes_sent, after.bytes_received - before.bytes_received)
    return Peak(peak - start - answer.nbytes, text)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Run tracemalloc in the block."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
