"""How many requests of a pool may be in flight, once the manager has refused one for backpressure."""

from __future__ import annotations

from time import monotonic

from tcm_sync._pool.gate import copy_for_call
from tcm_sync._transport.connection import Connection
from tcm_sync.errors import TcmError

_REPLIES_TO_RAISE = 8  # times the limit: so many replies without a refusal raise it by one
_QUIET_SECONDS = 5.0  # without a refusal raise it by one, too: some models take as long for one reply


class ConcurrencyLimit:
    """Additive increase, multiplicative decrease, as in TCP: a refusal halves it, replies raise it by one.

    It has no lock: that of the pool's state guards it. What is under way is counted from the pool's leases.
    Streams are not counted: they stay for as long as their callers read them.

    Parameters
    ----------
    size : int
        The most requests that there could be; beyond, there is no limit.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.value: float | None = None  # None: no refusal yet, or long past
        self._lowered_at = 0.0
        self._quiet_since = 0.0  # when it was lowered, or last raised after a quiet time
        self._cause: TcmError | None = None

    @property
    def max_requests(self) -> int | None:
        """How many requests may be under way, where that is limited."""
        return None if self.value is None else int(self.value)

    @property
    def cause(self) -> TcmError | None:
        """The refusal that lowered it, for a call that cannot wait, or None where it is not limited."""
        return None if self.value is None or self._cause is None else copy_for_call(self._cause)

    def lower(self, connection: Connection, under_way: int, cause: TcmError) -> bool:
        """Lower it: the request on `connection` was refused with so many under way. Whether it did.

        The other refusals of the same burst do not: their requests left before.
        """
        if connection.leased_at is None or connection.leased_at <= self._lowered_at:
            return False
        most = under_way if self.value is None else min(under_way, self.value)
        self.value = max(1.0, most / 2)
        self._lowered_at = self._quiet_since = monotonic()
        self._cause = copy_for_call(cause)
        return True

    def count_reply(self, connection: Connection) -> None:
        """Raise it a little: the request on `connection` was not refused."""
        if self.value is None or connection.leased_at is None or connection.leased_at <= self._lowered_at:
            return
        self._raise(1.0 / (_REPLIES_TO_RAISE * self.value))

    def raise_after_quiet(self, now: float) -> None:
        """Raise it by one if nothing was refused for a while."""
        if self.value is not None and now - self._quiet_since >= _QUIET_SECONDS:
            self._quiet_since = now
            self._raise(1.0)

    def _raise(self, by: float) -> None:
        assert self.value is not None
        self.value += by
        if self.value >= self._size:
            self.value = self._cause = None

    def room(self, under_way: int) -> int:
        """Count the requests that may go out when so many are under way."""
        return self._size if self.value is None else max(0, int(self.value) - under_way)
