"""The loops that the client is compared with: no pool, no deadline, no threads of their own.

Each does the work that a call of the client does: build an inference request from a small FP32 array, send
it, wait for the reply, and make an FP32 array of it.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec
import numpy as np
import websocket
from server import OUTPUT

from tcm_sync import AuthContext, Route, TcmClient
from tcm_sync._transport.frames import PING, PONG, TEXT, FrameDecoder, encode_frame

Infer = Callable[[np.ndarray], np.ndarray]

ARRAY = np.array([[1.5, -0.25, 3.0, 0.125]], np.float32)
ANSWER = np.array(OUTPUT["y"], np.float32)
NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
ROUTE = Route("c", "127.0.0.1")
MODEL = "m"


class Tensor(msgspec.Struct):
    """One input."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[list[float]]


class Request(msgspec.Struct):
    """The request to the model."""

    inputs: tuple[Tensor, ...]
    protocol: str = "http"


class Payload(msgspec.Struct):
    """The payload of an inference."""

    container_id: str
    vm_ip: str | None
    model_name: str
    request: Request


class Message(msgspec.Struct):
    """An inference with its envelope."""

    uuid: str
    type: str
    payload: Payload


class ReplyPayload(msgspec.Struct):
    """The payload of a reply."""

    status: str
    model_name: str
    data: dict[str, list[list[float]]]


class Reply(msgspec.Struct):
    """A reply with its envelope."""

    uuid: str
    type: str
    payload: ReplyPayload


class ChunkPayload(msgspec.Struct):
    """The payload of a stream's message."""

    status: str
    data: str | None


class Chunk(msgspec.Struct):
    """A stream's message with its envelope."""

    uuid: str
    type: str
    payload: ChunkPayload


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Reply).decode
decode_chunk = msgspec.json.Decoder(Chunk).decode


def new_uuid(kind: str) -> str:
    """Return a uuid for a socket; its first word selects the reply of the server."""
    return f"{kind}-{secrets.token_hex(12)}"


def address(port: int) -> str:
    """Return the URI of a server on this machine."""
    return f"ws://127.0.0.1:{port}/ws"


def auth_text(uuid: str) -> bytes:
    """Write the first message of a socket."""
    return encode({"uuid": uuid, "type": "auth", "payload": {"capability": ["json"]}})


def request_text(uuid: str, array: np.ndarray, route: Route = ROUTE) -> bytes:
    """Write the request that the client writes for the same array."""
    tensor = Tensor("x", array.shape, "FP32", array.tolist())
    payload = Payload(route.container_id, route.vm_ip, MODEL, Request((tensor,)))
    return encode(Message(uuid, "inference", payload))


def reply_array(text: str | bytes, uuid: str) -> np.ndarray:
    """Check that a reply is the expected one, and read it into an FP32 array."""
    reply = decode(text)
    if reply.uuid != uuid or reply.payload.status != "COMPLETED":
        raise RuntimeError(f"not the reply: {reply}")
    return np.array(reply.payload.data["y"], np.float32)


@contextmanager
def websocket_client(uri: str, kind: str = "small", **options: bool) -> Iterator[Infer]:
    """Loop over websocket-client's send and recv, with its default settings."""
    uuid = new_uuid(kind)
    connection = websocket.create_connection(uri, sockopt=(NO_DELAY,), **options)
    connection.send(auth_text(uuid), TEXT)
    connection.recv()

    def infer(array: np.ndarray) -> np.ndarray:
        connection.send(request_text(uuid, array), TEXT)
        return reply_array(connection.recv(), uuid)

    try:
        yield infer
    finally:
        connection.close()


def tuned_websocket_client(uri: str) -> AbstractContextManager[Infer]:
    """Do the same without its check of UTF-8 and its locks: its highest speed."""
    return websocket_client(uri, skip_utf8_validation=True, enable_multithread=False)


@contextmanager
def plain_socket(uri: str, route: Route = ROUTE) -> Iterator[Infer]:
    """Loop over a blocking socket with our own frames."""
    uuid = new_uuid("small")
    connection = websocket.create_connection(uri, sockopt=(NO_DELAY,)).sock
    frames = FrameDecoder(2**30)

    def exchange(message: bytes) -> bytes:
        connection.sendall(encode_frame(TEXT, message))
        reply = None
        while reply is None:
            for opcode, payload in frames.feed(connection.recv(65536)):
                if opcode == TEXT:
                    reply = payload
                elif opcode == PING:  # a manager sends a ping from time to time
                    connection.sendall(encode_frame(PONG, payload))
        return reply

    def infer(array: np.ndarray) -> np.ndarray:
        return reply_array(exchange(request_text(uuid, array, route)), uuid)

    exchange(auth_text(uuid))
    try:
        yield infer
    finally:
        connection.close()


def our_client(uri: str, kind: str = "small", route: Route = ROUTE, **settings: Any) -> TcmClient:
    """Make a client with default settings, except for those given."""
    return TcmClient(uri, auth=AuthContext(uuid=kind), route=route, **settings)


def our_infer(client: TcmClient) -> Infer:
    """Call `TcmClient.infer` as the loops above call the manager."""

    def infer(array: np.ndarray) -> np.ndarray:
        return client.infer(MODEL, {"x": array}, output_dtypes=np.float32)["y"]

    return infer


def check(infer: Infer) -> None:
    """Check, before anything is measured, that a contender gets the same answer as all others."""
    answer = infer(ARRAY)
    if answer.dtype != np.float32 or not np.array_equal(answer, ANSWER):
        raise RuntimeError(f"a wrong answer: {answer!r}")
