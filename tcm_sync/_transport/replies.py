"""Replies that are waited for, found by the uuid of the socket they come on."""

from __future__ import annotations

import threading
from time import monotonic
from typing import NamedTuple

from tcm_sync._locks import RLock
from tcm_sync._waiting import acquire
from tcm_sync._wire.messages import ErrorReply
from tcm_sync.errors import TcmError


class Refusal(NamedTuple):
    """A failure in place of a reply, whether its socket may be used again, and the manager's message."""

    error: TcmError
    reusable: bool = False
    error_reply: ErrorReply | None = None


class ReplyFuture:
    """One reply, handed from the reader to the caller.

    It is resolved at most once: only the thread that takes it out of `PendingReplies` resolves it.
    """

    __slots__ = ("_answered", "advisories", "outcome", "started")

    def __init__(self) -> None:
        self._answered = threading.Lock()  # guards nothing: it is held until there is an outcome
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
        return acquire(self._answered, timeout)

    def has_reply(self) -> bool:
        """Return whether a whole reply is there."""
        return isinstance(self.outcome, bytes)

    def refusal(self, timeout: float) -> Refusal | None:
        """Wait for what came in place of a reply, in seconds; None if nothing did."""
        return self.outcome if self.wait(timeout) and isinstance(self.outcome, Refusal) else None


class StreamReplies:
    """The replies of one stream, handed from the reader to the caller as they come.

    It stays pending until the caller claims it. The reader never waits for room: past `bound` bytes it
    stops reading the socket, until the caller has taken what came.

    Parameters
    ----------
    bound : int
        Bytes of messages that may wait here.
    """

    __slots__ = (
        "_arrived",
        "_items",
        "_lock",
        "_waiting",
        "advisories",
        "bound",
        "last_at",
        "size",
        "started",
    )

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._lock = RLock()  # guards _items, size, _waiting and last_at
        self._items: list[bytes | Refusal] = []
        self.size = 0  # bytes of them
        self._waiting = False  # whether the caller waits for the next one
        self._arrived = threading.Lock()  # guards nothing: it is held until the next item is there
        self._arrived.acquire()
        self.last_at = monotonic()  # when the last one came
        self.advisories = 0
        self.started = False

    def resolve(self, outcome: bytes | Refusal) -> None:
        """Hand over a whole message, or what came in its place and ends the stream."""
        with self._lock:
            self._items.append(outcome)
            if isinstance(outcome, bytes):
                self.size += len(outcome)
            self.last_at = monotonic()
            waiting, self._waiting = self._waiting, False
        if waiting:
            self._arrived.release()

    def take(self, timeout: float | None) -> list[bytes | Refusal]:
        """Take all that is there, waiting for something, in seconds; nothing if nothing came."""
        with self._lock:
            if self._items:
                return self._take_all()
            self._waiting = True
        if not acquire(self._arrived, timeout):
            with self._lock:
                if self._waiting:
                    self._waiting = False
                    return []
            self._arrived.acquire()  # it is being handed over now
        with self._lock:
            return self._take_all()

    def has_reply(self) -> bool:
        """Return whether whole replies are there that nobody has taken."""
        return self.size > 0

    def refusal(self, timeout: float) -> Refusal | None:
        """Wait for what came in place of a reply, in seconds; None if nothing did."""
        return next((item for item in self.take(timeout) if isinstance(item, Refusal)), None)

    def _take_all(self) -> list[bytes | Refusal]:
        items, self._items, self.size = self._items, [], 0
        return items


Future = ReplyFuture | StreamReplies


class PendingReplies(dict[str, Future]):
    """The futures under way, by the uuid of their socket: one request in flight each.

    Setting and popping are each one atomic operation of a dict, so no lock is needed.
    """

    def claim(self, uuid: str) -> Future | None:
        """Take out the future of `uuid`, to resolve or to drop it; None if another thread has done so."""
        return self.pop(uuid, None)

    def claim_for_reply(self, uuid: str) -> ReplyFuture | None:
        """Take out the future of `uuid`, if a call waits there for one reply.

        One whose request has not begun to be sent does not wait yet: what comes is a second reply to the
        request before.
        """
        future = self.get(uuid)
        if type(future) is not ReplyFuture or not future.started or self.pop(uuid, None) is None:
            return None
        return future

    def claim_all(self) -> list[Future]:
        """Take every future there is."""
        claimed = (self.claim(uuid) for uuid in list(self))
        return [future for future in claimed if future is not None]
