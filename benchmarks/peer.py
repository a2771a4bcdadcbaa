"""``tcm-client``, the manager's own client, used as ours: arrays in, arrays out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
from bare import ARRAY, MODEL, Infer, new_uuid
from runner import Tally, Work
from tcm_client.sdk import AuthContext, InferenceInput, TcmClient, TcmWebSocketClient


def as_inputs(array: np.ndarray) -> list[InferenceInput]:
    """Make the input in its format; the manager requires lists nested by the shape."""
    return [InferenceInput(name="x", shape=list(array.shape), datatype="FP32", data=array.tolist())]


def connecting(uri: str) -> Infer:
    """Call its ``infer``, which connects each time."""
    client = TcmClient(uri, AuthContext(uuid=new_uuid("small")))

    def infer(array: np.ndarray) -> np.ndarray:
        response = client.infer("vm", "c", MODEL, as_inputs(array), vm_ip="127.0.0.1")
        return np.array(response.payload["data"]["y"], np.float32)

    return infer


@contextmanager
def kept(uri: str) -> Iterator[Work]:
    """Await its ``inference_http`` repeatedly on one connection, in one event loop."""
    with closing(asyncio.new_event_loop()) as loop:
        client = TcmWebSocketClient(uri, AuthContext(uuid=new_uuid("small")))

        async def connect() -> None:
            await client.__aenter__()
            await client.auth()

        async def go_on(seconds: float) -> Tally:
            calls = 0
            start = now = time.perf_counter()
            while now - start < seconds:
                for _ in range(20):
                    reply = await client.inference_http("vm", "c", MODEL, as_inputs(ARRAY), vm_ip="127.0.0.1")
                    np.array(reply["payload"]["data"]["y"], np.float32)
                calls += 20
                now = time.perf_counter()
            return Tally(calls, now - start)

        async def disconnect() -> None:
            await client.__aexit__(None, None, None)

        loop.run_until_complete(connect())
        try:
            yield lambda seconds: loop.run_until_complete(go_on(seconds))
        finally:
            loop.run_until_complete(disconnect())
