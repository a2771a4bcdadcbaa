"""KeyboardInterrupt at each moment of a block at which it can come inside the package."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import tcm_sync

_PACKAGE = str(Path(tcm_sync.__file__).parent)


class InterruptAt:
    """Raises KeyboardInterrupt at one moment of a block, counted from 1.

    Attributes
    ----------
    struck : bool
        Whether the block lasted until that moment.
    kept : BaseException or None
        What ended the block, with its traceback.
    """

    def __init__(self, moment):
        self.struck = False
        self.kept = None
        self._left = moment
        self._callback = None

    def __enter__(self):
        # kept: before 3.12 the interpreter may call it once more after it has dropped its own reference
        self._callback = self._profile
        sys.setprofile(self._callback)

    def __exit__(self, kind, error, trace):
        sys.setprofile(None)
        self._callback = None
        self.kept = error
        return self.struck and kind is KeyboardInterrupt

    def _profile(self, frame, event, arg):
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(_PACKAGE):
            self._left -= 1
            if not self._left:
                self.struck = True
                raise KeyboardInterrupt


def each_moment(prepare, *, kept=True):
    """Interrupt at each of its moments what `prepare`, a context manager that checks afterwards, gives."""
    for moment in itertools.count(1):
        interrupt = InterruptAt(moment)
        with prepare() as call:
            with interrupt:
                call()
            if not kept:
                interrupt.kept = None
        if not interrupt.struck:
            assert moment > 20, "there was hardly anything to interrupt"
            return
