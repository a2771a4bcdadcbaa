"""The reader's thread ends while there is nothing to read, and no caller who comes meanwhile hangs.

A real reader runs over a fake poller, under a scheduler that switches threads where they take a lock, note
themselves, or look at `is_reading`. Whoever gives the reader work that is never done hangs, and the scheduler
reports it.
"""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

import pytest

from tcm_sync._reentry import Callers
from tcm_sync._transport import reader as module
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.poller import READ
from tcm_sync._transport.reader import Reader

from ..helpers.scheduler import HangError, ReentrantLock, Scheduler, Threading, Workers

INTERLEAVINGS = 400


class SwitchingCallers(Callers):
    """Lets other threads run before and after a thread is noted, and before the reader looks."""

    def add(self, ident):
        self.scheduler.switch()
        super().add(ident)
        self.scheduler.switch()

    def __le__(self, others):
        self.scheduler.switch()
        alone = super().__le__(others)
        self.scheduler.switch()
        return alone


class SwitchingReader(Reader):
    """Lets other threads run wherever `is_reading` is read or set."""

    scheduler = SimpleNamespace(switch=lambda: None)
    reads = False

    @property
    def is_reading(self):
        self.scheduler.switch()
        return self.reads

    @is_reading.setter
    def is_reading(self, value):
        self.scheduler.switch()
        self.reads = value


class IgnoringCallers(SwitchingReader):
    """Has the mistake that it is suspended while somebody is inside."""

    def _suspend_if_idle(self):
        with self._waker_lock:
            self.is_reading = False
            self._suspend()
            return True


class SayingSoLate(SwitchingReader):
    """Has the mistake that it looks for callers before it says that it does not read."""

    def _suspend_if_idle(self):
        with self._waker_lock:
            if self._commands or not self.callers <= {module.threading.get_ident()}:
                return False
            self.is_reading = False
            self._suspend()
            return True


class Pipe:
    """Both ends of a socket pair: the bytes that were sent and not read."""

    def __init__(self):
        self.waiting, self.closed = 0, False

    def setblocking(self, _):
        pass

    def fileno(self):
        return 3

    def send(self, data, _flags):
        assert not self.closed
        self.waiting += len(data)

    def recv(self, _size):
        self.waiting = 0

    def close(self):
        self.closed = True


class Thread:
    """Stands for a `threading.Thread`."""

    def __init__(self, target, name, daemon):
        self.target, self.alive = target, False

    def is_alive(self):
        return self.alive


class Model:
    """A reader and what it runs on."""

    def __init__(self, seed, workers, kind):
        self.scheduler = scheduler = Scheduler(seed)
        self.workers = workers
        self.threads = {}  # by task
        self.pipes = []
        self.client_lock = ReentrantLock(scheduler)
        self.callers = SwitchingCallers()
        self.callers.scheduler = scheduler
        threading = Threading(scheduler)
        threading.Thread = Thread
        threading.get_ident = lambda: id(scheduler.current)
        threading.current_thread = lambda: self.threads[scheduler.current]
        self.fakes = {
            "threading": threading,
            "RLock": threading.RLock,
            "monotonic": scheduler.monotonic,
            "make_poller": lambda: SimpleNamespace(
                register=lambda *_: None, poll=self.poll, close=lambda: None
            ),
            "start_thread": self.start,
            "socket": SimpleNamespace(socketpair=self.pair),
        }
        with self.faked():
            self.reader = kind(10.0, Counts(), self.callers)
        self.reader.scheduler = scheduler

    def faked(self):
        return patch.multiple(module, **self.fakes)

    def pair(self):
        self.pipes.append(Pipe())
        return self.pipes[-1], self.pipes[-1]

    def poll(self, seconds):
        pipe, scheduler = self.pipes[-1], self.scheduler
        assert not pipe.closed
        scheduler.switch(lambda: pipe.waiting > 0, scheduler.now + seconds)
        return [(3, READ)] if pipe.waiting else []

    def start(self, thread):
        def run():
            try:
                thread.target()
            finally:
                thread.alive = False

        task = self.scheduler.add(f"reader {len(self.threads) + 1}", run)
        self.threads[task] = thread
        thread.alive = True
        self.workers.begin(self.scheduler, task)
        self.scheduler.switch()

    def call(self):
        """Do what every call does: note the thread, have the reader started, give it work, wait."""
        ident, done = id(self.scheduler.current), []
        self.callers.add(ident)
        if not self.reader.is_reading:
            with self.client_lock:
                self.reader.start()
        self.reader.run_soon(lambda: done.append(True))
        self.scheduler.switch(lambda: bool(done))
        self.callers.discard(ident)

    def run(self, callers, calls):
        def work():
            for _ in range(calls):
                self.scheduler.sleep(self.scheduler.dice.choice((0.1, 4.9, 5.0, 5.1, 11.0)))
                self.call()

        for number in range(callers):
            self.scheduler.add(f"caller {number}", work)
        with self.faked():
            self.scheduler.run(self.workers)


def interleavings(kind):
    with Workers() as workers:
        for seed in range(INTERLEAVINGS):
            model = Model(seed, workers, kind)
            model.run(callers=3, calls=4)
            yield model


def test_a_call_that_meets_the_end_of_the_thread_is_served():
    threads = 0
    for model in interleavings(SwitchingReader):
        assert all(pipe.closed for pipe in model.pipes)  # at last it is suspended
        assert not model.reader.reads
        assert len(model.pipes) == len(model.threads)
        threads += len(model.threads)
    assert threads > 1.5 * INTERLEAVINGS  # it was suspended in between


@pytest.mark.parametrize("mistaken", [IgnoringCallers, SayingSoLate])
def test_these_interleavings_find_mistakes(mistaken):
    with pytest.raises(HangError):
        list(interleavings(mistaken))


def test_a_reader_that_is_stopped_while_it_rests_closes_what_comes_later():
    with Workers() as workers:
        model = Model(1, workers, SwitchingReader)
        model.run(callers=1, calls=1)
        closed = []
        model.reader.stop()
        model.reader.register(SimpleNamespace(reader=None, close=lambda: closed.append(True)))
        assert closed == [True]
        assert len(model.pipes) == 1
