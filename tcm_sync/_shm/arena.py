"""The shared memory of a client: segments that are lent to requests, kept for the next, and unlinked."""

from __future__ import annotations

import errno
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._handlers import is_of_handler
from tcm_sync._shm.segment import DIRECTORY, Segment, room, segment_of, sweep

if TYPE_CHECKING:
    from tcm_sync.settings import Route

_MOST_IDLE = 64  # segments that are kept for the next request
_PATIENCE = 5.0  # seconds in which a segment is made, however large
_MOST_REGISTERED = 256  # keys that a server remembers, the least recently used dropped (docs/wire.rst)


class DeclinedError(Exception):
    """There is no segment to be had. Its text says why, the kind first; it never leaves the package."""


class Arena:
    """Segments by the server that knows them and by their size.

    A key means one file of one size for ever, on one route; so contents are changed in place, and only after
    a good reply said that nobody reads them any more. After anything else a segment is quarantined: unlinked,
    and never named again.

    Parameters
    ----------
    max_pinned : int
        Bytes that servers may be made to keep mapped: they do so for files that are long unlinked.
    group : int, optional
        The id of the group that may use the files too.
    """

    def __init__(self, max_pinned: int, group: int | None = None) -> None:
        self.max_pinned = max_pinned
        self._group = group
        self._lock = threading.RLock()  # guards everything below, and what segments say of themselves
        self._idle: list[Segment] = []  # the most recently used last
        self._made = threading.Condition(self._lock)
        self._making: set[object] = set()  # one for each segment that is being made at the moment
        self._epoch = 0
        self._closed = False
        # What each server has been told of, the least recently used first, and how large that is.
        self._registered: dict[Route, OrderedDict[str, int]] = {}
        self._pinned = 0
        self._live: weakref.WeakSet[Segment] = weakref.WeakSet()
        self._home = object()  # by which its segments know each other
        sweep()

    def empty(self, byte_size: int) -> Segment:
        """Make a segment for a caller to fill.

        Raises
        ------
        DeclinedError
            It cannot be made.
        """
        segment = self._make(byte_size)
        segment.owned = True
        return segment

    def lend(self, route: Route, byte_size: int, epoch: int, *, never_used: bool = False) -> Segment:
        """Return a segment of exactly this size, for one request on one route.

        Parameters
        ----------
        epoch : int
            Of the connections that there are: idle segments of an earlier one are unlinked, since the
            manager that knew them is gone.
        never_used : bool
            Whether it must be one that no server was told of.

        Raises
        ------
        DeclinedError
            It cannot be made, or would have more pinned than may be.
        """
        with self._lock:
            if epoch > self._epoch:
                self._begin_epoch(epoch)
            found = None if never_used else self._take_idle(route, byte_size)
            if found is not None:
                self._mark(found, route, epoch)
                return found
            self._check_budget(byte_size)
        segment = self._make(byte_size)
        try:
            with self._lock:
                self._mark(segment, route, epoch)
            return segment
        except BaseException:  # others have used the budget up meanwhile, or there was an interrupt
            self.quarantine(segment)
            raise

    def borrow(self, array: np.ndarray[Any, Any], route: Route, epoch: int) -> Segment | None:
        """Return the segment that an array is the whole of, if a request on this route may name it now."""
        segment = segment_of(array)
        if segment is None or not segment.owned or not _is_whole(array, segment):
            return None
        with self._lock:
            if epoch > self._epoch:
                self._begin_epoch(epoch)
            known = segment.route is not None
            free = not segment.busy and not segment.spent and segment.home is self._home
            same = segment.epoch == epoch and (segment.route is route or segment.route == route)
            if not free or (known and not same):
                return None
            if not segment.is_there():
                segment.spent = True
                return None
            try:
                self._mark(segment, route, epoch)
            except DeclinedError:
                return None
        return segment

    def give_back(self, segment: Segment) -> None:
        """Take back a segment after a good reply: nobody reads it any more."""
        surplus: list[Segment] = []
        with self._lock:
            segment.busy = False
            if self._closed or segment.spent or segment.epoch != self._epoch:
                segment.spent = True
                surplus = [segment]
            elif not segment.owned:
                self._idle.append(segment)
                kept = sum(each.byte_size for each in self._idle)
                while len(self._idle) > _MOST_IDLE or kept > self.max_pinned:
                    surplus.append(self._idle.pop(0))
                    kept -= surplus[-1].byte_size
        for each in surplus:
            each.unlink()

    def quarantine(self, segment: Segment) -> None:
        """Unlink a segment that a request may still be reading; it is named no more."""
        with self._lock:
            segment.busy, segment.spent = False, True
        segment.unlink()

    def close(self) -> None:
        """Unlink everything, and keep nothing from now on; arrays stay readable."""
        with self._lock:
            self._closed = True
            self._idle.clear()
            # Where the interpreter ends, other threads stop wherever they are: no file may appear after this.
            self._made.wait_for(lambda: not self._making, _PATIENCE)
            live = list(self._live)
            for segment in live:
                segment.spent = True
        for segment in live:
            segment.unlink()

    def obstacle(self, byte_size: int) -> str | None:
        """Say why so many bytes could not be lent, or None; idle segments may do all the same."""
        with self._lock:
            pinned = self._pinned
        if pinned + byte_size > self.max_pinned:
            return f"pinned: servers keep {pinned:,} bytes mapped, and may keep {self.max_pinned:,}"
        free = room()[1]
        return f"no room: {free:,} bytes are free in {DIRECTORY}" if free < byte_size else None

    def read(self) -> dict[str, int]:
        """Return how many segments there are, their bytes, and how many bytes are pinned."""
        with self._lock:
            live = [segment for segment in self._live if not segment.spent]
            return {
                "shm_segments": len(live),
                "shm_bytes": sum(segment.byte_size for segment in live),
                "shm_pinned": self._pinned,
            }

    def _make(self, byte_size: int) -> Segment:
        if byte_size > (free := room()[1]):  # filling the directory up to find out takes seconds
            raise _no_room(byte_size, free)
        token = object()
        segment: Segment | None = None
        try:
            with self._lock:
                self._check_open()
                self._making.add(token)
            segment = Segment.make(byte_size, group=self._group)
            with self._lock:
                self._live.add(segment)
                segment.home = self._home
                self._check_open()
                return segment
        except OSError as error:
            if is_of_handler(error):
                raise
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise _no_room(byte_size, room()[1]) from None
            raise DeclinedError(f"not made: no segment in {DIRECTORY}: {error}") from None
        except BaseException:  # an interrupt, whose kept traceback would keep the segment
            if segment is not None:
                segment.spent = True
                segment.unlink()
            raise
        finally:
            with self._lock:
                self._making.discard(token)
                self._made.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise DeclinedError("closed: the client is")

    def _take_idle(self, route: Route, byte_size: int) -> Segment | None:
        for place in range(len(self._idle) - 1, -1, -1):
            segment = self._idle[place]
            if segment.byte_size == byte_size and segment.route == route:
                del self._idle[place]
                if segment.is_there():
                    return segment
                segment.spent = True  # the manager that had attached it has ended
        return None

    def _begin_epoch(self, epoch: int) -> None:
        """Unlink what only an earlier manager knows; another thread may still be in an earlier epoch."""
        self._epoch = epoch
        self._idle.clear()
        for segment in list(self._live):
            if segment.route is not None and not segment.busy:
                segment.spent = True
                segment.unlink()

    def _mark(self, segment: Segment, route: Route, epoch: int) -> None:
        """Note that a server is about to be told of a segment, and may keep it mapped from now on."""
        known = self._registered.get(route)
        if known is None:
            known = self._registered[route] = OrderedDict()
        if segment.name in known:
            known.move_to_end(segment.name)
        else:
            self._check_budget(segment.byte_size)
            self._pinned += segment.byte_size
            known[segment.name] = segment.byte_size
            if len(known) > _MOST_REGISTERED:
                self._pinned -= known.popitem(last=False)[1]
        segment.busy, segment.route, segment.epoch = True, route, epoch

    def _check_budget(self, byte_size: int) -> None:
        if self._pinned + byte_size > self.max_pinned:
            raise DeclinedError(
                f"pinned: servers keep {self._pinned:,} bytes of this client's shared memory mapped, and "
                f"{byte_size:,} more would pass shm_max_pinned ({self.max_pinned:,})"
            )


def _is_whole(array: np.ndarray[Any, Any], segment: Segment) -> bool:
    """Whether an array is all of a segment, from its beginning to its end, in C order."""
    return bool(
        array.nbytes == segment.byte_size
        and array.flags.c_contiguous
        and np.may_share_memory(array, np.frombuffer(segment, np.uint8, 1))  # it has the first byte
    )


def _no_room(byte_size: int, free: int) -> DeclinedError:
    return DeclinedError(f"no room: {DIRECTORY} has none for {byte_size:,} bytes ({free:,} are free)")
