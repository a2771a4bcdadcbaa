"""How many messages a second a client sends, once the manager has refused one over its tenant's limit."""

from __future__ import annotations

from time import monotonic

from tcm_sync._locks import RLock
from tcm_sync._pool.gate import copy_for_call
from tcm_sync.errors import TcmError

_DECREASE_FACTOR = 0.8  # a refusal multiplies the rate by it
_QUIET_SECONDS = 30.0  # after a refusal, before the rate is raised again
_INCREASE_SHARE = 0.01  # how much it is then raised in a second, as a share of the lowered rate
_MIN_INCREASE = 0.03  # at least, in messages a second, so that a process that starts late gets its share
_MIN_RATE = 0.1  # messages a second


class TenantRate:
    """One message after another, never faster than a rate that each refusal lowers.

    The limit is one for all sockets of a tenant, in this process and in others, and each refusal costs a
    socket. So the rate is lowered until the refusals end, and raised slowly: other processes may have left.

    Attributes
    ----------
    active : bool
        Whether there is a rate. It is only ever set, so that reading it needs no lock.
    """

    def __init__(self) -> None:
        # Guards all attributes below; the lock of a pool's state may be held around it.
        self._lock = RLock()
        self.active = False
        self._lowered_to = 0.0  # messages a second
        self._lowered_at = 0.0
        self._next_at = 0.0  # when the next message may go
        self._cause: TcmError | None = None

    @property
    def rate(self) -> float | None:
        """Messages a second, where that is limited."""
        with self._lock:
            return self._rate(monotonic()) if self.active else None

    @property
    def cause(self) -> TcmError | None:
        """The latest refusal, for a call that cannot wait, or None where there is no rate."""
        with self._lock:
            return None if self._cause is None else copy_for_call(self._cause)

    def _rate(self, now: float) -> float:
        quiet = max(0.0, now - self._lowered_at - _QUIET_SECONDS)
        return self._lowered_to + max(_INCREASE_SHARE * self._lowered_to, _MIN_INCREASE) * quiet

    def admit(self) -> float:
        """Return 0.0 if a message may go now, which is counted, else the seconds until one may."""
        with self._lock:
            if not self.active:
                return 0.0
            now = monotonic()
            if now < self._next_at:
                return self._next_at - now
            interval = 1.0 / self._rate(now)
            # A thread that woke late costs no message.
            self._next_at = max(self._next_at, now - interval) + interval
            return 0.0

    def lower(self, sent_at: float, accepted: int, cause: TcmError) -> float | None:
        """Lower the rate, and return it, unless the refusal is of the same burst as the one before.

        Parameters
        ----------
        sent_at : float
            When the refused message went out.
        accepted : int
            How many others did in the second before, and were not refused.
        cause : TcmError
            The refusal.
        """
        with self._lock:
            if self.active and sent_at <= self._lowered_at:
                return None
            now = monotonic()
            rate = min(self._rate(now), accepted + 1) if self.active else max(accepted, 1)
            self._lowered_to = max(_MIN_RATE, _DECREASE_FACTOR * rate)
            self._lowered_at, self._cause = now, copy_for_call(cause)
            self._next_at = now + 1.0 / self._lowered_to
            self.active = True
            return self._lowered_to
