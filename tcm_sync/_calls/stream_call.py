"""One stream in flight: sent until an attempt brings a chunk, then read chunk by chunk."""

from __future__ import annotations

import sys
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Literal

from tcm_sync._pool.call import Call, note_outcome
from tcm_sync._process import notice_fork
from tcm_sync._transport.replies import Refusal, StreamReplies
from tcm_sync._wire.decode import decode_failure, decode_stream, decode_text
from tcm_sync._wire.failures import failure_of_reply
from tcm_sync.errors import CallTimeoutError, ConnectionLostError, ProtocolError, StreamBusyError

if TYPE_CHECKING:
    from tcm_sync._deadline import Deadline
    from tcm_sync._pool.call import Sender
    from tcm_sync._pool.lease import Lease
    from tcm_sync._transport.connection import Connection
    from tcm_sync._transport.replies import Future, PendingReplies
    from tcm_sync._wire.encode import Pieces
    from tcm_sync.settings import Route

_BUFFER_BYTES = 256 * 1024  # of chunks that wait to be taken; beyond, the socket is not read


class StreamCall(Call):
    """One stream in flight: it is sent until an attempt brings a chunk, and read on from there.

    Parameters
    ----------
    payload, deadline, waits_for_manager, target
        As for `Call`.
    idle_timeout : float or None
        Seconds of silence after which it is over.
    idle_ends : bool
        Whether such silence is the end, and no failure.

    Attributes
    ----------
    first : str or None
        The first chunk, once there is one; None if it ended without.
    ended : {"completed", "idle"} or None
        How it ended, if it did.
    """

    streaming: ClassVar[bool] = True
    reported_as = "stream"
    target: tuple[Route, str]

    def __init__(
        self,
        payload: Pieces,
        deadline: Deadline,
        *,
        waits_for_manager: bool,
        target: tuple[Route, str],
        idle_timeout: float | None,
        idle_ends: bool,
    ) -> None:
        super().__init__(payload, deadline, waits_for_manager=waits_for_manager, target=target)
        self._idle_timeout = idle_timeout
        self._idle_ends = idle_ends
        self.first: str | None = None
        self.ended: Literal["completed", "idle"] | None = None

    # --- of one attempt ---

    def _leave(self) -> None:
        """Let the next stream of the container begin."""
        self._turns.leave(self.target[0].container_id, self)

    def attempt(self, sender: Sender) -> None:
        """Make one attempt, once the other streams of a server that runs one at a time have ended."""
        container_id = self.target[0].container_id
        self._turns = sender.stream_turns
        try:
            sender.stream_turns.enter(container_id, self)
            sender.attempt(self)
        except BaseException as error:
            self._leave()
            if isinstance(error, StreamBusyError) and error.uuid is not None:
                sender.stream_turns.refused(container_id, error)
            raise

    def future(self) -> Future:
        """Make what the reader fills; each attempt has its own."""
        self._replies = StreamReplies(_BUFFER_BYTES)
        self._items: deque[bytes | Refusal] = deque()
        self._started = False
        self._resumed_at = 0.0  # when the connection was last resumed after a pause
        return self._replies

    def receive(self, connection: Connection, pending: PendingReplies, future: Future) -> Refusal | None:  # noqa: ARG002
        """Wait for the first chunk, or the end."""
        self.connection = connection
        self._pending = pending
        chunk = self.advance()
        if isinstance(chunk, Refusal):
            return Refusal(chunk.error, reusable=chunk.reusable and not self._more_came())
        self.first = chunk
        return None

    def accept(self, lease: Lease) -> None:
        """Keep the connection until the stream has ended."""
        self._lease = lease
        if self.ended is not None:
            self.finish()

    # --- chunk by chunk ---

    def advance(self) -> str | Refusal | None:
        """Wait for the next chunk: None at the end, a refusal if it failed.

        Raises
        ------
        CallTimeoutError
            Neither came in time.
        ProtocolError
            What came is nothing that a stream may say.
        ConnectionLostError
            This is a child of the process that opened it.
        """
        notice_fork()
        if self.connection.inherited:
            raise ConnectionLostError("a stream stays in the process that opened it", outcome_unknown=True)
        while True:
            if not self._items and not self._wait():
                return None
            item = self._items.popleft()
            if isinstance(item, Refusal):
                return note_outcome(item, self._replies)
            if self.watch is not None:
                self.watch.received(item)
            reply = decode_stream(item, self.connection.uuid)
            if reply.status == "ONGOING" and self._started:
                return decode_text(reply.data)
            if reply.status == "FAILED":
                failure = decode_failure(reply.data)
                return Refusal(failure_of_reply(failure), reusable=True)
            if reply.status == "COMPLETED" and self._started:
                self.ended = "completed"
                return None
            if self._started or reply.status != "START":
                raise ProtocolError(f"a stream begins with START, once; {reply.status} came")
            self._started = True
            if self.turn is not None:
                self.turn.release()  # START: the manager has scheduled it

    def _wait(self) -> bool:
        """Wait until the reader has brought something; False if it is over by its silence."""
        while True:
            left = self.deadline.remaining()
            if left == 0.0:
                if not self.deadline.is_before(self._replies.last_at):
                    self._items.extend(self._replies.take(0.0))  # it came in time, and was taken late
                    if self._items:
                        return True
                raise CallTimeoutError(
                    f"the stream had not ended within {self.deadline.timeout:.3g} s; the model may still run",
                    outcome_unknown=True,
                    advisories=self._replies.advisories,
                )
            silence = self._silence_left()
            bounds = [seconds for seconds in (left, silence) if seconds is not None]
            self._items.extend(self._replies.take(min(bounds, default=None)))
            if self.connection.paused:
                self._resumed_at = monotonic()
                self.connection.reader.resume(self.connection)  # type: ignore[union-attr]
            if self._items:
                return True
            if self._silence_left() == 0.0 and not self.deadline.expired():
                if self._idle_ends:
                    self.ended = "idle"
                    return False
                raise CallTimeoutError(
                    f"the stream was silent for {self._idle_timeout:.3g} s (idle_timeout); the manager does "
                    "not report when a model has just ended: on_idle='end' takes silence for the end",
                    outcome_unknown=True,
                    advisories=self._replies.advisories,
                )

    def _silence_left(self) -> float | None:
        """Seconds of silence that are left, once the model has started."""
        if self._idle_timeout is None or not self._started:
            return None
        silent_since = max(self._replies.last_at, self._resumed_at)
        return max(0.0, silent_since + self._idle_timeout - monotonic())

    def finish(self, *, reusable: bool = False) -> None:
        """Release the connection, for others to use if nothing more can come on it."""
        notice_fork()
        if self.connection.inherited or sys.is_finalizing():  # a thread that is no more may hold any lock
            return
        self._leave()
        whole = self.ended == "completed" or reusable
        if whole and not self._more_came():
            self._lease.release()
            return
        self._lease.discard_soon("its stream was left early")
        if self._pending.claim(self.connection.uuid) is not None:  # another thread may wait for a chunk
            self._replies.resolve(Refusal(ConnectionLostError("the stream was closed")))

    def give_up(self) -> None:
        """Release the connection of an interrupted caller, if there is one."""
        if hasattr(self, "_lease"):
            self._leave()
            self._lease.discard_soon("its stream was left early")
            self._pending.claim(self.connection.uuid)

    def discard_soon(self) -> None:
        """Have the reader close the connection, end what waits on it, and let the next stream begin."""
        notice_fork()
        if not self.connection.inherited:
            self._lease.discard_soon("its stream was left early")
            self.connection.pool.reader.run_soon(self._leave)  # type: ignore[union-attr]

    def _more_came(self) -> bool:
        """Wait for nothing more; whether anything came behind the end."""
        self._pending.claim(self.connection.uuid)
        return bool(self._items or self._replies.take(0.0))
