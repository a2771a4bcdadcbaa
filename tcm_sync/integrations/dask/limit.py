"""How many messages of all workers of a cluster are in flight at one manager."""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, Any, Literal

from dask.base import tokenize
from distributed import Semaphore, get_worker
from distributed.utils import sync

from tcm_sync._arguments import check_whole
from tcm_sync._numbers import shown
from tcm_sync._pool.turn_keys import shared_table
from tcm_sync.errors import InputError
from tcm_sync.settings import SERVED_A_TICK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tcm_sync.client import TcmClient

Limit = int | Literal["auto"] | None

_semaphores: weakref.WeakKeyDictionary[object, dict[str, Semaphore]] = weakref.WeakKeyDictionary()
_semaphores_lock = threading.Lock()  # guards the dictionaries: several threads of a worker run blocks


def checked_limit(limit: Limit) -> Limit:
    """Return how many messages the cluster may have in flight, or raise an InputError."""
    if isinstance(limit, str) and limit != "auto":
        raise InputError(f"limit must be a whole number, 'auto' or None, not {shown(limit)}")
    return limit if limit in ("auto", None) else check_whole("limit", limit, kind=InputError)


@contextlib.contextmanager
def lease(client: TcmClient, limit: Limit) -> Iterator[int | None]:
    """Take one of the leases of the cluster, and give the most messages that may be in flight meanwhile."""
    try:
        worker = get_worker()
    except ValueError:  # another scheduler of Dask's
        limit = None
    settings = client._core.settings  # noqa: SLF001
    manager = tokenize(settings.uri)
    if limit == "auto":
        takes_turns = settings.turn_count is not None
        limit = None if takes_turns and _all_share_turns(worker, manager) else SERVED_A_TICK
    if limit is None:
        yield None
        return
    name = f"tcm-sync-{limit}-{manager}"
    with _semaphores_lock:
        of_worker = _semaphores.setdefault(worker, {})
        semaphore = of_worker.get(name) or of_worker.setdefault(name, Semaphore(limit, name))
    with semaphore:
        yield 1


def _all_share_turns(worker: Any, manager: str) -> bool:
    """Whether this worker shares turns with all that have run blocks of this manager.

    The scheduler has the tables of turns that the workers use: one for each host.
    """
    table = shared_table()
    mine = worker.id if table is None else table
    name = f"tcm-sync-turns-{manager}"
    # Its own first, so that of two that begin at once one at least finds both.
    sync(worker.loop, worker.scheduler.set_metadata, keys=[name, mine], value=True)
    tables = sync(worker.loop, worker.scheduler.get_metadata, keys=[name])
    return table is not None and set(tables) == {table}
