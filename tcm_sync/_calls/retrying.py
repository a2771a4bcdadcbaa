"""Sends a failed call again: tenacity policies read from the error-code table."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from tcm_sync._logs import Log
from tcm_sync.errors import ConnectionLostError, KnownFaultError, TcmError
from tcm_sync.retry import RetryPolicy, Verdict

if TYPE_CHECKING:
    from tcm_sync._deadline import Deadline

log = Log("tcm_sync.retry", queued=False)

_WITHOUT_GATE = (ConnectionLostError, KnownFaultError)
_LONGEST_HISTORY = 50  # failures that an error remembers

Result = TypeVar("Result")


class Attempts:
    """The attempts of one call: what failed so far, and how many failures counted.

    Used by one thread, the caller's.

    Parameters
    ----------
    policy : RetryPolicy or None
        None: never repeat.
    deadline : Deadline
        The call's.
    once : bool
        Whether the call is never repeated when it may have run.
    tell : callable, optional
        Is given each failure after which it is repeated.
    """

    def __init__(
        self,
        policy: RetryPolicy | None,
        deadline: Deadline,
        *,
        once: bool = False,
        tell: Callable[[TcmError], None] | None = None,
    ) -> None:
        self.policy = policy
        self._tell = tell
        self.deadline = deadline
        self._once = once
        self.history: list[TcmError] = []
        self.counted = 0
        self.attempt_started = 0.0

    def go_on(self, first: TcmError, attempt: Callable[[], Result], sleep: Callable[[float], None]) -> Result:
        """Call `attempt` until it succeeds, or its failure is final; pauses are made with `sleep`.

        The first attempt was made by the caller, since tenacity costs 20 to 40 microseconds, and failed with
        `first`; tenacity's own first attempt just raises that again.
        """
        handled = sys.exc_info()[1]  # by whoever calls: it is no failure of this call
        try:
            result = self._repeat(first, attempt, sleep)
        except TcmError as error:
            error.history = tuple(self.history[:-1])
            _forget_frames(error.history, handled)
            raise
        _forget_frames(self.history, handled)
        return result

    def _repeat(
        self, first: TcmError, attempt: Callable[[], Result], sleep: Callable[[float], None]
    ) -> Result:
        if self.verdict(first) is Verdict.FATAL:
            self._note(first)
            raise first
        failures = [first]

        def again() -> Result:
            if failures:
                raise failures.pop()
            self.attempt_started = self.deadline.elapsed()
            return attempt()

        return self._retrying(sleep)(again)

    def _retrying(self, sleep: Callable[[float], None]) -> tenacity.Retrying:
        left = self.deadline.remaining()
        stop: stop_base = _stop_when_spent(self) | _stop_when_too_late(self)
        if left is not None:
            stop = stop | tenacity.stop_before_delay(left)
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._may_repeat),
            wait=_wait_as_told(self),
            stop=stop,
            before_sleep=self._log_repeat,
            sleep=sleep,
            reraise=True,
        )

    def _may_repeat(self, error: BaseException) -> bool:
        if not isinstance(error, TcmError):
            return False
        self._note(error)
        return self.verdict(error) is not Verdict.FATAL

    def verdict(self, error: TcmError) -> Verdict:
        """Say what `error` means for this call."""
        # What came to no socket was raised by a gate or the pool, after waiting while there was time.
        if self.policy is None or error.uuid is None:
            return Verdict.FATAL
        verdict = self.policy.verdict(error)
        if self._once and (error.outcome_unknown or verdict is not Verdict.FREE):
            return Verdict.FATAL
        return verdict

    def _note(self, error: TcmError) -> None:
        """Add `error` to the history, of which the latest is kept."""
        self.history.append(error)
        del self.history[:-_LONGEST_HISTORY]
        if error.uuid is not None and self.verdict(error) is not Verdict.FREE:
            self.counted += 1
        error.attempts = self.counted

    def _log_repeat(self, state: tenacity.RetryCallState) -> None:
        pause = state.upcoming_sleep
        log.info("repeating in %.3f s after: %s", pause, self.history[-1])
        if self._tell is not None:
            self._tell(self.history[-1])


def _forget_frames(errors: Iterable[BaseException], handled: BaseException | None) -> None:
    """Let go of what past failures keep alive through their frames: payloads, and connections."""
    waiting: list[BaseException | None] = list(errors)
    seen = {id(handled)}
    while waiting:
        error = waiting.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            error.__traceback__ = None
            waiting += [error.__cause__, error.__context__]


class _stop_when_spent(stop_base):  # noqa: N801 - tenacity names its strategies so
    """Stop when the policy's attempts are used up."""

    def __init__(self, attempts: Attempts) -> None:
        self.attempts = attempts

    def __call__(self, retry_state: Any) -> bool:  # noqa: ARG002
        assert self.attempts.policy is not None
        return self.attempts.counted >= self.attempts.policy.attempts


class _stop_when_too_late(stop_base):  # noqa: N801
    """Stop when less time would be left than the failed attempt took: its repeat would hardly end."""

    def __init__(self, attempts: Attempts) -> None:
        self.attempts = attempts

    def __call__(self, retry_state: Any) -> bool:
        attempts = self.attempts
        left = attempts.deadline.remaining()
        if left is None or attempts.verdict(attempts.history[-1]) is Verdict.FREE:
            return False
        took = attempts.deadline.elapsed() - attempts.attempt_started
        return bool(left - retry_state.upcoming_sleep < took)


class _wait_as_told(wait_base):  # noqa: N801
    """Wait as long as the manager says, else with full jitter."""

    def __init__(self, attempts: Attempts) -> None:
        self.attempts = attempts

    def __call__(self, retry_state: Any) -> float:  # noqa: ARG002
        policy, error = self.attempts.policy, self.attempts.history[-1]
        assert policy is not None
        if error.retry_after is not None:
            return error.retry_after
        repeats = self.attempts.counted
        if policy.verdict(error) is Verdict.FREE:
            # What waits at a gate waits there. Sockets that die unused, and known faults, have none.
            repeats = sum(isinstance(past, _WITHOUT_GATE) for past in self.attempts.history) - 1
            if repeats <= 0 or not isinstance(error, _WITHOUT_GATE):
                return 0.0
        ceiling = min(policy.maximum, policy.initial * 2.0 ** min(repeats - 1, 60))
        return random.uniform(0.0, ceiling)  # noqa: S311 - spreads load, guards no secret
