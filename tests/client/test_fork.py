"""A forked child starts with its own connections, and does not affect its parent."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import pickle
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import trustme

from tcm_sync import AuthContext, ConnectionLostError, TlsSettings, _process

from ..helpers.peer_connection import CLOSE, TEXT
from ..helpers.peer_scripts import echo as echoing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import GUARD, wait_until

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
linux = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are read from /proc")

_numbers = itertools.count(1)


def ask(client, model="echo"):
    """Ask with a number that no other call of this process has, and check the answer."""
    number = next(_numbers) * 100_000 + os.getpid() % 100_000
    assert client.infer(model, {"x": np.array([number])})["x"].tolist() == [number]


class Child:
    """A forked child that does some work, and hands over what came of it."""

    def __init__(self, work, fork=os.fork):
        self._outcome, end = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 and later warn of forks beside other threads; that this one works is the test.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = fork()
        if not self._pid:
            try:
                os.close(self._outcome)
                with open(end, "wb") as file:
                    file.write(pickle.dumps(_outcome_of(work)))
            finally:
                os._exit(0)
        os.close(end)

    def result(self):
        """Return what the work returned, or raise what it raised."""
        try:
            with open(self._outcome, "rb", buffering=0) as file:
                assert select.select([file], [], [], GUARD)[0], "the child hangs"
                value, error = pickle.load(file)
        finally:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        if error is not None:
            raise error
        return value


def _outcome_of(work):
    try:
        return work(), None
    except BaseException as error:  # noqa: BLE001 - raised in the parent
        return None, error


def in_child(work, fork=os.fork):
    return Child(work, fork).result()


@forks
def test_children_forked_under_load_do_their_own_and_the_parent_loses_nothing(serve, client_of):
    manager = serve()
    client = client_of(manager, retry=None)  # so that no lost reply is made up for
    over = threading.Event()

    def child():
        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(ask, client) for _ in range(20)]:
                future.result()
        client.close()

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(lambda: [ask(client) for _ in iter(over.is_set, True)]) for _ in range(8)]
        try:
            for _ in range(5):
                in_child(child)
        finally:
            over.set()
        answered = sum(len(future.result()) for future in asking)
    stats = manager.stats()
    assert stats.messages == stats.executions["echo"] == answered + 5 * 20
    assert stats.lost_replies == 0
    assert len(set(stats.uuids)) == len(stats.uuids) > 5


@forks
def test_a_child_has_a_reader_and_uuids_of_its_own(serve, client_of):
    manager = serve()
    client = client_of(manager, auth=AuthContext(uuid="mine"))
    ask(client)

    def child():
        before = threading.enumerate()
        ask(client)
        return [len(before), *(thread.name for thread in threading.enumerate() if thread not in before)]

    alone, *started = in_child(child)
    assert alone == 1
    assert "tcm-sync-reader" in started
    ask(client)
    ours, theirs = manager.stats().uuids
    assert ours != theirs
    assert manager.stats().messages == 3


def server_context():
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return authority, context


@forks
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("use", ["leaves", "calls", "closes", "collects"])
def test_nothing_is_written_on_an_inherited_socket(client_of, tmp_path, secure, use):
    authority, context = server_context() if secure else (None, None)
    settings = {}
    if secure:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        settings["tls"] = TlsSettings(ca_file=tmp_path / "ca.pem")

    def child():
        nonlocal client
        if use == "calls":
            assert client.infer("m", {"x": [[7.0]]})["y"].item() == 7.0
        if use in ("calls", "closes"):
            client.close()
        if use == "collects":
            client = None
            gc.collect()

    with ScriptedPeer(echoing, tls=context) as peer:
        client = client_of(peer, retry=None, **settings)
        for value in (1.0, 2.0):
            assert client.infer("m", {"x": [[value]]})["y"].item() == value
            in_child(child)
        assert client.infer("m", {"x": [[3.0]]})["y"].item() == 3.0
        first, *others = peer.connections
        assert [frame.opcode for frame in first.frames] == [TEXT] * 4  # auth and three requests
        assert len(others) == (2 if use == "calls" else 0)
        for connection in others:
            assert connection.over.wait(GUARD)
            assert [frame.opcode for frame in connection.frames] == [TEXT, TEXT, CLOSE]
        client.close()


def descriptors():
    """Return the numbers of the open descriptors of this process."""
    return {int(name) for name in os.listdir("/proc/self/fd") if is_open(int(name))}


def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def belongs_to(manager, number):
    if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
        return False
    with socket.socket(fileno=os.dup(number)) as end:
        return end.family == socket.AF_INET and end.getsockname()[1] == manager.port


def peer_of(number):
    """Return the address that a descriptor is connected with, or None."""
    if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
        return None
    with socket.socket(fileno=os.dup(number)) as end, contextlib.suppress(OSError):
        return end.getpeername()


def descriptors_of_a_client(manager, client):
    """Have the client open sockets, and return the numbers of all its descriptors."""
    before = descriptors()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ask(client), range(20)))
    wait_until(lambda: not client._core.runtime.pool.state.opening, "no socket is being opened")
    numbers = {number for number in descriptors() - before if not belongs_to(manager, number)}
    assert len(numbers) >= 4, "a socket, the selector, and the two ends that wake it"
    return numbers


def take(numbers):
    """Open files until these numbers are in use, and return theirs."""
    taken = set()
    while not numbers <= taken:
        taken.add(os.open(os.devnull, os.O_RDONLY))
        assert len(taken) < 1000
    return taken


@forks
@linux
def test_a_child_closes_all_descriptors_of_the_client_and_none_that_take_their_numbers(serve, client_of):
    manager = serve()
    client = client_of(manager)
    numbers = descriptors_of_a_client(manager, client)

    def child():
        inherited = [number for number in numbers if is_open(number)]
        taken = take(numbers)
        ask(client)
        client.close()
        gc.collect()
        return inherited, [number for number in taken if not is_open(number)]

    assert in_child(child) == ([], [])
    ask(client)


@forks
@linux
def test_a_child_closes_the_socket_of_a_probe_that_its_parent_waits_for(client_of):
    def sockets_of_the_probe():
        return [number for number in descriptors() if peer_of(number) == address]

    over = threading.Event()
    with ScriptedPeer(echoing) as peer, ThreadPoolExecutor(1) as thread:
        address = ("127.0.0.1", peer.port)
        peer.http["/health"] = lambda _: over.wait(GUARD)
        healthy = thread.submit(client_of(peer).health, timeout=GUARD)
        try:
            wait_until(sockets_of_the_probe, "the probe is connected")
            assert in_child(sockets_of_the_probe) == []
        finally:
            over.set()
        assert not healthy.result(GUARD)


@forks
@linux
def test_a_client_closed_before_the_fork_closes_nothing_in_the_child(serve, client_of):
    manager = serve()
    client = client_of(manager)
    numbers = descriptors_of_a_client(manager, client)
    client.close()
    taken = take(numbers)

    def child():
        client.close()
        gc.collect()
        return [number for number in taken if not is_open(number)]

    try:
        assert in_child(child) == []
    finally:
        for number in taken:
            os.close(number)


LOCK, RLOCK = type(threading.Lock()), type(threading.RLock())


def locks_in(thing, seen):
    """Yield every lock that can be reached from a client through objects of ours and of threading."""
    if id(thing) in seen or isinstance(thing, threading.Thread):
        return
    seen.add(id(thing))
    kind = type(thing)
    if isinstance(thing, (LOCK, RLOCK)):
        yield thing
        return
    if isinstance(thing, dict):
        parts = list(thing.values())
    elif isinstance(thing, (list, tuple, set, deque)):
        parts = list(thing)
    elif kind.__module__.partition(".")[0] in ("tcm_sync", "threading"):
        slots = [name for base in kind.__mro__ for name in vars(base).get("__slots__", ())]
        parts = [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, name, None) for name in slots)]
    else:
        parts = []
    for part in parts:
        yield from locks_in(part, seen)


@forks
def test_locks_that_are_held_at_the_fork_do_not_hold_up_the_child(serve, client_of):
    client = client_of(serve())
    ask(client)
    held = threading.Event()
    done = threading.Event()

    def hold():
        found = [_process._starts_lock, *locks_in(client, set())]  # another thread starts a third
        locks = [lock for lock in found if lock.acquire(blocking=False)]
        held.set()
        done.wait(GUARD)
        for lock in locks:
            lock.release()
        return len(locks)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        try:
            assert held.wait(GUARD)
            in_child(lambda: (ask(client), client.close()))
        finally:
            done.set()
        assert holding.result() >= 9  # the client's, the pool's, the gates', the connection's ...
    ask(client)


@forks
@pytest.mark.parametrize("ordered", [True, False])
def test_a_map_that_was_begun_before_a_fork_continues_in_the_parent_alone(serve, client_of, ordered):
    results = client_of(serve()).map("echo", [{"x": [number]} for number in range(40)], ordered=ordered)
    next(results)

    def failure_of_the_rest():
        try:
            return list(results)
        except ConnectionLostError as error:
            return error

    failure = in_child(failure_of_the_rest)
    assert isinstance(failure, ConnectionLostError)
    assert failure.outcome_unknown
    assert len(list(results)) == 39


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("ordered", [True, False])
def test_a_map_that_waits_when_a_signal_handler_forks_ends_in_the_child(serve, client_of, gated, ordered):
    results = client_of(serve()).map("gated", [{"x": [number]} for number in range(3)], ordered=ordered)
    gated.open(0)
    next(results)
    pids, ended = [], []
    before = signal.signal(signal.SIGALRM, lambda *_: pids.append(os.fork()))
    opening = threading.Thread(target=lambda: (wait_until(lambda: pids, "a fork"), gated.open_all()))
    opening.start()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        rest = list(results)
    except ConnectionLostError:
        os._exit(7)
    finally:
        if pids == [0]:
            os._exit(8)
        signal.signal(signal.SIGALRM, before)
        opening.join()
    try:
        wait_until(lambda: ended.append(os.waitpid(pids[0], os.WNOHANG)[1]) or ended[-1], "the child's end")
    except BaseException:
        os.kill(pids[0], signal.SIGKILL)
        os.waitpid(pids[0], 0)
        raise
    assert len(rest) == 2
    assert os.waitstatus_to_exitcode(ended[-1]) == 7


@forks
def test_a_socket_that_is_being_opened_stays_with_the_parent(client_of):
    forked = threading.Event()

    def slow(connection):
        connection.accept()
        auth_is_read.set()
        assert forked.wait(GUARD)
        connection.authenticate(["json"])
        while True:
            connection.reply({"y": connection.recv_request()["request"]["inputs"][0]["data"]})

    auth_is_read = threading.Event()
    with ScriptedPeer(slow, echoing) as peer, ThreadPoolExecutor(1) as pool:
        client = client_of(peer, connect_timeout=GUARD)
        waiting = pool.submit(client.infer, "m", {"x": [[1.0]]})
        assert auth_is_read.wait(GUARD)
        in_child(lambda: (client.infer("m", {"x": [[2.0]]}), client.close()))
        forked.set()
        assert waiting.result()["y"].item() == 1.0
        assert [connection.requests for connection in peer.connections] == [1, 1]
        client.close()


SCRIPT = """
import os, sys
from tcm_sync import Route, TcmClient

client = TcmClient(sys.argv[1], route=Route("local"), retry=None)
assert client.infer("echo", {"x": [1]})["x"].item() == 1
if not os.fork():
    assert client.infer("echo", {"x": [2]})["x"].item() == 2
    sys.exit(7)  # with all that the interpreter does in the end, and with the client open
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
assert client.infer("echo", {"x": [3]})["x"].item() == 3
client.close()
"""


@forks
def test_a_child_that_exits_does_not_disturb_its_parent(serve):
    manager = serve()
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT, manager.uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * GUARD, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(manager.stats().uuids) == 2
    assert manager.stats().messages == 3
