"""Whether and when a failed call is sent again: tenacity policies read from the error-code table."""

from __future__ import annotations

import enum
import logging
import random
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from tcm_sync.errors import (
    BackpressureError,
    ConfigError,
    ConnectionLostError,
    MessageTooLargeError,
    PayloadTooLargeError,
    RateLimitedError,
    ShuttingDownError,
    TcmError,
)

if TYPE_CHECKING:
    from tcm_sync.deadline import Deadline

log = logging.getLogger("tcm_sync.retry")

_LONGEST_HISTORY = 50  # failures that an error remembers

Result = TypeVar("Result")


class Verdict(enum.Enum):
    """What a failure means for its call."""

    FATAL = "raise it"
    COUNTED = "repeat it, as one of the policy's attempts"
    FREE = "repeat it: it provably did not run, or the manager is restarting; only the deadline bounds it"


@dataclass(frozen=True)
class RetryPolicy:
    """When a failed inference is sent again.

    Every pause ends within the call's deadline. Failures that count as attempts are answered failures that
    `tcm_sync.errors.ERROR_CODES` calls retriable, and replies that were lost after sending began. What
    provably did not run is repeated behind a shared gate for as long as the deadline allows.

    Parameters
    ----------
    attempts : int
        How many attempts that count a call may make, the first one included.
    initial, maximum : float
        Seconds: the pause before attempt n is drawn from 0 to ``min(maximum, initial * 2**(n-1))`` (full
        jitter), unless the manager says how long to wait.
    retriable, fatal : collection of str
        Codes of the manager to move to either side of the table. 413 and 1009 stay fatal.
    resend_lost : bool
        Whether an inference whose reply was lost is sent again. It may then run twice.
    """

    attempts: int = 4
    initial: float = 0.1
    maximum: float = 5.0
    retriable: Collection[str] = frozenset()
    fatal: Collection[str] = frozenset()
    resend_lost: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise ConfigError(f"retry.attempts must be a whole number of at least 1, not {self.attempts!r}")
        for name in ("initial", "maximum"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 86_400:
                raise ConfigError(f"retry.{name} must be a number of seconds below a day, not {value!r}")
        for name in ("retriable", "fatal"):
            codes = getattr(self, name)
            listed = isinstance(codes, Collection) and not isinstance(codes, str)
            if not listed or not all(isinstance(code, str) for code in codes):
                raise ConfigError(f"retry.{name} must be a collection of codes such as {{'TRITON_ERROR'}}")
            object.__setattr__(self, name, frozenset(codes))
        if both := set(self.retriable) & set(self.fatal):
            raise ConfigError(f"retry: {', '.join(sorted(both))} cannot be both retriable and fatal")

    def verdict(self, error: TcmError) -> Verdict:
        """Say what `error` means for an inference (docs/errors.rst has the table)."""
        if isinstance(error, (PayloadTooLargeError, MessageTooLargeError)) or error.code in self.fatal:
            return Verdict.FATAL
        if isinstance(error, (BackpressureError, RateLimitedError, ShuttingDownError)):
            return Verdict.FREE
        if isinstance(error, ConnectionLostError):
            if not error.outcome_unknown:
                return Verdict.FREE
            return Verdict.COUNTED if self.resend_lost else Verdict.FATAL
        return Verdict.COUNTED if error.retriable or error.code in self.retriable else Verdict.FATAL


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

    def run(self, attempt: Callable[[], Result], sleep: Callable[[float], None]) -> Result:
        """Call `attempt` until it succeeds, or its failure is final; pauses are made with `sleep`.

        The first attempt does without tenacity, which costs 20 to 40 microseconds; tenacity's own first
        attempt then just raises that failure again.
        """
        try:
            return attempt()
        except TcmError as error:
            first = error
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
            # What waits at a gate waits there. Sockets that die before they are used know no gate.
            repeats = sum(isinstance(past, ConnectionLostError) for past in self.attempts.history) - 1
            if repeats <= 0 or not isinstance(error, ConnectionLostError):
                return 0.0
        ceiling = min(policy.maximum, policy.initial * 2.0 ** min(repeats - 1, 60))
        return random.uniform(0.0, ceiling)  # noqa: S311 - spreads load, guards no secret
