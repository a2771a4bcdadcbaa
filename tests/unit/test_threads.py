"""Threads of the client: what a start that hangs, an interrupt, the exit and a fork do to others."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from tcm_sync import ClientClosedError, ConnectFailedError, _process, _threads
from tcm_sync._calls.worker_threads import Workers
from tcm_sync._process import register_hooks, start_thread
from tcm_sync._reentry import Callers
from tcm_sync._threads import DaemonThreads

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import ask, connect, echo
from ..helpers.scripted_peer import ScriptedPeer


class Unborn(threading.Thread):
    """A thread that begins to start, and is started no sooner than the test lets it."""

    def __init__(self):
        super().__init__(target=lambda: None)
        self.beginning, self.let = threading.Event(), threading.Event()

    def start(self):
        self.beginning.set()
        self.let.wait(TIMEOUT)
        super().start()


def test_a_thread_that_does_not_get_started_holds_up_no_other():
    unborn, other = Unborn(), threading.Thread(target=lambda: None)
    starter = threading.Thread(target=start_thread, args=(unborn,))
    second = threading.Thread(target=start_thread, args=(other,))
    starter.start()
    try:
        assert unborn.beginning.wait(TIMEOUT)
        second.start()
        second.join(TIMEOUT / 2)
        assert not second.is_alive()
    finally:
        unborn.let.set()
        for thread in (starter, second, unborn, other):
            thread.join(TIMEOUT)


class Ending:
    """Something that takes part in the end of the process."""

    def __init__(self):
        self.ended = 0

    def after_fork(self):
        pass

    def at_exit(self):
        self.ended += 1


def test_what_is_made_while_the_process_ends_does_not_disturb_the_end(monkeypatch):
    monkeypatch.setattr(_process, "_exiting", False)
    before, made = [Ending() for _ in range(3)], []
    for each in before:
        register_hooks(each)

    def make(frame, event, arg):
        sys.setprofile(None)
        made.append(Ending())
        register_hooks(made[-1])
        sys.setprofile(make)

    sys.setprofile(make)
    try:
        _process._at_exit()
    finally:
        sys.setprofile(None)
    assert [each.ended for each in before] == [1, 1, 1]
    assert made
    with pytest.raises(RuntimeError, match="ending"):
        start_thread(threading.Thread(target=lambda: None))


def test_the_end_waits_for_a_thread_that_is_being_started(monkeypatch):
    monkeypatch.setattr(_process, "_exiting", False)
    monkeypatch.setattr(_process, "_START_TIMEOUT", TIMEOUT)
    unborn = Unborn()
    starter = threading.Thread(target=start_thread, args=(unborn,))
    starter.start()
    assert unborn.beginning.wait(TIMEOUT)
    end = threading.Thread(target=_process._at_exit)
    end.start()
    unborn.let.set()
    end.join(TIMEOUT / 2)
    assert not end.is_alive()
    for thread in (starter, unborn):
        thread.join(TIMEOUT)


def interrupted(thread):
    raise KeyboardInterrupt


def interrupted_late(thread):
    """Leave a thread that exists and never begins: it waits for the lock of `Thread.start`'s event."""
    thread._ident = 1
    raise KeyboardInterrupt


@pytest.mark.parametrize("interrupted", [interrupted, interrupted_late])
@pytest.mark.parametrize("then", ["close", "submit"])
def test_workers_whose_thread_was_never_started_close_and_continue(monkeypatch, then, interrupted):
    workers = Workers(1, Callers())
    with monkeypatch.context() as patch:
        patch.setattr(_threads, "start_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            workers.submit(lambda: 7)
    if then == "submit":
        assert workers.submit(lambda: 8).result(TIMEOUT) == 8
    workers.close()
    workers.join(TIMEOUT)
    with pytest.raises(ClientClosedError):
        workers.submit(lambda: 9)


def test_jobs_run_in_their_order_and_not_at_all_once_withdrawn_or_stopped():
    threads = DaemonThreads("tcm-sync-test", 1)
    ran, let = [], threading.Event()
    assert threads.submit(lambda: let.wait(TIMEOUT))
    for key in "abcd":
        assert threads.submit(lambda key=key: ran.append(key), key=key)
    threads.withdraw("b")
    done = threading.Event()
    assert threads.submit(done.set)
    let.set()
    assert done.wait(TIMEOUT)
    assert ran == ["a", "c", "d"]
    threads.join(TIMEOUT)
    assert threads.is_idle()
    assert threads.stop() == []
    assert not threads.submit(lambda: ran.append("e"))


def test_a_job_that_a_finalizer_withdraws_while_the_next_one_is_looked_up_disturbs_no_other():
    class Finalized(dict):
        """Jobs of which the first is withdrawn, once, by a finalizer that runs after `iter`."""

        def __iter__(self):
            found = super().__iter__()
            self.pop("a", None)
            return found

    threads, done = DaemonThreads("tcm-sync-test", 1), threading.Event()
    threads._jobs = Finalized(a=lambda: None)
    assert threads.submit(done.set, key="b")
    assert done.wait(TIMEOUT)
    threads.stop()
    threads.join(TIMEOUT)


def test_a_task_for_which_there_is_no_thread_is_refused_and_never_done(monkeypatch):
    def no_more(thread):
        raise RuntimeError("can't start new thread")

    workers, done = Workers(1, Callers()), []
    with monkeypatch.context() as patch:
        patch.setattr(_threads, "start_thread", no_more)
        with pytest.raises(ConnectFailedError, match="no thread to make the call with"):
            workers.submit(lambda: done.append(1))
    assert workers.submit(lambda: 7).result(TIMEOUT) == 7
    assert done == []
    workers.close()
    workers.join(TIMEOUT)


def test_a_job_that_comes_as_the_idle_thread_ends_is_run():
    threads, run = DaemonThreads("tcm-sync-test", 1, idle=TIMEOUT), threading.Event()
    wait = threads._changed.wait

    def give_up(timeout):
        threads._changed.wait = wait
        threads.submit(run.set)  # by whoever had the lock when the time was over
        return False

    threads._changed.wait = give_up
    threads.submit(lambda: None)
    try:
        assert run.wait(TIMEOUT)
    finally:
        threads.stop()
        threads.join(TIMEOUT)


def test_closing_workers_ends_what_waits_and_cancelling_takes_it_out():
    workers = Workers(1, Callers())
    let = threading.Event()
    first = workers.submit(lambda: let.wait(TIMEOUT))
    cancelled, waiting = workers.submit(lambda: 1), workers.submit(lambda: 2)
    assert cancelled.cancel()
    workers.close()
    with pytest.raises(ClientClosedError):
        waiting.result(TIMEOUT)
    with pytest.raises(CancelledError):
        cancelled.result(TIMEOUT)
    let.set()
    assert first.result(TIMEOUT)
    workers.join(TIMEOUT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_while_a_socket_is_handed_to_the_pool_closes_its_copy():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        statuses = []
        runtime = client._core.running()
        register = runtime.reader.register

        def fork_first(connection):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if connection.fileno() == -1 else 3)
            statuses.append(os.waitpid(pid, 0)[1])
            register(connection)

        runtime.reader.register = fork_first
        assert ask(client, 5.0) == 5.0
        assert statuses == [0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_waits_for_no_thread_that_its_parent_was_starting(monkeypatch):
    monkeypatch.setattr(_process, "_starting", {threading.Thread()})
    pid = os.fork()
    if pid == 0:
        os._exit(len(_process._starting))
    assert os.waitpid(pid, 0) == (pid, 0)
    assert len(_process._starting) == 1
