"""The client in a worker process: how it gets there, what closes it, and the limit that all workers share."""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import Any

from dask.base import normalize_token, tokenize
from distributed import Semaphore, WorkerPlugin, get_worker
from distributed.protocol.pickle import dumps, loads  # which also take a lambda as token

from tcm_sync._arguments import check_whole
from tcm_sync._numbers import shown
from tcm_sync.client import TcmClient
from tcm_sync.errors import InputError

#: The limit by default: messages of one tenant that a manager takes in a tick (docs/wire.rst, "Timing").
SERVED_A_TICK = 5


class TcmPlugin(WorkerPlugin):
    """Keep one client in each worker process, and close it with the worker.

    The client connects when the first block needs it. Blocks use it if they were given the same client or a
    view of it; without the plugin they share one client a process too, but its connections stay open until
    the process ends.

    Parameters
    ----------
    client : TcmClient
        Its settings are sent to the workers, the token included; a callable token is called there.

    Examples
    --------
    >>> cluster.get_client().register_plugin(TcmPlugin(client))  # doctest: +SKIP
    """

    def __init__(self, client: TcmClient) -> None:
        self.client = checked_client(client)
        self.name = f"tcm-sync-{tokenize(client)}"

    def teardown(self, worker: object) -> None:  # noqa: ARG002 - distributed passes it
        """Close the client of a worker that ends, or from which the plugin is removed."""
        self.client.close()


def checked_client(client: object) -> TcmClient:
    """Return a client, or raise an InputError."""
    if not isinstance(client, TcmClient):
        raise InputError(f"client must be a TcmClient, not {shown(client)}")
    return client


def checked_limit(limit: int | None) -> int | None:
    """Return how many messages the cluster may have in flight, or raise an InputError."""
    return None if limit is None else check_whole("limit", limit, kind=InputError)


class BlockClient:
    """The client of the blocks of an array or a frame, as their tasks have it.

    In the process that made the tasks it is the user's client. Pickled for another process, it is unpickled
    for each block, and uses the connections that this process has open to the same manager: a task that lies
    in the memory of a worker or of the scheduler holds nothing that would have to be closed.
    """

    def __init__(self, client: TcmClient | bytes) -> None:
        self._client = client

    def get(self) -> TcmClient:
        """Return the client of this process."""
        if isinstance(self._client, TcmClient):
            return self._client
        copy: TcmClient = loads(self._client)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        client = self._client
        return BlockClient, (dumps(client) if isinstance(client, TcmClient) else client,)

    def __dask_tokenize__(self) -> object:
        return normalize_token(self.get())


# --- the limit of a cluster ---

_semaphores: weakref.WeakKeyDictionary[object, dict[str, Semaphore]] = weakref.WeakKeyDictionary()
_semaphores_lock = threading.Lock()  # guards the dictionaries: several threads of a worker run blocks


@contextlib.contextmanager
def lease(client: TcmClient, limit: int | None) -> Any:
    """Take one of the leases of the cluster, and give the most messages that may be in flight meanwhile."""
    try:
        worker = get_worker()
    except ValueError:  # another scheduler of Dask's
        limit = None
    if limit is None:
        yield None
        return
    name = f"tcm-sync-{limit}-{tokenize(client._core.settings.uri)}"  # noqa: SLF001
    with _semaphores_lock:
        of_worker = _semaphores.setdefault(worker, {})
        semaphore = of_worker.get(name) or of_worker.setdefault(name, Semaphore(limit, name))
    with semaphore:
        yield 1
