"""The command ``tcm-sync``. The packages that only it needs come with the extra ``cli``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

_NEEDED = ("click", "rich", "yaml", "hdrh")


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
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        sys.stderr.write(f"tcm-sync: {missing[0]} is not installed: pip install 'tcm-sync[cli]'\n")
        return 2
    from tcm_sync.cli.app import run

    return run(sys.argv[1:] if arguments is None else list(arguments))
