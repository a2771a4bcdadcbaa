"""Whether a failed call is sent again, by the error-code table; `tcm_sync._calls.retrying` does so."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

from tcm_sync._arguments import check_flag, check_texts, check_whole
from tcm_sync._numbers import as_number, shown
from tcm_sync.errors import (
    BackpressureError,
    CallTimeoutError,
    ConfigError,
    ConnectionLostError,
    KnownFaultError,
    MessageTooLargeError,
    PayloadTooLargeError,
    RateLimitedError,
    ShuttingDownError,
    TcmError,
)


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
        is shutting down, did not say that it dropped it, or Triton did not answer the manager
        (``TRITON_TIMEOUT``, ``TRITON_NETWORK``). It may then run twice.
    known_faults : bool
        Whether an inference that failed by a fault in `tcm_sync.errors.KNOWN_FAULTS` is sent again. The
        fault counts as no attempt, since it may hit every second request: only the deadline bounds it.
    attempt_timeout : float, optional
        Seconds for a reply, after which the attempt is given up and sent once more on another socket, at
        most once a call: each request that hangs costs the manager a worker. It counts as no attempt. It
        may then run twice, so that it needs ``resend_lost``. Streams have their own ``idle_timeout``.
    """

    attempts: int = 4
    initial: float = 0.1
    maximum: float = 5.0
    retriable: Collection[str] = frozenset()
    fatal: Collection[str] = frozenset()
    resend_lost: bool = True
    known_faults: bool = True
    attempt_timeout: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "attempts", check_whole("retry.attempts", self.attempts))
        for name in ("initial", "maximum"):
            value = getattr(self, name)
            number = as_number(value)
            if number is None or not 0 <= number < 86_400:
                raise ConfigError(f"retry.{name} must be a number of seconds below a day, not {shown(value)}")
            object.__setattr__(self, name, number)
        if not isinstance(self.known_faults, bool):
            raise ConfigError(f"retry.known_faults must be True or False, not {shown(self.known_faults)}")
        if self.attempt_timeout is not None:
            seconds = as_number(self.attempt_timeout)
            if seconds is None or not 0 < seconds < 86_400:
                raise ConfigError(
                    "retry.attempt_timeout must be a positive number of seconds below a day, not "
                    f"{shown(self.attempt_timeout)}"
                )
            if not self.resend_lost:
                raise ConfigError(
                    "retry.attempt_timeout sends a request twice, which resend_lost=False forbids"
                )
            object.__setattr__(self, "attempt_timeout", seconds)
        for name in ("retriable", "fatal"):
            codes = check_texts(f"retry.{name}", getattr(self, name), "{'TRITON_ERROR'}")
            object.__setattr__(self, name, frozenset(codes))
        object.__setattr__(
            self, "resend_lost", check_flag("retry.resend_lost", self.resend_lost, ConfigError)
        )
        if both := set(self.retriable) & set(self.fatal):
            raise ConfigError(f"retry: {', '.join(sorted(both))} cannot be both retriable and fatal")

    def verdict(self, error: TcmError) -> Verdict:
        """Say what `error` means for an inference (docs/errors.rst has the table).

        Parameters
        ----------
        error : TcmError
            The failure of an attempt.

        Returns
        -------
        Verdict
            Whether the policy repeats the attempt, and at what it counts it.
        """
        if isinstance(error, (PayloadTooLargeError, MessageTooLargeError)) or error.code in self.fatal:
            return Verdict.FATAL
        if error.outcome_unknown and not self.resend_lost:
            return Verdict.FATAL
        if isinstance(error, (BackpressureError, RateLimitedError, ShuttingDownError)):
            return Verdict.FREE
        if isinstance(error, KnownFaultError) and error.code not in self.retriable:
            return Verdict.FREE if self.known_faults else Verdict.FATAL
        if isinstance(error, CallTimeoutError):  # retriable: after `attempt_timeout`
            return Verdict.FREE if error.retriable else Verdict.FATAL
        if isinstance(error, ConnectionLostError):
            return Verdict.COUNTED if error.outcome_unknown else Verdict.FREE
        return Verdict.COUNTED if error.retriable or error.code in self.retriable else Verdict.FATAL
