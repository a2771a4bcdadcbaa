"""Streams: a model that answers in chunks of text (docs/wire.rst, "Streams")."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Literal

from tcm_sync._arguments import check_choice, check_text
from tcm_sync._calls.inference import Inference
from tcm_sync._calls.request import encode_tensors
from tcm_sync._deadline import Deadline
from tcm_sync._pool.call import Call, blamed
from tcm_sync._process import notice_fork
from tcm_sync._reentry import entrance
from tcm_sync._tensors import check_call
from tcm_sync._transport.replies import Refusal, StreamReplies
from tcm_sync._wire.decode import decode_failure, decode_stream, decode_text
from tcm_sync._wire.failures import failure_of_reply
from tcm_sync.errors import (
    CallTimeoutError,
    ConfigError,
    ConnectionLostError,
    ContractError,
    InferenceError,
    InputError,
    ProtocolError,
    StreamBusyError,
    TcmError,
)
from tcm_sync.settings import UNSET, Unset, check_seconds

if TYPE_CHECKING:
    from typing import Self

    from tcm_sync._pool.lease import Lease
    from tcm_sync._pool.runtime import Runtime
    from tcm_sync._reentry import Callers
    from tcm_sync._transport.connection import Connection
    from tcm_sync._transport.counters import Counts
    from tcm_sync._transport.replies import Future, PendingReplies
    from tcm_sync._wire.encode import Pieces
    from tcm_sync.retry import RetryPolicy
    from tcm_sync.settings import Route

_BUFFER_BYTES = 256 * 1024  # of chunks that wait to be taken before TCP holds the manager up

EndedBy = Literal["completed", "idle", "failed", "closed"]


class Streams(Inference):
    """The client's `stream`."""

    def stream(
        self,
        model_name: str,
        inputs: object,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_name: str = "output",
        idle_timeout: float | None = None,
        on_idle: Literal["raise", "end"] = "raise",
        timeout: float | None = 150.0,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> InferStream:
        """Run a model that answers in chunks of text, and return them as they come.

        It returns once the first chunk is there, or the stream has ended without one. Until then failures
        are repeated as the policy says, and never after.

        A stream holds a socket until it ends: at most ``pool_size - 1`` may, or one if there is only one,
        which then keeps every other call waiting. Leaving it early closes the socket; that does not stop
        the model, whose worker in the manager is held until it has ended.

        Parameters
        ----------
        model_name : str
            The model.
        inputs : mapping, sequence or array-like
            As `infer` takes them.
        vm_ip, container_id, vm_id : str, optional
            The route, as for `infer`.
        allow_transient : bool
            Whether the manager may use a server that is not registered with it. One that is registered runs
            one stream at a time: further ones wait here, without a socket, for their turn.
        output_name : str
            The output that holds the text.
        idle_timeout : float, optional
            Seconds without a chunk, counted from the model's start and from each chunk, after which the
            stream is over. Most models need it: the manager is not told that a model has ended, and the
            stream of one that just ends fails only at the manager's limit (120 s from its start).
        on_idle : {"raise", "end"}
            What that silence is: a `CallTimeoutError`, or the end.
        timeout : float or None
            Seconds for the whole stream; None is no limit.
        retry : RetryPolicy or None, optional
            In place of the client's; None is one attempt.

        Returns
        -------
        InferStream
            An iterator of str, and a context manager that closes it.

        Raises
        ------
        InputError, MessageTooLargeError
            The arguments cannot be sent; nothing was.
        PoolTimeoutError
            No socket came free in time: other streams may hold all that streams can have.
        TcmError
            Any other of its subclasses: `tcm_sync.errors` draws the tree.
        """
        deadline = self._deadline(timeout)
        plan = self._plan(model_name, vm_ip, container_id, vm_id, allow_transient, retry=retry)
        output_name = check_text("output_name", output_name, InputError)
        idle_timeout = _checked_idle(idle_timeout, on_idle)
        payload = encode_tensors(
            plan,
            check_call(inputs, infinities=True),  # which the encoding refuses
            limit=self._message_limit(),
            envelope_bytes=self._envelope_bytes("inference"),
            stream_of=output_name,
            deadline=deadline,
        )
        call = StreamCall(
            payload,
            deadline,
            patient=plan.policy is not None,
            target=(plan.route, model_name),
            idle_timeout=idle_timeout,
            idle_ends=on_idle == "end",
        )
        try:
            attempts = self._perform(call, plan.policy)
            self._counts.begun_stream()
            return InferStream(call, attempts, self._counts, self._callers)
        except BaseException:
            call.give_up()
            raise


class StreamCall(Call):
    """One stream on its way: it is sent until an attempt brings a chunk, and read on from there.

    Parameters
    ----------
    payload, deadline, patient, target
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
    target: tuple[Route, str]

    def __init__(
        self,
        payload: Pieces,
        deadline: Deadline,
        *,
        patient: bool,
        target: tuple[Route, str],
        idle_timeout: float | None,
        idle_ends: bool,
    ) -> None:
        super().__init__(payload, deadline, patient=patient, target=target)
        self._idle_timeout = idle_timeout
        self._idle_ends = idle_ends
        self.first: str | None = None
        self.ended: Literal["completed", "idle"] | None = None

    # --- of one attempt ---

    def _leave(self) -> None:
        """Let the next stream of the container begin."""
        self._turns.leave(self.target[0].container_id, self)

    def attempt(self, runtime: Runtime) -> None:
        """Make one attempt, once the other streams of a server that runs one at a time have ended."""
        container_id = self.target[0].container_id
        self._turns = runtime.turns
        try:
            runtime.turns.enter(container_id, self)
            runtime.attempt(self)
        except BaseException as error:
            self._leave()
            if isinstance(error, StreamBusyError) and error.uuid is not None:
                runtime.turns.refused(container_id, error)
            raise

    def future(self) -> Future:
        """Make what the reader fills, anew for each attempt."""
        self._replies = StreamReplies(_BUFFER_BYTES)
        self._items: deque[bytes | Refusal] = deque()
        self._started = False
        self._heard = 0.0  # since when it can be heard, where it was paused
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
                return blamed(item, self._replies)
            reply = decode_stream(item, self.connection.uuid, self.connection.secret)
            if reply.status == "ONGOING" and self._started:
                return decode_text(reply.data, self.connection.secret)
            if reply.status == "FAILED":
                failure = decode_failure(reply.data, self.connection.secret)
                return Refusal(failure_of_reply(failure, self.connection.secret), reusable=True)
            if reply.status == "COMPLETED" and self._started:
                self.ended = "completed"
                return None
            if self._started or reply.status != "START":
                raise ProtocolError(f"a stream begins with START, once; {reply.status} came")
            self._started = True

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
            patience = self._patience()
            bounds = [seconds for seconds in (left, patience) if seconds is not None]
            self._items.extend(self._replies.take(min(bounds, default=None)))
            if self.connection.paused:
                self._heard = monotonic()
                self.connection.pool.reader.resume(self.connection)  # type: ignore[union-attr]
            if self._items:
                return True
            if self._patience() == 0.0 and not self.deadline.expired():
                if self._idle_ends:
                    self.ended = "idle"
                    return False
                raise CallTimeoutError(
                    f"the stream was silent for {self._idle_timeout:.3g} s (idle_timeout); the manager does "
                    "not tell when a model has just ended: on_idle='end' takes silence for the end",
                    outcome_unknown=True,
                    advisories=self._replies.advisories,
                )

    def _patience(self) -> float | None:
        """Seconds of silence that are left, once the model has started."""
        if self._idle_timeout is None or not self._started:
            return None
        silent_since = max(self._replies.last_at, self._heard)
        return max(0.0, silent_since + self._idle_timeout - monotonic())

    def finish(self, *, reusable: bool = False) -> None:
        """Give the connection back, for others to use if nothing more can come on it."""
        notice_fork()
        if self.connection.inherited or sys.is_finalizing():  # no lock is to be trusted then
            return
        self._leave()
        whole = self.ended == "completed" or reusable
        if whole and not self._more_came():
            self._lease.release()
            return
        self._lease.let_go()
        if self._pending.claim(self.connection.uuid) is not None:  # another thread may wait for a chunk
            self._replies.resolve(Refusal(ConnectionLostError("the stream was closed")))

    def give_up(self) -> None:
        """Give back the connection of an interrupted caller, if there is one."""
        if hasattr(self, "_lease"):
            self._leave()
            self._lease.let_go()
            self._pending.claim(self.connection.uuid)

    def let_go(self) -> None:
        """Have the reader close the connection, and end what waits on it."""
        notice_fork()
        if not self.connection.inherited:
            self._lease.let_go()

    def _more_came(self) -> bool:
        """Wait for nothing more; whether anything came behind the end."""
        self._pending.claim(self.connection.uuid)
        return bool(self._items or self._replies.take(0.0))


class InferStream(Iterator[str]):
    """The chunks of one stream, as they come; for one thread, though any thread may `close` it.

    Leaving it early, by `close`, at the end of its ``with`` block or by dropping it, closes its socket. It
    belongs to the process that opened it.

    Attributes
    ----------
    model_name : str
        The model.
    ended_by : {"completed", "idle", "failed", "closed"} or None
        How it ended: the model told the end; ``idle_timeout`` seconds of silence were taken for it; an
        error was raised; it was left early. None while it goes on.
    """

    def __init__(self, call: StreamCall, attempts: int, counts: Counts, callers: Callers) -> None:
        self._callers = callers
        self._call = call
        self._counts = counts
        self._attempts = attempts
        self._chunks: list[str] = []
        self._next = call.first
        self.model_name = call.target[1]
        self.ended_by: EndedBy | None = call.ended
        self._going_on = [True] if call.ended is None else []

    @property
    def chunks(self) -> tuple[str, ...]:
        """The chunks so far."""
        return tuple(self._chunks)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        chunk, self._next = self._next, None
        if chunk is None and self.ended_by is None:
            chunk = self._advance()
        if chunk is None:
            raise StopIteration
        self._chunks.append(chunk)
        return chunk

    @entrance
    def _advance(self) -> str | None:
        call = self._call
        try:
            outcome = call.advance()
        except BaseException as error:
            self._end("failed" if isinstance(error, TcmError) else "closed")
            if isinstance(error, TcmError):
                self._describe(error)
            raise
        if not isinstance(outcome, Refusal):
            if outcome is None:
                self._end(call.ended or "completed")
            return outcome
        if self.ended_by is not None:  # closed by another thread meanwhile
            return None
        self._end("failed", reusable=outcome.reusable)
        self._describe(outcome.error)
        raise outcome.error

    def _describe(self, error: TcmError) -> None:
        self._counts.failed(error)
        error.chunks = self.chunks
        error.route, error.model_name = self._call.target
        error.uuid = self._call.connection.uuid
        error.attempts = self._attempts
        error.elapsed = self._call.deadline.elapsed()
        if self._call.may_have_run or not isinstance(error, (InferenceError, ContractError)):
            error.outcome_unknown = True

    def _end(self, ended_by: EndedBy, *, reusable: bool = False) -> None:
        try:
            self._going_on.pop()  # one of those who end it does
            self.ended_by = ended_by
            self._call.finish(reusable=reusable)
        except IndexError:
            return
        except BaseException:
            self._call.give_up()
            raise

    def close(self) -> None:
        """Leave it. The model is not stopped by that."""
        self._next = None
        if not self._callers.have():
            self._close()
        elif self._going_on:  # inside a call, as in a signal handler: this waits for no lock
            self._going_on.clear()
            self.ended_by = "closed"
            self._call.let_go()

    @entrance
    def _close(self) -> None:
        self._end("closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"ended by {self.ended_by!r}" if self.ended_by else "going on"
        return f"<InferStream {self.model_name!r} {len(self._chunks)} chunks taken, {state}>"


def _checked_idle(idle_timeout: float | None, on_idle: str) -> float | None:
    check_choice("on_idle", on_idle, ("raise", "end"))
    if idle_timeout is None:
        if on_idle == "end":
            raise InputError("on_idle='end' needs an idle_timeout, in seconds, that says what silence is")
        return None
    try:
        return check_seconds("idle_timeout", idle_timeout)
    except ConfigError as error:
        raise InputError(error.message) from None
