"""What comes in on a connection: frames, and what each message means for the call that waits there."""

from __future__ import annotations

from collections.abc import Callable

from tcm_sync._transport import frames
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.replies import Future, PendingReplies, Refusal, ReplyFuture, StreamReplies
from tcm_sync._transport.unsolicited import UnsolicitedMessages
from tcm_sync._wire.decode import decode_message, peek
from tcm_sync._wire.failures import ADVISORY, failure_of_error
from tcm_sync._wire.messages import Alert, AuthOk, ErrorReply, Unknown
from tcm_sync._wire.quote import quote
from tcm_sync.errors import (
    ConnectionLostError,
    MessageTooLargeError,
    ProtocolError,
    ShuttingDownError,
    TcmError,
)

# After these refusals the manager keeps the socket (docs/wire.rst, "Errors").
_SOCKET_STAYS = frozenset({"BACKPRESSURE_QUEUE_FULL", "BACKPRESSURE_EXECUTOR_FULL"})
_SOCKET_STAYS_AFTER = ("Forbidden", "Missing required field", "Invalid type", "Invalid JSON format")


class Incoming:
    """Cuts frames, and hands each reply to the future found under its connection's uuid.

    A call gets its answer once everything that was read with the answer has been acted on: what follows an
    answer (a second reply, a close) is then never taken for a part of the next call on the connection.
    The reader's thread alone uses it.

    Parameters
    ----------
    pending : PendingReplies
        The calls that wait.
    counts : Counts
        Where messages are counted.
    close : callable
        Called with a connection that is to be closed, the close frame to be sent or None, the error for the
        call that waits on it, and the reason for the log.
    pause : callable
        Called with a connection and its stream, which the caller does not take fast enough.
    watch_writing : callable
        Called with a connection and whether its control frames wait for the socket.
    manager_shuts_down : callable
        Called with the error that says that the manager shuts down.
    """

    def __init__(
        self,
        pending: PendingReplies,
        counts: Counts,
        close: Callable[[Connection, bytes | None, TcmError, str], None],
        pause: Callable[[Connection, StreamReplies], None],
        watch_writing: Callable[[Connection, bool], None],
        manager_shuts_down: Callable[[TcmError], None],
    ) -> None:
        self._pending = pending
        self._counts = counts
        self._unsolicited = UnsolicitedMessages(counts)
        self._close = close
        self._pause = pause
        self._answer: tuple[ReplyFuture, bytes] | tuple[Future, Refusal] | None = None  # not handed over yet
        self._watch_writing = watch_writing
        self._manager_shuts_down = manager_shuts_down

    def receive(self, connection: Connection, received: memoryview) -> bool:
        """Act on the bytes that came in; return whether the socket is still open."""
        try:
            events = connection.decoder.feed(received)
        except (ProtocolError, MessageTooLargeError) as error:
            self._close_for(connection, error)
            return False
        except MemoryError:  # this thread serves all sockets, so only this one is given up
            self._close_for(connection, connection.decoder.out_of_memory())
            return False
        return self.handle_frames(connection, events)

    def handle_frames(self, connection: Connection, events: list[frames.Event]) -> bool:
        """Act on what came in; return whether the socket is still open."""
        ping: bytes | None = None
        try:
            for opcode, payload in events:
                if opcode == frames.TEXT:
                    self._counts.messages_received += 1
                    if not payload.startswith(connection.reply_prefixes):
                        self._handle_message(connection, payload)
                    else:
                        self._handle_reply(connection, payload)
                elif opcode == frames.PING:
                    ping = payload
                elif opcode == frames.CLOSE:
                    self._handle_close(connection, *frames.read_close(payload))
                if connection.closed:
                    return False
        except ProtocolError as error:
            self._close_for(connection, error)
            return False
        finally:
            if self._answer is not None:
                (future, answer), self._answer = self._answer, None
                future.resolve(answer)
        if ping is not None:  # the latest alone need be answered (RFC 6455, section 5.5.3)
            self._watch_writing(connection, connection.pong(ping))
        return True

    def _close_for(self, connection: Connection, error: ProtocolError | MessageTooLargeError) -> None:
        code = 1009 if isinstance(error, MessageTooLargeError) else 1002
        error.outcome_unknown = True
        self._close(connection, frames.encode_close(code), error, f"gave it up: {error.message}")

    def _handle_message(self, connection: Connection, message: bytes) -> None:
        if peek(message) == ("inference", connection.uuid):
            self._handle_reply(connection, message)
            return
        envelope, payload = decode_message(message)
        if isinstance(payload, ErrorReply):
            self._handle_error(connection, payload)
        elif isinstance(payload, Alert):
            self._unsolicited.alert(connection, payload)
        elif isinstance(payload, Unknown):
            self._unsolicited.unknown(connection, payload)
        elif isinstance(payload, AuthOk):
            raise ProtocolError("the manager authenticated the socket a second time")
        elif envelope.uuid is not None and envelope.uuid != connection.uuid:
            raise ProtocolError(
                f"the manager sent a reply for uuid {quote(envelope.uuid)} on the socket of {connection.uuid}"
            )
        else:
            self._handle_reply(connection, message)

    def _handle_reply(self, connection: Connection, message: bytes) -> None:
        future = self._pending.claim_for_reply(connection.uuid)
        if future is None:
            self._handle_chunk(connection, message)
        else:
            self._answer = future, message

    def _handle_chunk(self, connection: Connection, message: bytes) -> None:
        """Hand over a message of a stream: no call waits for a single reply."""
        stream = self._pending.get(connection.uuid)
        if not isinstance(stream, StreamReplies) or not stream.started:
            self._counts.late += 1
            raise ProtocolError("the manager sent a reply that no call waits for")
        stream.resolve(message)
        if stream.size > stream.bound:
            self._pause(connection, stream)

    def _handle_error(self, connection: Connection, payload: ErrorReply) -> None:
        """Handle an ``error`` message: it names no request, so it is about the one in flight, if any."""
        if payload.code == ADVISORY:
            self._unsolicited.delay(connection, self._pending.get(connection.uuid))
            return
        error = failure_of_error(payload)
        if isinstance(error, ShuttingDownError):
            self._manager_shuts_down(error)
        future = self._pending.claim(connection.uuid)  # nothing below may fail before it is resolved
        if future is not None:
            stays = payload.code in _SOCKET_STAYS or payload.message.startswith(_SOCKET_STAYS_AFTER)
            self._answer = future, Refusal(error, reusable=stays, error_reply=payload)
        elif not isinstance(error, ShuttingDownError):
            raise ProtocolError(f"the manager refused what was not asked: {error.message}")
        else:
            reason = "the manager is shutting down"
            self._close(connection, frames.encode_close(1000), error, reason)

    def _handle_close(self, connection: Connection, code: int, reason: str) -> None:
        said = f"closed by the manager: code {code}"
        if reason:
            said += f" ({quote(reason)})"
        error: TcmError
        if code == 1009:
            error = MessageTooLargeError(f"the message is larger than the manager takes: {said}")
        elif code in (1002, 1003, 1007):
            error = ProtocolError(f"the manager found our message faulty: {said}", outcome_unknown=True)
        else:
            error = connection_lost_error(said)
        answer = frames.encode_close(1000 if code == 1005 else code)
        self._close(connection, answer, error, said)


def connection_lost_error(reason: str) -> ConnectionLostError:
    """Return the error of a call whose connection was lost."""
    return ConnectionLostError(f"the connection was lost: {reason}")
