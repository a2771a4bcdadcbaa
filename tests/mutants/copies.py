"""Copies of the working tree: a file of one is changed, some tests run there, and the file is put back."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "_build", "build", "dist")
#: KiB of address space: a changed loop may ask for memory without an end.
MAX_MEMORY = 6_000_000
#: Seconds for one test before pytest-timeout fails it: the longest takes a tenth of that.
ONE_TEST = 20

KILLED, SURVIVED, UNFINISHED, NOT_APPLICABLE = "killed", "SURVIVED", "unfinished", "DOES NOT APPLY"


_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.M)


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant."""

    verdict: str
    #: The first test that failed, or why there is none.
    by: str
    seconds: float = 0.0


class Copy:
    """One copy of the tree at `root`, in `folder`. Used by one thread.

    Parameters
    ----------
    root : Path
        The tree.
    folder : Path
        Where the copy is made.
    """

    #: Times of modification, in seconds. Python takes a cached module for current if its time and its size
    #: are the same, so no two states of a file may have the same time.
    _times = count(1_000_000_000)
    #: Whether test files of a tree pass as they are, once that is known.
    _passing: ClassVar[dict[tuple[Path, str], bool]] = {}

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        shutil.copytree(root, folder, ignore=LEFT_OUT, symlinks=True)

    def write(self, name: str, text: str) -> None:
        """Replace the text of a file."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        self.stamp([name])

    def stamp(self, names: Iterable[str]) -> None:
        """Give files that were changed a time of modification of their own."""
        for name in names:
            moment = next(self._times)
            os.utime(self.folder / name, (moment, moment))

    def restore(self, names: Iterable[str]) -> None:
        """Put files back as they are in the tree."""
        for name in names:
            self.write(name, (self.root / name).read_text(encoding="utf-8"))

    def run(self, files: Sequence[str], seconds: float) -> Outcome:
        """Run test files until the first test fails, for so many seconds at most."""
        began = monotonic()
        status, printed = self._pytest(["-x", *files], seconds)
        taken = monotonic() - began
        if status is None:
            return Outcome(KILLED, f"not done after {seconds:.0f} s", taken)
        if status == 0:
            return Outcome(SURVIVED, printed.rstrip().rpartition("\n")[2], taken)
        failed = _FAILED.search(printed)
        if status == 5 or "file or directory not found" in printed:  # no tests
            return Outcome(NOT_APPLICABLE, printed.strip().rpartition("\n")[2], taken)
        return Outcome(KILLED, failed[1] if failed else f"pytest ended with status {status}", taken)

    def confirm(self, outcome: Outcome, seconds: float) -> Outcome:
        """See that the file of the test that killed a mutant passes without it: the copy is restored."""
        file = outcome.by.partition("::")[0]
        if outcome.verdict != KILLED or not (self.folder / file).is_file():
            return outcome
        known = (self.root, file)
        if known not in self._passing:
            status, _ = self._pytest([file], seconds)
            self._passing[known] = status == 0
        if self._passing[known]:
            return outcome
        return Outcome(NOT_APPLICABLE, f"{file} fails without the mutant too", outcome.seconds)

    def _pytest(self, arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """Run pytest in the copy; its exit status, None if it took too long, and what it printed."""
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={ONE_TEST}"]
        limited = ["sh", "-c", f'ulimit -v {MAX_MEMORY}; exec "$@"', "sh", *pytest, *arguments]
        with subprocess.Popen(
            limited,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                printed, _ = process.communicate(timeout=seconds)
            except BaseException as error:
                _kill(process.pid)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                return None, ""
        _kill(process.pid)  # what a test has left running
        return process.returncode, printed


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
