"""Unlinks shared memory files once the process that told of them has ended, by whatever means.

Run by its path, in a process of its own (see `tcm_sync.local.shared_memory`): it reads names, in hexadecimal
and one a line, until the pipe is closed, which a SIGKILL does too. It imports next to nothing, to be small
and soon there.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_SPARE = 1024  # names that may be remembered beside those of files that there are


def clean_up(lines: Iterable[bytes], directory: bytes) -> None:
    """Read names to the end, and unlink the files of the directory that have them."""
    paths: set[bytes] = set()
    most = _SPARE
    for line in lines:
        paths.add(directory + b"/" + bytes.fromhex(line.decode()))
        if len(paths) > most:  # clients unlink most of them themselves
            paths = {path for path in paths if os.path.lexists(path)}
            most = len(paths) + _SPARE
    for path in paths:
        try:
            os.unlink(path)
        except OSError:  # gone, or no longer ours
            continue


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the process that it is to outlive
        signal.signal(number, signal.SIG_IGN)
    clean_up(sys.stdin.buffer, os.fsencode(sys.argv[1]))
