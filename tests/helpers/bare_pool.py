"""A pool without sockets, threads or time passing: what it decides can be asked directly."""

from __future__ import annotations

from types import SimpleNamespace

from tcm_sync._pool.manager_state import ManagerState
from tcm_sync._pool.pool import Pool
from tcm_sync._transport.counters import PoolCounts
from tcm_sync.settings import Settings

from .pool_model import Socket


class Reader:
    """Notes what it is to close and when it is to call back, and runs at once what it is to run."""

    def __init__(self):
        self.closed = []
        self.registered = []
        self.woken_at = []

    def register(self, connection):
        self.registered.append(connection)

    def close(self, connection, reason):
        self.closed.append((connection, reason))

    def run_soon(self, command):
        command()

    def wake_at(self, when):
        self.woken_at.append(when)


class Connector:
    """Notes the jobs that it is to run."""

    def __init__(self):
        self.jobs = []

    def submit(self, job):
        self.jobs.append(job)


class Opener:
    """Opens a socket of `pool_model` each time, or raises; notes how it was asked to."""

    def __init__(self):
        self.endpoint = SimpleNamespace(authority="h")
        self.credentials = SimpleNamespace(running=str)
        self.asked = []
        self.error = None

    def open(self, **how):
        self.asked.append(how)
        if self.error is not None:
            raise self.error
        return make_socket(len(self.asked))

    def opened(self, connection):
        """Do nothing: nothing is being opened."""


def make_socket(number):
    """Return a socket that does not grow old."""
    return Socket(number, 0.0)


def bare_pool(*, size=1, setting="pool_size", sockets=1, manager_state=None, **settings):
    """Return a pool of that size which has some idle sockets; its parts are the ones above."""
    pool = Pool(
        Settings("ws://h/ws", **settings),
        Opener(),
        Connector(),
        Reader(),
        ManagerState("h") if manager_state is None else manager_state,
        PoolCounts(),
        size=size,
        setting=setting,
    )
    for number in range(sockets):
        add_socket(pool, make_socket(number))
    return pool


def add_socket(pool, socket):
    """Give a pool one more idle socket."""
    pool.state.inventory.add(socket)
    socket.lifetime_ends_at = float("inf")
    socket.max_requests = 1_000_000


def open_one(pool):
    """Run the oldest job of opening a socket."""
    pool._connector.jobs.pop(0)()
