"""Sends a call until it is answered or its failure is final, by the policy and the error-code table."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from functools import partial
from threading import get_ident
from traceback import clear_frames
from typing import TYPE_CHECKING, TypeVar

from tcm_sync._logs import Log
from tcm_sync._reentry import is_entry_point
from tcm_sync._tracebacks import shortened
from tcm_sync.errors import ConnectionLostError, KnownFaultError, TcmError
from tcm_sync.events._watch import Watch
from tcm_sync.retry import RetryPolicy, Verdict

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from tcm_sync._calls.core import Core
    from tcm_sync._deadline import Deadline
    from tcm_sync._pool.call import Call
    from tcm_sync._pool.runtime import Runtime

log = Log("tcm_sync.retry", queued=False)

_WITHOUT_GATE = (ConnectionLostError, KnownFaultError)
_MAX_HISTORY = 50  # failures that an error keeps

Result = TypeVar("Result")


@is_entry_point
def perform(
    core: Core, call: Call, policy: RetryPolicy | None, *, at_most_once: bool = False, inside: bool = False
) -> int:
    """Send a call until it is answered or its failure is final; return how many attempts counted.

    Parameters
    ----------
    core : Core
        What the call runs on.
    call : Call
        Holds the answer afterwards.
    policy : RetryPolicy or None
        When to repeat it; None: never.
    at_most_once : bool
        Whether it is never repeated when it may have run.
    inside : bool
        Whether this thread is inside an entry point already, which then is the caller.

    Raises
    ------
    ReentrantCallError
        This thread is inside another call.
    TcmError
        The final failure, with those before it as its history.
    """
    if core.listeners.registered and call.watch is None:
        with Watch(core.listeners, call.reported_as, call.target) as call.watch:
            return perform(core, call, policy, at_most_once=at_most_once, inside=inside)
    first: TcmError | None
    callers, ident = core.callers, get_ident()
    if not inside and ident in callers:
        callers.refuse()
    try:
        if not inside:
            callers.add(ident)
        runtime = core.running()
        counts = core.counts
        if policy is not None and policy.attempt_timeout is not None and not at_most_once:
            call.attempt_timeout = policy.attempt_timeout
        try:
            try:
                call.attempt(runtime.sender)
            except TcmError as error:
                first = error
            else:
                return 1
            return _repeat(core, call, policy, runtime, first, at_most_once=at_most_once)
        except TcmError as error:
            core.failed(error, call)
            # The frames of its traceback hold it and the inputs, which would wait for the garbage collector.
            first = None
            clear_frames(error.__traceback__)
            raise
        except BaseException as error:
            counts.failed(error)
            shortened(error)
            raise
        finally:
            counts.called(call.deadline.started)
    finally:
        if not inside:
            callers.discard(ident)


def _repeat(
    core: Core,
    call: Call,
    policy: RetryPolicy | None,
    runtime: Runtime,
    first: TcmError,
    *,
    at_most_once: bool,
) -> int:
    """Repeat a call after its first failure; return how many attempts counted."""
    repeats = Repeats(policy, call.deadline, at_most_once=at_most_once, report=core.counts.repeated)
    repeats.run(first, partial(call.attempt, runtime.sender), runtime.sleep)
    return repeats.counted + 1


class Repeats:
    """The attempts of one call after its first failure. Used by one thread, the caller's.

    Parameters
    ----------
    policy : RetryPolicy or None
        When to repeat it; None: never.
    deadline : Deadline
        The call's.
    at_most_once : bool
        Whether the call is never repeated when it may have run.
    report : callable, optional
        Called with each failure after which there is a repeat.

    Attributes
    ----------
    history : list of TcmError
        What has failed so far.
    counted : int
        How many of those count as attempts of the policy.
    """

    def __init__(
        self,
        policy: RetryPolicy | None,
        deadline: Deadline,
        *,
        at_most_once: bool = False,
        report: Callable[[TcmError], None] | None = None,
    ) -> None:
        self._policy = policy
        self._deadline = deadline
        self._at_most_once = at_most_once
        self._report = report
        self._started = 0.0  # when the latest attempt began, in seconds since the call did
        self.history: list[TcmError] = []
        self.counted = 0

    def run(self, first: TcmError, attempt: Callable[[], Result], sleep: Callable[[float], None]) -> Result:
        """Call `attempt` until it succeeds or its failure is final.

        The first attempt was made without tenacity, which costs 20 to 40 microseconds, and failed with
        `first`. What is done after each failure is in the order of the methods below.
        """
        import tenacity  # here: `import tcm_sync` goes without it

        handled = sys.exc_info()[1]  # an exception that the caller is handling: not a failure of this call
        failures = [first]

        def attempt_again() -> Result:
            if failures:
                raise failures.pop()  # tenacity's own first attempt
            self._started = self._deadline.elapsed()
            return attempt()

        try:
            if self._verdict(first) is Verdict.FATAL:
                self._record(first)
                raise first
            retrying = tenacity.Retrying(
                retry=tenacity.retry_if_exception(self._may_repeat),
                wait=self._pause,
                stop=self._is_over,
                before_sleep=self._before_pause,
                sleep=sleep,
                reraise=True,
            )
            result = retrying(attempt_again)
        except TcmError as error:
            error.history = tuple(self.history[:-1])
            _clear_frames(error.history, handled)
            raise
        _clear_frames(self.history, handled)
        return result

    # --- after a failure, in this order ---

    def _may_repeat(self, error: BaseException) -> bool:
        """Record a failure; whether it may be repeated at all."""
        if not isinstance(error, TcmError):
            return False
        self._record(error)
        return self._verdict(error) is not Verdict.FATAL

    def _pause(self, state: RetryCallState) -> float:  # noqa: ARG002
        """Return the seconds before the repeat: what the manager asks for, else with full jitter."""
        policy, error = self._policy, self.history[-1]
        assert policy is not None
        if error.retry_after is not None:
            return error.retry_after
        repeats = self.counted
        if policy.verdict(error) is Verdict.FREE:
            # What waits at a gate waits there. Sockets that die unused, and known faults, have none.
            repeats = sum(isinstance(past, _WITHOUT_GATE) for past in self.history) - 1
            if repeats <= 0 or not isinstance(error, _WITHOUT_GATE):
                return 0.0
        ceiling = min(policy.maximum, policy.initial * 2.0 ** min(repeats - 1, 60))
        return random.uniform(0.0, ceiling)  # noqa: S311 - spreads load, guards no secret

    def _is_over(self, state: RetryCallState) -> bool:
        """Whether the policy's attempts are used up, or too little time would be left for another one."""
        assert self._policy is not None
        if self.counted >= self._policy.attempts:
            return True
        left = self._deadline.remaining()
        if left is None:
            return False
        left -= state.upcoming_sleep
        took = self._deadline.elapsed() - self._started
        return left <= 0.0 or (left < took and self._verdict(self.history[-1]) is not Verdict.FREE)

    def _before_pause(self, state: RetryCallState) -> None:
        """Log the repeat, and count it."""
        log.info("repeating in %.3f s after: %s", state.upcoming_sleep, self.history[-1])
        if self._report is not None:
            self._report(self.history[-1])

    # --- what these ask ---

    def _verdict(self, error: TcmError) -> Verdict:
        """Return what a failure means for this call."""
        # What came to no socket was raised by a gate or the pool, after waiting while there was time.
        if self._policy is None or error.uuid is None:
            return Verdict.FATAL
        verdict = self._policy.verdict(error)
        if self._at_most_once and (error.outcome_unknown or verdict is not Verdict.FREE):
            return Verdict.FATAL
        return verdict

    def _record(self, error: TcmError) -> None:
        """Add a failure to the history, of which the latest is kept."""
        self.history.append(error)
        del self.history[:-_MAX_HISTORY]
        if error.uuid is not None and self._verdict(error) is not Verdict.FREE:
            self.counted += 1
        error.attempts = self.counted


def _clear_frames(errors: Iterable[BaseException], handled: BaseException | None) -> None:
    """Release what past failures keep alive through their frames: payloads, and connections."""
    waiting: list[BaseException | None] = list(errors)
    seen = {id(handled)}
    while waiting:
        error = waiting.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            error.__traceback__ = None
            waiting += [error.__cause__, error.__context__]
