"""The pool's code under a scheduler that switches threads at its locks, over a fake clock and fake sockets.

    python -m tests.helpers.pool_model --interleavings 100000 --seed 1

In each interleaving some callers acquire, hold, release, discard and lose leases while sockets die, the
manager ends and comes back, callers are interrupted, and the pool is closed or its process forks. After each
step no socket has two leases, and nobody waits for a socket that is idle. At the end none is lost.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import weakref
from collections import deque
from contextlib import contextmanager
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from tcm_sync import _deadline, _waiting
from tcm_sync._deadline import Deadline
from tcm_sync._pool import concurrency_limit, gate, inventory, opening, pool, pool_state, tenant_rate, waiters
from tcm_sync._pool.manager_state import ManagerState
from tcm_sync._pool.pool import Pool
from tcm_sync._pool.waiters import Waiter
from tcm_sync._transport.counters import PoolCounts
from tcm_sync.errors import (
    AuthenticationError,
    ClientClosedError,
    ConnectFailedError,
    PoolTimeoutError,
    ShuttingDownError,
    TcmError,
)
from tcm_sync.settings import Settings

from .scheduler import Scheduler, Task, Threading, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tcm_sync._pool.lease import Lease

_CLOCKED = (
    _deadline,
    _waiting,
    concurrency_limit,
    gate,
    inventory,
    opening,
    tenant_rate,
    pool,
    pool_state,
    waiters,
)
_LOCKING = (gate, tenant_rate, pool_state, waiters)
_EXPECTED = (PoolTimeoutError, ConnectFailedError, AuthenticationError, ShuttingDownError)


class Socket:
    """What the pool sees of a connection."""

    def __init__(self, number: int, now: float) -> None:
        self.uuid = f"u-{number}"
        self.pool: Any = None
        self.closing = self.closed = self.abandoned = self.replacing = False
        self.closing_reason: str | None = None
        self.opened_at = self.idle_since = now
        self.leased_at: float | None = None
        self.lease: weakref.ref[Any] | None = None
        self.on_lease_lost: Any = None
        self.epoch = self.requests = self.messages_sent = self.bytes_sent = self.max_requests = 0
        self.lifetime_ends_at = inf
        self.jitter = 1.0
        self.sent_at: deque[float] = deque(maxlen=16)

    def shut_down(self) -> None:
        """Do nothing: the reader closes it."""

    def close(self) -> None:
        self.closed = True

    def close_inherited(self) -> None:
        self.abandoned = True


class FakeReader:
    """Runs what the pool leaves to the reader's thread, on a task of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._commands: deque[Callable[[], None]] = deque()
        self._due = inf
        self.pool: Pool

    def register(self, connection: Socket) -> None:
        """Do nothing: nobody sends anything."""

    def run_soon(self, command: Callable[[], None]) -> None:
        self._commands.append(command)

    def close(self, connection: Socket, reason: str) -> None:
        self.run_soon(lambda: self.end(connection, reason))

    def wake_at(self, when: float) -> None:
        if when < self._due:
            self.run_soon(lambda: self._set_due(when))

    def _set_due(self, when: float) -> None:
        self._due = min(self._due, when)

    def end(self, connection: Socket, reason: str) -> None:
        if not connection.closed:
            connection.closing = True
            self.pool.lost(cast("Any", connection), reason)
            connection.close()

    def run(self, is_over: Callable[[], bool]) -> None:
        scheduler = self._scheduler
        while not is_over():
            scheduler.switch(
                lambda: bool(self._commands) or self._due <= scheduler.now or is_over(), self._due
            )
            if self._due <= scheduler.now:
                self._due = inf
                self._set_due(self.pool.on_timer(scheduler.now))
            for _ in range(len(self._commands)):
                self._commands.popleft()()


class FakeConnector:
    """Runs the jobs that open sockets, on two tasks."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._jobs: deque[Callable[[], None]] = deque()
        self._running = 0
        self._stopped = False
        self.may_refuse = True

    def submit(self, job: Callable[[], None]) -> None:
        if self.may_refuse and self._scheduler.dice.random() < 0.01:
            raise RuntimeError("can't start new thread")
        if not self._stopped:
            self._jobs.append(job)

    def ensure_thread(self) -> None:
        """Do nothing: the tasks are there."""

    def is_idle(self) -> bool:
        return not self._jobs and not self._running

    def stop(self) -> None:
        self._stopped = True
        self._jobs.clear()

    def run(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            self._scheduler.switch(lambda: bool(self._jobs) or is_over())
            if self._jobs:
                job = self._jobs.popleft()
                self._running += 1
                job()
                self._running -= 1


class FakeManager:
    """Opens sockets, or fails to."""

    def __init__(self, scheduler: Scheduler, failures: float) -> None:
        self._scheduler = scheduler
        self.failures = failures  # how often opening fails
        self.delays = (0.0, 0.01, 0.5)  # how long it takes
        self.sockets: list[Socket] = []
        self.endpoint = SimpleNamespace(authority="fake")
        self.credentials = SimpleNamespace(running=str)

    def open(self, *, was_draining: bool, ask_ready: bool) -> Socket:
        scheduler, dice = self._scheduler, self._scheduler.dice
        scheduler.sleep(dice.choice(self.delays))
        if dice.random() < self.failures:
            raise dice.choice((ConnectFailedError, ConnectFailedError, AuthenticationError))("planned")
        self.sockets.append(Socket(len(self.sockets), scheduler.now))
        return self.sockets[-1]

    def opened(self, connection: Socket) -> None:
        """Do nothing: no opening is aborted here."""


class Model:
    """One interleaving, which a seed decides."""

    def __init__(self, seed: int) -> None:
        self.scheduler = Scheduler(seed)
        dice = self.dice = self.scheduler.dice
        self.size = dice.randint(1, 3)
        self.order = 0  # of the waiters so far
        self.queued: weakref.WeakSet[Any] = weakref.WeakSet()  # leases that were waited for
        self.holders: set[Socket] = set()
        self.kept: list[BaseException] = []
        self.busy = 0  # tasks that the auditor waits for
        self.closed = self.over = False
        self.reader = FakeReader(self.scheduler)
        self.connector = FakeConnector(self.scheduler)
        self.manager = FakeManager(self.scheduler, dice.choice((0.0, 0.0, 0.2)))

    def run(self, workers: Workers) -> int:
        """Run it; return how often threads were switched."""
        with self._patched():
            settings = Settings(
                "ws://fake/ws",
                pool_timeout=self.dice.choice((None, 0.3)),
                max_requests=self.dice.choice((1, 3, 10_000)),
                max_idle=60.0,
            )
            self.pool = self.reader.pool = Pool(
                settings,
                cast("Any", self.manager),
                cast("Any", self.connector),
                cast("Any", self.reader),
                ManagerState("fake"),
                PoolCounts(),
                size=self.size,
                setting="pool_size",
            )
            self.state = self.pool.state
            self._watch_leases()
            self.scheduler.check = self.check
            self._add_tasks()
            self.scheduler.run(workers)
        return self.scheduler.switches

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Have the pool's modules take their time, their locks and their waiters from here."""
        model, fake = self, Threading(self.scheduler)

        class OrderedWaiter(Waiter):
            """Checks that it is served in its turn."""

            __slots__ = ("place",)

            def __init__(self, lease: Lease, *args: Any, **kwargs: Any) -> None:
                super().__init__(lease, *args, **kwargs)
                model.order += 1
                self.place = model.order
                model.queued.add(lease)

            def resolve(self, connection: Any, error: TcmError | None = None) -> None:
                if connection is not None:
                    model.check_turn(self)
                super().resolve(connection, error)

        patches = [
            *(patch.object(module, "monotonic", self.scheduler.monotonic) for module in _CLOCKED),
            # One step, so that a wait for ever is seen: steps are for signals, and there are none.
            *(patch.object(module, "MAX_STEP", inf) for module in (_waiting, gate, pool)),
            *(patch.object(module, "threading", fake) for module in _LOCKING if hasattr(module, "threading")),
            *(patch.object(module, "RLock", fake.RLock) for module in _LOCKING if hasattr(module, "RLock")),
            *(patch.object(module, "log", SilentLog()) for module in (gate, opening, pool)),
            *(patch.object(module, "random", self.dice) for module in (gate, inventory)),
            patch.object(pool, "Waiter", OrderedWaiter),
        ]
        for each in patches:
            each.start()
        try:
            yield
        finally:
            for each in patches:
                each.stop()

    def _watch_leases(self) -> None:
        """Check that no caller gets an idle socket while another one waits for it."""
        acquire = self.state.inventory.acquire

        def checked(connection: Any, lease: Lease, **kwargs: Any) -> None:
            assert connection.lease is None, "a socket got a second lease"
            assert lease in self.queued or not self.state.waiters, "a caller went before those who wait"
            acquire(connection, lease, **kwargs)

        cast("Any", self.state.inventory).acquire = checked

    def _add_tasks(self) -> None:
        scheduler, dice = self.scheduler, self.dice
        scheduler.add("reader", lambda: self.reader.run(self._is_over))
        for number in (1, 2):
            scheduler.add(f"connector {number}", lambda: self.connector.run(self._is_over))
        for number in range(dice.randint(2, 5)):
            task = self._add(f"caller {number}", self._call)
            task.interrupts = dice.choice((0.0, 0.0, 0.03, 0.1))
        self._add("network", self._disturb)
        if dice.random() < 0.15:
            self._add("closer", self._close)
        elif dice.random() < 0.1:
            self._add("fork", self._fork)
        scheduler.add("auditor", self._audit)

    def _add(self, name: str, run: Callable[[], None]) -> Task:
        """Add a task that the auditor waits for."""

        def counted() -> None:
            try:
                run()
            finally:
                self.busy -= 1

        self.busy += 1
        return self.scheduler.add(name, counted)

    def _is_over(self) -> bool:
        return self.over

    # --- the tasks ---

    def _call(self) -> None:
        for _ in range(self.dice.randint(1, 3)):
            try:
                self._call_once()
            except ClientClosedError:
                if not self.closed:
                    raise
            except (KeyboardInterrupt, *_EXPECTED) as error:
                self.kept.append(error)  # with its traceback, whose frames may hold a lease

    def _call_once(self) -> None:
        dice = self.dice
        deadline = Deadline(dice.choice((0.0, 0.2, 1.0, 20.0)))
        lease = self.pool.acquire(
            deadline, waits_for_manager=dice.random() < 0.8, streaming=dice.random() < 0.25
        )
        try:
            socket = cast("Any", lease.connection)
            assert socket not in self.holders, "two callers hold one socket"
            self.holders.add(socket)
            try:
                self.scheduler.sleep(dice.choice((0.0, 0.0, 0.1, 2.0)))
            finally:
                self.holders.discard(socket)
            end = dice.random()
            if end < 0.7:
                lease.release(used=dice.random() < 0.9)
            elif end < 0.8:
                lease.discard("a reply was outstanding")
            elif end < 0.85:
                lease.discard_soon("its stream was left early")
            # or it is lost
        except BaseException:
            lease.discard("the call was interrupted")
            raise

    def _disturb(self) -> None:
        """Kill sockets, and end the manager."""
        dice = self.dice
        for _ in range(dice.randint(0, 4)):
            self.scheduler.sleep(dice.choice((0.0, 0.1, 1.0)))
            live = [socket for socket in self.manager.sockets if not socket.closed]
            if live and dice.random() < 0.7:
                victim = dice.choice(live)
                self.reader.run_soon(lambda victim=victim: self.reader.end(victim, "lost: reset"))
            elif live and dice.random() < 0.5:
                victim = cast("Any", dice.choice(live))
                self.pool.expire(victim, "not to be used any more")
            else:
                self.reader.run_soon(lambda: self.pool.manager_shuts_down(ShuttingDownError("planned")))

    def _close(self) -> None:
        self.scheduler.sleep(self.dice.choice((0.0, 0.3, 1.5)))
        self.closed = True
        if self.dice.random() < 0.5:
            self.pool.stop_accepting()
            self.pool.drain(Deadline(self.dice.choice((0.1, 10.0))))
        self.pool.close(ClientClosedError("planned"))
        for socket in self.manager.sockets:
            self.reader.close(socket, "the client was closed")

    def _fork(self) -> None:
        """Leave the pool as a forked child does: other threads may hold its locks for ever."""
        self.scheduler.sleep(self.dice.choice((0.0, 0.3, 1.5)))
        switches = self.scheduler.switches
        live = list(self.state.inventory.all.values())
        self.pool.close_inherited()
        for socket in cast("Any", live):
            lease = socket.lease and socket.lease()
            if lease is not None:
                self.pool.discard(socket, lease, "a child has no use for it")
        assert switches == self.scheduler.switches, "a child waited for a lock of its parent"
        assert all(socket.abandoned and not socket.closed for socket in cast("Any", live))
        self.scheduler.end()

    def _audit(self) -> None:
        """Wait for the callers, and see that all sockets are there."""
        scheduler, state = self.scheduler, self.state
        scheduler.switch(lambda: not self.busy)
        self.manager.failures, self.manager.delays = 0.0, (0.01,)
        self.connector.may_refuse, scheduler.early = False, 0.0
        scheduler.sleep(200.0)  # all gates let a probe through
        if not self.closed:
            leases = [self._acquire() for _ in range(self.size)]
            assert len({lease.connection for lease in leases}) == self.size
            for lease in leases:
                lease.release(used=False)
        scheduler.sleep(20.0)
        sockets = list(state.inventory.all.values())
        assert (len(state.waiters), state.inventory.leased_since()) == (0, [])
        assert self.closed or state.opening == 0
        assert sorted(map(id, state.inventory.idle)) == sorted(map(id, sockets))
        assert not state.inventory.with_streams
        assert not self.closed or not sockets
        left = [socket.uuid for socket in self.manager.sockets if not socket.closed]
        assert sorted(left) == sorted(state.inventory.all), "a socket was lost"
        self.over = True

    def _acquire(self) -> Lease:
        """Acquire a lease, as a caller does that tries again for half a minute.

        An interrupt may have lost the count of what is being opened, or a probe. The pool's second audit
        finds that, 10 seconds after the next call.
        """
        ends = self.scheduler.now + 30.0
        while True:
            try:
                return self.pool.acquire(Deadline(60.0))
            except _EXPECTED as error:
                if self.scheduler.now > ends:
                    raise AssertionError("no socket was opened though the manager is there") from error
                self.scheduler.sleep(1.0)

    # --- what is true whenever the lock of the state is free ---

    def check(self) -> None:
        state = self.state
        if cast("Any", state.lock).owner is not None:
            return
        held = state.inventory
        sockets = cast("dict[str, Socket]", held.all)
        idle = cast("deque[Socket]", held.idle)
        leaving = sum(s.replacing or s.closing_reason is not None for s in sockets.values())
        assert state.opening >= 0
        assert len(sockets) + state.opening <= self.size + leaving, "more sockets than there may be"
        assert len(set(idle)) == len(idle), "a socket is idle twice"
        for socket in sockets.values():
            assert (socket.leased_at is None) == (socket in idle) == (socket.lease is None)
        assert all(socket.uuid in sockets for socket in idle), "an idle socket is not there any more"
        assert len(held.with_streams) <= state.max_streams, "more streams than there may be"
        served = state.waiters.next(*state._left()) if state.waiters and idle else None
        assert served is None, "a caller waits for a socket that is idle"

    def check_turn(self, waiter: Any) -> None:
        """Check that nobody who could have had the socket came before `waiter`."""
        for other in cast("Any", self.state.waiters):
            assert other.streaming != waiter.streaming or other.place > waiter.place, "served out of turn"


class SilentLog:
    """Writes nothing: the threads that write are not the scheduler's."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def run(seeds: range, seconds: float = inf) -> tuple[int, int]:
    """Run the interleavings of these seeds, for so long at most; return how many, and their switches.

    Raises
    ------
    AssertionError
        One broke a rule; the message has its seed.
    """
    ends = time.monotonic() + seconds
    done = switches = 0
    gc.disable()  # it ends leases, and would do so at any moment
    try:
        with Workers() as workers:
            for seed in seeds:
                if time.monotonic() >= ends:
                    break
                try:
                    switches += Model(seed).run(workers)
                except BaseException as error:
                    raise AssertionError(f"the interleaving of seed {seed} failed: {error!r}") from error
                done += 1
                if done % 200 == 0:
                    gc.collect()
    finally:
        gc.enable()
    return done, switches


def main() -> int:
    """Run many, and print how many."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.helpers.pool_model")
    parser.add_argument("--interleavings", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="of the first one")
    parser.add_argument("--seconds", type=float, default=inf, help="end after so long")
    asked = parser.parse_args()
    began = time.monotonic()
    gc.freeze()
    done, switches = run(range(asked.seed, asked.seed + asked.interleavings), asked.seconds)
    taken = time.monotonic() - began
    print(
        f"{done:,} interleavings from seed {asked.seed}, {switches:,} switches of threads: none broke a rule "
        f"({taken:.0f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
