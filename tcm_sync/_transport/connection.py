"""One authenticated socket, named by its own uuid: what is written to it, and how it is closed."""

from __future__ import annotations

import socket
import ssl
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Protocol, cast

from tcm_sync._deadline import Deadline
from tcm_sync._handlers import Suppress, is_of_handler
from tcm_sync._locks import RLock
from tcm_sync._secrets import Secret
from tcm_sync._transport.frames import PING, PONG, Event, FrameDecoder, encode_frame, encode_text
from tcm_sync._transport.nested_tls import TLS_SOCKETS
from tcm_sync._transport.replies import Future
from tcm_sync._transport.sockets import is_local, send_flags, shut_down, wait_ready
from tcm_sync._transport.tls_errors import WOULD_BLOCK, TlsSocket, with_own_errors
from tcm_sync._wire.encode import Pieces
from tcm_sync.errors import CallTimeoutError, ConnectionLostError, ProtocolError, TcmError

_MAX_CONTROLS = 4  # control frames waiting to go out; of pongs only the latest matters (RFC 6455, 5.5.3)
_MAX_SENT = 1024  # how many times of sending are remembered, to keep a limit of messages a second


class ConnectionOwner(Protocol):
    """The pool that a connection belongs to."""

    def lost(self, connection: Connection, reason: str) -> None:
        """Remove a connection that was closed."""

    def expire(self, connection: Connection, reason: str) -> None:
        """Close a connection when it is released, or now if it is idle."""

    def check_silent(self, since: float) -> None:
        """Lease no idle connection on which nothing came since a moment, before it was checked."""

    def passed_check(self, connection: Connection) -> None:
        """Make a connection available again that was checked and is alive."""


class ConnectionReader(Protocol):
    """The reader that a connection is registered with."""

    def watch_writing(self, connection: Connection) -> None:
        """Write the control frames that wait as soon as the socket takes them."""

    def resume(self, connection: Connection) -> None:
        """Read a paused connection again."""


class Connection:
    """A socket after its handshake and its auth exchange.

    The caller that leases it writes messages. The reader writes control frames, and no other thread reads
    or closes the socket. Other threads shut it down, and have the reader close it.

    Parameters
    ----------
    sock : socket.socket
        Connected, after its WebSocket handshake and its authentication.
    uuid : str
        The manager's name for this socket.
    capability : frozenset of str
        What the manager granted.
    decoder : FrameDecoder
        With what was received behind the auth exchange and is not a whole frame yet.
    early : list of (opcode, payload)
        What was received behind the auth exchange: the reader begins with it.
    secrets : tuple of Secret
        What was sent to open it. They are kept as long as the manager may quote them.
    """

    # There are too many for a dict that shares its keys: each access would take twice as long.
    __slots__ = (
        "_control_begun",
        "_controls",
        "_flags",
        "_mid_frame",
        "bytes_sent",
        "capability",
        "close_error",
        "closed",
        "closing",
        "closing_reason",
        "decoder",
        "early",
        "epoch",
        "idle_since",
        "inherited",
        "is_local",
        "is_tls",
        "jitter",
        "last_received",
        "last_sent",
        "lease",
        "leased_at",
        "lifetime_ends_at",
        "lock",
        "max_requests",
        "messages_sent",
        "on_lease_lost",
        "opened_at",
        "paused",
        "pinged_at",
        "pool",
        "reader",
        "receive_into",
        "replacing",
        "reply_prefixes",
        "requests",
        "secrets",
        "sending",
        "sent_at",
        "sock",
        "tenant",
        "uuid",
    )

    def __init__(
        self,
        sock: socket.socket,
        uuid: str,
        capability: frozenset[str],
        decoder: FrameDecoder,
        early: list[Event],
        secrets: tuple[Secret, ...] = (),
    ) -> None:
        self.uuid = uuid
        self.capability = capability
        self.decoder = decoder
        self.early = early
        self.secrets = secrets
        self.tenant = ""  # whose share of the manager's messages it uses; set before it is registered
        # How the manager begins the reply to an inference, in its own form of JSON and in the shortest one.
        self.reply_prefixes = (
            b'{"type": "inference", "uuid": "%b", "payload": ' % uuid.encode(),
            b'{"type":"inference","uuid":"%b","payload":' % uuid.encode(),
        )
        self.is_tls = isinstance(sock, TLS_SOCKETS)
        self._flags = send_flags(sock)
        self.is_local = is_local(sock)  # whether the other end is this machine
        self.sock = sock
        # Guards closed, close_error, _controls, _control_begun, _mid_frame, and each single call on the
        # socket, which never blocks.
        self.lock = RLock()
        # Read what there is into a buffer: how many bytes, 0 at the end. WOULD_BLOCK: there is nothing now.
        self.receive_into: Callable[[memoryview], int] = (
            partial(receive_tls, sock, self.lock) if isinstance(sock, TLS_SOCKETS) else sock.recv_into
        )
        self.closed = False
        self.inherited = False  # whether this is a child process, and the connection its parent's
        self.close_error: TcmError | None = None
        self._controls: deque[memoryview] = deque()  # frames that go out before the next data frame
        self._control_begun = False  # whether the first of them is partly written
        self._mid_frame = False  # whether a data frame is partly written
        self.messages_sent = self.bytes_sent = 0  # frames and all; only the caller changes them
        self.sending = False  # whether a caller's message is under way; only that caller changes it
        # Only the reader changes these.
        self.closing = False  # whether it is being closed
        self.paused = False  # whether it is not read, since its stream is not taken
        self.last_received = self.last_sent = monotonic()
        self.pinged_at: float | None = None
        self.reader: ConnectionReader | None = None  # once it is registered
        self.pool: ConnectionOwner | None = None  # set once, before it is registered
        # The pool's bookkeeping, guarded by the lock of its state.
        self.opened_at = self.idle_since = monotonic()
        self.leased_at: float | None = None
        self.lease: weakref.ref[Any] | None = None  # the last one
        self.on_lease_lost: Callable[[weakref.ref[Any]], None] | None = None  # called when that is collected
        self.epoch = 0  # how often all sockets had been lost before it was opened
        self.requests = 0
        self.max_requests = 0  # after which it is replaced
        self.lifetime_ends_at = inf  # when it is replaced, however few they were
        self.jitter = 1.0  # factor of its limits, so that sockets are not all replaced at once
        self.closing_reason: str | None = None  # why it is closed when it is released
        self.replacing = False  # whether another one is being opened in its place
        self.sent_at: deque[float] = deque(maxlen=_MAX_SENT)

    def __repr__(self) -> str:
        return f"<Connection {self.uuid}{' closed' if self.closed else ''}>"

    def fileno(self) -> int:
        """Return the descriptor's number, for the reader's selector."""
        return self.sock.fileno()

    # --- the caller's side ---

    def send(self, message: Pieces, deadline: Deadline, future: Future) -> None:
        """Write a whole text message.

        Parameters
        ----------
        message : tuple of bytes
            JSON text.
        deadline : Deadline
            For all of it.
        future : ReplyFuture
            Marked as started before the first byte goes out.

        Raises
        ------
        ConnectionLostError
            The socket is closed; `outcome_unknown` if anything was written.
        CallTimeoutError
            The manager did not take the message in time.
        ProtocolError
            A reply came before the message was sent whole.
        """
        self.sending = True
        self.sent_at.append(monotonic())
        written = 0
        for frame in encode_text(message):
            taken, _ = self._write(frame, future)
            self.bytes_sent += taken
            if taken < len(frame):
                self._write_rest(memoryview(frame)[taken:], deadline, future, written + taken)
            written += len(frame)
        self.messages_sent += 1
        self.last_sent = monotonic()
        self.sending = False
        if self._controls and self.flush() and self.reader is not None:
            self.reader.watch_writing(self)  # the reply is not to wait for it

    def _write_rest(self, rest: memoryview, deadline: Deadline, future: Future, written: int) -> None:
        """Write what the socket did not take at once of a frame, of whose message so much is `written`."""
        wants_write = True
        while rest:
            if future.has_reply():
                raise ProtocolError(
                    f"a reply came after {written:,} bytes of the request, not sent whole yet: it cannot "
                    "be the answer"
                )
            left = deadline.remaining()
            if left is not None and left <= 0.0:
                raise CallTimeoutError(
                    "the deadline passed while the request was being sent: the manager took no more after "
                    f"{written:,} bytes",
                    outcome_unknown=future.started,
                )
            # A TLS object that must read first is fed by the reader, so do not wait long.
            longest = 1.0 if wants_write else 0.01  # the number may become another socket's
            wait_ready(self.sock, write=wants_write, timeout=longest if left is None else min(left, longest))
            taken, wants_write = self._write(rest, future)
            self.bytes_sent += taken
            written += taken
            rest = rest[taken:]

    def _write(self, view: bytes | memoryview, future: Future) -> tuple[int, bool]:
        """Write what the socket takes: how many bytes, and whether to wait for it to take more."""
        with self.lock:
            if self.closed:
                raise ConnectionLostError("the connection was lost", outcome_unknown=future.started)
            begun = future.started or self.is_tls  # a TLS object may have sent part of what it refuses
            try:
                if self._controls and not self._mid_frame:
                    self._write_controls()
                future.started = self._mid_frame = True
                taken = self._send(view)
            except ssl.SSLWantReadError:
                return 0, False
            except WOULD_BLOCK:
                future.started = begun
                return 0, True
            except OSError as error:
                if is_of_handler(error):
                    raise
                future.started = begun
                raise ConnectionLostError(
                    f"the connection was lost while sending: {error}", outcome_unknown=begun
                ) from error
            self._mid_frame = taken < len(view)
            return taken, True

    def _send(self, data: bytes | memoryview) -> int:
        """Write what the socket takes now: how many bytes. WOULD_BLOCK: none."""
        if self.is_tls:
            return with_own_errors(cast("TlsSocket", self.sock), self.sock.send, data, self._flags)
        return self.sock.send(data, self._flags)

    def shut_down(self) -> None:
        """End the connection from any thread; the reader sees it and closes the descriptor."""
        with self.lock:
            if not self.closed:
                shut_down(self.sock)

    # --- the reader's side, beside `receive_into` ---

    def queue_control(self, opcode: int, payload: bytes) -> None:
        """Queue a ping or a pong; it goes out before the next data frame, or with `flush`."""
        frame = memoryview(encode_frame(opcode, payload))
        with self.lock:
            if len(self._controls) >= _MAX_CONTROLS:
                self._controls.pop()
            self._controls.append(frame)

    def flush(self) -> bool:
        """Write queued control frames, unless a message is half out; whether any wait for the socket."""
        with self.lock:
            if self.closed or self._mid_frame or not self._controls:
                return False  # the sender writes them before its next frame
            try:
                self._write_controls()
            except WOULD_BLOCK:
                return True
            except OSError as error:
                if is_of_handler(error):
                    raise
                return False  # reading finds out
            return False

    def _write_controls(self) -> None:
        while self._controls:
            frame = self._controls[0]
            self._control_begun = True
            taken = self._send(frame)
            if taken < len(frame):
                self._controls[0] = frame[taken:]
                raise BlockingIOError
            self._controls.popleft()
            self._control_begun = False

    def pong(self, payload: bytes) -> bool:
        """Answer a ping; whether the answer waits for the socket."""
        self.queue_control(PONG, payload)
        return self.flush()

    def ping(self, now: float) -> bool:
        """Ask whether the other side is alive; whether the question waits for the socket."""
        self.pinged_at = now
        self.queue_control(PING, b"")
        return self.flush()

    def close(self, close_frame: bytes | None = None, error: TcmError | None = None) -> None:
        """Close the descriptor, after a close frame if it can go out at once. Only the reader calls this."""
        with self.lock:
            if self.closed:
                return
            self.closed, self.close_error = True, error
            if close_frame is not None and not self._mid_frame and not self._control_begun:
                with Suppress(OSError):  # the socket is closed anyway
                    self._send(close_frame)
            shut_down(self.sock)
            self.sock.close()

    def close_inherited(self) -> None:
        """Close the descriptor of a child process, which shares the connection with its parent."""
        self.closed = self.inherited = True
        self.sock.close()


def receive_tls(sock: TlsSocket, lock: RLock, buffer: memoryview) -> int:
    """Read a TLS object, which must not be read and written at once: under the lock of its connection."""
    if not lock.acquire(timeout=0.001):  # its holder never blocks, so this is short
        raise BlockingIOError
    try:
        return with_own_errors(sock, sock.recv_into, buffer)
    finally:
        lock.release()
