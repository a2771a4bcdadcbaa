"""One accepted connection of a scripted peer: what a script can read from the client and send to it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import struct
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import NoReturn

    from .scripted_peer import ScriptedPeer

#: Seconds after which a script that waits for the client fails: a hang guard, far above what is normal.
TIMEOUT = 30.0
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class ClientLeft(Exception):
    """The client ended the connection while the script waited for more."""


class Frame(NamedTuple):
    """One frame as the client sent it, unmasked."""

    fin: bool
    opcode: int
    payload: bytes


def make_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = None,
    length: int | None = None,
) -> bytes:
    """Build a frame (RFC 6455, section 5.2), also one that the protocol forbids.

    ``rsv`` is the three reserved bits as a number, ``mask`` a key of four bytes, ``length`` a length to
    claim in place of the true one.
    """
    claimed = len(payload) if length is None else length
    masked = 0 if mask is None else 0x80
    head = bytes([(fin << 7) | (rsv << 4) | opcode])
    if claimed < 126:
        head += bytes([masked | claimed])
    elif claimed < 2**16:
        head += struct.pack(">BH", masked | 126, claimed)
    else:
        head += struct.pack(">BQ", masked | 127, claimed)
    return head + payload if mask is None else head + mask + unmasked(payload, mask)


def unmasked(payload: bytes, key: bytes) -> bytes:
    """Apply a masking key, which is its own inverse."""
    padded = np.frombuffer(payload + bytes(-len(payload) % 4), dtype=np.uint32)
    return (padded ^ np.frombuffer(key, dtype=np.uint32)).tobytes()[: len(payload)]


class PeerConnection:
    """The script's end of one connection.

    Attributes
    ----------
    number : int
        How many connections were accepted before this one, HTTP probes not counted.
    headers : dict of str to str
        The client's handshake, names in lower case.
    uuid : str or None
        What the client's ``auth`` gave.
    frames : list of Frame
        Every frame that was read, in order. Of long ones only the first bytes are kept.
    requests : int
        How many inference requests were read.
    bytewise : bool
        Whether everything is sent one byte a segment.
    over : threading.Event
        Set when the script has ended.
    """

    def __init__(self, peer: ScriptedPeer, sock: socket.socket) -> None:
        self.peer = peer
        self.sock = sock
        self.number = -1
        self.request_line = ""
        self.headers: dict[str, str] = {}
        self.uuid: str | None = None
        self.auth: dict[str, Any] = {}
        self.frames: list[Frame] = []
        self.requests = 0
        self.over = threading.Event()
        self.bytewise = False
        self._buffer = bytearray()
        self._held: bytearray | None = None
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # --- bytes ---

    def recv_some(self) -> bytes:
        """Read what there is, at least one byte."""
        if self._buffer:
            some = bytes(self._buffer)
            self._buffer.clear()
            return some
        try:
            some = self.sock.recv(2**18)
        except TimeoutError:
            raise  # the client neither sent nor left: a fault
        except OSError as error:
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                raise  # a broken record is a fault too
            raise ClientLeft(str(error)) from error
        if not some:
            raise ClientLeft("end of stream")
        return some

    def recv_bytes(self, count: int, each: Callable[[], object] | None = None) -> bytes:
        """Read exactly so many bytes; call ``each`` after every piece that came."""
        read = bytearray()
        while len(read) < count:
            read += self.recv_some()
            if each is not None:
                each()
        self.unread(read[count:])
        return bytes(read[:count])

    def recv_until(self, end: bytes) -> bytes:
        """Read up to and with a mark, and leave what follows it."""
        read = bytearray()
        while end not in read:
            read += self.recv_some()
        cut = read.index(end) + len(end)
        self.unread(read[cut:])
        return bytes(read[:cut])

    def unread(self, data: bytes) -> None:
        """Put bytes back, to be read next."""
        self._buffer[:0] = data

    def send_raw(self, data: bytes) -> None:
        """Send these bytes and nothing else."""
        if self._held is not None:
            self._held += data
            return
        step = 1 if self.bytewise else max(1, len(data))
        try:
            for at in range(0, len(data), step):
                self.sock.sendall(data[at : at + step])
        except TimeoutError:
            raise  # the client reads nothing: a fault
        except OSError as error:
            raise ClientLeft(str(error)) from error

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Send all that the block sends as one piece."""
        self._held = bytearray()
        yield
        data, self._held = bytes(self._held), None
        self.send_raw(data)

    # --- handshake ---

    def read_handshake(self) -> dict[str, str]:
        """Read the client's HTTP request up to its empty line."""
        head = self.recv_until(b"\r\n\r\n").decode("latin-1")
        self.request_line, *lines = head.rstrip("\r\n").split("\r\n")
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        return self.headers

    def answer_handshake(self, extra_headers: Iterable[str] = ()) -> None:
        """Switch to the WebSocket protocol."""
        digest = hashlib.sha1(self.headers["sec-websocket-key"].encode() + _GUID).digest()
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}",
            *extra_headers,
        ]
        self.send_raw("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def accept(self, extra_headers: Iterable[str] = ()) -> None:
        """Read the handshake and answer it."""
        self.read_handshake()
        self.answer_handshake(extra_headers)

    def answer_http(self, status: int, body: bytes = b"", extra_headers: Iterable[str] = ()) -> None:
        """Answer with a plain HTTP response, whose end is the end of the connection."""
        lines = [
            f"HTTP/1.1 {status} Scripted",
            f"Content-Length: {len(body)}",
            "Content-Type: application/json",
            "Connection: close",
            *extra_headers,
        ]
        self.send_raw("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def authenticate(self, capability: list[str] | None = None) -> None:
        """Read ``auth`` and grant it; without a capability, in the legacy form."""
        self.read_auth()
        if capability is None:
            self.send_text({"type": "auth.ok"})
        else:
            self.send_text({"type": "auth.ok", "payload": {"capability": capability}})

    def read_auth(self) -> dict[str, Any]:
        """Read the first message, which must be ``auth`` under a uuid that no connection has had."""
        message = self.recv_json()
        assert message["type"] == "auth", message
        self.auth = message["payload"]
        self.uuid = message["uuid"]
        with self.peer.lock:
            assert self.uuid not in self.peer.uuids, f"uuid {self.uuid} was used before"
            self.peer.uuids.append(self.uuid)
        return self.auth

    def welcome(self) -> None:
        """Do all that comes before the first request."""
        self.accept()
        self.authenticate(["json"])

    # --- frames and messages from the client ---

    def recv_frame(self, each: Callable[[], object] | None = None) -> Frame:
        """Read one frame, which must be masked and without reserved bits."""
        first, second = self.recv_bytes(2)
        assert not first & 0x70, "a reserved bit is set"
        assert second & 0x80, "the client did not mask its frame"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self.recv_bytes(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self.recv_bytes(8))
        key = self.recv_bytes(4)
        frame = Frame(bool(first & 0x80), first & 0x0F, unmasked(self.recv_bytes(size, each), key))
        if frame.opcode >= CLOSE:
            assert frame.fin, "a control frame is fragmented"
            assert size <= 125, "a control frame is too long"
        self.frames.append(frame._replace(payload=frame.payload[:4096]))
        return frame

    def recv_message(self, each: Callable[[], object] | None = None) -> str:
        """Read one text message of any number of fragments; answer the pings that come between."""
        parts: list[bytes] = []
        while True:
            frame = self.recv_frame(each)
            if frame.opcode == PING:
                self.send_frame(PONG, frame.payload)
            elif frame.opcode == CLOSE:
                with contextlib.suppress(ClientLeft):
                    self.send_frame(CLOSE, frame.payload)
                raise ClientLeft("close frame")
            elif frame.opcode != PONG:
                assert frame.opcode == (CONTINUATION if parts else TEXT), f"opcode {frame.opcode}"
                parts.append(frame.payload)
                if frame.fin:
                    return b"".join(parts).decode()

    def recv_json(self) -> Any:
        """Read one message and parse it."""
        return json.loads(self.recv_message())

    def recv_request(self) -> dict[str, Any]:
        """Read one inference request under this connection's uuid, and give its payload."""
        message = self.recv_json()
        self.count_request()
        assert message["type"] == "inference", message
        assert message["uuid"] == self.uuid
        return message["payload"]

    def count_request(self) -> None:
        """Note that a request was read, for a script that does not parse it."""
        with self.peer.lock:
            self.requests += 1
            self.peer.requests += 1

    def wait_frame(self, opcode: int) -> Frame:
        """Read frames until one of this kind."""
        while True:
            frame = self.recv_frame()
            if frame.opcode == opcode:
                return frame

    def wait_eof(self) -> None:
        """Read and forget until the client ends the connection."""
        with contextlib.suppress(ClientLeft):
            while True:
                self.recv_some()

    # --- messages to the client ---

    def send_frame(self, opcode: int, payload: bytes = b"", **odd: Any) -> None:
        """Send one frame; see `make_frame` for what may be odd about it."""
        self.send_raw(make_frame(opcode, payload, **odd))

    def send_text(self, message: Any, fragments: int = 1) -> None:
        """Send one text message: bytes and str as they are, anything else as the manager writes JSON."""
        if not isinstance(message, bytes):
            message = (message if isinstance(message, str) else json.dumps(message)).encode()
        step = max(1, -(-len(message) // fragments))
        pieces = [message[at : at + step] for at in range(0, len(message), step)] or [b""]
        for number, piece in enumerate(pieces):
            opcode = CONTINUATION if number else TEXT
            self.send_frame(opcode, piece, fin=number == len(pieces) - 1)

    def reply(
        self, data: Any, *, status: str = "COMPLETED", model_name: str | None = "m", **send: Any
    ) -> None:
        """Answer the request in flight, under this connection's uuid."""
        self.send_text(self.inference(data, status, model_name), **send)

    def inference(self, data: Any, status: str = "COMPLETED", model_name: str | None = "m") -> dict[str, Any]:
        """Make the message that `reply` sends."""
        payload = {"data": data, "status": status, "model_name": model_name}
        return {"type": "inference", "uuid": self.uuid, "payload": payload}

    def fail(self, code: str, reason: str = "because", retriable: bool = False, **more: Any) -> None:
        """Answer the request in flight with FAILED, worded as the manager words it."""
        message = f"[TritonThread] {code}: model='m' retriable={retriable} reason={reason}"
        self.reply({"code": code, "message": message, "retriable": retriable, **more}, status="FAILED")

    def error(self, message: str, code: str | None = None, **more: Any) -> None:
        """Send an ``error`` message."""
        coded = {} if code is None else {"code": code}
        self.send_text({"type": "error", "payload": {**coded, "message": message, **more}})

    def alert(self) -> None:
        """Send an ``alert``, which nobody asked for."""
        self.send_text(
            {"type": "alert", "error_type": "TritonServerStateChanged", "message": "x", "timestamp": 1.5}
        )

    def advise(self) -> None:
        """Say that the request is delayed; its reply still comes."""
        delayed = "Request delayed due to tenant budget (DRR cost-aware fairness)."
        self.error(delayed, "BACKPRESSURE_INSUFFICIENT_BUDGET", job_type="inference", tenant_id="unknown")

    # --- the end ---

    def close(self, code: int | None = 1000, reason: str = "") -> NoReturn:
        """Close as the protocol says: a close frame, the client's answer, the end. The script ends here."""
        payload = b"" if code is None else struct.pack(">H", code) + reason.encode()
        self.send_frame(CLOSE, payload)
        self.wait_eof()
        raise ClientLeft("closed by the script")

    def drop(self) -> NoReturn:
        """Reset the connection without a word (SO_LINGER of 0 s). The script ends here."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        raise ClientLeft("dropped by the script")

    def hang_up(self) -> NoReturn:
        """End the stream without a close frame (FIN), and wait for the client to do so too."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
        with contextlib.suppress(ssl.SSLError):  # the alert that this deserves under TLS
            self.wait_eof()
        raise ClientLeft("hung up by the script")

    def interrupt(self) -> None:
        """Wake a script that waits on the socket, from another thread."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
