"""The table of turns: how the processes of one user share a manager's turns, first come first served.

A process claims a turn for the caller that has waited longest in it (its ticket is since when). A free turn
goes to the oldest ticket of all processes; a process without one claims again after a pause, and one that
is late in claiming again is passed over. The records are in a file in shared memory (turn_file.py).
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import NamedTuple

from tcm_sync._pool.turn_file import ProcessRecord, TurnFile, TurnRecord
from tcm_sync._process import register_hooks

TICK_NS = 10_000_000  # between two rounds of the manager's scheduler (docs/wire.rst, "Timing")
GRACE_NS = 2_500_000  # how late a process may ask again and still keep its place in the order
_MIN_PAUSE_NS = 1_000_000  # between two claims of a process that is among the next to be served
PRESENT_NS = 10 * 10**9  # for which a process counts as present after a claim


class Claim(NamedTuple):
    """The result of a claim.

    Attributes
    ----------
    slot : int or None
        Where the turn is in the table; None if there is none now.
    until : int
        When the turn ends by its age.
    pause_ns : int
        After which time to claim again, if there is no turn now.
    others : int
        How many other processes send to the same manager.
    arrivals : int
        How many processes have arrived so far, for any manager.
    """

    slot: int | None
    until: int
    pause_ns: int
    others: int
    arrivals: int


class Table:
    """One open table. A process has one for all its clients.

    It has no `__del__`, which its file has: while one ran, a weak reference would still return the table.

    Parameters
    ----------
    folder : str
        Of the file. It is made if it is missing; another user's, or one that others may enter, is refused.
    clock : callable
        `time.monotonic_ns`, or a test's.

    Raises
    ------
    TableError
        The file cannot be made or used.
    """

    def __init__(self, folder: str, clock: Callable[[], int] = monotonic_ns) -> None:
        self._clock = clock
        self._file = TurnFile(folder, clock)
        #: Returns how many processes have arrived so far. No method of its own: every request calls it.
        self.arrivals = self._file.arrivals
        self.identity = self._file.identity
        register_hooks(self)

    def close(self) -> None:
        """Close the file. Every later use is a TableError."""
        self._file.close()

    def after_fork(self) -> None:
        """Close the inherited file: a child opens a table of its own."""
        self.close()

    def at_exit(self) -> None:
        """Do nothing: every record of this process ends by its time."""

    def claim(self, key: int, owner: int, since: int, *, turns: int, age_ns: int) -> Claim:
        """Take a turn if there is one that no process with an older ticket waits for.

        Parameters
        ----------
        key, owner : int
            Of the manager and tenant, and of this process.
        since : int
            When the caller began to wait: the ticket.
        turns : int
            How many turns there are.
        age_ns : int
            After which the turn ends by itself.

        Returns
        -------
        Claim
            Without a turn, this process must claim again after `pause_ns` to keep its place in the order.

        Raises
        ------
        TableError
            The table is damaged or full, or cannot be written.
        """
        return self._file.locked(lambda: self._claim(key, owner, since, turns, age_ns))

    def _claim(self, key: int, owner: int, since: int, turns: int, age_ns: int) -> Claim:
        now = self._clock()
        processes, taken = self._file.read(now)
        slot = _slot_of(processes, key, owner)
        mine = None if slot is None else processes[slot]
        others = [each for each in processes.values() if each.key == key and each.owner != owner]
        older = sum(0 < each.since < since and now < each.asks_by for each in others)
        present = now + PRESENT_NS
        if sum(each.key == key for each in taken.values()) + older >= turns:
            pause = pause_ns(older, turns)
            waits = ProcessRecord(key, owner, present, since, now + pause + GRACE_NS)
            self._file.put_process(processes, slot, waits)
            return Claim(None, 0, pause, len(others), self.arrivals())
        if mine is None or mine.since or mine.present_until < now + PRESENT_NS // 2:
            self._file.check_not_deleted()
            self._file.put_process(processes, slot, ProcessRecord(key, owner, present, 0, 0))
        turn = self._file.put_turn(taken, TurnRecord(key, owner, now + age_ns))
        return Claim(turn, now + age_ns, 0, len(others), self.arrivals())

    def release(self, slot: int, turn: TurnRecord) -> None:
        """End a turn, unless it has ended by its age and its slot is another's."""
        self._file.locked(lambda: self._file.clear_turn(slot, turn))

    def withdraw(self, key: int, owner: int) -> None:
        """Stop waiting: the caller gave up."""
        self._file.locked(lambda: self._withdraw(key, owner))

    def _withdraw(self, key: int, owner: int) -> None:
        processes, _ = self._file.read(self._clock())
        slot = _slot_of(processes, key, owner)
        if slot is not None and processes[slot].since:
            self._file.put_process(processes, slot, processes[slot]._replace(since=0, asks_by=0))

    def taken(self, key: int) -> list[TurnRecord]:
        """Return the turns at one manager that are taken now."""
        turns = self._file.locked(lambda: self._file.read(self._clock())[1])
        return [each for each in turns.values() if each.key == key]


def pause_ns(older: int, turns: int) -> int:
    """Return when to claim again: 1 ms if the next round may serve it, a tick later for each full round.

    Parameters
    ----------
    older : int
        Processes that go first.
    turns : int
        How many are served in a tick.
    """
    return _MIN_PAUSE_NS + max(0, older - turns + 1) * TICK_NS // turns


def _slot_of(processes: dict[int, ProcessRecord], key: int, owner: int) -> int | None:
    return next((at for at, each in processes.items() if each.key == key and each.owner == owner), None)
