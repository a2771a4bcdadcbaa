"""The command ``tcm-sync``. The packages that only it needs come with the extra ``cli``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

_NEEDED = ("click", "rich", "yaml", "hdrh")


def missing_package() -> str | None:
    """Return what to install before a command can run, or None if all of them can."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    return f"{missing[0]} is not installed: pip install 'tcm-sync[cli]'" if missing else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those after the command's name; by default those of the process.

    Returns
    -------
    int
        The exit status.
    """
    if missing := missing_package():
        sys.stderr.write(f"tcm-sync: {missing}\n")
        return 2
    from tcm_sync.cli.app import run

    return run(sys.argv[1:] if arguments is None else list(arguments))
