"""Calls inside calls: handlers and finalizers run in threads that may be inside a client.

What they interrupt may hold a lock, or be in the middle of a change. So a thread makes one call of a client
at a time, and a second one inside it is refused at once. Even so all locks are re-entrant, so that what
only reads, as `stats` does, and what a finalizer of this package does, never waits for its own thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from threading import get_ident
from types import CodeType, FrameType
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from tcm_sync._tracebacks import shortened
from tcm_sync.errors import ReentrantCallError

_ENTRY_POINTS: set[CodeType] = set()  # of the functions that note their thread


class Callers(set[int]):
    """The threads that are inside a client, by their idents. Adding and discarding are atomic."""

    def has_this_thread(self, depth: int = 1) -> bool:
        """Whether this thread is inside, by the stack from so many frames up."""
        ident = get_ident()
        if ident not in self:
            return False
        frame: FrameType | None = sys._getframe(depth)  # noqa: SLF001 - documented, with a warning
        while frame is not None:
            if frame.f_code in _ENTRY_POINTS:
                return True
            frame = frame.f_back
        self.discard(ident)  # an interrupt kept it from being discarded
        return False

    def refuse(self) -> None:
        """Refuse the call of an entry point whose thread is inside already.

        Raises
        ------
        ReentrantCallError
            It is.
        """
        if self.has_this_thread(depth=3):
            raise ReentrantCallError(
                "this thread is inside another call of the same client: a signal handler, a finalizer or a "
                "log handler cannot make calls there. Nothing was sent. Set a flag or raise an exception in "
                "the handler, and make the call outside; stats(), repr() and close() work anywhere"
            )


class HasCallers(Protocol):
    """What notes the threads that are inside it."""

    _callers: Callers


Self = TypeVar("Self", bound=HasCallers)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def is_entry_point(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Note that a function adds its thread to the callers, and discards it."""
    _ENTRY_POINTS.add(function.__code__)
    return function


def entry_point(
    method: Callable[Concatenate[Self, Arguments], Result],
) -> Callable[Concatenate[Self, Arguments], Result]:
    """Have a method refuse threads that are inside already, and note those that are in it."""

    @is_entry_point
    @wraps(method)
    def enter(self: Self, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        callers, ident = self._callers, get_ident()
        if ident in callers:
            callers.refuse()
        try:
            callers.add(ident)
            return method(self, *args, **kwargs)
        except BaseException as error:
            shortened(error)
            raise
        finally:
            callers.discard(ident)

    return enter
