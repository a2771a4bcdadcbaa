"""A manager in a process of its own: ``python managed.py`` prints its address, and serves until killed."""

import sys

from models import MODELS  # beside this file, where the program finds it

from tcm_sync.local import LocalManager

with LocalManager(MODELS) as manager:
    sys.stdout.write(f"{manager.uri}\n")
    sys.stdout.flush()
    sys.stdin.read()  # until whoever started it is gone
