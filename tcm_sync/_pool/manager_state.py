"""What a client has learned about its manager, shared by its pools."""

from __future__ import annotations

import logging

from tcm_sync._pool.gate import Gate
from tcm_sync._pool.tenant_rate import TenantRate
from tcm_sync.events._listeners import NO_LISTENERS, Listeners

# A manager that is back is found within a second by each process whose calls wait, and 64 processes whose
# calls wait ask at most 64 times a second, evenly. Without calls no process asks.
_FIRST_PAUSE, _MAX_PAUSE, _JITTER = 0.1, 2 / 3, 0.5


class ManagerState:
    """Whether the manager can be reached and accepts the token, and how fast it may be used.

    Parameters
    ----------
    where : str
        Host and port of the manager, for the log.
    listeners : Listeners
        Who listens to the client.

    Attributes
    ----------
    listeners : Listeners
        As given.
    manager_gate : Gate
        Shut while the manager cannot be reached, or drains.
    auth_gate : Gate
        Shut while it refuses the token.
    tenant_rate : TenantRate
        How many messages a second it accepts of this tenant. Its own lock guards it.
    reached : bool
        Whether it ever authenticated a socket. It is only ever set, so it needs no lock.
    epoch : int
        How often all inference sockets were lost, or the manager said that it ends: an earlier manager's
        registrations of shared memory are lost. Guarded by the lock of the inference pool's state.
    limits_epoch : int
        How often the manager could not be reached, or said that it ends. Limits that were learned under an
        earlier number are forgotten.
        Guarded as `epoch` is.
    """

    def __init__(self, where: str, listeners: Listeners = NO_LISTENERS) -> None:
        self.listeners = listeners
        self.manager_gate = Gate(
            "manager",
            _FIRST_PAUSE,
            _MAX_PAUSE,
            jitter=_JITTER,
            of=where,
            level=logging.WARNING,
            listeners=listeners,
        )
        self.auth_gate = Gate(
            "authentication", 1.0, 60.0, of=where, level=logging.WARNING, listeners=listeners
        )
        self.tenant_rate = TenantRate()
        self.reached = False
        self.epoch = 0
        self.limits_epoch = 0
