"""The pool of a client's shared-memory segments: acquired for a request, then released or discarded."""

from __future__ import annotations

import errno
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._handlers import Suppress, is_of_handler
from tcm_sync._locks import RLock
from tcm_sync._shm.segment import DIRECTORY, Segment, Space, directory_space, remove_orphans, segment_of
from tcm_sync.errors import InputError

if TYPE_CHECKING:
    from tcm_sync.settings import Route

_MAX_IDLE = 64  # segments that are kept for later requests
_CLOSE_TIMEOUT = 5.0  # seconds that close() waits for segments that are being made
_MAX_REGISTERED = 256  # keys that a server keeps; it drops the least recently used (docs/wire.rst)


class DeclinedError(Exception):
    """No segment can be acquired. The text begins with the kind of reason; users never see this class."""


class Arena:
    """Keep the segments of a client, and acquire, release or discard them for requests.

    For a server a key always means the same file of the same size, so a segment is reused by changing its
    contents in place. That is safe only after a good reply, which shows that the server has read it: then the
    segment is released. After any other outcome it is discarded: unlinked and never used again.

    Parameters
    ----------
    max_pinned : int
        The most bytes that servers keep mapped for this client. They keep files mapped that are unlinked.
    group : int, optional
        The id of a group that may read and write the files too.
    """

    def __init__(self, max_pinned: int, group: int | None = None) -> None:
        self.max_pinned = max_pinned
        self._group = group
        self._lock = RLock()  # guards every attribute below and the mutable ones of the segments
        self._idle: list[Segment] = []  # the most recently used last
        self._made = threading.Condition(self._lock)
        self._making: set[object] = set()  # one for each segment that is being made now
        self._epoch = 0
        self._closed = False
        # The name and size of each segment that a server has registered, the least recently used first.
        self._registered: dict[Route, OrderedDict[str, int]] = {}
        self._pinned = 0
        self._live: weakref.WeakSet[Segment] = weakref.WeakSet()
        self._id = object()  # marks the segments of this arena
        remove_orphans()

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

    def acquire(self, route: Route, byte_size: int, epoch: int, *, never_used: bool = False) -> Segment:
        """Return a segment of exactly this size, for one request on one route.

        Parameters
        ----------
        epoch : int
            The epoch of the open connections. Idle segments of an earlier epoch are unlinked, since the
            manager that had registered them has ended.
        never_used : bool
            Whether it must be a new one, which no server has registered.

        Raises
        ------
        DeclinedError
            It cannot be made, or `max_pinned` would be exceeded.
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
        except BaseException:  # other threads have used the budget up, or there was an interrupt
            self.discard(segment)
            raise

    def acquire_array(self, array: np.ndarray[Any, Any], route: Route, epoch: int) -> Segment | None:
        """Return the segment that a caller's array fills; None if a request on this route cannot use it.

        Raises
        ------
        InputError
            Another process has truncated the file, so that the array cannot be read.
        """
        segment = segment_of(array)
        if segment is not None and segment.is_cut():
            raise InputError(
                f"another process has truncated the shared memory of the array: {segment.size():,} of "
                f"{segment.byte_size:,} bytes are left, and reading the others would end this process"
            )
        if segment is None or not segment.owned or not _is_whole(array, segment):
            return None
        with self._lock:
            if epoch > self._epoch:
                self._begin_epoch(epoch)
            known = segment.route is not None
            free = not segment.busy and not segment.discarded and segment.arena_id is self._id
            same = segment.epoch == epoch and (segment.route is route or segment.route == route)
            if not free or (known and not same):
                return None
            if not segment.exists():
                segment.discarded = True
                return None
            try:
                self._mark(segment, route, epoch)
            except DeclinedError:
                return None
        return segment

    def release(self, segment: Segment) -> None:
        """Return a segment after a good reply, when no server reads it any more."""
        surplus: list[Segment] = []
        with self._lock:
            segment.busy = False
            if self._closed or segment.discarded or segment.epoch != self._epoch:
                segment.discarded = True
                surplus = [segment]
            elif not segment.owned:
                self._idle.append(segment)
                kept = sum(each.byte_size for each in self._idle)
                while len(self._idle) > _MAX_IDLE or kept > self.max_pinned:
                    surplus.append(self._idle.pop(0))
                    kept -= surplus[-1].byte_size
        for each in surplus:
            each.unlink()

    def discard(self, segment: Segment) -> None:
        """Unlink a segment that a server may still be reading; it is never used again."""
        with self._lock:
            segment.busy, segment.discarded = False, True
        segment.unlink()

    def close(self) -> None:
        """Unlink every segment and refuse to make more; the arrays over them stay readable."""
        with self._lock:
            self._closed = True
            self._idle.clear()
            # When the interpreter ends, its threads stop anywhere: a file made after this would be left.
            self._made.wait_for(lambda: not self._making, _CLOSE_TIMEOUT)
            live = list(self._live)
            for segment in live:
                segment.discarded = True
        for segment in live:
            segment.unlink()

    def obstacle(self, byte_size: int) -> str | None:
        """Return why no new segment of this size could be made, or None; an idle one may still fit."""
        with self._lock:
            pinned = self._pinned
        if pinned + byte_size > self.max_pinned:
            return f"pinned: servers keep {pinned:,} bytes mapped, and may keep {self.max_pinned:,}"
        try:
            return _lack_of_room(byte_size, directory_space())
        except OSError as error:
            if is_of_handler(error):
                raise
            return _not_made(error)

    def read(self) -> dict[str, int]:
        """Return how many segments there are, their bytes, and how many bytes are pinned."""
        with self._lock:
            live = [segment for segment in self._live if not segment.discarded]
            return {
                "shm_segments": len(live),
                "shm_bytes": sum(segment.byte_size for segment in live),
                "shm_pinned": self._pinned,
            }

    def _make(self, byte_size: int) -> Segment:
        token = object()
        segment: Segment | None = None
        try:
            space = directory_space()
            if byte_size > space.free:  # reserving memory until the directory is full takes seconds
                raise DeclinedError(_lack_of_room(byte_size, space))
            try:
                with self._lock:
                    self._check_open()
                    self._making.add(token)
                segment = Segment.make(byte_size, group=self._group)
                with self._lock:
                    self._live.add(segment)
                    segment.arena_id = self._id
                    self._check_open()
            finally:
                self._making.discard(token)  # at once: an interrupt may come before the lock is taken
                with self._lock:
                    self._made.notify_all()
            return segment
        except OSError as error:
            if is_of_handler(error):
                raise
            raise DeclinedError(_why_not_made(error, byte_size)) from None
        except BaseException:  # an interrupt, whose kept traceback would keep the segment
            if segment is not None:
                segment.discarded = True
                segment.unlink()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise DeclinedError("closed: the client was closed")

    def _take_idle(self, route: Route, byte_size: int) -> Segment | None:
        for place in range(len(self._idle) - 1, -1, -1):
            segment = self._idle[place]
            if segment.byte_size == byte_size and segment.route == route:
                del self._idle[place]
                if segment.exists():
                    return segment
                segment.discarded = True  # the manager that had attached it has ended
        return None

    def _begin_epoch(self, epoch: int) -> None:
        """Unlink what an earlier manager had registered, except segments of calls that are under way."""
        self._epoch = epoch
        self._idle.clear()
        for segment in list(self._live):
            if segment.route is not None and not segment.busy:
                segment.discarded = True
                segment.unlink()

    def _mark(self, segment: Segment, route: Route, epoch: int) -> None:
        """Record that a request is about to name a segment, so that its server may keep it mapped."""
        known = self._registered.get(route)
        if known is None:
            known = self._registered[route] = OrderedDict()
        if segment.name in known:
            known.move_to_end(segment.name)
        else:
            self._check_budget(segment.byte_size)
            self._pinned += segment.byte_size
            known[segment.name] = segment.byte_size
            if len(known) > _MAX_REGISTERED:
                self._pinned -= known.popitem(last=False)[1]
        segment.busy, segment.route, segment.epoch = True, route, epoch

    def _check_budget(self, byte_size: int) -> None:
        if self._pinned + byte_size > self.max_pinned:
            raise DeclinedError(
                f"pinned: servers keep {self._pinned:,} bytes of this client's shared memory mapped, and "
                f"{byte_size:,} more would pass shm_max_pinned ({self.max_pinned:,})"
            )


def _is_whole(array: np.ndarray[Any, Any], segment: Segment) -> bool:
    """Return whether an array covers a whole segment in C order."""
    return bool(
        array.nbytes == segment.byte_size
        and array.flags.c_contiguous
        and np.may_share_memory(array, np.frombuffer(segment, np.uint8, 1))  # it has the first byte
    )


def _lack_of_room(byte_size: int, space: Space) -> str | None:
    """Return why there is no room for a file of this size, or None."""
    if byte_size > space.free:
        return f"no room: {DIRECTORY} has no {byte_size:,} bytes ({space.free:,} are free)"
    if not space.has_inodes:
        return f"no room: {DIRECTORY} has as many files as its file system may have (no inode is left)"
    return None


def _why_not_made(error: OSError, byte_size: int) -> str:
    """Return why a file of this size could not be made, in the words of users."""
    if error.errno == errno.ENOMEM:  # also where RLIMIT_AS is reached
        return f"no room: there is no memory in which this process could map {byte_size:,} bytes"
    if error.errno == errno.ENOSPC:
        with Suppress(OSError):
            space = directory_space()
            lack = _lack_of_room(byte_size, space)
            return lack or f"no room: {DIRECTORY} has no {byte_size:,} bytes ({space.free:,} are free again)"
    return _not_made(error)


def _not_made(error: OSError) -> str:
    return f"not made: no segment in {DIRECTORY}: {error}"
