"""Values that are kept for a while, since they may change, and are then found out again."""

from __future__ import annotations

from time import monotonic
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class TtlCache(Generic[Key, Value]):
    """A bounded cache whose entries expire (TTL: time to live). Each step is one atomic operation of a dict.

    Parameters
    ----------
    seconds : float
        How long an entry is kept after it was last put.
    most : int
        How many entries are kept; when it is full, all of them are dropped.
    """

    def __init__(self, seconds: float, most: int = 256) -> None:
        self._seconds = seconds
        self._most = most
        self._entries: dict[Key, tuple[float, Value]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return self.get(key) is not None

    def get(self, key: Key) -> Value | None:
        """Return what was put last, unless that is too long ago."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        until, value = entry
        if monotonic() < until:
            return value
        self._entries.pop(key, None)
        return None

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, which is not None."""
        if key not in self._entries and len(self._entries) >= self._most:
            self._entries.clear()
        self._entries[key] = (monotonic() + self._seconds, value)
