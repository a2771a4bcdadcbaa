"""The copies of a client in one process: which share their connections, and when these are closed."""

from __future__ import annotations

import contextlib
import secrets
import weakref
from typing import TYPE_CHECKING

from tcm_sync._calls.core import Core, State
from tcm_sync._locks import RLock
from tcm_sync._numbers import as_number, shown
from tcm_sync._process import notice_fork, register_hooks
from tcm_sync.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tcm_sync.events import Listener
    from tcm_sync.settings import Settings

_MAX_KEPT = 8  # cores of unpickled clients


class _Cores:
    """The cores of this process by their keys, so that copies of one client share their connections.

    Those of clients that were made here are kept by their clients alone. Those of unpickled ones are kept
    here, up to a number: a task that gets its client as an argument drops it at its end, and the next task
    gets a copy again.
    """

    def __init__(self) -> None:
        self._lock = RLock()  # guards both
        self._cores: weakref.WeakValueDictionary[str, Core] = weakref.WeakValueDictionary()
        self._kept: dict[str, Core] = {}
        register_hooks(self)

    def make(self, settings: Settings, key: str, listeners: Iterable[Listener]) -> Core:
        """Make the core of a new client."""
        core = Core(settings, key, listeners)
        with self._lock:
            self._cores[key] = core
        return core

    def join(self, settings: Settings, key: str, client: object) -> Core:
        """Return the core of a client's copies in this process, of which `client` is one from now on."""
        notice_fork()
        with self._lock:  # until it is attached: the last of the other copies may be closed meanwhile
            core = self._cores.get(key)
            if core is not None and core.state is not State.CLOSED:
                core.attach(client, is_view=False)
                return core
            core = self._cores[key] = Core(settings, key)
            core.attach(client, is_view=False)
            core.may_be_dropped = True  # the process keeps it for copies that are still to come
            dropped = [] if len(self._kept) < _MAX_KEPT else [self._kept.pop(next(iter(self._kept)))]
            self._kept.pop(key, None)
            self._kept[key] = core
        del dropped  # outside the lock
        return core

    def leave(self, core: Core, client: object) -> bool:
        """Detach a client or a view from a core; return whether the core must be closed now."""
        with self._lock:
            is_over = core.detach_last(client)
            if is_over and self._kept.get(core.key) is core:
                del self._kept[core.key]
        return is_over

    def after_fork(self) -> None:
        """Leave behind a lock that another thread of the parent may have held."""
        self._lock = RLock()

    def at_exit(self) -> None:
        """Do nothing: each core refuses calls by itself."""


_cores = _Cores()
_records: list[Callable[[Core], None]] = []  # what is called with the core of a new client


def new_core(settings: Settings, listeners: Iterable[Listener] = ()) -> Core:
    """Make what the calls of a new client share."""
    core = _cores.make(settings, secrets.token_hex(16), listeners)
    for record in _records:
        record(core)
    return core


@contextlib.contextmanager
def recording_clients(record: Callable[[Core], None]) -> Iterator[None]:
    """Call `record` with the core of each client that is made meanwhile, for tests that check closing."""
    _records.append(record)
    try:
        yield
    finally:
        _records.remove(record)


def core_of(settings: Settings, key: str, client: object) -> Core:
    """Return what the copies of a client in this process share, of which `client` is one from now on."""
    return _cores.join(settings, key, client)


def close_client(core: Core, client: object, timeout: float) -> Core:
    """Close one client or view, and the connections if they are for no other; return its core.

    Closing a client leaves them open for other clients alone, closing a view for other views too.

    Raises
    ------
    ConfigError
        The timeout is no number of seconds.
    """
    seconds = _checked_closing(timeout)
    notice_fork()
    if not _cores.leave(core, client):
        return core.closed_copy()
    core.close(seconds)
    return core


def _checked_closing(timeout: object) -> float:
    """Return the seconds that closing may wait for calls, or raise a ConfigError."""
    seconds = as_number(timeout)
    if seconds is None or not seconds >= 0:
        raise ConfigError(f"timeout must be a number of seconds, 0.0 or more, not {shown(timeout)}")
    return seconds
