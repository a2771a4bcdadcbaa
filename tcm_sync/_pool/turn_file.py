"""The file of the table of turns: its format, its lock, and how its records are read and written.

It has two kinds of records. Each process has one for each manager that it sends to: until when the process
counts as present, and since when its first caller has been waiting. Each turn that is taken has one: whose
it is, and until when. Every record ends by its time, so a process that is killed, stopped or forked delays
the others by the age of one turn, and leaves nothing to clean up.

The file is read and written with pread and pwrite, since a mapping of a file that a process truncates raises
SIGBUS. Whatever is wrong with the file raises a `TableError`, and the caller continues without the table.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import struct
from collections.abc import Callable
from functools import partial
from time import sleep
from typing import NamedTuple, TypeVar

from tcm_sync._locks import RLock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: The form of the file. Another form gets another number, here and in the name.
MAGIC = b"tcmturn1"
FILE = "turns-1"
_HEADER = struct.Struct("<8s16sQ")  # form, boot, time namespace
_USED = struct.Struct("<II")  # how many slots of processes and of turns are in use; the rest is not read
_PROCESS = struct.Struct("<QQqqq")  # the fields of `ProcessRecord`
_TURN = struct.Struct("<QQq")  # the fields of `TurnRecord`
_ARRIVALS_AT = 40  # where the number of processes that have arrived is, modulo 2 ** 64
_USED_AT = 48
_TURNS_AT = 64
MAX_PROCESSES, MAX_TURNS = 1024, 512
_PROCESSES_AT = _TURNS_AT + MAX_TURNS * _TURN.size
SIZE = _PROCESSES_AT + MAX_PROCESSES * _PROCESS.size

_LOCK_NS = 5_000_000  # the longest wait for the lock, which is held for some tens of microseconds
_MAX_TURN_NS = 60 * 10**9  # a record that ends later than this is damaged, or of another clock

Result = TypeVar("Result")


class TableError(Exception):
    """The table cannot be used."""


class TableDeletedError(TableError):
    """The file was deleted; a new one can be made."""


class TableBusyError(TableError):
    """The table's lock could not be taken in time; the next claim may find it free."""


class ProcessRecord(NamedTuple):
    """A process that sends to a manager. All times are in nanoseconds of the monotonic clock."""

    key: int
    owner: int
    present_until: int
    since: int  # when its first caller began to wait; 0 if none waits
    asks_by: int  # until when others leave it its place in the order


class TurnRecord(NamedTuple):
    """A turn that is taken."""

    key: int
    owner: int
    until: int


class TurnFile:
    """The open file. A process has one for all its clients: closing a second descriptor drops its locks.

    Parameters
    ----------
    folder : str
        Made with mode 0700 if it is missing. Another user's, or one that others may enter, is refused.
    clock : callable
        The clock of the times in the records.

    Raises
    ------
    TableError
        The file cannot be made or used.
    """

    # Of the class: an interrupt may come before `__init__` has set them, and `__del__` closes.
    _descriptor = -1
    _file: io.FileIO | None = None

    def __init__(self, folder: str, clock: Callable[[], int]) -> None:
        # Guards the file against other threads, as its record lock does against other processes.
        self._lock = RLock()
        self._is_locked = False  # whether a thread is between taking and releasing the record lock
        self._clock = clock
        self._path = os.path.join(folder, FILE)
        try:
            if fcntl is None:
                raise TableError("this system has no record locks")
            _check_folder(folder)
            self._open()
            self.locked(self._prepare)
        except (OSError, ValueError) as error:
            self.close()
            raise TableError(f"{folder}: {error}") from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Open a file of this user, made if it is missing, without following a link."""
        path = self._path
        # A file object and not a descriptor, which an interrupt could lose before it is assigned.
        opener = partial(os.open, mode=0o600)
        try:
            self._file = io.FileIO(path, "x+", opener=opener)
        except FileExistsError:
            self._file = io.FileIO(path, "r+", opener=opener)
        self._descriptor = self._file.fileno()
        found, named = os.fstat(self._descriptor), os.lstat(path)
        if not stat.S_ISREG(named.st_mode) or found.st_uid != os.geteuid():
            raise TableError(f"{path}: it is another user's, or no regular file")

    def _prepare(self) -> None:
        """Write the header of a new file, or of one that is left from an earlier boot.

        Raises
        ------
        TableError
            It is another file, or its times are those of another clock.
        """
        header = _header()
        found = os.pread(self._descriptor, _HEADER.size, 0)
        if found == header and os.fstat(self._descriptor).st_size == SIZE:
            return
        is_unfinished = not any(found)  # the process that made it was killed, or found no room
        if not is_unfinished and not header.startswith(found):  # neither ours nor cut short
            if not found.startswith(MAGIC):
                raise TableError(f"{self._path} is not a table of turns")
            if found.startswith(header[:24]):
                raise TableError(f"{self._path} has the times of another time namespace")
        os.ftruncate(self._descriptor, 0)
        self._reserve()
        self._write(0, header)

    def _reserve(self) -> None:
        """Give the empty file its size and all its room, so that a disk that fills up later does not matter.

        Raises
        ------
        OSError
            There is no room (ENOSPC, EDQUOT, EFBIG): then the file stays empty.
        """
        try:
            os.posix_fallocate(self._descriptor, 0, SIZE)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # the file system has no such operation
                raise
            os.ftruncate(self._descriptor, SIZE)

    def close(self) -> None:
        """Close the descriptor. Every later use is a TableError."""
        self._descriptor = -1
        if self._file is not None:
            self._file.close()

    __del__ = close

    # --- the lock ---

    def locked(self, work: Callable[[], Result]) -> Result:
        """Do `work` under the table's lock: a record lock, which ends with its process and is not a child's.

        It is no context manager: an interrupt at its beginning would leave the locks held for as long as
        a traceback is kept. A signal handler that finds its own thread inside continues without the
        table.
        """
        with self._lock:
            if self._is_locked:
                raise TableBusyError("this thread is using it")
            try:
                try:
                    self._is_locked = True
                    self._take_record_lock()
                    return work()
                finally:
                    self._is_locked = False
                    fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1)
            except (OSError, ValueError) as error:  # a ValueError if it was closed
                raise TableError(f"{self._path} cannot be used: {error}") from error

    def _take_record_lock(self) -> None:
        ends = self._clock() + _LOCK_NS
        for _ in range(200):  # the clock of a test may stand still
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            except (BlockingIOError, PermissionError):
                if self._clock() >= ends:
                    break
                sleep(0.000_05)
            else:
                return
        raise TableBusyError("another process has held the lock of the table of turns for 5 ms")

    # --- reading ---

    def identity(self) -> str:
        """Return what all processes that have this file open have in common, and those of no other file."""
        try:
            header = os.pread(self._descriptor, _HEADER.size, 0)
            found = os.fstat(self._descriptor)
        except OSError as error:
            raise TableError(f"{self._path} cannot be used: {error}") from error
        return f"{header.hex()}-{found.st_dev}-{found.st_ino}"

    def arrivals(self) -> int:
        """Return how many processes have arrived so far: one short read, which needs no lock."""
        try:
            found = os.pread(self._descriptor, 8, _ARRIVALS_AT)
        except OSError as error:
            raise TableError(f"{self._path} cannot be used: {error}") from error
        if len(found) != 8:
            raise TableError("the table of turns was cut short")
        return int.from_bytes(found, "little")

    def read(self, now: int) -> tuple[dict[int, ProcessRecord], dict[int, TurnRecord]]:
        """Return the processes that are present and the turns that are taken, by their slots.

        What ends far in the future, or began in it, is damaged or of another clock, and counts as absent.
        """
        used = _USED.unpack(self._part(_USED_AT, _USED.size))
        if used[0] > MAX_PROCESSES or used[1] > MAX_TURNS:
            raise TableError("the table of turns is damaged")
        processes = self._part(_PROCESSES_AT, used[0] * _PROCESS.size)
        turns = self._part(_TURNS_AT, used[1] * _TURN.size)
        latest = now + _MAX_TURN_NS
        return (
            {
                slot: ProcessRecord(*fields)
                for slot, fields in enumerate(_PROCESS.iter_unpack(processes))
                if now < fields[2] <= latest and fields[3] <= now
            },
            {
                slot: TurnRecord(*fields)
                for slot, fields in enumerate(_TURN.iter_unpack(turns))
                if now < fields[2] <= latest
            },
        )

    def _part(self, start: int, size: int) -> bytes:
        found = os.pread(self._descriptor, size, start)
        if len(found) != size:
            raise TableError("the table of turns was cut short")
        return found

    def check_not_deleted(self) -> None:
        """Refuse a file that was deleted: processes that start now use another one."""
        if os.fstat(self._descriptor).st_nlink == 0:
            raise TableDeletedError("the file of the table of turns was deleted")

    # --- writing, under the lock ---

    def put_process(
        self, processes: dict[int, ProcessRecord], slot: int | None, record: ProcessRecord
    ) -> None:
        """Write a record of a process, in a free slot if it has none."""
        if slot is None:
            slot = _free(processes, MAX_PROCESSES)
            self._write(_USED_AT, struct.pack("<I", max(slot, max(processes, default=0)) + 1))
            arrivals = (self.arrivals() + 1) % 2**64
            self._write(_ARRIVALS_AT, arrivals.to_bytes(8, "little"))
        self._write(_PROCESSES_AT + slot * _PROCESS.size, _PROCESS.pack(*record))

    def put_turn(self, taken: dict[int, TurnRecord], record: TurnRecord) -> int:
        """Write a record of a turn in a free slot, and return the slot."""
        slot = _free(taken, MAX_TURNS)
        used = max(slot, max(taken, default=0)) + 1
        self._write(_USED_AT + 4, struct.pack("<I", used))
        self._write(_TURNS_AT + slot * _TURN.size, _TURN.pack(*record))
        return slot

    def clear_turn(self, slot: int, record: TurnRecord) -> None:
        """Clear a slot, unless it has another record by now."""
        at = _TURNS_AT + slot * _TURN.size
        if os.pread(self._descriptor, _TURN.size, at) == _TURN.pack(*record):
            self._write(at, bytes(_TURN.size))

    def _write(self, at: int, data: bytes) -> None:
        if os.pwrite(self._descriptor, data, at) != len(data):
            raise TableError("there is no room to write the table of turns")


def _free(used: dict[int, ProcessRecord] | dict[int, TurnRecord], most: int) -> int:
    """Return the first slot that is not used."""
    for slot in range(most):
        if slot not in used:
            return slot
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
