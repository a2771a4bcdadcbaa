"""A client that says exactly what a test tells it, and the models that the tests run."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
GUARD = 20.0  # seconds; only what hangs takes so long


def wait_until(condition, what: str) -> None:
    """Wait for what another thread does; fails when it takes longer than the guard."""
    deadline = time.monotonic() + GUARD
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain until {what}")
        time.sleep(0.001)


def end(manager, how: str, client) -> None:
    """Have a manager `stop`, or `kill` it, and wait until the sockets of its client are gone."""
    getattr(manager, how)()
    wait_until(lambda: not client._runtime.pool._shelf.all, "the client has noticed")


class Raw:
    """One WebSocket connection to a manager, on a plain socket and without any rules of a client."""

    def __init__(self, manager, context: ssl.SSLContext | None = None) -> None:
        self._manager = manager
        self._socket = socket.create_connection(("127.0.0.1", manager.port), timeout=GUARD)
        if context is not None:
            self._socket = context.wrap_socket(self._socket, server_hostname="127.0.0.1")
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")
        self._socket.sendall(HANDSHAKE)
        assert self._reader.readline().startswith(b"HTTP/1.1 101")
        while self._reader.readline() != b"\r\n":
            pass

    def send(self, message: Any) -> None:
        if isinstance(message, bytes):
            self._send_frame(BINARY, message)
        else:
            text = message if isinstance(message, str) else json.dumps(message)
            self._send_frame(TEXT, text.encode())

    def send_fragments(self, *parts: str) -> None:
        for number, part in enumerate(parts):
            opcode = 0 if number else TEXT
            self._send_frame(opcode, part.encode(), final=number == len(parts) - 1)

    def _send_frame(self, opcode: int, payload: bytes, *, final: bool = True) -> None:
        """Send a frame, masked with zeros."""
        size = len(payload)
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 2**16:
            length = bytes([0x80 | 126]) + size.to_bytes(2, "big")
        else:
            length = bytes([0x80 | 127]) + size.to_bytes(8, "big")
        self._socket.sendall(bytes([final << 7 | opcode]) + length + bytes(4) + payload)

    def _receive_frame(self) -> tuple[int, bytes]:
        """Receive a frame, as (opcode, payload); (0, b"") at the end of the connection."""
        try:
            head = self._reader.read(2)
            if len(head) < 2:
                return 0, b""
            size = head[1]
            if size > 125:
                size = int.from_bytes(self._reader.read(2 if size == 126 else 8), "big")
            return head[0] & 15, self._reader.read(size)
        except (ConnectionError, ssl.SSLError):
            return 0, b""

    def receive_text(self) -> str:
        opcode, payload = self._receive_frame()
        assert opcode == TEXT, (opcode, payload)
        return payload.decode()

    def receive(self) -> dict[str, Any]:
        return json.loads(self.receive_text())

    def wait_for_close(self) -> int | None:
        """Answer the manager's close frame, and return its code; None if the connection just ended."""
        opcode, payload = self._receive_frame()
        if opcode == 0:
            return None
        assert opcode == CLOSE, (opcode, payload)
        self.close()
        return int.from_bytes(payload[:2], "big")

    def ping(self) -> None:
        """Ask for a pong, and wait for it."""
        self._send_frame(PING, b"x")
        assert self._receive_frame() == (PONG, b"x")

    def close(self) -> None:
        """Close in order, unless the connection has ended."""
        with contextlib.suppress(OSError):
            self._send_frame(CLOSE, (1000).to_bytes(2, "big"))
        self.drop()

    def drop(self) -> None:
        """End the TCP connection without a word."""
        self._reader.close()
        self._socket.close()

    def auth(self, uuid: str = "u", **payload: Any) -> dict[str, Any]:
        """Authenticate, and return what is answered."""
        self.uuid = uuid
        self.send({"uuid": uuid, "type": "auth", "payload": payload})
        return self.receive()

    def ask(self, model_name: str, /, *inputs: dict[str, Any], **payload: Any) -> None:
        """Send an inference."""
        route = self._manager.route
        request = {"protocol": "http", "inputs": list(inputs)}
        body = {"vm_ip": route.vm_ip, "container_id": route.container_id, "model_name": model_name}
        message = {**body, "request": request, **payload}
        self.send({"uuid": self.uuid, "type": "inference", "payload": message})

    def ask_stream(self, text: str, model_name: str = "llm", **request: Any) -> None:
        """Send a request for a stream."""
        route = self._manager.transient_route
        request = {"protocol": "grpc", "allow_transient": True, **request}
        request.setdefault("inputs", [tensor([text], "BYTES", name="text")])
        self.ask(model_name, container_id=route.container_id, request=request)

    def receive_stream(self) -> tuple[list[str], dict[str, Any]]:
        """Receive a stream up to its end, as (chunks, payload of the end)."""
        start = {"data": None, "status": "START", "model_name": None}
        assert self.receive()["payload"] == start
        chunks = []
        while (payload := self.receive()["payload"])["status"] == "ONGOING":
            assert payload["model_name"] is None
            chunks.append(payload["data"])
        return chunks, payload

    def ask_job(self, action: str, **body: Any) -> None:
        """Send a management job."""
        self.send({"uuid": self.uuid, "type": "management", "payload": {"action": action, **body}})

    def receive_job(self) -> tuple[bool, Any]:
        """Receive the reply of a management job, as (status, data)."""
        reply = self.receive()
        assert (reply["type"], reply["uuid"]) == ("management", self.uuid), reply
        return reply["payload"]["status"], reply["payload"]["data"]

    def do_job(self, action: str, **body: Any) -> Any:
        """Have a management job done, and return its data."""
        self.ask_job(action, **body)
        status, data = self.receive_job()
        assert status is True, data
        return data

    def ask_info(self, action: str = "queue_stats", **more: Any) -> None:
        self.send({"uuid": self.uuid, "type": "info", "payload": {"action": action, **more}})

    def infer(self, model_name: str, /, *inputs: dict[str, Any], **payload: Any) -> Any:
        """Send an inference, and return the payload of the reply."""
        self.ask(model_name, *inputs, **payload)
        reply = self.receive()
        assert (reply["type"], reply["uuid"]) == ("inference", self.uuid), reply
        return reply["payload"]


def tensor(
    data: Any, datatype: str = "FP32", shape: list[int] | None = None, name: str = "x"
) -> dict[str, Any]:
    shape = list(np.shape(data)) if shape is None else shape
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


class Gated:
    """A model whose runs take until the test lets them go; its output is its input."""

    def __init__(self) -> None:
        self._gates: dict[float, threading.Event] = {}
        self._all = threading.Event()
        self._lock = threading.Lock()

    def _gate(self, value: float) -> threading.Event:
        with self._lock:
            return self._gates.setdefault(value, threading.Event())

    def __call__(self, arrays):
        value = arrays["x"]
        gate = self._gate(round(float(value.flat[0]), 6))
        if not self._all.is_set() and not gate.wait(GUARD):
            raise AssertionError("nobody opened the gate")
        return {"y": value}

    def open(self, value: float) -> None:
        self._gate(round(float(value), 6)).set()

    def open_all(self) -> None:
        self._all.set()
        with self._lock:
            for gate in self._gates.values():
                gate.set()


class Talker:
    """A model that says the words of its input, one a chunk, and waits before word number `hold_before`.

    Some words mean something: NONE, EMPTY and BAD are chunks that are no text, ERROR is a failure.
    """

    def __init__(self) -> None:
        self.hold_before: int | None = None
        self._go_on = threading.Event()
        self.said = 0

    def __call__(self, arrays):
        for number, word in enumerate(str(arrays["text"][0]).split()):
            if number == self.hold_before and not self._go_on.wait(GUARD):
                raise AssertionError("nobody let it go on")
            if word == "ERROR":
                raise RuntimeError("model says no")
            yield {"NONE": None, "EMPTY": b"", "BAD": b"\xff"}.get(word, word)
            self.said += 1

    def go_on(self) -> None:
        self._go_on.set()


class Steps:
    """Is told of the steps of management jobs, and holds them while the test says so."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self._changed = threading.Condition()  # guards the two below
        self._free = True
        self._passes = 0

    def __call__(self, step) -> None:
        self.told.append((step.name, step.subject))
        with self._changed:
            if not self._changed.wait_for(lambda: self._free or self._passes, GUARD):
                raise AssertionError("nobody released the step")
            self._passes = max(0, self._passes - 1)

    def hold(self) -> None:
        with self._changed:
            self._free = False

    def release_one(self) -> None:
        """Let one step go on, and hold the next."""
        with self._changed:
            self._passes += 1
            self._changed.notify_all()

    def release(self) -> None:
        with self._changed:
            self._free = True
            self._passes = 0
            self._changed.notify_all()


def identity(arrays):
    return {"OUTPUT__0": arrays["INPUT__0"]}


def echo(arrays):
    return arrays


def onnx_bytes(nodes, inputs, outputs, initializers=()) -> bytes:
    """Serialise a small graph; inputs and outputs are (name, element type, dims)."""

    def info(name, element, dims):
        return helper.make_tensor_value_info(name, element, dims)

    graph = helper.make_graph(
        nodes, "test", [info(*i) for i in inputs], [info(*o) for o in outputs], list(initializers)
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def add_sub_onnx() -> bytes:
    """INPUT0 and INPUT1, FP32 [-1, -1], to SUM and DIFF."""
    dims = ["batch", "n"]
    return onnx_bytes(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["SUM"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["DIFF"]),
        ],
        [("INPUT0", TensorProto.FLOAT, dims), ("INPUT1", TensorProto.FLOAT, dims)],
        [("SUM", TensorProto.FLOAT, dims), ("DIFF", TensorProto.FLOAT, dims)],
    )


def identity_onnx(element: int = TensorProto.FLOAT, dims=("a", "b", "c")) -> bytes:
    return onnx_bytes(
        [helper.make_node("Identity", ["INPUT__0"], ["OUTPUT__0"])],
        [("INPUT__0", element, list(dims))],
        [("OUTPUT__0", element, list(dims))],
    )
