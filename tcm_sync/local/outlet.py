"""The way of a stream's messages from the thread of its model to the socket."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: How many characters wait for the socket at most, so that a client that does not read costs no memory.
ROOM = 2**18
#: How long, in seconds, a draining manager waits for a client that does not read.
PATIENCE = 1.0


class Outlet:
    """Messages that workers write and the event loop sends; it is full when the client does not read.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The loop that `take` is called in.
    announce : callable
        Called there with the outlet when there is something to take.
    in_a_hurry : callable
        Tells, in any thread, whether a client that does not read is to be given up.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        announce: Callable[[Outlet], None],
        *,
        in_a_hurry: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._announce = announce
        self._in_a_hurry = in_a_hurry
        self._changed = threading.Condition()
        self._texts: list[str] = []
        self._held = 0  # characters
        self._closed = threading.Event()

    def put(self, text: str) -> None:
        """Have a message sent, waiting until there is room; closed, it swallows everything at once."""
        with self._changed:
            while not self._changed.wait_for(self._has_room, PATIENCE):
                if self._in_a_hurry():
                    self._closed.set()
            if self._closed.is_set():
                return
            self._texts.append(text)
            self._held += len(text)
            if len(self._texts) > 1:
                return  # which is announced already
        try:
            self._loop.call_soon_threadsafe(self._announce, self)
        except RuntimeError:  # the loop was closed: the manager has been killed meanwhile
            self.close()

    def take(self) -> list[str]:
        """Take what is to be sent next."""
        with self._changed:
            texts, self._texts = self._texts, []
            self._held = 0
            self._changed.notify_all()
        return texts

    def close(self) -> None:
        """Swallow everything from now on, and let go who waits."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()

    def wait_closed(self, timeout: float) -> None:
        """Wait until it is closed, for `timeout` seconds at most."""
        self._closed.wait(timeout)

    def _has_room(self) -> bool:
        return self._held < ROOM or self._closed.is_set()
