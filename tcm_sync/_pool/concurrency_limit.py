"""How many requests of a pool may be under way, once the manager had too much to do."""

from __future__ import annotations

from time import monotonic

from tcm_sync._pool.gate import copy_for_call
from tcm_sync._transport.connection import Connection
from tcm_sync.errors import TcmError

_ANSWERS = 8  # times the limit in answers that raise it by one
_REST = 5.0  # seconds without a refusal that do so too, since some models take as long for each answer


class ConcurrencyLimit:
    """Halved by a refusal, raised by one for every so many answers, as TCP does (additive increase).

    It has no lock: that of the pool's state guards it. What is under way is counted from the pool's leases.
    Streams are not counted: they stay for as long as their callers read them.

    Parameters
    ----------
    size : int
        The most requests that there could be; beyond, there is no limit.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.exact: float | None = None  # None: no refusal yet, or long past
        self._lowered_at = 0.0
        self._rested_at = 0.0  # when time last raised it, or a refusal lowered it
        self._cause: TcmError | None = None

    @property
    def width(self) -> int | None:
        """How many requests may be under way, where that is limited."""
        return None if self.exact is None else int(self.exact)

    @property
    def cause(self) -> TcmError | None:
        """The refusal that lowered it, for a call that cannot wait, or None where it is not limited."""
        return None if self.exact is None or self._cause is None else copy_for_call(self._cause)

    def refused(self, connection: Connection, under_way: int, cause: TcmError) -> bool:
        """Lower it: the request on `connection` was refused with so many under way. Whether it did.

        The other refusals of the same burst do not: their requests left before.
        """
        if connection.leased_at is None or connection.leased_at <= self._lowered_at:
            return False
        most = under_way if self.exact is None else min(under_way, self.exact)
        self.exact = max(1.0, most / 2)
        self._lowered_at = self._rested_at = monotonic()
        self._cause = copy_for_call(cause)
        return True

    def answered(self, connection: Connection) -> None:
        """Raise it a little: the request on `connection` was not refused."""
        if self.exact is None or connection.leased_at is None or connection.leased_at <= self._lowered_at:
            return
        self._raise(1.0 / (_ANSWERS * self.exact))

    def rested(self, now: float) -> None:
        """Raise it by one if nothing was refused for a while."""
        if self.exact is not None and now - self._rested_at >= _REST:
            self._rested_at = now
            self._raise(1.0)

    def _raise(self, by: float) -> None:
        assert self.exact is not None
        self.exact += by
        if self.exact >= self._size:
            self.exact = self._cause = None

    def left(self, under_way: int) -> int:
        """Count the requests that may go out when so many are under way."""
        return self._size if self.exact is None else max(0, int(self.exact) - under_way)
