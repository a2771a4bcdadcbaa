"""Models over the blocks of a real cluster: several worker processes, one of which dies."""

from __future__ import annotations

import os
import signal
import threading

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pytest
from distributed import Client, wait

from tcm_sync.errors import InferenceError
from tcm_sync.integrations.dask import TcmPlugin, infer_array, infer_frame

from ..helpers.dask_cluster import running_cluster
from ..helpers.waiting import GUARD, wait_until

WORKERS = 2


@pytest.fixture(scope="module")
def address():
    with running_cluster(WORKERS) as address:
        yield address


@pytest.fixture
def cluster(address):
    with Client(address) as cluster:
        cluster.wait_for_workers(WORKERS, timeout=GUARD)
        yield cluster


@pytest.fixture
def registered(cluster, client_of):
    """Make clients, and register them with the workers until the test ends."""
    names = []

    def make(manager, **settings):
        client = client_of(manager, **settings)
        plugin = TcmPlugin(client)
        cluster.register_plugin(plugin)
        names.append(plugin.name)
        return client

    yield make
    for name in names:
        cluster.unregister_worker_plugin(name)


def clients_open(cluster):
    """Return in how many workers a client has its reader running."""
    running = cluster.run(lambda: any(each.name == "tcm-sync-reader" for each in threading.enumerate()))
    return sum(running.values())


class Meeting:
    """A model whose first run in each worker waits until the test continues; its output is its input."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.rows = []

    def __call__(self, arrays):
        self.rows += arrays["x"].tolist()
        self.arrived.release()
        assert self.go_on.wait(GUARD)
        return {"y": arrays["x"] * 2}


@pytest.fixture
def meeting():
    model = Meeting()
    yield model
    model.go_on.set()


class Gathering:
    """A model that counts how many messages of it are in flight at most; each waits for others to come."""

    def __init__(self, wanted, patience) -> None:
        self.wanted = wanted
        self.patience = patience  # seconds that a message waits for so many
        self.running = self.most = 0
        self.met = threading.Event()  # as many as wanted were in flight at once
        self._lock = threading.Lock()  # guards the numbers

    def __call__(self, arrays):
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            if self.running == self.wanted:
                self.met.set()
        self.met.wait(self.patience)
        with self._lock:
            self.running -= 1
        return {"y": arrays["x"]}


def blocks(client, x, model="meeting", **options):
    return infer_array(x, model, client=client, input_name="x", output_dtypes=np.float64, **options)


def test_each_worker_has_one_client_which_opens_late_and_ends_with_its_plugin(
    cluster, client_of, serve, meeting
):
    manager = serve({"meeting": meeting})
    client = client_of(manager, pool_size=1)
    cluster.register_plugin(TcmPlugin(client))
    assert clients_open(cluster) == 0
    x = da.arange(40, chunks=4).astype(float)
    y = blocks(client, x).persist()
    for _ in range(WORKERS):
        assert meeting.arrived.acquire(timeout=GUARD)
    meeting.go_on.set()
    assert (y + 1).compute().tolist() == [2 * each + 1 for each in range(40)]
    assert len(manager.stats().uuids) == WORKERS
    assert clients_open(cluster) == WORKERS
    cluster.unregister_worker_plugin(TcmPlugin(client).name)  # while the blocks are still in memory
    wait_until(lambda: clients_open(cluster) == 0, "no worker has a client")


def test_a_limit_holds_for_the_whole_cluster(cluster, registered, serve):
    gathering = Gathering(wanted=WORKERS, patience=GUARD)
    client = registered(serve({"gathering": gathering}))
    one = da.ones(6, chunks=1)
    assert blocks(client, one, "gathering", limit=WORKERS).sum().compute() == 6
    gathering.most, gathering.patience = 0, 0.1  # which must not meet
    gathering.met.clear()
    assert blocks(client, one * 2, "gathering", limit=1).sum().compute() == 12
    assert gathering.most == 1


def test_blocks_of_workers_that_share_turns_have_as_many_messages_in_flight_as_their_clients_may(
    cluster, registered, serve
):
    gathering = Gathering(wanted=WORKERS + 1, patience=GUARD)
    client = registered(serve({"gathering": gathering}))
    x = da.ones(12, chunks=6)
    assert blocks(client, x, "gathering", rows=1).sum().compute() == 12
    assert gathering.met.is_set()


@pytest.mark.parametrize("why", ["another host", "a folder that cannot be used", "turns='off'"])
def test_blocks_of_workers_that_do_not_share_turns_have_one_message_each(
    cluster, registered, serve, tmp_path, why
):
    gathering = Gathering(wanted=WORKERS + 1, patience=0.1)  # which must not meet
    client = registered(serve({"gathering": gathering}), turns="off" if why == "turns='off'" else "auto")
    workers = sorted(cluster.nthreads())
    folder = tmp_path / "turns"
    if why == "a folder that cannot be used":
        folder.touch()
    elsewhere = workers[:1] if why != "turns='off'" else []
    mine = os.environ["TCM_TURNS_DIR"]
    cluster.run(lambda: os.environ.update(TCM_TURNS_DIR=str(folder)), workers=elsewhere)
    try:
        for worker in workers:  # each begins one block, and is known to the others then
            few = blocks(client, da.ones(1, chunks=1), "gathering")
            assert cluster.compute(few.sum(), workers=[worker]).result(GUARD) == 1
        x = da.full(12, 2.0, chunks=3)
        assert blocks(client, x, "gathering", rows=1).sum().compute() == 24
    finally:
        cluster.run(lambda: os.environ.update(TCM_TURNS_DIR=mine), workers=elsewhere)
    assert gathering.most <= WORKERS


def test_a_worker_that_is_killed_costs_no_block_and_doubles_no_row(cluster, registered, serve, meeting):
    """The partitions of a frame run when it dies, and it takes finished blocks of an array with it."""
    client = registered(serve({"meeting": meeting, "plus": lambda arrays: {"y": arrays["x"] + 1}}))
    x = da.arange(60, chunks=3).astype(float)
    ddf = dd.from_dask_array(blocks(client, x, "plus"), columns="x").to_frame()
    y = infer_frame(ddf, "meeting", client=client, output_dtypes={"y": np.float64}).persist()
    for _ in range(WORKERS):
        assert meeting.arrived.acquire(timeout=GUARD)
    victim = min(cluster.run(os.getpid).values())
    os.kill(victim, signal.SIGKILL)
    meeting.go_on.set()
    found = y.compute()
    assert found["y"].tolist() == [2 * (each + 1) for each in range(60)]
    assert found.index.tolist() == list(range(60))
    assert len(meeting.rows) > 60  # what ran in the dead worker ran again
    cluster.wait_for_workers(WORKERS, timeout=GUARD)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_restart_of_the_manager_costs_time_only(cluster, registered, serve, meeting, how):
    manager = serve({"meeting": meeting}, linger=0.1)
    client = registered(manager)
    x = da.arange(60, chunks=3).astype(float)
    y = blocks(client, x).persist()
    for _ in range(WORKERS):
        assert meeting.arrived.acquire(timeout=GUARD)
    ended = threading.Thread(target=getattr(manager, how))
    ended.start()
    meeting.go_on.set()
    ended.join(GUARD)
    port = int(manager.uri.rpartition(":")[2].partition("/")[0])
    serve({"meeting": meeting}, port=port)
    assert y.compute().tolist() == [2 * each for each in range(60)]


def test_an_error_of_a_block_comes_back_whole(cluster, registered, serve):
    def picky(arrays):
        if 25 in arrays["x"]:
            raise RuntimeError("no")
        return {"y": arrays["x"]}

    client = registered(serve({"picky": picky}), retry=None)
    future = cluster.compute(blocks(client, da.arange(40, chunks=10), "picky"))
    wait(future, timeout=GUARD)
    error = future.exception()
    assert isinstance(error, InferenceError)
    assert error.message.startswith("block 2, which begins at row 20: ")
    assert (error.model_name, error.route) == ("picky", client._defaults.route)
