"""Bugs that were planted by hand: patches, each with what it breaks and the test files that must fail."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .copies import KILLED, NOT_APPLICABLE, Copy, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parent / "planted"


@dataclass(frozen=True)
class Planted:
    """One patch. Its first lines are ``What:`` and ``Tests:``."""

    path: Path
    what: str
    tests: tuple[str, ...]
    changed: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Planted:
        """Read a patch with its header.

        Raises
        ------
        ValueError
            A line of its header is missing.
        """
        text = path.read_text(encoding="utf-8")
        header = dict(re.findall(r"^(What|Tests): (.+)$", text.partition("--- a/")[0], re.M))
        if missing := {"What", "Tests"} - set(header):
            raise ValueError(f"{path.name}: the header lacks {', '.join(sorted(missing))}")
        changed = re.findall(r"^--- a/(\S+)", text, re.M)
        return cls(path, header["What"], tuple(header["Tests"].split()), tuple(changed))

    @property
    def name(self) -> str:
        """What the command calls it."""
        return self.path.stem

    def try_in(self, copy: Copy, time_left: Callable[[], float]) -> Outcome:
        """Apply the patch in a copy, and run its test files one after the other: each must fail."""
        if problem := apply(self.path, copy.folder):
            return Outcome(NOT_APPLICABLE, problem)
        copy.stamp(self.changed)
        try:
            taken, by = 0.0, []
            for file in self.tests:
                outcome = copy.run([file], time_left())
                taken += outcome.seconds
                if outcome.verdict != KILLED:
                    return Outcome(outcome.verdict, f"{file}: {outcome.by}", taken)
                by.append(outcome.by)
            return Outcome(KILLED, " ".join(by), taken)
        finally:
            copy.restore(self.changed)


def apply(patch: Path, folder: Path, *options: str) -> str:
    """Apply a patch in a folder, without leniency; return why that cannot be done, or nothing."""
    done = subprocess.run(
        ["git", "apply", *options, str(patch)], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stderr.strip() if done.returncode else ""


def read_all(folder: Path = FOLDER) -> list[Planted]:
    """Read every patch, in the order of their names."""
    return [Planted.read(path) for path in sorted(folder.glob("*.patch"))]
