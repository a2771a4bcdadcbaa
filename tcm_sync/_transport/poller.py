"""Waiting on many sockets at once, with the interface of `select.epoll` wherever there is none."""

from __future__ import annotations

import select
import selectors
from typing import Protocol

READ = 1
WRITE = 4  # both as epoll numbers them


class Poller(Protocol):
    """What the reader uses of `select.epoll`, whose Python wrapper in `selectors` costs as much again."""

    def register(self, fd: int, mask: int, /) -> None:
        """Watch a descriptor."""

    def modify(self, fd: int, mask: int, /) -> None:
        """Watch it for something else."""

    def unregister(self, fd: int, /) -> None:
        """Forget it."""

    def poll(self, timeout: float, /) -> list[tuple[int, int]]:
        """Wait, in seconds, and return which descriptors are ready, and for what."""

    def close(self) -> None:
        """Close its own descriptor, if it has one."""


def make_poller() -> Poller:
    """Return epoll on Linux, and elsewhere the best there is."""
    return select.epoll() if hasattr(select, "epoll") else SelectorPoller()


class SelectorPoller:
    """The same on top of `selectors`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, mask: int, /) -> None:
        """Watch a descriptor."""
        self._selector.register(fd, _EVENTS[mask])

    def modify(self, fd: int, mask: int, /) -> None:
        """Watch it for something else."""
        self._selector.modify(fd, _EVENTS[mask])

    def unregister(self, fd: int, /) -> None:
        """Forget it."""
        self._selector.unregister(fd)

    def poll(self, timeout: float, /) -> list[tuple[int, int]]:
        """Wait, in seconds, and return which descriptors are ready, and for what."""
        return [(key.fd, _MASKS[events]) for key, events in self._selector.select(timeout)]

    def close(self) -> None:
        """Close its own descriptor, if it has one."""
        self._selector.close()


_EVENTS = {
    READ: selectors.EVENT_READ,
    WRITE: selectors.EVENT_WRITE,
    READ | WRITE: selectors.EVENT_READ | selectors.EVENT_WRITE,
}
_MASKS = {events: mask for mask, events in _EVENTS.items()}
