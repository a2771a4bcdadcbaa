"""How a client stands with its manager: what its pools have learned, shared between them."""

from __future__ import annotations

from tcm_sync.transport.gate import Gate


class Standing:
    """Whether the manager can be reached, and takes our token.

    Attributes
    ----------
    manager_gate : Gate
        Shut while the manager cannot be reached, or drains.
    auth_gate : Gate
        Shut while it refuses the token.
    reached : bool
        Whether it ever let us in. It is only ever set, so it needs no lock.
    epoch : int
        How often all inference sockets were lost, or the manager said that it ends: what an earlier manager
        knew of shared memory is void. Guarded by the pool's lock.
    """

    def __init__(self) -> None:
        self.manager_gate = Gate("manager", 0.1, 5.0)
        self.auth_gate = Gate("authentication", 1.0, 60.0)
        self.reached = False
        self.epoch = 0
