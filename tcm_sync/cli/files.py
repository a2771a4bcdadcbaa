"""Write the files of commands whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from tcm_sync.cli.failures import CommandError


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file, or leave what was there before: half a file could be taken for a whole one.

    Parameters
    ----------
    path : Path
        A device, a pipe, or a file in a folder that cannot be written to is written in place.
    write : callable
        Is called with the file, opened for writing in binary.

    Raises
    ------
    CommandError
        It cannot be written, for example since the disk is full.
    """
    target = path.resolve()  # a link stays a link
    try:
        if (target.exists() and not target.is_file()) or not os.access(target.parent, os.W_OK):
            _write_in_place(target, write)
        else:
            _replace(target, write)
    except OSError as error:
        raise CommandError(f"{str(path)!r} was not written: {error.strerror or error}") from error


def _replace(target: Path, write: Callable[[BinaryIO], object]) -> None:
    new = target.with_name(f".tcm-sync-{secrets.token_hex(8)}.tmp")
    try:
        with new.open("xb") as file:
            write(file)
        if target.exists():
            shutil.copymode(target, new)
        new.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _write_in_place(target: Path, write: Callable[[BinaryIO], object]) -> None:
    try:
        with target.open("wb") as file:
            write(file)
    except BaseException:
        if target.is_file():
            with contextlib.suppress(OSError):
                os.truncate(target, 0)
        raise
