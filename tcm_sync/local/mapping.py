"""Find the files of /dev/shm by their keys, and map them without keeping a descriptor open."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import stat
import sys
from typing import Any

DIRECTORY = "/dev/shm"  # noqa: S108 - it is not used for temporary files


def is_usable() -> bool:
    """Return whether this machine has shared memory that this process may use."""
    return sys.platform == "linux" and os.path.isdir(DIRECTORY) and os.access(DIRECTORY, os.R_OK | os.W_OK)


def path_of(key: str) -> str:
    """Return the path of the file that a key names.

    Raises
    ------
    FileNotFoundError
        If it does not have the form of a key, ``/NAME``.
    """
    name = key[1:]
    if not key.startswith("/") or "/" in name or name in ("", ".", ".."):
        raise FileNotFoundError(key)
    return f"{DIRECTORY}/{name}"


def look_up(key: str) -> os.stat_result:
    """Return the status of the file that a key names.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    try:
        found = os.stat(path_of(key), follow_symlinks=False)
    except (OSError, ValueError):  # also a name that is too long, or has a NUL
        raise FileNotFoundError(key) from None
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(key)
    return found


class Mapping:
    """Map the first bytes of an open file for reading; ``numpy.asarray`` makes an array of it without a copy.

    It is unmapped when the last array over it is collected. The descriptor may be closed at once, whereas
    `mmap.mmap` would keep a copy of it open as long as the mapping exists.

    Parameters
    ----------
    descriptor : int
    size : int
        How many bytes; the file must have them, or reading them ends the process (SIGBUS).

    Raises
    ------
    OSError
        If it cannot be mapped.
    """

    _address: int | None = None  # of the class: an interrupt may come before `__init__` has set it

    def __init__(self, descriptor: int, size: int) -> None:
        libc = _libc()
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._size = size
        self._unmap = libc.munmap  # kept here, since modules may be unloaded before the last array
        self._address = address

    @property
    def __array_interface__(self) -> dict[str, Any]:
        read_only = True
        return {"version": 3, "shape": (self._size,), "typestr": "|u1", "data": (self._address, read_only)}

    def __del__(self) -> None:
        if self._address is not None:
            self._unmap(self._address, self._size)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    numbers = ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *numbers)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc
