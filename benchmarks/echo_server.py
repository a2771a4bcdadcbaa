"""A WebSocket server that answers at once: the peer of ``roundtrip.py``.

    python benchmarks/echo_server.py [--core N]

prints the port that it listens on and serves until its standard input ends. It answers ``auth`` with
``auth.ok`` and any other message, unread, with one small inference reply made beforehand, which carries
the socket's uuid. A plain HTTP request is told that the server is ready. Nothing else of the protocol
is there: what it costs is a read and a write.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import socket
import sys
import threading

#: The one output of every reply: few digits and exact in FP32, so that no client has less text to read.
OUTPUT = {"y": [[0.5, -1.25, 2.0, 8.75]]}

ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
FIN = 0x80


def frame(opcode: int, payload: bytes) -> bytes:
    """Build an unmasked frame of less than 64 KiB, as servers send them."""
    if len(payload) < 126:
        return bytes([FIN | opcode, len(payload)]) + payload
    return bytes([FIN | opcode, 126]) + len(payload).to_bytes(2, "big") + payload


def header_size(data: bytes) -> int:
    """Count the bytes of a client's frame before its payload, the mask included."""
    return {126: 8, 127: 14}.get(data[1] & 0x7F, 6)


def frame_size(data: bytes) -> int:
    """Count the bytes of the client's frame that `data` begins with: more than there are, if not all came."""
    if len(data) < 2 or len(data) < (header := header_size(data)):
        return len(data) + 1
    length = data[1] & 0x7F
    return header + (length if length < 126 else int.from_bytes(data[2 : header - 4], "big"))


def unmask(data: bytes) -> bytes:
    """Take the payload out of one whole frame of a client."""
    header = header_size(data)
    mask = data[header - 4 : header]
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(data[header:]))


def shake_hands(connection: socket.socket) -> bool:
    """Answer the HTTP request; say whether it asked for a WebSocket."""
    request = b""
    while b"\r\n\r\n" not in request:
        chunk = connection.recv(65536)
        if not chunk:
            return False
        request += chunk
    headers = dict(line.split(b":", 1) for line in request.split(b"\r\n")[1:] if b":" in line)
    key = {name.strip().lower(): value.strip() for name, value in headers.items()}.get(b"sec-websocket-key")
    if key is None:
        body = b'{"status":"ready"}'
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body)
        return False
    accept = base64.b64encode(hashlib.sha1(key + ACCEPT_GUID).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
    )
    return True


def authenticate(payload: bytes) -> tuple[bytes, bytes]:
    """Read the first message; give the frame that answers it and the one that answers all others."""
    message = json.loads(payload)
    granted = ["json"] if "json" in message["payload"].get("capability", ()) else None
    ok = {"type": "auth.ok"} | ({"payload": {"capability": granted}} if granted else {})
    reply = {
        "type": "inference",
        "uuid": message["uuid"],
        "payload": {"data": OUTPUT, "status": "COMPLETED", "model_name": "m"},
    }
    return frame(TEXT, json.dumps(ok).encode()), frame(TEXT, json.dumps(reply).encode())


def serve(connection: socket.socket) -> None:
    """Answer one connection until it ends."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        if not shake_hands(connection):
            return
        reply = None
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
            while (size := frame_size(data)) <= len(data):
                opcode = data[0] & 0xF
                if opcode in (CLOSE, PING):
                    connection.sendall(frame(CLOSE if opcode == CLOSE else PONG, unmask(data[:size])))
                    if opcode == CLOSE:
                        return
                elif opcode != PONG and reply is None:
                    ok, reply = authenticate(unmask(data[:size]))
                    connection.sendall(ok)
                elif opcode != PONG and data[0] & FIN:
                    connection.send(reply)
                data = data[size:]


def accept(listener: socket.socket) -> None:
    """Give each connection a thread; all but one of them sleep in recv."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def main() -> None:
    """Listen, say where, and serve until standard input ends."""
    parser = argparse.ArgumentParser(description="A WebSocket server that answers at once.")
    parser.add_argument("--core", type=int, help="the processor core to stay on")
    core = parser.parse_args().core
    if core is not None:
        os.sched_setaffinity(0, {core})
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
