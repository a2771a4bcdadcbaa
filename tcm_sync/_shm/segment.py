"""One file in /dev/shm that holds one tensor (docs/wire.rst, "Shared memory").

Made with calls of the operating system: `multiprocessing.shared_memory` has a resource tracker, which before
Python 3.13 unlinks segments that it never made.
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
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._handlers import Suppress, is_of_handler

if TYPE_CHECKING:
    from tcm_sync.settings import Route

#: Where segments are. The manager looks for them there.
DIRECTORY = "/dev/shm"  # noqa: S108 - it is what the protocol says

_NAME = re.compile(r"tcm_\d+_[0-9a-f]{24}")
_YOUNG = 60.0  # seconds in which an empty file, which takes no memory, may not be locked yet


class Segment(mmap.mmap):
    """A mapped file that nobody else ever had the name of.

    The mapping goes when the last array over it does, however long after the file. The file goes with
    `unlink`, or when this is collected. It is locked (flock) for as long as a process has it mapped, so that
    nobody sweeps it away.

    Attributes
    ----------
    name, path : str
        Of the file. The manager's key is its name with a slash before it.
    byte_size : int
    route : Route or None
        The server that was told of it: no other may be.
    epoch : int
        Of the connections that were there when it was made.
    home : object
        By which the arena that made it knows it.
    owned : bool
        Whether it is a caller's, from ``empty_shared``.
    busy, spent : bool
        Whether a request names it, and whether none may any more. The arena's lock guards both.
    """

    name: str
    path: str
    byte_size: int
    route: Route | None
    epoch: int
    home: object
    owned: bool
    busy: bool
    spent: bool
    _inode: int
    _pid: int

    @classmethod
    def make(cls, byte_size: int, *, group: int | None = None) -> Segment:
        """Make a file of so many bytes, all of them reserved, and map it.

        Parameters
        ----------
        byte_size : int
            At least 1.
        group : int, optional
            The id of a group that may read and write it too; without one, only this user may.

        Raises
        ------
        OSError
            There is no room (ENOSPC), or it cannot be made.
        """
        import fcntl  # not on Windows

        name = f"tcm_{os.getpid()}_{secrets.token_hex(12)}"
        path = f"{DIRECTORY}/{name}"
        try:
            # An object from the start, and no number that an interrupt may lose before it has a name.
            with io.FileIO(path, "x+", opener=partial(os.open, mode=0o600)) as file:
                fd = file.fileno()
                fcntl.flock(
                    fd, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # the mapping's copy of the descriptor keeps it
                if group is not None:
                    os.fchown(fd, -1, group)
                    os.fchmod(fd, 0o660)
                os.posix_fallocate(fd, 0, byte_size)  # a full directory fails here, without SIGBUS later
                segment = cls(fd, byte_size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
                segment.name, segment.path, segment.byte_size = name, path, byte_size
                segment.route, segment.epoch, segment.home = None, 0, None
                segment.owned = segment.busy = segment.spent = False
                segment._inode, segment._pid = os.fstat(fd).st_ino, os.getpid()
            return segment
        except BaseException as error:
            if not isinstance(error, FileExistsError):  # which is somebody else's
                with Suppress(OSError):
                    os.unlink(path)
            raise

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Return an array over it, which keeps it mapped."""
        return np.frombuffer(self, dtype=dtype).reshape(shape)

    def is_there(self) -> bool:
        """Whether the file still is: a manager that ends unlinks what it had attached."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError as error:
            if is_of_handler(error):
                raise
            return False

    def unlink(self) -> None:
        """Remove the file; what is mapped stays. A forked child removes nothing of its parent's."""
        if self._pid == os.getpid():
            with Suppress(OSError):
                os.unlink(self.path)

    def __del__(self) -> None:
        if hasattr(self, "_pid") and os is not None:  # the interpreter may be half gone
            self.unlink()

    def __reduce__(self) -> Any:
        raise TypeError("a segment of shared memory stays in its process")


def segment_of(array: np.ndarray[Any, Any]) -> Segment | None:
    """Return the segment that an array lies in, whole or in part, or None."""
    base: Any = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, Segment) else None


def unsupported() -> str | None:
    """Say why there is no shared memory here, or None."""
    if sys.platform != "linux":
        return f"shared memory is for Linux, and this is {sys.platform}"
    if not os.access(DIRECTORY, os.W_OK | os.X_OK):
        return f"{DIRECTORY} cannot be written to"
    return None


def room() -> tuple[int, int]:
    """Return how many bytes the directory has in all, and how many are free."""
    found = os.statvfs(DIRECTORY)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def sweep() -> list[str]:
    """Remove the segments of processes that are gone, and return their names.

    A file goes if it has our form of name, belongs to this user, and nobody holds its lock. The number of
    the process in its name plays no part: each container that shares the directory numbers its processes by
    itself, and has a process 1.
    """
    gone = []
    with Suppress(OSError):
        for entry in os.scandir(DIRECTORY):
            if _NAME.fullmatch(entry.name) is not None:
                with Suppress(OSError):  # somebody else sweeps too
                    if _is_left(entry):
                        os.unlink(entry.path)
                        gone.append(entry.name)
    return gone


def _is_left(entry: os.DirEntry[str]) -> bool:
    import fcntl

    found = entry.stat(follow_symlinks=False)
    mine = found.st_uid == os.getuid() and stat.S_ISREG(found.st_mode)
    new = not found.st_size and time.time() - found.st_ctime < _YOUNG  # it is locked before it has a size
    if not mine or new:
        return False
    fd = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(fd).st_ino == found.st_ino
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
