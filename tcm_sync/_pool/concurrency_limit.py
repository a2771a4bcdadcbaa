"""How many requests of a pool may be under way, once the manager had too much to do."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from tcm_sync._pool.gate import again

if TYPE_CHECKING:
    from tcm_sync._transport.connection import Connection
    from tcm_sync.errors import TcmError

_CALM = 8  # full windows of answers that make room for one request more
_REST = 5.0  # seconds without a refusal that do, too, since some models take as long for each answer


class Window:
    """Halved by a refusal, widened by one for every so many answers: TCP's way to share what it cannot see.

    It knows no lock: the pool's guards it. What is under way is counted from the pool's books, so nothing is
    ever to be given back. Streams are not counted: they stay for as long as somebody reads them.

    Parameters
    ----------
    size : int
        The most requests that there could be; no window is needed beyond.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.exact: float | None = None  # None: no refusal yet, or long forgotten
        self._narrowed_at = 0.0
        self._rested_at = 0.0  # when time last widened it, or a refusal narrowed it
        self._cause: TcmError | None = None

    @property
    def width(self) -> int | None:
        """How many requests may be under way, where that is limited."""
        return None if self.exact is None else int(self.exact)

    @property
    def cause(self) -> TcmError | None:
        """The refusal that narrowed it, for a call that cannot wait, or None where it is not limited."""
        return None if self.exact is None or self._cause is None else again(self._cause)

    def refused(self, connection: Connection, under_way: int, cause: TcmError) -> bool:
        """Narrow it: the request on `connection` was refused with so many under way. Whether that is news.

        The other refusals of the same burst are not: their requests left before.
        """
        if connection.leased_at is None or connection.leased_at <= self._narrowed_at:
            return False
        most = under_way if self.exact is None else min(under_way, self.exact)
        self.exact = max(1.0, most / 2)
        self._narrowed_at = self._rested_at = monotonic()
        self._cause = again(cause)
        return True

    def answered(self, connection: Connection) -> None:
        """Widen it a little: the request on `connection` was not refused."""
        if self.exact is None or connection.leased_at is None or connection.leased_at <= self._narrowed_at:
            return
        self._widen(1.0 / (_CALM * self.exact))

    def rested(self, now: float) -> None:
        """Widen it by one if nothing was refused for a while."""
        if self.exact is not None and now - self._rested_at >= _REST:
            self._rested_at = now
            self._widen(1.0)

    def _widen(self, by: float) -> None:
        assert self.exact is not None
        self.exact += by
        if self.exact >= self._size:
            self.exact = self._cause = None

    def left(self, under_way: int) -> int:
        """Count the requests that may go out when so many are under way."""
        return self._size if self.exact is None else max(0, int(self.exact) - under_way)
