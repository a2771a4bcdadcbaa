"""The limits of a pool that it learns from the manager's refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcm_sync._logs import Log

if TYPE_CHECKING:
    from tcm_sync._pool.pool_state import PoolState
    from tcm_sync._transport.connection import Connection
    from tcm_sync.errors import TcmError

log = Log("tcm_sync.pool", queued=True)


class PoolLimits:
    """Lowers the limits of a pool after a refusal, and logs it. The limits themselves are in its state.

    Parameters
    ----------
    state : PoolState
        The pool's, whose lock guards the limits.
    """

    def __init__(self, state: PoolState) -> None:
        self._state = state

    def read(self) -> tuple[int | None, int | None, float | None]:
        """Return how many requests may be under way; and messages a second, of a socket and of the client."""
        state = self._state
        return state.concurrency_limit.max_requests, state.inventory.rate_limit, state.tenant_rate.rate

    def lower_concurrency(self, connection: Connection, cause: TcmError) -> None:
        """Send less at a time: the manager had too much to do for the request on `connection`."""
        state = self._state
        with state.lock:
            lowered = state.concurrency_limit.lower(connection, state.under_way(), cause)
            width = state.concurrency_limit.max_requests
        if lowered:
            log.info("at most %s requests at a time for now: %s", width, cause)

    def learn_socket_limit(self, connection: Connection) -> None:
        """Learn from a ``Rate limit exceeded`` how many messages a second a socket may send."""
        with self._state.lock:
            learned = self._state.inventory.learn_rate_limit(connection)
        if learned is not None:
            log.warning(
                "the manager limits messages: a socket sends at most %d a second from now on", learned
            )

    def learn_tenant_limit(self, connection: Connection, cause: TcmError) -> None:
        """Send fewer messages a second: the one on `connection` was over the tenant's limit."""
        state = self._state
        with state.lock:
            sent_at = connection.sent_at[-1]
            accepted = state.inventory.sent_since(sent_at - 1.0) - 1
            rate = state.tenant_rate.lower(sent_at, accepted, cause)
        if rate is not None:
            log.warning(
                "the manager limits a tenant's messages: this client sends %.3g a second from now on: %s",
                rate,
                cause,
            )
