"""Turns: how many messages may wait at the manager's scheduler at the same time.

The manager passes a few messages of a tenant on in each tick, those of the oldest sockets first
(docs/wire.rst, "Timing"). What is beyond that waits there, and the youngest socket waits for seconds. So
callers wait here instead, first come first served: in one wait queue for all threads of a process, and in the
table of turns (turn_table.py) for all processes of a user.

A caller takes its turn last, right before the first byte, and the turn ends with the reply or by its age:
a message that has been scheduled needs no turn, however long its model runs.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import deque
from math import inf
from time import monotonic_ns
from typing import TYPE_CHECKING

from tcm_sync._locks import OnceEvent, RLock
from tcm_sync._pool.process_table import ProcessTable
from tcm_sync._pool.turn_file import TableBusyError, TableError, TurnRecord
from tcm_sync._pool.turn_table import PRESENT_NS, TICK_NS, Claim, Table
from tcm_sync._process import register_hooks
from tcm_sync.errors import ClientClosedError, PoolTimeoutError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from tcm_sync._deadline import Deadline
    from tcm_sync.events._watch import Watch

#: After which a message is held to be scheduled: a tick and a round trip.
SHORT_AGE_NS = TICK_NS + 1_000_000
#: The same where replies come within little more than a tick: one that is missing was not scheduled. If its
#: turn ended, five others would follow in every tick, and a young socket would wait for as long as they do.
LONG_AGE_NS = 5 * TICK_NS
_QUICK_MODEL = 0.015  # seconds within which replies come that wait for little more than the tick
# A manager with a tick answers within this time too, where a request comes right before a tick, as all those
# of a camera may. But a request that is sent after one such reply is answered a tick later. Eight in a row
# that are answered sooner come from a manager without a tick.
_BELOW_TICK = 0.0025  # seconds
_LESS_THAN_A_TICK = TICK_NS / 2e9
_RUN_WITHOUT_TICK = 8
_RUN_WITH_TICK = -32  # this many slower replies in a row, after which turns are taken again
_MAX_BUSY = 3  # claims in a row that find the table's lock taken, after which none is made for a while
_BUSY_PAUSE_NS = 100_000_000
_OVERDUE_NS = 10**9  # the first waiter tries every few milliseconds, unless its thread does not run
_MAX_TARGETS = 256  # whose times are remembered


class Turn:
    """The right to have one message wait at the manager's scheduler."""

    __slots__ = ("_turns", "slot", "until", "waited")

    def __init__(self, turns: Turns, until: int) -> None:
        self._turns = turns
        self.until = until
        self.slot: int | None = None  # in the table, if it is in one
        self.waited = 0.0  # seconds that the caller waited for it

    def release(self) -> None:
        """End it, if it has not ended yet: the manager has scheduled the message."""
        self._turns.end(self)


class _Waiter:
    """A caller that waits for a turn."""

    __slots__ = ("_sleep", "since", "thread", "tries_by")

    def __init__(self, since: int) -> None:
        self.since = since
        self.tries_by = since + _OVERDUE_NS  # as the first one; later than that, others pass it over
        self.thread = threading.get_ident()
        self._sleep = threading.Lock()  # guards nothing: it is held until the waiter is woken
        self._sleep.acquire()

    def wake(self) -> None:
        """Have it try again."""
        with contextlib.suppress(RuntimeError):  # it was woken before
            self._sleep.release()

    def sleep(self, seconds: float) -> None:
        """Sleep until woken, or for so long."""
        self._sleep.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))


class Turns:
    """The turns at one manager and tenant, in this process.

    Parameters
    ----------
    key : int
        Identifies manager and tenant, in 64 bits.
    count : int
        How many turns there are.
    table : ProcessTable
        The table of this process.
    """

    def __init__(self, key: int, count: int, table: ProcessTable) -> None:
        self._key = key
        self._process_table = table
        self.count = count
        self.others = 0  # other processes that were seen last
        self._run = 0  # replies in a row that show that there is no tick; below 0: that are not quick
        self._quick_at = -inf  # when the quick reply came that the next ones are compared with
        self.is_needed = True  # whether the manager has a tick
        self._quickest: dict[Hashable, float] = {}  # seconds of the quickest recent replies, by target
        self._begin()
        register_hooks(self)

    def _begin(self) -> None:
        self._owner = secrets.randbits(63) | 1
        self._lock = RLock()  # guards what follows; the table's lock is taken inside it
        self._table: Table | None = None  # kept open by this reference, while there are users
        self._users: set[int] = set()  # the ids of the runtimes that take turns; each step is atomic
        self._waiters: deque[_Waiter] = deque()
        self._held: dict[Turn, None] = {}  # the turns of this process, the oldest first
        self._pause_ns = 0  # after which the first waiter tries again
        # While no other process has arrived, and until when, this one need not enter its turns in the table.
        self._alone_at: int | None = None
        self._alone_until = 0
        self._busy = 0  # claims in a row for which the table's lock was not free in time
        self._busy_until = 0  # until when none is made, since a process that was stopped may hold that lock

    def after_fork(self) -> None:
        """Start empty: turns and waiters are the parent's."""
        self._begin()

    def join(self, user: object) -> None:
        """Record one more user."""
        self._users.add(id(user))

    def leave(self, user: object) -> None:
        """Record that a user takes no more turns. It takes no lock: a finalizer may call it."""
        self._users.discard(id(user))
        if not self._users:
            self._table = None

    def at_exit(self) -> None:
        """Do nothing: what this process has in the table ends by its time."""

    # --- what a call does ---

    def acquire(
        self,
        target: Hashable,
        deadline: Deadline,
        closed: OnceEvent,
        watch: Watch | None = None,
    ) -> Turn | None:
        """Wait for a turn, first come first served.

        Parameters
        ----------
        target : hashable
            The route and model whose recent replies say how long the turn may last.
        deadline : Deadline
            Of the wait.
        closed : OnceEvent
            Set when the client is closed, before `wake_all` is called.
        watch : Watch, optional
            What reports a wait, if there are listeners.

        Returns
        -------
        Turn or None
            None where none is needed: the manager has no tick.

        Raises
        ------
        PoolTimeoutError
            The deadline passed first.
        ClientClosedError
            The client was closed meanwhile.
        """
        if not self.is_needed:
            return None
        age = LONG_AGE_NS if self._quickest.get(target, 0.0) < _QUICK_MODEL else SHORT_AGE_NS
        waiter = None
        try:
            with self._lock:
                now = monotonic_ns()  # and not before: the lock may be held for milliseconds, the table's too
                is_first = not self._waiters
                if is_first and (turn := self._take(now, now, age)) is not None:
                    return turn
                waiter = _Waiter(now)
                # Each loop here is over a copy, since a signal handler may change the queue meanwhile.
                if any(each.thread == waiter.thread for each in list(self._waiters)):
                    return None  # a signal handler interrupted a waiter, which waits for this call
                self._waiters.append(waiter)
            if watch is not None:
                watch.waits("turn")
            return self._wait(waiter, age, deadline, closed, tried=is_first)
        except BaseException:
            if waiter is not None:
                self._remove(waiter)
            raise

    def replied(self, target: Hashable, sent: float, received: float) -> None:
        """Note when a request was sent and its good reply received, in seconds of one clock."""
        seconds = received - sent
        if seconds < _BELOW_TICK:
            if self._run >= _RUN_WITHOUT_TICK:
                return  # the usual reply of a manager without a tick
            if self._shows_no_tick(sent, received):
                run = self._run = max(0, self._run) + 1  # a local name, since other threads count too
                if run == _RUN_WITHOUT_TICK:
                    self.is_needed = False
                    self.wake_all()
        elif self._run > _RUN_WITH_TICK:
            run = self._run = min(0, self._run) - 1
            if run == _RUN_WITH_TICK:
                self.is_needed = True
        quickest = self._quickest.get(target)
        if quickest is None or seconds < quickest:
            if quickest is None and len(self._quickest) >= _MAX_TARGETS:
                self._quickest.clear()
            self._quickest[target] = seconds
        else:
            self._quickest[target] = quickest + (seconds - quickest) / 16

    def _shows_no_tick(self, sent: float, received: float) -> bool:
        """Whether a quick reply came too soon after another one for a tick to lie between them."""
        before = self._quick_at
        if sent < before and received - before < _LESS_THAN_A_TICK:
            return False  # both may be of one tick; a later reply is compared with the first
        self._quick_at = received
        return received - before < _LESS_THAN_A_TICK

    def end(self, turn: Turn) -> None:
        """End a turn. One that has ended by its age is no longer held."""
        with self._lock:
            if turn in self._held:
                del self._held[turn]
                if turn.slot is not None:
                    self._release_in_table(turn, turn.slot)
                if self._waiters:
                    self._waiters[0].wake()

    def wake_all(self) -> None:
        """Have all that wait look around: a client was closed, or the manager turned out to have no tick."""
        with self._lock:
            for waiter in list(self._waiters):
                waiter.wake()

    def waiting(self) -> int:
        """Count the callers of this process that wait."""
        return len(self._waiters)

    # --- the wait queue of this process ---

    def _wait(
        self, waiter: _Waiter, age: int, deadline: Deadline, closed: OnceEvent, *, tried: bool
    ) -> Turn | None:
        """Try whenever it is time, as the first waiter; sleep until woken, as another one."""
        while True:
            with self._lock:
                if waiter not in self._waiters:
                    return None  # it was passed over, or this is a forked child and the waiter the parent's
                self._pass_over(waiter)
                pause = _OVERDUE_NS / 1e9
                if self._waiters[0] is waiter:
                    turn = None if tried else self._take(monotonic_ns(), waiter.since, age)
                    if turn is not None or not self.is_needed:
                        self._remove(waiter, served=turn is not None)
                        if turn is not None:
                            turn.waited = (monotonic_ns() - waiter.since) / 1e9
                        return turn
                    pause = self._pause_ns / 1e9
                    waiter.tries_by = monotonic_ns() + self._pause_ns + _OVERDUE_NS
                tried = False
            if closed.is_set():
                raise ClientClosedError("the client was closed while the call waited for its turn to send")
            left = deadline.remaining()
            if left is not None and left <= 0.0:
                raise self._timeout(waiter)
            waiter.sleep(pause if left is None else min(pause, left))

    def _remove(self, waiter: _Waiter, *, served: bool = False) -> None:
        """Take a waiter out of the queue; the next one tries for itself."""
        with self._lock:
            if waiter not in self._waiters:
                return
            was_first = self._waiters[0] is waiter
            self._waiters.remove(waiter)
            if not self._waiters:
                if not served:
                    self._withdraw()
            elif was_first:
                self._waiters[0].tries_by = monotonic_ns() + _OVERDUE_NS
                self._waiters[0].wake()

    def _pass_over(self, waiter: _Waiter) -> None:
        """Take a first waiter before `waiter` out of the queue whose thread does not run, as in a handler."""
        first = self._waiters[0]
        if first is not waiter and first.tries_by < monotonic_ns():
            self._remove(first)

    def _timeout(self, waiter: _Waiter) -> PoolTimeoutError:
        waited = (monotonic_ns() - waiter.since) / 1e9
        sharers = f"{self.others + 1} processes" if self.others else "the callers of this process"
        return PoolTimeoutError(
            f"no turn to send came within {waited:.3g} s: {sharers} share {self.count} messages that may "
            "wait at the manager's scheduler at a time. Raise timeout or pool_timeout, or send more rows"
        )

    def _take(self, now: int, since: int, age: int) -> Turn | None:
        """Take a turn for a caller that came at `since`; if there is none, set when to try again."""
        held = self._held
        if len(held) >= self.count:
            for turn in list(held):
                if turn.until <= now:
                    held.pop(turn, None)
            if len(held) >= self.count:
                self._pause_ns = max(0, min((turn.until for turn in list(held)), default=now) - now)
                return None
        claim = self._claim(now, since, age)
        if claim is not None and claim.slot is None:
            self._pause_ns = claim.pause_ns
            return None
        turn = Turn(self, now + age)
        if claim is not None:
            turn.slot, turn.until = claim.slot, claim.until
        held[turn] = None
        return turn

    # --- the table; without one this process keeps to the limit by itself ---

    def _claim(self, now: int, since: int, age: int) -> Claim | None:
        """Claim a turn in the table; None if there is no table now."""
        if now < self._busy_until:
            return None
        try:
            if self._is_alone(now):
                return None
            table = self._table = self._process_table.get() if self._users else None
            if not self._users:  # the last one left meanwhile
                self._table = None
            if table is None:
                return None
            claim = table.claim(self._key, self._owner, since, turns=self.count, age_ns=age)
        except TableError as error:
            self._failed(error)
            return None
        self._busy = 0
        self.others = claim.others
        self._alone_at = None if claim.others else claim.arrivals
        self._alone_until = now + PRESENT_NS // 2
        return claim

    def _is_alone(self, now: int) -> bool:
        """Whether no other process has arrived since the last claim, which was not long ago.

        When one does, this process may have up to `count` turns that are not in the table: for one tick there
        can be twice as many.
        """
        table = self._table
        if table is None or self._alone_at is None or now >= self._alone_until:
            return False
        return table.arrivals() == self._alone_at

    def _release_in_table(self, turn: Turn, slot: int) -> None:
        table = self._table
        if table is not None:
            try:
                table.release(slot, TurnRecord(self._key, self._owner, turn.until))
            except TableError as error:
                self._failed(error)

    def _withdraw(self) -> None:
        table = self._table
        if table is not None:
            try:
                table.withdraw(self._key, self._owner)
            except TableError as error:
                self._failed(error)

    def _failed(self, error: TableError) -> None:
        """Continue without the table: until the next claim if it was only busy, since records end by time."""
        if not isinstance(error, TableBusyError):
            self._process_table.failed(error)
            self._table = None
            return
        self._busy += 1
        if self._busy >= _MAX_BUSY:  # each call has waited 5 ms for it
            self._busy_until = monotonic_ns() + _BUSY_PAUSE_NS
