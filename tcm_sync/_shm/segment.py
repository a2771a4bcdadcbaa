"""One file in /dev/shm that holds one tensor (docs/wire.rst, "Shared memory").

`multiprocessing.shared_memory` is not used: before Python 3.13 its resource tracker unlinks segments that
other processes have made.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import secrets
import stat
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tcm_sync._handlers import Suppress, is_of_handler

if TYPE_CHECKING:
    from tcm_sync.settings import Route

#: The directory of the segments, in which the manager looks for them.
DIRECTORY = "/dev/shm"  # noqa: S108 - the protocol requires it

_NAME = re.compile(r"tcm_\d+_[0-9a-f]{24}")
_NEW = 60.0  # seconds for which an empty file may be one that its process has not locked yet


class Segment(mmap.mmap):
    """A mapped file with a name that is used once.

    The mapping ends with the last array over it, which may be long after the file is unlinked. The file is
    removed by `unlink`, or when this object is collected. It is locked (flock) while a process has it
    mapped, so that `remove_orphans` leaves it alone.

    Attributes
    ----------
    name, path : str
        The file's. The manager's key is the name with a slash before it.
    byte_size : int
    route : Route or None
        The only server that may register it; None before its first use.
    epoch : int
        The epoch of the connections at its last use.
    arena_id : object
        The mark of the arena that made it.
    owned : bool
        Whether a caller has it, from ``empty_shared``.
    busy, discarded : bool
        Whether a request uses it now, and whether none may use it again. The arena's lock guards both.
    """

    name: str
    path: str
    byte_size: int
    route: Route | None
    epoch: int
    arena_id: object
    owned: bool
    busy: bool
    discarded: bool
    _inode: int
    _pid: int

    @classmethod
    def make(cls, byte_size: int, *, group: int | None = None) -> Segment:
        """Make a file of `byte_size` bytes, all of them reserved, and map it.

        Parameters
        ----------
        byte_size : int
            At least 1.
        group : int, optional
            The id of a group that may read and write it too; without one, only this user may.

        Raises
        ------
        OSError
            The directory is full (ENOSPC), or the file cannot be made.
        """
        import fcntl  # not on Windows

        name = f"tcm_{os.getpid()}_{secrets.token_hex(12)}"
        path = f"{DIRECTORY}/{name}"
        try:
            # A file object and not a descriptor, which an interrupt could lose before it is assigned.
            with io.FileIO(path, "x+", opener=partial(os.open, mode=0o600)) as file:
                fd = file.fileno()
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by the mapping's own descriptor
                if group is not None:
                    os.fchown(fd, -1, group)
                    os.fchmod(fd, 0o660)
                os.posix_fallocate(fd, 0, byte_size)  # a full directory fails here, not by a SIGBUS later
                segment = cls(fd, byte_size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
                segment.name, segment.path, segment.byte_size = name, path, byte_size
                segment.route, segment.epoch, segment.arena_id = None, 0, None
                segment.owned = segment.busy = segment.discarded = False
                segment._inode, segment._pid = os.fstat(fd).st_ino, os.getpid()
            return segment
        except BaseException as error:
            if not isinstance(error, FileExistsError):  # that file is another process's
                with Suppress(OSError):
                    os.unlink(path)
            raise

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Return an array over the segment, which keeps it mapped."""
        return np.frombuffer(self, dtype=dtype).reshape(shape)

    def exists(self) -> bool:
        """Return whether the whole file still exists: a manager that ends unlinks what it had attached."""
        try:
            return os.stat(self.path).st_ino == self._inode and not self.is_cut()
        except OSError as error:
            if is_of_handler(error):
                raise
            return False

    def is_cut(self) -> bool:
        """Return whether another process has truncated the file: to touch the lost part ends this process.

        That signal (SIGBUS) cannot be an error, so the size is checked before each use. A file that is
        truncated between the check and the end of the copy still ends the process.
        """
        return self.size() < self.byte_size

    def unlink(self) -> None:
        """Remove the file; the mapping stays. In a forked child it does nothing."""
        if self._pid == os.getpid():
            with Suppress(OSError):
                os.unlink(self.path)

    def __del__(self) -> None:
        if hasattr(self, "_pid") and os is not None:  # modules may be unloaded at the interpreter's end
            self.unlink()

    def __reduce__(self) -> Any:
        raise TypeError("a segment of shared memory stays in its process")


def segment_of(array: np.ndarray[Any, Any]) -> Segment | None:
    """Return the segment that an array lies in, whole or in part, or None."""
    base: Any = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, Segment) else None


def why_unsupported() -> str | None:
    """Return why shared memory cannot be used on this machine, or None."""
    if sys.platform != "linux":
        return f"shared memory needs Linux, and this is {sys.platform}"
    if not os.path.isdir(DIRECTORY):
        return f"there is no {DIRECTORY}"
    if not os.access(DIRECTORY, os.W_OK | os.X_OK, effective_ids=True):  # as os.open checks them
        return f"{DIRECTORY} cannot be written to by user id {os.geteuid()}"
    return None


class Space(NamedTuple):
    """What a file system has, in bytes, and whether another file can be made in it."""

    size: int
    free: int
    has_inodes: bool


def directory_space() -> Space:
    """Return what the directory's file system has.

    One without a limit (a tmpfs that was mounted with ``size=0``) counts as half of the machine's memory, the
    default of a tmpfs.

    Raises
    ------
    OSError
        There is no directory.
    """
    found = os.statvfs(DIRECTORY)
    has_inodes = found.f_favail > 0 or found.f_files == 0  # both are 0 where there is no limit
    if found.f_blocks == 0:
        half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        return Space(half, half, has_inodes)
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, has_inodes)


def remove_orphans() -> list[str]:
    """Remove the segments of processes that have ended, and return the files' names.

    A file is removed if it has our form of name, belongs to this user, and is not locked. The process id in
    its name is not used, since containers that share the directory each have a process 1.
    """
    removed = []
    with Suppress(OSError):
        for entry in os.scandir(DIRECTORY):
            if _NAME.fullmatch(entry.name) is not None:
                with Suppress(OSError):  # another process may remove it at the same time
                    if _is_orphaned(entry):
                        os.unlink(entry.path)
                        removed.append(entry.name)
    return removed


def _is_orphaned(entry: os.DirEntry[str]) -> bool:
    import fcntl

    found = entry.stat(follow_symlinks=False)
    mine = found.st_uid == os.geteuid() and stat.S_ISREG(found.st_mode)
    new = not found.st_size and time.time() - found.st_ctime < _NEW
    if not mine or new:
        return False
    # As above: an opener in Python, which could refuse links, would be a function that loses the descriptor
    # when it is interrupted. A link that came meanwhile leads to another inode, and nothing is written.
    with io.FileIO(entry.path, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return os.fstat(file.fileno()).st_ino == found.st_ino
