"""Pass the messages of a stream from the thread of its model to the socket."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: The most characters that wait for the socket, so that a client that does not read costs little memory.
CAPACITY = 2**18
#: Seconds that a draining manager waits for a client that does not read.
DRAIN_WAIT = 1.0


class Outbox:
    """A bounded queue of messages that workers put in and the event loop sends.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The loop that `take` is called in.
    announce : callable
        Called in that loop with the outbox when there are messages to take.
    is_draining : callable
        Returns whether the manager drains, and waits no longer for a client that does not read; called in any
        thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        announce: Callable[[Outbox], None],
        *,
        is_draining: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._announce = announce
        self._is_draining = is_draining
        self._changed = threading.Condition()
        self._texts: list[str] = []
        self._characters = 0  # characters
        self._closed = threading.Event()

    def put(self, text: str) -> None:
        """Queue a message, waiting while the queue is full; a closed outbox drops it."""
        with self._changed:
            while not self._changed.wait_for(self._has_room, DRAIN_WAIT):
                if self._is_draining():
                    self._closed.set()
            if self._closed.is_set():
                return
            self._texts.append(text)
            self._characters += len(text)
            if len(self._texts) > 1:
                return  # the first message has been announced
        try:
            self._loop.call_soon_threadsafe(self._announce, self)
        except RuntimeError:  # the loop was closed, since the manager was killed
            self.close()

    def take(self) -> list[str]:
        """Remove and return all messages."""
        with self._changed:
            texts, self._texts = self._texts, []
            self._characters = 0
            self._changed.notify_all()
        return texts

    def close(self) -> None:
        """Drop all messages from now on, and wake the threads that wait."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()

    def wait_closed(self, timeout: float) -> None:
        """Wait until it is closed, for `timeout` seconds at most."""
        self._closed.wait(timeout)

    def _has_room(self) -> bool:
        return self._characters < CAPACITY or self._closed.is_set()
