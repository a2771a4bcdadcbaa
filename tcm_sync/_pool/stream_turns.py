"""Streams of one container, one at a time: a registered server runs no more (docs/manager.rst)."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

from tcm_sync._pool.gate import again
from tcm_sync.errors import ClientClosedError

if TYPE_CHECKING:
    from tcm_sync._pool.call import Call
    from tcm_sync.errors import TcmError

_LOOK = 1.0  # seconds between two looks whether a stream that was never closed is still there
_MOST_CONTAINERS = 256  # that are remembered


class Turns:
    """Has the streams of a container wait for one another once it has refused a second one.

    Who waits has no socket. A stream that was dropped without being closed has had its turn once it is
    collected.
    """

    def __init__(self) -> None:
        # Guards everything below. Its lock is re-entrant: a stream may be closed in a signal handler.
        self._changed = threading.Condition(threading.RLock())
        self._refusals: dict[str, TcmError] = {}  # by container, whose server runs one stream at a time
        self._running: dict[str, weakref.WeakSet[Call]] = {}
        self._lines: dict[str, deque[Call]] = {}
        self._closed = False

    def enter(self, container_id: str, call: Call) -> None:
        """Wait until a stream may begin, first come first served.

        Raises
        ------
        StreamBusyError
            Others ran for as long as there was time.
        ClientClosedError
            The client was closed meanwhile.
        """
        with self._changed:
            if container_id in self._refusals:
                self._wait(container_id, call)
            self._running.setdefault(container_id, weakref.WeakSet()).add(call)

    def _wait(self, container_id: str, call: Call) -> None:
        line = self._lines.setdefault(container_id, deque())
        line.append(call)
        try:
            while line[0] is not call or self._running.get(container_id):
                if self._closed:
                    raise ClientClosedError("the client was closed while the stream waited for its turn")
                left = call.deadline.remaining()
                if left == 0.0:
                    raise again(self._refusals[container_id])
                self._changed.wait(_LOOK if left is None else min(left, _LOOK))
        finally:
            line.remove(call)
            if not line:
                del self._lines[container_id]
            self._changed.notify_all()

    def leave(self, container_id: str, call: Call) -> None:
        """End the turn of a stream, if it has one."""
        with self._changed:
            running = self._running.get(container_id)
            if running is not None:
                running.discard(call)
                if not running:
                    del self._running[container_id]
                self._changed.notify_all()

    def refused(self, container_id: str, cause: TcmError) -> None:
        """Let no two streams of a container run at once from now on."""
        with self._changed:
            if len(self._refusals) >= _MOST_CONTAINERS and not self._lines:
                self._refusals.clear()
            self._refusals[container_id] = again(cause)

    def close(self) -> None:
        """End every wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
