"""Many threads on few sockets: each answer belongs to its caller, whatever goes wrong meanwhile.

Two hundred times in a row, which takes a quarter of an hour:

    for i in $(seq 200); do python -m pytest -q tests/client/test_threads.py || break; echo "pass $i"; done
"""

from __future__ import annotations

import contextlib
import itertools
import random
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import CallTimeoutError, ConnectFailedError, PoolTimeoutError, RetryPolicy, TcmClient

from ..helpers.waiting import GUARD, wait_until

THREADS = 32
SOCKETS = 4
#: Repeats what was lost until it is answered, without pauses that a test would wait for.
STUBBORN = RetryPolicy(attempts=1000, initial=0.001, maximum=0.002)

_numbers = itertools.count(1)  # nobody asks with a number that another call has asked with


def sleepy(arrays):
    """Take up to 4 ms, which differ from call to call, so that replies overtake each other."""
    time.sleep(int(arrays["x"].flat[0]) % 5 * 0.001)
    return {"y": arrays["x"] * 3 + 1}


def ask(client, model="sleepy", timeout=GUARD):
    """Ask with unique numbers, and check that the answer is the answer to them."""
    first = next(_numbers) * 8
    x = np.arange(first, first + random.randint(1, 8)).reshape(1, -1)
    y = client.infer(model, {"x": x}, timeout=timeout)["y"]
    assert y.tolist() == (x * 3 + 1).tolist(), "the answer is another caller's"


def crowd(work, count=THREADS):
    """Have so many threads do the same, and raise what any of them raised."""
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work) for _ in range(count)]
    for future in futures:
        future.result()


@pytest.fixture
def manager(serve):
    meeting = threading.Barrier(SOCKETS)

    def meet(arrays):
        """Answer once as many requests are under way as there are sockets."""
        meeting.wait(GUARD)
        return sleepy(arrays)

    return serve({"sleepy": sleepy, "meet": meet}, workers=2 * SOCKETS)


@contextlib.contextmanager
def client_of(manager, proxy=None):
    """Make a client; in the end every socket of its pool must still be of use, all of them at once."""
    uri = manager.uri if proxy is None else proxy.uri
    with TcmClient(uri, route=manager.route, pool_size=SOCKETS, max_requests=50, retry=STUBBORN) as client:
        yield client
        if proxy is not None:
            proxy.calm = True
        crowd(lambda: ask(client, "meet"), SOCKETS)


def test_each_answer_belongs_to_its_caller(manager):
    with client_of(manager) as client:
        crowd(lambda: [ask(client) for _ in range(30)])
    stats = manager.stats()
    assert stats.executions == {"sleepy": THREADS * 30, "meet": SOCKETS}
    assert stats.lost_replies == 0
    assert len(set(stats.uuids)) == len(stats.uuids) > SOCKETS
    assert stats.connections - len(stats.uuids) <= 2  # closed while they were being opened


def at_work(stats):
    """Count what a manager has to do or may still read: of sockets that were closed, too."""
    return stats.connected + stats.waiting + stats.running


def ask_in_haste(client, outcomes):
    """Ask again and again, half of the time with a timeout that may be too short."""
    for _ in range(20):
        timeout = random.choice([random.uniform(0.001, 0.03), GUARD])
        try:
            ask(client, timeout=timeout)
        except (TimeoutError, ConnectionError) as error:
            assert timeout < GUARD
            outcomes.append(type(error))


def test_late_replies_reach_nobody(manager):
    outcomes = []
    with client_of(manager) as client:
        crowd(lambda: ask_in_haste(client, outcomes))
    wait_until(lambda: not at_work(manager.stats()), "what was given up has come, and run as well")
    counts = Counter(outcomes)
    assert set(counts) <= {CallTimeoutError, PoolTimeoutError, ConnectFailedError}
    assert 0 < manager.stats().lost_replies <= counts[CallTimeoutError]


class CuttingProxy:
    """Passes on what clients and a manager say, and cuts each connection somewhere, often inside a message.

    Attributes
    ----------
    calm : bool
        Whether nothing more is cut.
    cuts : int
        How many connections were cut.
    """

    def __init__(self, manager):
        self._manager = manager
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ending = self.calm = False
        self.cuts = 0
        self.uri = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/ws"
        self._threads = [threading.Thread(target=self._accept, name="proxy-accept")]
        self._threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ending = True
        socket.create_connection(self._listener.getsockname()).close()
        for thread in self._threads:
            thread.join(GUARD)
            assert not thread.is_alive()

    def _accept(self):
        with self._listener:
            while True:
                client, _ = self._listener.accept()
                if self._ending:
                    client.close()
                    return
                thread = threading.Thread(target=self._pass_on, args=(client,), name="proxy")
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, client):
        manager = socket.create_connection(("127.0.0.1", self._manager.port))
        to = {client: manager, manager: client}
        with client, manager, contextlib.suppress(OSError):
            for left in itertools.count(random.randrange(1, 80), -1):
                end = select.select(to, [], [])[0][0]
                piece = end.recv(2**16)
                if not piece:
                    return
                if left <= 0 and not self.calm:
                    self.cuts += 1
                    to[end].sendall(piece[: random.randrange(len(piece))])
                    if random.random() < 0.5:  # a reset, and not an end of the stream
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                to[end].sendall(piece)


def test_connections_cut_at_random_cost_no_call(manager):
    with CuttingProxy(manager) as proxy, client_of(manager, proxy) as client:
        crowd(lambda: [ask(client) for _ in range(20)])
    assert proxy.cuts > 0


class Interrupter:
    """Raises KeyboardInterrupt in the main thread at random moments of a call that it is given."""

    def __init__(self):
        self.count = 0
        self._exposed = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send, name="interrupter")

    def __enter__(self):
        self._handler = signal.signal(signal.SIGINT, self._raise)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        signal.signal(signal.SIGINT, self._handler)

    def _send(self):
        while not self._over.wait(random.uniform(0.0, 0.008)):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def _raise(self, _signal, _frame):
        if self._exposed:
            self._exposed = False
            self.count += 1
            raise KeyboardInterrupt

    def may_interrupt(self, call):
        """Call, and return when it has returned or was interrupted."""
        try:
            self._exposed = True
            call()
            self._exposed = False
        except KeyboardInterrupt:
            pass


# An interrupt that strikes inside a finalizer can only be reported by the interpreter.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_calls_lose_nothing(manager):
    with client_of(manager) as client, Interrupter() as interrupter:
        for _ in range(300):
            interrupter.may_interrupt(lambda: ask(client))
    assert interrupter.count > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_timeouts_cuts_and_interrupts_together(manager):
    outcomes = []
    with CuttingProxy(manager) as proxy, client_of(manager, proxy) as client:
        with ThreadPoolExecutor(THREADS) as pool, Interrupter() as interrupter:
            futures = [pool.submit(ask_in_haste, client, outcomes) for _ in range(THREADS - 1)]
            while not all(future.done() for future in futures):
                interrupter.may_interrupt(lambda: ask(client))
        for future in futures:
            future.result()
    assert min(proxy.cuts, len(outcomes), interrupter.count) > 0
