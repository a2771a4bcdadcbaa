"""One monotonic budget of time for a whole call."""

from __future__ import annotations

from time import monotonic


class Deadline:
    """The moment by which a call must have ended, whatever it waits for meanwhile.

    Parameters
    ----------
    timeout : float or None
        Seconds from now; None is no limit.
    """

    __slots__ = ("_at", "started", "timeout")

    def __init__(self, timeout: float | None) -> None:
        self.started = monotonic()
        self.timeout = timeout
        self._at = None if timeout is None else self.started + timeout

    def __repr__(self) -> str:
        return f"Deadline({self.timeout}, remaining={self.remaining()})"

    def elapsed(self) -> float:
        """Seconds since the call started."""
        return monotonic() - self.started

    def remaining(self) -> float | None:
        """Seconds left, never below 0.0; None if there is no limit."""
        return None if self._at is None else max(0.0, self._at - monotonic())

    def expired(self) -> bool:
        """Whether no time is left."""
        return self._at is not None and monotonic() >= self._at

    def is_before(self, moment: float) -> bool:
        """Whether it was over before a moment of `time.monotonic`."""
        return self._at is not None and self._at < moment

    def at_most(self, seconds: float | None) -> Deadline:
        """Return a deadline `seconds` from now, but no later than this one."""
        left = self.remaining()
        if seconds is None:
            return Deadline(left)
        return Deadline(seconds if left is None else min(seconds, left))
