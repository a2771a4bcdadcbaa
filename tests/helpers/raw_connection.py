"""A client that sends exactly what a test gives it, without any rules of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from typing import Any

import numpy as np

from .waiting import GUARD

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


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

    def wait_for_reply(self) -> None:
        """Wait until there is something to receive, and leave it there."""
        assert self._reader.peek(1), "the connection has ended"

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
