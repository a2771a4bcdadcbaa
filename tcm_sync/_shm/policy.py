"""Whether the tensors of a call go through shared memory (docs/sharedmemory.rst)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Literal, NamedTuple

from tcm_sync._handlers import is_of_handler
from tcm_sync._locks import RLock
from tcm_sync._logs import Log
from tcm_sync._shm.arena import Arena, DeclinedError
from tcm_sync._shm.segment import directory_space, why_unsupported
from tcm_sync._transport.sockets import is_own_address
from tcm_sync._ttl_cache import TtlCache
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

_LOG_INTERVAL = 3600.0  # seconds between two log lines about one kind of reason

_FIRST_PAUSE, _MAX_PAUSE = 5.0, 600.0  # seconds for which a route gets JSON after a refusal

#: Kinds of reasons that are logged: a user who has set shared memory up does not expect them.
_UNEXPECTED = ("no room", "not checked", "not made", "pinned", "refused")

# Whether an address is this machine's. Addresses come and go, so the answer is kept for this many seconds.
_own_addresses = TtlCache[str, bool](30.0)


def is_worth_sharing(tensors: Iterable[Tensor]) -> bool:
    """Return whether tensors are so large that shared memory is faster than JSON."""
    size = 0
    for tensor in tensors:
        size += tensor.array.nbytes
    return size >= WORTH_SHARING


def _why_not_local(address: str) -> str | None:
    """Return why a server at an address may be on another machine, or None."""
    own = _own_addresses.get(address)
    if own is None:
        try:
            own = is_own_address(address)
        except OSError as error:
            if is_of_handler(error):
                raise
            return f"not checked: whether vm_ip {address} is an address of this machine: {error}"
        _own_addresses.put(address, own)
    return None if own else f"elsewhere: vm_ip {address} is not an address of this machine"


class _Pause(NamedTuple):
    """For how long a route gets JSON, since its server refused to register segments."""

    until: float
    seconds: float
    why: str


class ShmPolicy:
    """Decide which calls use shared memory, and hold the client's arena.

    Parameters
    ----------
    settings : Settings
        The client's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = RLock()  # guards changes of _arena, _pauses and _closed
        self._arena: Arena | None = None
        self._pauses: dict[Route, _Pause] = {}
        self._closed = False
        self._logged_at: dict[str, float] = {}  # by kind of reason; unguarded: one line too many does no harm

    def obstacle(
        self, tensors: Sequence[Tensor], route: Route, transport: Transport, *, allow_transient: bool
    ) -> str | None:
        """Return why some tensors cannot go through shared memory on any socket, or None.

        The kind of the reason is before its colon. The parameters are those of the call.
        """
        if self._arena is None and (why := self._why_unavailable()) is not None:
            return why
        for tensor in tensors:
            if tensor.datatype == "BYTES":
                return f'no fixed size: input "{tensor.name}" is BYTES'
            if not tensor.array.nbytes:
                return f'empty: input "{tensor.name}" has no elements'
        if transport == "shm":
            return None
        if allow_transient:
            return (
                "transient: with allow_transient a key works only once; transport='shm' uses it nevertheless"
            )
        if route.vm_ip is None:
            return "elsewhere: the route has no vm_ip, so the server may be on another machine"
        if (why := _why_not_local(route.vm_ip)) is not None:
            return why
        pause = self._pauses.get(route) if self._pauses else None  # nearly always empty: no hash of the route
        if pause is not None and pause.until > monotonic():
            return f"refused: {pause.why} (tried again after a pause of {pause.seconds:g} s)"
        return None

    @staticmethod
    def obstacle_on(connection: Connection, transport: Transport) -> str | None:
        """Return why calls on this connection cannot use shared memory, or None."""
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
            The client was closed, or has no shared memory.
        """
        arena = self._arena
        if arena is not None:
            return arena  # closed, it refuses by itself
        with self._lock:
            if self._closed:
                raise DeclinedError("closed: the client was closed")
            if self._arena is None:
                self._arena = self._new_arena()
            return self._arena

    def _why_unavailable(self) -> str | None:
        """Return why this client has no shared memory, or None."""
        if self._settings.shm == "off":
            return "switched off: the client was made with shm='off'"
        why = why_unsupported()
        return None if why is None else f"not supported: {why}"

    def _new_arena(self) -> Arena:
        if (why := self._why_unavailable()) is not None:
            raise DeclinedError(why)
        settings = self._settings
        most = settings.shm_max_pinned
        try:
            group = None if settings.shm_group is None else group_id(settings.shm_group)
            return Arena(directory_space().size // 4 if most is None else most, group)
        except ConfigError as error:
            raise DeclinedError(error.message) from None
        except OSError as error:
            if is_of_handler(error):
                raise
            raise DeclinedError(f"not made: {error}") from None

    def record_refusal(self, route: Route, why: str) -> None:
        """Pause shared memory on a route whose server has refused two segments in a row, one of them new."""
        with self._lock:
            before = self._pauses.get(route)
            if before is not None and monotonic() < before.until:
                return  # a call that was under way at the same time has recorded it
            seconds = _FIRST_PAUSE if before is None else min(before.seconds * 2, _MAX_PAUSE)
            self._pauses[route] = _Pause(monotonic() + seconds, seconds, why)

    def record_success(self, route: Route) -> None:
        """End the pause of a route, since its server has registered segments again."""
        if self._pauses and route in self._pauses:
            with self._lock:
                self._pauses.pop(route, None)

    def log_json(self, why: str) -> None:
        """Log that large tensors are sent as JSON, once an hour for each unexpected kind of reason."""
        kind, now = why.partition(":")[0], monotonic()
        if kind in _UNEXPECTED and now - self._logged_at.get(kind, -inf) >= _LOG_INTERVAL:
            self._logged_at[kind] = now
            log.warning("large tensors go as JSON, and not through shared memory: %s", why)

    def read(self) -> dict[str, int]:
        """Return the figures of `Arena.read`, empty while there is no arena."""
        with self._lock:
            arena = self._arena
        return {} if arena is None else arena.read()

    def close(self) -> None:
        """Unlink every segment. A forked child must not call it: the lock may be held by another thread."""
        with self._lock:
            self._closed = True
            arena = self._arena
        if arena is not None:
            arena.close()
