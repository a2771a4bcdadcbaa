"""Streams: a model that answers in chunks of text (docs/wire.rst, "Streams")."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from tcm_sync._arguments import check_choice, check_seconds, check_text
from tcm_sync._calls.request import encode_tensors
from tcm_sync._calls.retrying import perform
from tcm_sync._calls.stream_call import StreamCall
from tcm_sync._deadline import Deadline
from tcm_sync._process import notice_fork
from tcm_sync._reentry import entry_point
from tcm_sync._tensors import check_call
from tcm_sync._tracebacks import shortened, shortened_errors
from tcm_sync._transport.replies import Refusal
from tcm_sync.errors import ConfigError, ContractError, InferenceError, InputError, TcmError
from tcm_sync.events._watch import Watch

if TYPE_CHECKING:
    from typing import Self

    from tcm_sync._calls.core import Core
    from tcm_sync._calls.options import CallOptions
    from tcm_sync._reentry import Callers
    from tcm_sync._transport.counters import Counts

EndedBy = Literal["completed", "idle", "failed", "closed"]


def stream(
    core: Core,
    options: CallOptions,
    inputs: object,
    *,
    output_name: str,
    idle_timeout: float | None,
    on_idle: Literal["raise", "end"],
) -> InferStream:
    """Run a model that answers in chunks of text, and return them as they come."""
    notice_fork()
    deadline = Deadline(options.timeout)
    output_name = check_text("output_name", output_name, InputError)
    idle_timeout = _checked_idle(idle_timeout, on_idle)
    target = (options.route, options.model_name)
    watch = Watch(core.listeners, "stream", target) if core.listeners.registered else None
    with shortened_errors:
        payload = encode_tensors(
            options,
            check_call(inputs, infinities=True),  # which the encoding refuses
            limit=core.message_limit(),
            envelope_bytes=core.messages.envelope_bytes("inference"),
            stream_of=output_name,
            deadline=deadline,
        )
    call = StreamCall(
        payload,
        deadline,
        waits_for_manager=options.policy is not None,
        target=target,
        idle_timeout=idle_timeout,
        idle_ends=on_idle == "end",
    )
    if watch is not None:
        call.watch = watch.__enter__()
    try:
        attempts = perform(core, call, options.policy)
        core.counts.started_stream()
        return InferStream(call, attempts, core.counts, core.callers)
    except BaseException as error:
        if watch is not None:
            watch.finish(error)
        call.give_up()
        raise


class InferStream(Iterator[str]):
    """The chunks of one stream, as they come; for one thread, though any thread may `close` it.

    Leaving it early, by `close`, at the end of its ``with`` block or by dropping it, closes its socket. It
    belongs to the process that opened it.

    Attributes
    ----------
    model_name : str
        The model.
    ended_by : {"completed", "idle", "failed", "closed"} or None
        How it ended: the model reported the end; ``idle_timeout`` seconds of silence were taken for it; an
        error was raised; it was closed early. None while it runs.
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
        self._running = [True] if call.ended is None else []
        if not self._running:
            self._report(None)

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
            raise shortened(StopIteration())
        self._chunks.append(chunk)
        return chunk

    @entry_point
    def _advance(self) -> str | None:
        call = self._call
        try:
            outcome = call.advance()
        except BaseException as error:
            self._end("failed" if isinstance(error, TcmError) else "closed", error)
            if isinstance(error, TcmError):
                self._describe(error)
            raise
        if not isinstance(outcome, Refusal):
            if outcome is None:
                self._end(call.ended or "completed")
            return outcome
        if self.ended_by is not None:  # closed by another thread meanwhile
            return None
        self._end("failed", outcome.error, reusable=outcome.reusable)
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

    def _report(self, error: BaseException | str | None, *, later: bool = False) -> None:
        """Report the end to listeners, if there are any."""
        if self._call.watch is not None:
            self._call.watch.finish(error, later=later)

    def _end(self, ended_by: EndedBy, error: BaseException | None = None, *, reusable: bool = False) -> None:
        try:
            self._running.pop()  # one of those who end it does
            self.ended_by = ended_by
            self._report("closed" if ended_by == "closed" and error is None else error)
            self._call.finish(reusable=reusable)
        except IndexError:
            return
        except BaseException:
            self._call.give_up()
            raise

    def close(self) -> None:
        """Leave it. The model is not stopped by that."""
        self._next = None
        if not self._callers.has_this_thread():
            self._close()
        elif self._running:  # inside a call, as in a signal handler: this waits for no lock
            self._running.clear()
            self.ended_by = "closed"
            self._report("closed", later=True)
            self._call.discard_soon()

    @entry_point
    def _close(self) -> None:
        self._end("closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"ended by {self.ended_by!r}" if self.ended_by else "running"
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
