"""Which callers share turns: those who send to the same manager for the same tenant."""

from __future__ import annotations

import ipaddress
import weakref
from hashlib import blake2b

from tcm_sync._endpoint import Endpoint
from tcm_sync._locks import RLock
from tcm_sync._pool.process_table import ProcessTable
from tcm_sync._pool.turn_file import TableBusyError, TableError
from tcm_sync._pool.turns import Turns
from tcm_sync._process import register_hooks

_TRIES = 20  # to open the table, while another process holds its lock; each waits 5 ms for it


class _TurnsOfProcess:
    """The turns of this process, for all its clients. They are kept by those who use them."""

    def __init__(self) -> None:
        self._lock = RLock()  # guards the mapping
        self._turns: weakref.WeakValueDictionary[tuple[int, int], Turns] = weakref.WeakValueDictionary()
        self.table = ProcessTable()
        register_hooks(self)

    def get(self, endpoint: Endpoint, tenant: str, count: int) -> Turns:
        """Return the turns of a tenant at a manager."""
        key = key_of(endpoint, tenant)
        with self._lock:
            turns = self._turns.get((key, count))
            if turns is None:
                turns = self._turns[key, count] = Turns(key, count, self.table)
            return turns

    def after_fork(self) -> None:
        """Leave behind a lock that another thread of the parent may have held."""
        self._lock = RLock()

    def at_exit(self) -> None:
        """Do nothing: each user of the turns ends its calls."""


_turns = _TurnsOfProcess()


def turns_of(endpoint: Endpoint, tenant: str, count: int) -> Turns:
    """Return the turns of a tenant at a manager, which all clients of this process share."""
    return _turns.get(endpoint, tenant, count)


def shared_table() -> str | None:
    """Return what identifies the table of turns, and thus the processes that share turns with this one.

    Returns
    -------
    str or None
        Another one on each host. None if this process shares turns with no other now.
    """
    for _ in range(_TRIES):
        try:
            table = _turns.table.get()
            return None if table is None else table.identity()
        except TableBusyError:
            continue
        except TableError:
            return None
    return None


def key_of(endpoint: Endpoint, tenant: str) -> int:
    """Return 64 bits that identify a manager and a tenant. All spellings of the loopback address are one."""
    parts = (_normalised(endpoint.host), str(endpoint.port), endpoint.path, tenant)
    return int.from_bytes(blake2b("\n".join(parts).encode(), digest_size=8).digest(), "little")


def _normalised(host: str) -> str:
    host = host.lower().rstrip(".").partition("%")[0]
    if host == "localhost" or host.endswith(".localhost"):
        return "loopback"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return "loopback" if address.is_loopback else str(address)
