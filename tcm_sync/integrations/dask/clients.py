"""The client in a worker process: how it gets there, and what closes it."""

from __future__ import annotations

from typing import Any

from dask.base import normalize_token, tokenize
from distributed import WorkerPlugin
from distributed.protocol.pickle import dumps, loads  # which also take a lambda as token

from tcm_sync._numbers import shown
from tcm_sync.client import TcmClient
from tcm_sync.errors import InputError


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
