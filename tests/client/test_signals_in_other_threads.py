"""A signal that comes to another thread does not end the main thread's wait for a lock: Python's handler runs
between two steps of the wait. It is the same for a signal that comes right before the wait."""

from __future__ import annotations

import signal
import sys
import threading
import time

import pytest

from tcm_sync import BatchPolicy, TcmClient
from tcm_sync._waiting import acquire

from ..helpers.waiting import GUARD, wait_until

LONG = 100 * GUARD


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    patched = [
        monkeypatch.setattr(module, "MAX_STEP", 0.02)
        for name, module in list(sys.modules.items())
        if name.startswith("tcm_sync.") and hasattr(module, "MAX_STEP")
    ]
    assert len(patched) >= 6


class Scene:
    """A manager whose models wait until a signal is handled, and a client with one socket."""

    def __init__(self, serve):
        self.handled = threading.Event()
        self.rescued = False

        def hold(arrays):
            self.rescued |= not self.handled.wait(GUARD)
            return arrays

        def rows(arrays):
            yield "a"
            self.rescued |= not self.handled.wait(GUARD)
            yield "b"
            yield None

        self.manager = serve({"hold": hold, "rows": rows})
        self.client = TcmClient(self.manager.uri, route=self.manager.route, pool_size=1)

    def send_once(self, begun):
        """Have another thread get the signal once something has begun."""

        def send():
            wait_until(begun)
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

        self.sender = threading.Thread(target=send)
        self.sender.start()

    def is_running(self):
        return self.manager.stats().running == 1


@pytest.fixture
def scene(serve):
    scene = Scene(serve)
    before = signal.signal(signal.SIGUSR1, lambda *_: scene.handled.set())
    with scene.client:
        yield scene
        scene.sender.join()
    signal.signal(signal.SIGUSR1, before)
    assert not scene.rescued, "the handler did not run while the main thread waited"


X = {"x": [1.0]}


@pytest.mark.parametrize("timeout", [None, LONG])
def test_while_it_waits_for_a_reply(scene, timeout):
    scene.send_once(scene.is_running)
    assert scene.client.infer("hold", X, timeout=timeout)["x"].tolist() == [1.0]


def test_while_it_waits_for_a_socket(scene):
    other = threading.Thread(target=lambda: scene.client.infer("hold", X, timeout=LONG))
    other.start()
    wait_until(scene.is_running)
    scene.send_once(lambda: scene.client.stats().waiting == 1)
    assert scene.client.infer("hold", X, timeout=LONG)["x"].tolist() == [1.0]
    other.join()


@pytest.mark.parametrize("ordered", [True, False])
def test_while_it_waits_for_results_of_map(scene, ordered):
    scene.send_once(scene.is_running)
    assert len(list(scene.client.map("hold", [X, X], ordered=ordered, timeout=LONG))) == 2


def test_while_it_waits_for_a_chunk(scene):
    route = scene.manager.transient_route
    to = {"container_id": route.container_id, "vm_ip": route.vm_ip, "allow_transient": True}
    with scene.client.stream("rows", X, timeout=LONG, **to) as stream:
        assert next(stream) == "a"
        scene.send_once(lambda: stream._call._replies._waiting)
        assert list(stream) == ["b"]


def test_while_it_waits_for_the_batch_of_another_thread(scene):
    model = scene.client.model("hold", batch=BatchPolicy(max_size=2, max_wait=GUARD))
    other = threading.Thread(target=lambda: model.infer_sample(X, timeout=LONG))
    other.start()
    scene.send_once(scene.is_running)
    assert model.infer_sample(X, timeout=LONG)["x"].tolist() == [1.0]
    other.join()


@pytest.mark.parametrize(("seconds", "least"), [(0.0, 0.0), (0.01, 0.01), (0.05, 0.05)])
def test_a_wait_in_steps_lasts_as_long_as_it_should(seconds, least):
    lock = threading.Lock()
    assert acquire(lock, seconds)
    began = time.monotonic()
    assert not acquire(lock, seconds)
    assert time.monotonic() - began >= least
