"""A WebSocket server that answers at once: the peer of most subjects.

    python benchmarks/server.py [--core N]

prints the port that it listens on and serves until its standard input ends. It answers ``auth`` with
``auth.ok`` and any other message, unread, with a reply made beforehand, which contains the socket's uuid. The
uuid selects the reply: ``KIND-whatever`` or ``KIND.COUNT-whatever``, where KIND is one of `OUTPUTS`,
``stream``, or one of `TEXTS` for a reply of that many bytes. The answer to a plain HTTP request is that the
server is ready. Nothing else of the protocol is implemented: a message costs a read and a write, and its
payload is dropped as it arrives.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import random
import select
import socket
import sys
import threading
from collections.abc import Callable

#: The one output of a small reply: few digits and exact in FP32, so that all clients read the same text.
OUTPUT = {"y": [[0.5, -1.25, 2.0, 8.75]]}

CHUNK = "a word "  # of a stream

ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
CONTINUATION, TEXT, CLOSE, PING, PONG = 0x0, 0x1, 0x8, 0x9, 0xA
FIN = 0x80
READ_BYTES = 256 * 1024


def decimals(count: int) -> list[float]:
    """Return so many numbers of seven decimals: ten bytes each in a reply."""
    numbers = random.Random(7)
    return [round(numbers.random(), 7) for _ in range(count)]


def singles(count: int) -> list[float]:
    """Return so many FP32 numbers as a manager writes them, each in all digits of a double: 20 bytes each."""
    import numpy as np

    return np.random.default_rng(7).random(count, np.float32).tolist()


#: What a reply may carry, by the first word of the socket's uuid; any other word selects the small one.
OUTPUTS: dict[str, Callable[[int], dict[str, object]]] = {
    "small": lambda _: OUTPUT,
    "decimals": lambda count: {"y": [decimals(count)]},
    "singles": lambda count: {"y": [singles(count)]},
}


#: Lists as long as wanted: the beginning, the text that is repeated with commas between, and the end. The
#: text may have the place for a number that counts.
TEXTS: dict[str, tuple[bytes, bytes, bytes]] = {
    "column": (b"[", b"[1]", b"]"),
    "spaced": (b"[", b" [1]", b"]"),
    "deep": (b"[", b"[[[1]]]", b"]"),
    "halves": (b"[", b"[0.5]", b"]"),
    "pairs": (b"[[", b"[1,0.5]", b"]]"),
    "flags": (b"[", b"[true]", b"]"),
    "ones": (b"[", b"1", b"]"),
    "empty": (b"[", b"[]", b"]"),
    "singly": (b"[", b"0.8972138", b"]"),
    "ragged": (b"[", b"[1]", b",[1,1]]"),
    "uneven": (b"[[1,1],", b"[1]", b"]"),
    "mixed": (b"[", b"[1]", b',["a"]]'),
    "words": (b"[", b'"abcdefgh"', b"]"),
    "wordcol": (b"[", b'["abcdefgh"]', b"]"),
    "letters": (b"[", b'"a"', b"]"),
    "names": (b"[", b'"%08d"', b"]"),
    "longer": (b"[", b'"%024d"', b"]"),
}


def text_of(kind: str, size: int) -> bytes:
    """Write a list of about so many bytes."""
    before, each, behind = TEXTS[kind]
    if b"%" in each:
        count = size // (len(each % 0) + 1) + 1
        return before + b",".join(each % number for number in range(count)) + behind
    return before + (each + b",") * (size // (len(each) + 1)) + each + behind


def in_pieces(payload: bytes, size: int) -> bytes:
    """Build a message of many fragments."""
    cut = [payload[place : place + size] for place in range(0, len(payload), size)]
    return b"".join(
        bytes([(FIN if number == len(cut) - 1 else 0) | (CONTINUATION if number else TEXT), len(part)]) + part
        for number, part in enumerate(cut)
    )


def frame(opcode: int, payload: bytes) -> bytes:
    """Build an unmasked frame, as servers send them."""
    size = len(payload)
    if size < 126:
        return bytes([FIN | opcode, size]) + payload
    if size < 0x10000:
        return bytes([FIN | opcode, 126]) + size.to_bytes(2, "big") + payload
    return bytes([FIN | opcode, 127]) + size.to_bytes(8, "big") + payload


def header_size(data: bytes) -> int:
    """Count the bytes of a client's frame before its payload, the mask included; `data` has at least two."""
    return {126: 8, 127: 14}.get(data[1] & 0x7F, 6)


def payload_size(data: bytes) -> int:
    """Count the bytes of the payload of a client's frame whose whole header is there."""
    length = data[1] & 0x7F
    return length if length < 126 else int.from_bytes(data[2 : header_size(data) - 4], "big")


def unmask(data: bytes) -> bytes:
    """Take the payload out of one whole frame of a client."""
    header = header_size(data)
    mask = data[header - 4 : header]
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(data[header:]))


def reply_message(uuid: str, data: object, status: str = "COMPLETED", model_name: str | None = "m") -> bytes:
    """Write a reply as a manager does."""
    payload = {"data": data, "status": status, "model_name": model_name}
    return json.dumps({"type": "inference", "uuid": uuid, "payload": payload}).encode()


def replies_for(uuid: str) -> bytes:
    """Write the frames that answer each request of a socket."""
    kind, _, count = uuid.split("-")[0].partition(".")
    if kind == "stream":
        start, chunk, end = (
            frame(TEXT, reply_message(uuid, *said))
            for said in ((None, "START", None), (CHUNK, "ONGOING", None), (None, "COMPLETED"))
        )
        return start + chunk * int(count) + end
    if kind in TEXTS or kind == "crumbs":
        before, behind = reply_message(uuid, {"y": None}).split(b"null", 1)
        message = before + text_of("column" if kind == "crumbs" else kind, int(count)) + behind
        return in_pieces(message, 2) if kind == "crumbs" else frame(TEXT, message)
    return frame(TEXT, reply_message(uuid, OUTPUTS.get(kind, OUTPUTS["small"])(int(count or 0))))


class Peer:
    """The server's end of one socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self._is_open = False  # whether the handshake is done
        self._replies: bytes | None = None  # to each request, once authenticated
        self._rest = b""  # the received part of a handshake, header or frame that is needed whole
        self._skip = 0  # bytes still to come of a payload that is dropped
        self._final = False  # whether that payload ends its message

    def read(self) -> bool:
        """Read what has arrived, and answer it; return whether the socket stays open."""
        data = self.connection.recv(READ_BYTES)
        if not data:
            return False
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not self._is_open:
            return self._shake_hands(data)
        while data:
            if self._skip:
                data = self._throw_away(data)
                continue
            if len(data) < 6 or len(data) < header_size(data):
                self._rest = data
                break
            header, size = header_size(data), payload_size(data)
            if data[0] & 0xF in (TEXT, CONTINUATION) and self._replies is not None:
                self._skip, self._final = size, bool(data[0] & FIN)
                data = self._throw_away(data[header:])
            elif len(data) < header + size:
                self._rest = data
                break
            elif not self._answer_whole(data[0] & 0xF, unmask(data[: header + size])):
                return False
            else:
                data = data[header + size :]
        return True

    def _throw_away(self, data: bytes) -> bytes:
        taken = min(self._skip, len(data))
        self._skip -= taken
        if not self._skip and self._final and self._replies is not None:
            self.connection.sendall(self._replies)
        return data[taken:]

    def _answer_whole(self, opcode: int, payload: bytes) -> bool:
        """Answer a frame that was read: a control frame, or the first message."""
        if opcode == TEXT:
            message = json.loads(payload)
            granted = ["json"] if "json" in message["payload"].get("capability", ()) else None
            ok = {"type": "auth.ok"} | ({"payload": {"capability": granted}} if granted else {})
            self._replies = replies_for(message["uuid"])
            self.connection.sendall(frame(TEXT, json.dumps(ok).encode()))
        elif opcode in (CLOSE, PING):
            self.connection.sendall(frame(CLOSE if opcode == CLOSE else PONG, payload))
        return opcode != CLOSE

    def _shake_hands(self, request: bytes) -> bool:
        if b"\r\n\r\n" not in request:
            self._rest = request
            return True
        headers = dict(line.split(b":", 1) for line in request.split(b"\r\n")[1:] if b":" in line)
        key = {name.strip().lower(): value.strip() for name, value in headers.items()}.get(
            b"sec-websocket-key"
        )
        if key is None:
            body = b'{"status":"ready"}'
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            self.connection.sendall(head % len(body) + body)
            return False
        accept = base64.b64encode(hashlib.sha1(key + ACCEPT_GUID).digest())
        self.connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
        )
        self._is_open = True
        return True


def serve(listener: socket.socket) -> None:
    """Answer all clients in one thread, which blocks only while it writes."""
    peers: dict[int, Peer] = {}
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                connection, _ = listener.accept()
                peers[connection.fileno()] = Peer(connection)
                poll.register(connection, select.EPOLLIN)
                continue
            try:
                lives = peers[number].read()
            except ConnectionError:
                lives = False
            if not lives:
                poll.unregister(number)
                peers.pop(number).connection.close()


def main() -> None:
    """Listen, print the port, and serve until standard input ends."""
    parser = argparse.ArgumentParser(description="A WebSocket server that answers at once.")
    parser.add_argument("--core", type=int, help="the processor core to stay on")
    core = parser.parse_args().core
    if core is not None:
        os.sched_setaffinity(0, {core})
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
