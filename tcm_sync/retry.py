"""Whether a failed call is sent again, by the error-code table; `tcm_sync.attempts` does so."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

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
from tcm_sync.numeric import as_number, check_whole, shown


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
        Whether an inference that may have run is sent again when its reply was lost, or the manager, which
        is shutting down, did not say that it dropped it. It may then run twice.
    """

    attempts: int = 4
    initial: float = 0.1
    maximum: float = 5.0
    retriable: Collection[str] = frozenset()
    fatal: Collection[str] = frozenset()
    resend_lost: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "attempts", check_whole("retry.attempts", self.attempts))
        for name in ("initial", "maximum"):
            value = getattr(self, name)
            number = as_number(value)
            if number is None or not 0 <= number < 86_400:
                raise ConfigError(f"retry.{name} must be a number of seconds below a day, not {shown(value)}")
            object.__setattr__(self, name, number)
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
        if error.outcome_unknown and not self.resend_lost:
            return Verdict.FATAL
        if isinstance(error, (BackpressureError, RateLimitedError, ShuttingDownError)):
            return Verdict.FREE
        if isinstance(error, ConnectionLostError):
            return Verdict.COUNTED if error.outcome_unknown else Verdict.FREE
        return Verdict.COUNTED if error.retriable or error.code in self.retriable else Verdict.FATAL
