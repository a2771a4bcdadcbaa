"""A client that says exactly what a test tells it, and the models that the tests run."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

GUARD = 20.0  # seconds; only what hangs takes so long


def wait_until(condition, what: str) -> None:
    """Wait for what another thread does; fails when it takes longer than the guard."""
    deadline = time.monotonic() + GUARD
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain until {what}")
        time.sleep(0.001)


class Raw:
    """One WebSocket connection to a manager, without any rules of a client."""

    def __init__(self, manager, ssl=None) -> None:
        self._stack = contextlib.ExitStack()
        self._manager = manager
        plain = socket.create_connection(("127.0.0.1", manager.port), timeout=GUARD)
        self._connection = self._stack.enter_context(
            connect(manager.uri, sock=plain, ssl=ssl, max_size=None, open_timeout=GUARD, close_timeout=1)
        )

    def send(self, message: Any) -> None:
        self._connection.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def send_fragments(self, *parts: str) -> None:
        self._connection.send(parts)

    def ping(self) -> bool:
        """Ask for a pong, and tell whether it came."""
        return self._connection.ping().wait(GUARD)

    def receive_text(self) -> str:
        text = self._connection.recv(timeout=GUARD)
        assert isinstance(text, str)
        return text

    def receive(self) -> dict[str, Any]:
        return json.loads(self.receive_text())

    def wait_for_close(self) -> int | None:
        """Return the code of the manager's close frame; None if the connection just ended."""
        with pytest.raises(ConnectionClosed) as caught:
            pytest.fail(f"not closed, but: {self._connection.recv(timeout=GUARD)!r}")
        received = caught.value.rcvd
        return None if received is None else received.code

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

    def ask_info(self, action: str = "queue_stats", **more: Any) -> None:
        self.send({"uuid": self.uuid, "type": "info", "payload": {"action": action, **more}})

    def infer(self, model_name: str, /, *inputs: dict[str, Any], **payload: Any) -> Any:
        """Send an inference, and return the payload of the reply."""
        self.ask(model_name, *inputs, **payload)
        reply = self.receive()
        assert (reply["type"], reply["uuid"]) == ("inference", self.uuid), reply
        return reply["payload"]

    def close(self) -> None:
        self._stack.close()

    def drop(self) -> None:
        """End the TCP connection without a word."""
        with contextlib.suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)
        self.close()


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
