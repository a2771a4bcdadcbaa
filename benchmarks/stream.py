"""A stream of 100,000 short chunks: against a bare loop that receives them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import bare
import websocket
from runner import Plan, Row, Tally, Work, alternate, each_took, instant_server, ratios
from server import CHUNK

from tcm_sync._transport.frames import TEXT


def rows(plan: Plan) -> Iterator[Row]:
    """Have both read whole streams in turns."""
    count = plan.size(100_000, 1_000)
    with (
        instant_server(plan) as port,
        bare.our_client(bare.address(port), f"stream.{count}") as client,
        bare_stream(bare.address(port), f"stream.{count}") as receive,
    ):
        works = {
            "ours": reading(lambda: client.stream(bare.MODEL, {"x": bare.ARRAY}), count),
            "bare": reading(receive, count),
        }
        rates = list(alternate(works, plan))
    yield Row(
        "stream of 100,000 short chunks / bare websocket-client recv loop with msgspec",
        ratios(rates, "ours", "bare"),
        0.8,
        detail=f"a chunk: {each_took(rates)}",
    )


def reading(begin: Callable[[], Iterable[str]], count: int) -> Work:
    """Return work that reads one whole stream, whatever the length of the turn."""

    def work(_seconds: float) -> Tally:
        start = time.perf_counter()
        chunks = 0
        for chunk in begin():
            chunks += chunk == CHUNK
        elapsed = time.perf_counter() - start
        if chunks != count:
            raise RuntimeError(f"{chunks} good chunks came of {count}")
        return Tally(count, elapsed)

    return work


@contextmanager
def bare_stream(uri: str, kind: str) -> Iterator[Callable[[], Iterator[str]]]:
    """Loop over websocket-client's recv."""
    uuid = bare.new_uuid(kind)
    connection = websocket.create_connection(uri, sockopt=(bare.NO_DELAY,))
    connection.send(bare.auth_text(uuid), TEXT)
    connection.recv()

    def receive() -> Iterator[str]:
        connection.send(bare.request_text(uuid, bare.ARRAY), TEXT)
        while True:
            message = bare.decode_chunk(connection.recv())
            if message.uuid != uuid or message.payload.status == "FAILED":
                raise RuntimeError(f"not of the stream: {message}")
            if message.payload.status == "COMPLETED":
                return
            if message.payload.data is not None:
                yield message.payload.data

    try:
        yield receive
    finally:
        connection.close()
