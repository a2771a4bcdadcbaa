"""The command ``tcm-sync``. What it needs beyond the library comes with the extra ``cli``."""

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
        What stands behind the command's name; left out, what the process was started with.

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
