"""Threads that a seed switches, and only where they take or release a lock: an interleaving can be repeated.

One thread runs at a time. Where it acquires or releases a lock, or waits, the scheduler picks the next.
Time is a number: it advances when all wait, or sooner by chance, so that a timeout can meet a hand-over.
"""

from __future__ import annotations

import random
import threading
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds that a wait lasts at least: one of less than the clock's rounding would be repeated for ever.
LEAST = 1e-6
#: Switches of an interleaving at most; the usual ones have a few hundred.
MAX_SWITCHES = 20_000


class HangError(AssertionError):
    """All threads wait, and for nothing that time brings."""


class AbandonedError(BaseException):
    """Ends the threads of an interleaving that is over."""


class Task:
    """One thread of an interleaving."""

    __slots__ = ("_baton", "error", "interrupts", "name", "ready", "run", "until")

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self.name = name
        self.run = run
        self.ready: Callable[[], bool] | None = None  # what it waits for
        self.until = inf  # for how long
        self.interrupts = 0.0  # how often a lock that it acquires raises KeyboardInterrupt
        self.error: BaseException | None = None
        self._baton = threading.Lock()
        self._baton.acquire()

    def go(self) -> None:
        self._baton.release()

    def stop(self) -> None:
        self._baton.acquire()


class Scheduler:
    """Runs tasks one at a time, in an order that `seed` decides.

    Attributes
    ----------
    now : float
        The time, in seconds.
    early : float
        How often, at a switch, time advances to the next timeout though somebody could run.
    check : callable
        Called whenever a lock is released.
    """

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.now = 1000.0
        self.early = 0.02
        self.check: Callable[[], None] = lambda: None
        self.switches = 0
        self.current: Task | None = None
        self.over = False
        self.error: BaseException | None = None
        self._tasks: list[Task] = []
        self._finished = threading.Lock()
        self._finished.acquire()

    def monotonic(self) -> float:
        """Return the time, in place of `time.monotonic`."""
        return self.now

    def add(self, name: str, run: Callable[[], None]) -> Task:
        """Have a task take part from the next switch on."""
        task = Task(name, run)
        self._tasks.append(task)
        return task

    def run(self, workers: Workers) -> None:
        """Run all tasks to their ends, each on a thread of `workers`; raise what the first to fail raised."""
        for task in self._tasks:
            workers.begin(self, task)
        self._pass_on()
        self._finished.acquire()
        self.current = None
        if self.error is not None:
            raise self.error

    def main(self, task: Task, done: Callable[[], None]) -> None:
        """Run one task, on a worker's thread, which then calls `done`."""
        task.stop()
        try:
            if not self.over:
                task.run()
        except AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            self.fail(error)
        self._tasks.remove(task)
        done()
        if self._tasks:
            self._pass_on()
        else:
            self._finished.release()

    def fail(self, error: BaseException) -> None:
        """End the interleaving with an error; the first one counts."""
        self.error = self.error or error
        self.over = True

    def end(self) -> None:
        """End the interleaving: the other tasks run no further."""
        self.over = True

    def switch(self, ready: Callable[[], bool] | None = None, until: float = inf) -> None:
        """Let another task run, and continue once `ready` is true or the time `until` has come."""
        task = self.current
        if task is None or self.over:  # outside of a task; or each task ends where it is
            if task is not None:
                raise AbandonedError
            return
        task.ready, task.until = ready, until
        self.switches += 1
        if self.switches > MAX_SWITCHES:
            self.fail(HangError("it does not end, though time goes by"))
        if self._pass_on(task):
            task.stop()
        task.ready, task.until = None, inf
        if self.over:
            raise AbandonedError

    def _pass_on(self, task: Task | None = None) -> bool:
        """Pick which task continues; return whether it is another one than `task`."""
        chosen = self._pick()
        self.current = chosen
        if chosen is task:
            return False
        chosen.go()
        return True

    def _pick(self) -> Task:
        tasks, dice = self._tasks, self.dice
        if self.over:
            return tasks[0]
        if dice.random() < self.early:
            self._advance()
        while True:
            able = [task for task in tasks if task.ready is None or task.until <= self.now or task.ready()]
            if able:
                return able[int(dice.random() * len(able))]
            if not self._advance():
                waiting = ", ".join(task.name for task in tasks)
                self.fail(HangError(f"these wait for ever: {waiting}"))
                return tasks[0]

    def _advance(self) -> bool:
        """Let time pass until the first timeout that is still to come; whether there is one."""
        first = min((task.until for task in self._tasks if task.until > self.now), default=inf)
        if first == inf:
            return False
        self.now = first
        return True

    def sleep(self, seconds: float) -> None:
        """Wait for so many seconds."""
        self.switch(lambda: False, self.now + seconds)


class Workers:
    """Threads that run the tasks of one interleaving after the other: starting new ones takes longer."""

    def __init__(self) -> None:
        self._all: list[_Worker] = []
        self._idle: list[_Worker] = []

    def begin(self, scheduler: Scheduler, task: Task) -> None:
        """Have a thread run a task once the scheduler picks it."""
        if not self._idle:
            worker = _Worker(self._idle)
            self._all.append(worker)
        else:
            worker = self._idle.pop()
        worker.begin(scheduler, task)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.end()


class _Worker:
    def __init__(self, idle: list[_Worker]) -> None:
        self._idle = idle
        self._jobs: list[tuple[Scheduler, Task]] = []
        self._called = threading.Lock()
        self._called.acquire()
        self._thread = threading.Thread(target=self._run, name="interleaving", daemon=True)
        self._thread.start()

    def begin(self, scheduler: Scheduler, task: Task) -> None:
        self._jobs.append((scheduler, task))
        self._called.release()

    def end(self) -> None:
        self._called.release()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._called.acquire()
            if not self._jobs:
                return
            scheduler, task = self._jobs.pop()
            scheduler.main(task, self._done)
            del scheduler, task

    def _done(self) -> None:
        self._idle.append(self)


class Threading:
    """Stands for the module `threading` in code whose locks a scheduler is to switch at."""

    TIMEOUT_MAX = threading.TIMEOUT_MAX

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def Lock(self) -> PlainLock:
        return PlainLock(self._scheduler)

    def RLock(self) -> ReentrantLock:
        return ReentrantLock(self._scheduler)

    def Condition(self, lock: ReentrantLock | None = None) -> Notified:
        return Notified(self._scheduler, lock or ReentrantLock(self._scheduler))


class PlainLock:
    """A `threading.Lock`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False

    def acquire(self, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        _interrupt(scheduler)
        if self._held:
            until = inf if timeout < 0 else scheduler.now + (max(timeout, LEAST) if timeout else 0.0)
            scheduler.switch(lambda: not self._held, until)
            if self._held:
                return False
            _interrupt(scheduler)
        self._held = True
        return True

    def release(self) -> None:
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self._held = False


class ReentrantLock:
    """A `threading.RLock`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.owner: Task | None = None
        self.depth = 0

    def acquire(self) -> bool:
        scheduler = self.scheduler
        me = scheduler.current
        if self.owner is not me or me is None:
            _interrupt(scheduler)
            scheduler.switch(self._is_free)
            if self.owner is not None:
                raise AssertionError("a lock was given to two threads")
            self.owner = me
        self.depth += 1
        return True

    def _is_free(self) -> bool:
        return self.owner is None

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        scheduler = self.scheduler
        if scheduler.over:
            return
        if self.owner is not scheduler.current:
            raise RuntimeError("cannot release un-acquired lock")
        self.depth -= 1
        if not self.depth:
            self.owner = None
            scheduler.check()
            if kind is None:  # or that exception would be replaced by another one
                scheduler.switch()
                _interrupt(scheduler)


class Notified:
    """A `threading.Condition`."""

    def __init__(self, scheduler: Scheduler, lock: ReentrantLock) -> None:
        self._scheduler = scheduler
        self._lock = lock
        self._notified = 0

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *reason):
        self._lock.__exit__(*reason)

    def wait(self, timeout: float | None = None) -> bool:
        seen, depth = self._notified, self._lock.depth
        self._lock.owner, self._lock.depth = None, 0
        until = inf if timeout is None else self._scheduler.now + max(timeout, LEAST)
        try:
            self._scheduler.switch(lambda: self._notified > seen, until)
        finally:
            if not self._scheduler.over:
                self._scheduler.switch(self._lock._is_free)
            self._lock.owner, self._lock.depth = self._scheduler.current, depth
        return self._notified > seen

    def notify_all(self) -> None:
        self._notified += 1


def _interrupt(scheduler: Scheduler) -> None:
    """Raise a KeyboardInterrupt in a task that is to be interrupted, once."""
    task = scheduler.current
    if task is not None and task.interrupts and scheduler.dice.random() < task.interrupts:
        task.interrupts = 0.0
        raise KeyboardInterrupt
