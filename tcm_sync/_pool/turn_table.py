"""The table of turns: a file in shared memory, in which the processes of one user share a manager's turns.

It has two kinds of records. Each process has one for each manager that it sends to: until when the process
counts as present, and since when its first caller has been waiting. Each turn that is taken has one: whose
it is, and until when. Every record ends by its time, so a process that is killed, stopped or forked delays
the others by the age of one turn, and leaves nothing to clean up.

The file is read and written with pread and pwrite, since a mapping of a file that somebody truncates raises
SIGBUS. Whatever is wrong with the file raises a `TableError`, and the caller goes on without the table.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic_ns, sleep
from typing import NamedTuple, TypeVar

from tcm_sync._process import watch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: The form of the file. Another form gets another number, here and in the name.
MAGIC = b"tcmturn1"
FILE = "turns-1"
_HEADER = struct.Struct("<8s16sQ")  # form, boot, time namespace
_USED = struct.Struct("<II")  # how many records of processes and of turns are in use; the rest is not read
_PROCESS = struct.Struct("<QQqqq")  # the fields of `Process`
_TURN = struct.Struct("<QQq")  # the fields of `Taken`
_ARRIVALS_AT = 40  # where the number of processes that have arrived is, modulo 2 ** 64
_USED_AT = 48
_TURNS_AT = 64
MOST_PROCESSES, MOST_TURNS = 1024, 512
_PROCESSES_AT = _TURNS_AT + MOST_TURNS * _TURN.size
SIZE = _PROCESSES_AT + MOST_PROCESSES * _PROCESS.size

TICK_NS = 10_000_000  # between two rounds of the manager's scheduler (docs/wire.rst, "Timing")
GRACE_NS = 2_500_000  # how late a process may ask again and still keep its place in the order
_SHORTEST_PAUSE_NS = 1_000_000  # between two claims of a process that is among the next to be served
PRESENT_NS = 10 * 10**9  # for which a process counts as present after a claim
_LOCK_NS = 5_000_000  # the longest wait for the lock, which is held for some tens of microseconds
_LONGEST_NS = 60 * 10**9  # what ends later than this is damaged, or of another clock

Result = TypeVar("Result")


class TableError(Exception):
    """The table cannot be used."""


class TableDeletedError(TableError):
    """The file was deleted; a new one can be made."""


class TableBusyError(TableError):
    """The table's lock could not be taken in time; the next claim may find it free."""


class Process(NamedTuple):
    """A process that sends to a manager. All times are in nanoseconds of the monotonic clock."""

    key: int
    owner: int
    present_until: int
    since: int  # when its first caller began to wait; 0 if none waits
    asks_by: int  # until when others leave it its place in the order


class Taken(NamedTuple):
    """A turn that is taken."""

    key: int
    owner: int
    until: int


class Claim(NamedTuple):
    """The result of a claim.

    Attributes
    ----------
    place : int or None
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

    place: int | None
    until: int
    pause_ns: int
    others: int
    arrivals: int


class Table:
    """One open table. A process has one for all its clients: closing a second descriptor drops its locks.

    Parameters
    ----------
    folder : str
        Made with mode 0700 if it is missing. Another user's, or one that others may enter, is refused.
    clock : callable
        `time.monotonic_ns`, or a test's.

    Raises
    ------
    TableError
        The file cannot be made or used.
    """

    def __init__(self, folder: str, clock: Callable[[], int] = monotonic_ns) -> None:
        # Guards the file against other threads, as its record lock does against other processes.
        self._lock = threading.RLock()
        self._inside = False  # whether a thread is between taking and releasing the record lock
        self._clock = clock
        self._descriptor = _Descriptor()
        try:
            if fcntl is None:
                raise TableError("this system has no record locks")
            _check_folder(folder)
            self._descriptor.open(os.path.join(folder, FILE))
            self._alone(self._prepare)
        except (OSError, ValueError) as error:
            self.close()
            raise TableError(f"{folder}: {error}") from error
        except BaseException:
            self.close()
            raise
        watch(self)

    @property
    def _file(self) -> int:
        return self._descriptor.number

    def close(self) -> None:
        """Close the descriptor. Every later use is a TableError."""
        self._descriptor.close()

    def after_fork(self) -> None:
        """Close the inherited descriptor: a child opens a table of its own."""
        self.close()

    def at_exit(self) -> None:
        """Do nothing: every record of this process ends by its time."""

    # --- what callers do ---

    def arrivals(self) -> int:
        """Return how many processes have arrived so far: one short read, without the lock."""
        try:
            found = os.pread(self._descriptor.number, 8, _ARRIVALS_AT)
        except OSError as error:
            raise TableError(f"the table of turns cannot be used: {error}") from error
        if len(found) != 8:
            raise TableError("the table of turns was cut short")
        return int.from_bytes(found, "little")

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
        return self._alone(lambda: self._claim(key, owner, since, turns, age_ns))

    def release(self, place: int, turn: Taken) -> None:
        """End a turn, unless it has ended by its age and its place is another's."""
        self._alone(lambda: self._release(place, turn))

    def withdraw(self, key: int, owner: int) -> None:
        """Stop waiting: the caller gave up."""
        self._alone(lambda: self._withdraw(key, owner))

    def taken(self, key: int) -> list[Taken]:
        """Return the turns at one manager that are taken now."""
        turns = self._alone(lambda: self._read(self._clock())[1])
        return [each for each in turns.values() if each.key == key]

    # --- the same, under the lock ---

    def _claim(self, key: int, owner: int, since: int, turns: int, age_ns: int) -> Claim:
        now = self._clock()
        processes, taken = self._read(now)
        place = _place_of(processes, key, owner)
        mine = None if place is None else processes[place]
        others = [each for each in processes.values() if each.key == key and each.owner != owner]
        older = sum(0 < each.since < since and now < each.asks_by for each in others)
        present = now + PRESENT_NS
        if sum(each.key == key for each in taken.values()) + older >= turns:
            pause = pause_ns(older, turns)
            self._put_process(processes, place, Process(key, owner, present, since, now + pause + GRACE_NS))
            return Claim(None, 0, pause, len(others), self.arrivals())
        if mine is None or mine.since or mine.present_until < now + PRESENT_NS // 2:
            self._check_name()
            self._put_process(processes, place, Process(key, owner, present, 0, 0))
        turn = _free(taken, MOST_TURNS)
        self._put_turn(taken, turn, Taken(key, owner, now + age_ns))
        return Claim(turn, now + age_ns, 0, len(others), self.arrivals())

    def _release(self, place: int, turn: Taken) -> None:
        at = _TURNS_AT + place * _TURN.size
        if os.pread(self._file, _TURN.size, at) == _TURN.pack(*turn):
            self._write(at, bytes(_TURN.size))

    def _withdraw(self, key: int, owner: int) -> None:
        processes, _ = self._read(self._clock())
        place = _place_of(processes, key, owner)
        if place is not None and processes[place].since:
            self._put_process(processes, place, processes[place]._replace(since=0, asks_by=0))

    # --- the file ---

    def _prepare(self) -> None:
        """Write the header of a new file, or of one that is left from an earlier boot.

        Raises
        ------
        TableError
            It is another file, or its times are those of another clock.
        """
        header = _header()
        found = os.pread(self._file, _HEADER.size, 0)
        if found == header and os.fstat(self._file).st_size == SIZE:
            return
        if not header.startswith(found):  # neither ours nor cut short
            if not found.startswith(MAGIC):
                raise TableError(f"{FILE} is not a table of turns")
            if found.startswith(header[:24]):
                raise TableError(f"{FILE} has the times of another time namespace")
        os.ftruncate(self._file, 0)
        os.ftruncate(self._file, SIZE)
        self._write(0, header)

    def _check_name(self) -> None:
        """Refuse a file that was deleted: processes that start now use another one."""
        if os.fstat(self._file).st_nlink == 0:
            raise TableDeletedError("the file of the table of turns was deleted")

    def _alone(self, work: Callable[[], Result]) -> Result:
        """Do `work` under the table's lock: a record lock, which ends with its process and is not a child's.

        It is no context manager: an interrupt at its beginning would leave the locks held for as long as
        somebody keeps the traceback. A signal handler that finds its own thread inside goes on without the
        table.
        """
        with self._lock:
            if self._inside:
                raise TableBusyError("this thread is using it")
            try:
                try:
                    self._inside = True
                    self._take_record_lock()
                    return work()
                finally:
                    self._inside = False
                    fcntl.lockf(self._descriptor.number, fcntl.LOCK_UN, 1)
            except (OSError, ValueError) as error:  # a ValueError if it was closed
                raise TableError(f"the table of turns cannot be used: {error}") from error

    def _take_record_lock(self) -> None:
        ends = self._clock() + _LOCK_NS
        for _ in range(200):  # the clock of a test may stand still
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            except (BlockingIOError, PermissionError):
                if self._clock() >= ends:
                    break
                sleep(0.000_05)
            else:
                return
        raise TableBusyError("another process has held the lock of the table of turns for 5 ms")

    def _read(self, now: int) -> tuple[dict[int, Process], dict[int, Taken]]:
        """Return the processes that are present and the turns that are taken, by their places.

        What ends far in the future, or began in it, is damaged or of another clock, and counts as absent.
        """
        used = _USED.unpack(self._part(_USED_AT, _USED.size))
        if used[0] > MOST_PROCESSES or used[1] > MOST_TURNS:
            raise TableError("the table of turns is damaged")
        processes = self._part(_PROCESSES_AT, used[0] * _PROCESS.size)
        turns = self._part(_TURNS_AT, used[1] * _TURN.size)
        latest = now + _LONGEST_NS
        return (
            {
                place: Process(*fields)
                for place, fields in enumerate(_PROCESS.iter_unpack(processes))
                if now < fields[2] <= latest and fields[3] <= now
            },
            {
                place: Taken(*fields)
                for place, fields in enumerate(_TURN.iter_unpack(turns))
                if now < fields[2] <= latest
            },
        )

    def _part(self, start: int, size: int) -> bytes:
        found = os.pread(self._file, size, start)
        if len(found) != size:
            raise TableError("the table of turns was cut short")
        return found

    def _put_process(self, processes: dict[int, Process], place: int | None, record: Process) -> None:
        """Write a record of a process, in a free place if it has none."""
        if place is None:
            place = _free(processes, MOST_PROCESSES)
            self._write(_USED_AT, struct.pack("<I", max(place, max(processes, default=0)) + 1))
            arrivals = (self.arrivals() + 1) % 2**64
            self._write(_ARRIVALS_AT, arrivals.to_bytes(8, "little"))
        self._write(_PROCESSES_AT + place * _PROCESS.size, _PROCESS.pack(*record))

    def _put_turn(self, taken: dict[int, Taken], place: int, record: Taken) -> None:
        used = max(place, max(taken, default=0)) + 1
        self._write(_USED_AT + 4, struct.pack("<I", used))
        self._write(_TURNS_AT + place * _TURN.size, _TURN.pack(*record))

    def _write(self, at: int, data: bytes) -> None:
        if os.pwrite(self._file, data, at) != len(data):
            raise TableError("there is no room to write the table of turns")


class _Descriptor:
    """A descriptor that is closed with its table.

    The table itself has no `__del__`: while one ran, a weak reference would still give the table away.
    """

    number = -1
    _file: io.FileIO | None = None

    def open(self, path: str) -> None:
        """Open a file of this user, made if it is missing, without following a link."""
        # A file object and not a descriptor, which an interrupt could lose before it is assigned.
        opener = partial(os.open, mode=0o600)
        try:
            self._file = io.FileIO(path, "x+", opener=opener)
        except FileExistsError:
            self._file = io.FileIO(path, "r+", opener=opener)
        self.number = self._file.fileno()
        found, named = os.fstat(self.number), os.lstat(path)
        if not stat.S_ISREG(named.st_mode) or found.st_uid != os.geteuid():
            raise TableError(f"{path}: it is another user's, or no regular file")

    def close(self) -> None:
        """Close it, if it is open."""
        self.number = -1
        if self._file is not None:
            self._file.close()

    __del__ = close


def pause_ns(older: int, turns: int) -> int:
    """Return when to claim again: 1 ms if the next round may serve it, a tick later for each full round.

    Parameters
    ----------
    older : int
        Processes that go first.
    turns : int
        How many are served in a tick.
    """
    return _SHORTEST_PAUSE_NS + max(0, older - turns + 1) * TICK_NS // turns


def _place_of(processes: dict[int, Process], key: int, owner: int) -> int | None:
    return next((at for at, each in processes.items() if each.key == key and each.owner == owner), None)


def _free(used: dict[int, Process] | dict[int, Taken], most: int) -> int:
    """Return the first place that is not used."""
    for place in range(most):
        if place not in used:
            return place
    raise TableError("the table of turns is full")


def _check_folder(folder: str) -> None:
    """Make the folder if it is missing; refuse one in which another user could put a file.

    In a folder that others can write to but that is sticky, as /dev/shm is, nobody else can replace it.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise TableError(f"{folder}: it is no folder, another user's, or others may enter it")


def _header() -> bytes:
    """Return the header, which says whose clock the times are of: that of a boot and a time namespace."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        boot = bytes.fromhex(file.read().decode().strip().replace("-", ""))
    try:
        namespace = os.stat("/proc/self/ns/time").st_ino
    except OSError:  # a kernel before 5.6
        namespace = 0
    return _HEADER.pack(MAGIC, boot, namespace)
