"""Forks at moments of a call, forks of forks, and many real interrupts in each state of a call."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from functools import partial

import pytest

from ..helpers.interrupts import Moments
from ..helpers.peer_scripts import ROUTE
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import GUARD, wait_for, wait_until
from .test_fork import Child, ask, forks, in_child


class HeldAt:
    """Calls in a thread of its own, and holds it at one moment inside the package, counted from 1.

    Attributes
    ----------
    reached : bool
        Whether the call lasted until that moment.
    """

    def __init__(self, moment, call):
        self.reached = False
        self._moment = moment
        self._stopped, self._go_on = threading.Event(), threading.Event()
        self._error = None
        self._call = call
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            with Moments(self._hold):
                self._call()
        except BaseException as error:  # noqa: BLE001 - raised in the test
            self._error = error
        finally:
            self._stopped.set()

    def _hold(self, number):
        if number == self._moment:
            self.reached = True
            self._stopped.set()
            wait_for(self._go_on)

    def __enter__(self):
        self._thread.start()
        wait_for(self._stopped)
        return self

    def __exit__(self, *_):
        self._go_on.set()
        self._thread.join(GUARD)
        if self._error is not None:
            raise self._error


@forks
@pytest.mark.parametrize("first", [False, True], ids=["on an open socket", "the first"])
def test_a_fork_at_moments_of_a_call_of_another_thread(serve, client_of, first):
    manager = serve()
    step = 11 if first else 5  # all of them take ten seconds
    client = None
    for moment in itertools.count(1, step):
        if client is None or first:
            client = client_of(manager, retry=None)
        if not first:
            ask(client)
        with HeldAt(moment, partial(ask, client)) as held:
            if held.reached:
                in_child(partial(ask, client))
        ask(client)
        if not held.reached:
            assert moment > 20
            return


@forks
def test_a_grandchild_and_its_parents_have_connections_of_their_own(serve, client_of):
    manager = serve()
    client = client_of(manager, retry=None)
    ask(client)

    def grandchild():
        ask(client)
        client.close()

    def child():
        in_child(grandchild)  # before this process has used the client
        ask(client)
        in_child(grandchild)
        ask(client)
        client.close()

    in_child(child)
    ask(client)
    stats = manager.stats()
    assert stats.messages == 6
    assert len(stats.uuids) == len(set(stats.uuids)) == 4
    assert stats.lost_replies == 0


@forks
def test_a_grandchild_outlives_its_parent(serve, client_of):
    """As the double fork of a daemon: the client is used where its maker's child has ended."""
    client = client_of(serve(), retry=None)
    ask(client)
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as answers:

        def child():
            parent = os.getpid()

            def grandchild():
                wait_until(lambda: os.getppid() != parent)
                ask(client)
                client.close()
                os.write(write, b"good")

            Child(grandchild)
            os._exit(0)

        with pytest.raises(EOFError):  # it leaves no result
            in_child(child)
        os.close(write)
        assert answers.read(4) == b"good"
        assert answers.read(1) == b""
    ask(client)


# --- interrupts ---

TIMES = int(os.environ.get("TCM_INTERRUPTS", "200"))  #: Of each state.


def interrupted(call, reached):
    """Interrupt a call that does not end by itself, again and again, each time in the same state.

    If a signal comes just before the interpreter blocks, its handler runs only when the wait is over: signals
    are sent until one has raised.
    """
    main = threading.main_thread().ident
    raised = threading.Event()

    def interrupt(number):
        wait_until(lambda: reached(number))
        while not raised.is_set():
            signal.pthread_kill(main, signal.SIGINT)
            raised.wait(0.05)

    def once(*_):
        if not raised.is_set():
            raised.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, once)
    try:
        for number in range(1, TIMES + 1):
            raised.clear()
            thread = threading.Thread(target=interrupt, args=(number,))
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                call()
            thread.join(GUARD)
    finally:
        signal.signal(signal.SIGINT, before)


def never_shakes_hands(connection):
    connection.sock.settimeout(None)  # the test ends it
    connection.read_handshake()
    connection.wait_eof()


def never_answers(connection):
    connection.welcome()
    while connection.recv_request():
        pass


def test_many_interrupts_while_a_call_waits_for_a_connection(client_of, gated, serve):
    client = client_of(serve(), pool_size=1)
    waiters = client.open()._core.runtime.pool.state.waiters
    busy = threading.Thread(target=client.infer, args=("gated", {"x": [1.0]}))
    busy.start()
    wait_until(lambda: client.stats().busy == 1)
    interrupted(partial(ask, client), lambda _: len(waiters) == 1)
    assert len(waiters) == 0
    gated.open_all()
    busy.join(GUARD)
    ask(client)
    assert client.stats().sockets_opened == 1


def test_many_interrupts_while_a_connection_is_being_opened(client_of):
    with ScriptedPeer(never_shakes_hands) as peer:
        client = client_of(peer, route=ROUTE, connect_timeout=GUARD)
        client.open(wait=False)
        wait_until(lambda: peer.connections)
        waiters = client._core.runtime.pool.state.waiters
        interrupted(partial(ask, client), lambda _: len(waiters) == 1)
        assert len(waiters) == 0
        assert len(peer.connections) <= 4
        client.close()


def test_many_interrupts_while_a_reply_is_waited_for(client_of):
    with ScriptedPeer(never_answers) as peer:
        client = client_of(peer, route=ROUTE)
        interrupted(partial(ask, client), lambda number: peer.requests == number)
        assert peer.requests == TIMES
        assert not client._core.runtime.reader.pending
        assert client.stats().busy == 0
        client.close()
