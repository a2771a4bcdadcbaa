"""One call that somebody listens to: where its time goes, and its events."""

from __future__ import annotations

import itertools
from contextvars import copy_context
from time import monotonic, time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from tcm_sync._process import notice_fork
from tcm_sync.events._listeners import wake
from tcm_sync.events._records import (
    AttemptFailed,
    CallFinished,
    CallStarted,
    Phases,
    WaitFinished,
    WaitStarted,
)

if TYPE_CHECKING:
    from typing import Self

    from tcm_sync.errors import TcmError
    from tcm_sync.events._listeners import Listeners
    from tcm_sync.events._records import CallKind

Phase = Literal["encoding", "socket", "turn", "sending", "reply", "decoding", "pausing"]
Wait = Literal["gate", "socket", "turn"]

_ids = itertools.count(1)


def cause_of(error: BaseException) -> str:
    """Return the manager's code of a failure, else the name of its class."""
    return getattr(error, "code", None) or type(error).__name__


class Watch:
    """Measures one call, from its encoding on, and reports it. Used by the thread that makes the call.

    Parameters
    ----------
    listeners : Listeners
        Those of the client.
    kind : str
        Of the call.
    target : (Route, str), optional
        Where an inference runs, and which model.

    Attributes
    ----------
    attempts : int
        How often the request was sent, or begun to be.
    bytes_sent, bytes_received : int
        Of the messages of all attempts.
    is_shared : bool
        Whether the inputs went through shared memory.
    batch_size : int or None
        How many samples a batch has.
    """

    __slots__ = (
        "_context",
        "_facts",
        "_id",
        "_listeners",
        "_ongoing",
        "_phase",
        "_seconds",
        "_since",
        "_wait",
        "_wait_id",
        "attempts",
        "batch_size",
        "bytes_received",
        "bytes_sent",
        "is_shared",
    )

    def __init__(self, listeners: Listeners, kind: CallKind, target: Any = None) -> None:
        notice_fork()  # before an event wakes a thread that may be a parent's
        route, model_name = (None, "") if target is None else target
        self._listeners = listeners
        self._id = next(_ids)
        self._wait_id = ("wait", self._id)
        self._facts: dict[str, Any] = {
            "manager": listeners.manager,
            "call_id": self._id,
            "kind": kind,
            "model_name": model_name,
            "container_id": None if route is None else route.container_id,
            "vm_ip": None if route is None else route.vm_ip,
            "vm_id": None if route is None else route.vm_id,
        }
        self._context = copy_context()
        # One element while the call goes on, so that it can be taken out in the step that reports the end.
        self._ongoing: list[Any] = []
        self._seconds: dict[Phase, float] = {}
        self._phase: Phase | None = "encoding"
        self._since = monotonic()
        self._wait: tuple[Wait, float] | None = None  # what the call waits for, and since when
        self.attempts = self.bytes_sent = self.bytes_received = 0
        self.is_shared = False
        self.batch_size: int | None = None

    def enter(self, phase: Phase | None) -> None:
        """Begin a phase, and end the one before and its wait; in None no time is counted."""
        now = monotonic()
        if self._wait is not None:
            self._end_wait(now)
            wake()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def waits(self, wait: Wait) -> None:
        """Report that the call cannot continue at once; the next phase or another wait ends this one."""
        now = monotonic()
        if self._wait is not None:
            self._end_wait(now)
        self._wait = wait, now
        event = WaitStarted(at=time(), wait=wait, **self._facts)
        self._listeners.add_beginning(self._wait_id, event, self._context)
        wake()

    def _end_wait(self, now: float) -> None:
        """Have the end of the wait delivered after the next `wake`."""
        assert self._wait is not None
        wait, since = self._wait
        event = WaitFinished(at=time(), wait=wait, seconds=now - since, **self._facts)
        self._listeners.add_end(self._wait_id, event, self._context)
        self._wait = None  # at last: after an interrupt the end is reported once more, and not never

    def sends(self, payload: tuple[bytes, ...]) -> None:
        """Begin the sending of one attempt."""
        self.enter("sending")
        self.attempts += 1
        self.bytes_sent += sum(map(len, payload))

    def received(self, message: object) -> None:
        """Count the bytes of a reply, if it is one."""
        if isinstance(message, (bytes, bytearray, memoryview)):
            self.bytes_received += len(message)

    def attempt_failed(self, error: TcmError) -> None:
        """Report the failure of an attempt; what follows is a pause, or the end."""
        self.enter("pausing")
        event = AttemptFailed(
            at=time(),
            attempt=self.attempts,
            code=cause_of(error),
            error=type(error).__name__,
            message=error.message,
            uuid=error.uuid or "",
            **self._facts,
        )
        self._listeners.report(event, self._context)

    def __enter__(self) -> Self:
        """Begin the call."""
        self._ongoing.append(None)
        self.enter("socket")
        self._listeners.add_beginning(self._id, CallStarted(at=time(), **self._facts), self._context)
        wake()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the call."""
        self.finish(error)

    def finish(self, error: BaseException | str | None = None, *, later: bool = False) -> None:
        """End the call, if it has not ended, with its error or with what to call that.

        With `later` it takes no lock, and the event is delivered with the next one.
        """
        if not self._ongoing:
            return
        if self._wait is not None:
            self._end_wait(monotonic())
        self.enter(None)
        is_error = isinstance(error, BaseException)
        event = CallFinished(
            at=time(),
            code=cause_of(error) if isinstance(error, BaseException) else error,
            error=type(error).__name__ if is_error else None,
            attempts=self.attempts,
            seconds=sum(self._seconds.values()),
            phases=Phases(**self._seconds),
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            transport="shm" if self.is_shared else "json",
            batch_size=self.batch_size,
            **self._facts,
        )
        self._listeners.add_end_once(self._id, event, self._context, self._ongoing)
        if not later:
            wake()

    def __del__(self) -> None:
        if getattr(self, "_ongoing", None):  # a dropped stream, or an interrupt
            self.finish("closed", later=True)
