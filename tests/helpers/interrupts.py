"""KeyboardInterrupt at each moment of a block at which it can come inside the package."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from inspect import CO_GENERATOR
from pathlib import Path

import tcm_sync

_PACKAGE = str(Path(tcm_sync.__file__).parent)


class Moments:
    """Calls `act` with the number of each moment of a block that is inside the package: 1, 2, and so on.

    These are the moments at which a signal handler may run: a Python function begins, or a C function has
    returned. A function of another package that this one calls has the moment at which it begins. The code
    that `act` calls has none, and neither has the resumption of a generator: before 3.12 an exception of a
    profile function ends it without its `finally` blocks, which no signal handler does.

    Attributes
    ----------
    number : int
        How many there were so far.
    """

    def __init__(self, act, package=_PACKAGE):
        self.number = 0
        self._act = act
        self._package = package
        self._callback = None

    def __enter__(self):
        # kept: before 3.12 the interpreter may call it once more after it has dropped its own reference
        self._callback = self._profile
        sys.setprofile(self._callback)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        self._callback = None

    def _profile(self, frame, event, arg):
        del arg  # it may be a method of what was just opened, and this frame is kept with the interrupt
        if event not in ("call", "c_return") or (event == "call" and frame.f_code.co_flags & CO_GENERATOR):
            return
        if self._is_inside(frame) or (event == "call" and self._is_inside(frame.f_back)):
            self.number += 1
            self._act(self.number)

    def _is_inside(self, frame):
        return frame is not None and frame.f_code.co_filename.startswith(self._package)


class InterruptAt:
    """Raises KeyboardInterrupt at one moment of a block, counted from 1.

    Attributes
    ----------
    struck : bool
        Whether the block lasted until that moment.
    kept : BaseException or None
        What ended the block, with its traceback.
    """

    def __init__(self, moment, package=_PACKAGE):
        self.struck = False
        self.kept = None
        self._moment = moment
        self._moments = Moments(self._strike, package)

    def __enter__(self):
        self._moments.__enter__()

    def __exit__(self, kind, error, trace):
        self._moments.__exit__()
        self.kept = error
        return self.struck and kind is KeyboardInterrupt

    def _strike(self, number):
        if number == self._moment:
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


def leaves_no_descriptor(work):
    """Interrupt some work at each moment: no descriptor is left, though the error is kept."""
    kept = []
    for moment in itertools.count(1):
        before = _descriptors()
        interrupt = InterruptAt(moment)
        with interrupt:
            work()
        kept.append(interrupt.kept)
        assert _descriptors() == before, f"moment {moment} left a descriptor"
        if not interrupt.struck:
            assert moment > 3, "there was hardly anything to interrupt"
            return


def _descriptors():
    """Return where each descriptor leads to, without that of the list itself."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(found)
