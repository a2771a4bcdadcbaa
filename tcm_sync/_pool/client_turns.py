"""The turns that the calls of one client take, by the tenant of their connection."""

from __future__ import annotations

from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._locks import OnceEvent, RLock
from tcm_sync._pool.turn_keys import turns_of
from tcm_sync._pool.turns import Turns
from tcm_sync._transport.connection import Connection

_MAX_TENANTS = 16  # whose turns a client keeps, where a callable hands out tokens of several


class ClientTurns:
    """Finds the turns that a request takes, and leaves them when the client is closed.

    Parameters
    ----------
    endpoint : Endpoint
        Of the manager.
    count : int or None
        How many turns a tenant has there; None: the client takes none.
    longest_wait : float or None
        Seconds that a call waits for a turn at most; None: until its deadline.

    Attributes
    ----------
    closed : OnceEvent
        Set when the client is closed.
    """

    def __init__(self, endpoint: Endpoint, count: int | None, longest_wait: float | None) -> None:
        self._endpoint = endpoint
        self._count = count
        self._longest_wait = longest_wait
        self.closed = OnceEvent()
        self.by_tenant: dict[str, Turns] = {}  # what is made twice by two threads is the same
        self._joining = RLock()  # guards that no tenant's turns are joined and left at once

    def join(self, connection: Connection) -> Turns | None:
        """Return the turns that a connection's requests take from now on, None if they take none."""
        if self._count is None:
            return None
        turns = turns_of(self._endpoint, connection.tenant, self._count)
        with self._joining:
            turns.join(self)
            self.by_tenant[connection.tenant] = turns
            if len(self.by_tenant) > _MAX_TENANTS:
                self._leave_oldest()
        if self.closed.is_set():
            self.leave()  # `close` may have done so before they were there
        return turns

    def _leave_oldest(self) -> None:
        """Leave the turns that were joined first and that no call waits for, which `close` would not find."""
        for tenant, turns in list(self.by_tenant.items())[:-1]:
            if not turns.waiting():
                self.by_tenant.pop(tenant, None)
                turns.leave(self)
                return

    def deadline(self, call: Deadline) -> Deadline:
        """Return how long a call with this deadline waits for its turn."""
        return call if self._longest_wait is None else call.at_most(self._longest_wait)

    def leave(self) -> None:
        """Use turns no more, without a lock: their table is closed with its last user."""
        turns, self.by_tenant = self.by_tenant, {}
        for each in turns.values():
            each.leave(self)

    def close(self) -> None:
        """End the waits for a turn, and leave."""
        self.closed.set()
        for turns in list(self.by_tenant.values()):
            turns.wake_all()
        self.leave()

    def processes(self) -> int:
        """Count the processes of this host that share turns, this one included; 0 before the first turn."""
        return max((turns.others + 1 for turns in list(self.by_tenant.values())), default=0)
