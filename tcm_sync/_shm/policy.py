"""Whether the tensors of a call go through shared memory (docs/sharedmemory.rst)."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Literal, NamedTuple

from tcm_sync._logs import Log
from tcm_sync._shm.arena import Arena, DeclinedError
from tcm_sync._shm.segment import room, unsupported
from tcm_sync._transport.sockets import is_own_address
from tcm_sync.errors import ConfigError
from tcm_sync.settings import group_id

if TYPE_CHECKING:
    from tcm_sync._tensors import Tensor
    from tcm_sync._transport.connection import Connection
    from tcm_sync.settings import Route, Settings

log = Log("tcm_sync.shm", queued=False)

Transport = Literal["auto", "json", "shm"]

#: Bytes of tensors from which shared memory is faster than JSON (benchmarks/shared_memory.py).
WORTH_SHARING = 16_384

_TOLD_AGAIN = 3600.0  # seconds after which a reason is logged again

_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 600.0  # seconds in which a route that could not is not asked again

#: Kinds of reasons that nobody expects who has set shared memory up, so that they are logged.
_UNEXPECTED = ("no room", "not made", "pinned", "refused")

_is_own = lru_cache(maxsize=256)(is_own_address)


def is_worth_sharing(tensors: Iterable[Tensor]) -> bool:
    """Whether tensors are so large that shared memory is faster than JSON."""
    size = 0
    for tensor in tensors:
        size += tensor.array.nbytes
    return size >= WORTH_SHARING


class Unable(NamedTuple):
    """A route whose server could not be told of segments."""

    until: float
    pause: float
    why: str


class Sharing:
    """What a client knows of its shared memory, and the arena once there is one.

    Parameters
    ----------
    settings : Settings
        The client's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.RLock()  # guards changes of the three below
        self._arena: Arena | None = None
        self._unable: dict[Route, Unable] = {}
        self._closed = False
        self._told: dict[str, float] = {}  # when a kind of reason was last logged; guarded by nothing

    def obstacle(
        self, tensors: Sequence[Tensor], route: Route, transport: Transport, *, allow_transient: bool
    ) -> str | None:
        """Return why some tensors cannot go through shared memory on any socket, or None.

        The kind of the reason is before its colon. The parameters are those of the call.
        """
        if self._arena is None and (why := self._absent()) is not None:
            return why
        for tensor in tensors:
            if tensor.datatype == "BYTES":
                return f'no fixed size: input "{tensor.name}" is BYTES'
            if not tensor.array.nbytes:
                return f'empty: input "{tensor.name}" has no elements'
        if transport == "shm":
            return None
        if allow_transient:
            return "transient: a key works once with allow_transient, so transport='shm' has to ask for it"
        if route.vm_ip is None:
            return "elsewhere: the route names no vm_ip, so it is not known to be this machine"
        if not _is_own(route.vm_ip):
            return f"elsewhere: vm_ip {route.vm_ip} is no address of this machine"
        unable = self._unable.get(route) if self._unable else None  # an empty one is nearly always what it is
        if unable is not None and (left := unable.until - monotonic()) > 0.0:
            return f"refused: {unable.why} (it is tried again in {left:.0f} s)"
        return None

    @staticmethod
    def obstacle_on(connection: Connection, transport: Transport) -> str | None:
        """Say why nothing can go through shared memory on this socket, or None."""
        if "shm" not in connection.capability:
            return "not granted: the manager did not grant shm"
        if transport == "auto" and not connection.is_local:
            return "elsewhere: the manager is not on this machine"
        return None

    def arena(self) -> Arena:
        """Return the arena, made on first use.

        Raises
        ------
        DeclinedError
            There can be none.
        """
        arena = self._arena
        if arena is not None:
            return arena  # which knows itself whether it is closed
        with self._lock:
            if self._closed:
                raise DeclinedError("closed: the client is")
            if self._arena is None:
                self._arena = self._new_arena()
            return self._arena

    def _absent(self) -> str | None:
        """Say why there is no shared memory for this client, or None."""
        if self._settings.shm == "off":
            return "switched off: the client was made with shm='off'"
        why = unsupported()
        return None if why is None else f"not supported: {why}"

    def _new_arena(self) -> Arena:
        if (why := self._absent()) is not None:
            raise DeclinedError(why)
        settings = self._settings
        most = settings.shm_max_pinned
        try:
            group = None if settings.shm_group is None else group_id(settings.shm_group)
        except ConfigError as error:
            raise DeclinedError(error.message) from None
        return Arena(room()[0] // 4 if most is None else most, group)

    def refused(self, route: Route, why: str) -> None:
        """Note that a server could not be told of segments, twice in a row, one of them never used."""
        with self._lock:
            before = self._unable.get(route)
            if before is not None and monotonic() < before.until:
                return  # calls that were under way together tell of one failure
            pause = _FIRST_PAUSE if before is None else min(before.pause * 2, _LONGEST_PAUSE)
            self._unable[route] = Unable(monotonic() + pause, pause, why)

    def tell(self, why: str) -> None:
        """Log that tensors go as JSON which might be shared: once an hour for each kind of reason."""
        kind, now = why.partition(":")[0], monotonic()
        if kind in _UNEXPECTED and now - self._told.get(kind, -inf) >= _TOLD_AGAIN:
            self._told[kind] = now
            log.warning("large tensors go as JSON, and not through shared memory: %s", why)

    def worked(self, route: Route) -> None:
        """Note that it could."""
        if self._unable and route in self._unable:
            with self._lock:
                self._unable.pop(route, None)

    def read(self) -> dict[str, int]:
        """Return how much memory there is."""
        with self._lock:
            arena = self._arena
        return {} if arena is None else arena.read()

    def close(self) -> None:
        """Unlink every segment. It takes locks that a forked child cannot trust."""
        with self._lock:
            self._closed = True
            arena = self._arena
        if arena is not None:
            arena.close()
