"""One call: what each of its attempts sends, and how its reply is waited for and read."""

from __future__ import annotations

from time import monotonic
from typing import ClassVar, Protocol

from tcm_sync._deadline import Deadline
from tcm_sync._pool.lease import Lease
from tcm_sync._pool.stream_turns import StreamTurns
from tcm_sync._pool.turns import Turn
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.replies import Future, PendingReplies, Refusal, ReplyFuture
from tcm_sync._wire.encode import Pieces
from tcm_sync.errors import CallTimeoutError, ClientClosedError, ConnectionLostError, TcmError
from tcm_sync.events._records import CallKind
from tcm_sync.events._watch import Watch
from tcm_sync.settings import Route


class Sender(Protocol):
    """What makes an attempt: the `CallSender` of a client."""

    stream_turns: StreamTurns

    def attempt(self, call: Call) -> None:
        """Send a call once, and have its answer read."""


class Call:
    """A request that has one reply. Used by one thread, the caller's.

    Parameters
    ----------
    payload : tuple of bytes
        JSON text of the request, without its envelope, in pieces.
    deadline : Deadline
        Of the whole call.
    waits_for_manager : bool
        Whether to wait for a manager that cannot be reached.
    target : (Route, str), optional
        Where an inference runs, and which model: the manager may have opened a circuit there.
    """

    kind: ClassVar[str] = "inference"
    streaming: ClassVar[bool] = False
    reported_as: CallKind = "infer"
    watch: Watch | None = None  # what measures and reports it, if there are listeners
    attempt_timeout: float | None = None  # seconds for the reply of the first attempt that is too slow
    may_have_run = False  # whether an attempt may have run whose answer did not come
    turn: Turn | None = None  # of the attempt under way, if it took one

    def __init__(
        self,
        payload: Pieces,
        deadline: Deadline,
        *,
        waits_for_manager: bool,
        target: tuple[Route, str] | None = None,
    ) -> None:
        self.payload = payload
        self.deadline = deadline
        self.waits_for_manager = waits_for_manager
        self.target = target

    def attempt(self, sender: Sender) -> None:
        """Make one attempt, behind the gates.

        Raises
        ------
        TcmError
            What came in place of a good answer.
        """
        sender.attempt(self)

    def write(self, connection: Connection) -> Pieces:  # noqa: ARG002
        """Return the payload to be sent on `connection`, which is leased.

        Raises
        ------
        TcmError
            There is none: nothing is sent, and the connection is released.
        """
        return self.payload

    def future(self) -> Future:
        """Make what the reader resolves; each attempt has its own."""
        return ReplyFuture()

    def receive(self, connection: Connection, pending: PendingReplies, future: Future) -> Refusal | None:
        """Wait for the reply to what was sent, and read it: None if it is good.

        Raises
        ------
        CallTimeoutError
            None came in time.
        ProtocolError
            It cannot be read.
        """
        assert isinstance(future, ReplyFuture)
        if not self.wait(future) and pending.claim(connection.uuid) is not None:
            waited = monotonic() - connection.last_sent
            if self.attempt_timeout is not None and not self.deadline.expired():
                self.attempt_timeout = None  # once a call: each costs the manager a worker
                raise CallTimeoutError(
                    f"no reply within {waited:.3g} s of sending (attempt_timeout); the request may still run",
                    retriable=True,
                    outcome_unknown=True,
                    advisories=future.advisories,
                )
            raise CallTimeoutError(
                f"no reply within {waited:.3g} s of sending; the request may still run",
                outcome_unknown=True,
                advisories=future.advisories,
            )
        if future.outcome is None:
            future.wait(None)  # the reader has claimed it, and resolves it at once
        outcome = future.outcome
        if isinstance(outcome, Refusal):
            return note_outcome(outcome, future)
        assert outcome is not None
        if self.watch is not None:
            self.watch.received(outcome)
        failure = self.read(connection, outcome)
        return None if failure is None else Refusal(failure, reusable=True)

    def wait(self, future: ReplyFuture) -> bool:
        """Wait for the outcome until the deadline, or that of the attempt; whether there is one."""
        left = self.deadline.remaining()
        if self.attempt_timeout is not None:
            left = self.attempt_timeout if left is None else min(left, self.attempt_timeout)
        return future.wait(left)

    def read(self, connection: Connection, message: bytes) -> TcmError | None:
        """Read the whole reply while its connection is leased: the failure that it reports, or None.

        Raises
        ------
        ProtocolError
            It is not the reply to this request.
        """
        raise NotImplementedError

    def accept(self, lease: Lease) -> None:
        """Release the connection after a good reply."""
        lease.release()


def note_outcome(refusal: Refusal, future: Future) -> Refusal:
    """Note on a failure that came in place of a reply whether the request may have run."""
    if isinstance(refusal.error, (ConnectionLostError, ClientClosedError)):
        refusal.error.outcome_unknown = future.started
    return refusal
