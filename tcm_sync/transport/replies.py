"""Replies that are waited for, found by the uuid of the socket they come on."""

from __future__ import annotations

import threading
from typing import NamedTuple

from tcm_sync.errors import TcmError


class Refusal(NamedTuple):
    """A failure in place of a reply, and whether its socket may be used again."""

    error: TcmError
    reusable: bool = False


class ReplyFuture:
    """One reply, handed from the reader to the caller.

    It is resolved at most once, by whoever pops it from `PendingReplies`; who pops nothing does nothing.
    """

    __slots__ = ("_answered", "advisories", "outcome", "started")

    def __init__(self) -> None:
        self._answered = threading.Lock()  # held until there is an outcome; guards nothing
        self._answered.acquire()
        self.outcome: bytes | Refusal | None = None
        self.advisories = 0  # how often the manager said that the request is delayed
        self.started = False  # whether a byte of the request may have reached the socket

    def resolve(self, outcome: bytes | Refusal) -> None:
        """Hand over a whole message, or what came in its place."""
        self.outcome = outcome
        self._answered.release()

    def wait(self, timeout: float | None) -> bool:
        """Wait for the outcome, in seconds; whether there is one."""
        if timeout is None:
            return self._answered.acquire()
        return self._answered.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))


class PendingReplies:
    """The futures under way, by the uuid of their socket: one request in flight each.

    Adding and popping are each one atomic operation of a dict, so no lock is needed.
    """

    def __init__(self) -> None:
        self._futures: dict[str, ReplyFuture] = {}

    def add(self, uuid: str, future: ReplyFuture) -> None:
        """Wait for the next reply on the socket named `uuid`."""
        self._futures[uuid] = future

    def claim(self, uuid: str) -> ReplyFuture | None:
        """Take the future of `uuid`, to resolve it or to give it up; None if somebody else has."""
        return self._futures.pop(uuid, None)

    def peek(self, uuid: str) -> ReplyFuture | None:
        """Look at the future of `uuid` without taking it."""
        return self._futures.get(uuid)

    def claim_all(self) -> list[ReplyFuture]:
        """Take every future there is."""
        claimed = (self.claim(uuid) for uuid in list(self._futures))
        return [future for future in claimed if future is not None]
