"""Unlink shared memory files after the process that uses them has ended, in whatever way.

It is run by its path as a process of its own (see `tcm_sync.local.shared_memory`). It reads names, in
hexadecimal and one a line, until the pipe is closed, which happens after a SIGKILL too. It imports little, to
be small and to start fast.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_SPARE = 1024  # names kept, beside those of existing files, before the list is cleaned


def clean_up(lines: Iterable[bytes], directory: bytes) -> None:
    """Read names to the end, and unlink the files of the directory that have them."""
    paths: set[bytes] = set()
    most = _SPARE
    for line in lines:
        paths.add(directory + b"/" + bytes.fromhex(line.decode()))
        if len(paths) > most:  # clients unlink most files themselves
            paths = {path for path in paths if os.path.lexists(path)}
            most = len(paths) + _SPARE
    for path in paths:
        try:
            os.unlink(path)
        except OSError:  # removed already, or not ours
            continue


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the process that this one must outlive
        signal.signal(number, signal.SIG_IGN)
    clean_up(sys.stdin.buffer, os.fsencode(sys.argv[1]))
