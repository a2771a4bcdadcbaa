"""Counters of a `LocalManager`, for tests."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from tcm_sync.local.scheduler import JobLoad

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class LocalStats:
    """The counts of a `LocalManager` since it was started.

    Attributes
    ----------
    connections : int
        WebSocket connections that were opened.
    connected : int
        Authenticated ones that are open now.
    uuids : tuple of str
        The uuid of each authenticated connection, in order; of the last 10,000.
    messages : int
        Messages received, without the auth messages.
    executions : mapping of str to int
        How often each model was run, failures included.
    nacks : mapping of str to int
        Errors sent: by code, or by message where there is no code. Of those messages only 1,000 are
        counted by themselves, the others as ``"other messages"``.
    waiting, running : int
        Inferences in the queues and in the executor now.
    management_waiting, management_running : int
        Management jobs in the queues and in the executor now.
    hung : int
        Inferences that hang in their workers until `LocalManager.kill` (`known_faults`).
    lost_replies : int
        Replies whose uuid was not connected when they were ready; streams do not count.
    """

    connections: int
    connected: int
    uuids: tuple[str, ...]
    messages: int
    executions: Mapping[str, int]
    nacks: Mapping[str, int]
    waiting: int
    running: int
    management_waiting: int
    management_running: int
    hung: int
    lost_replies: int


_MAX_UUIDS = 10_000
_MAX_NACKS = 1000  # some messages repeat what the client sent, so that there is no end of them
_OTHERS = "other messages"


class Counters:
    """The counting behind `LocalStats`; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._executions: Counter[str] = Counter()
        self._nacks: Counter[str] = Counter()
        self._uuids: deque[str] = deque(maxlen=_MAX_UUIDS)

    def count(self, what: str) -> None:
        """Count one of ``connections``, ``messages``, ``lost_replies``."""
        with self._lock:
            self._counts[what] += 1

    def count_uuid(self, uuid: str) -> None:
        """Count an authenticated connection."""
        with self._lock:
            self._uuids.append(uuid)

    def count_execution(self, model_name: str) -> None:
        """Count a run of the model."""
        with self._lock:
            self._executions[model_name] += 1

    def count_nack(self, name: str) -> None:
        """Count an error that was sent."""
        with self._lock:
            known = name in self._nacks or len(self._nacks) < _MAX_NACKS
            self._nacks[name if known else _OTHERS] += 1

    def snapshot(
        self, loads: Mapping[str, JobLoad] = MappingProxyType({}), *, connected: int = 0, hung: int = 0
    ) -> LocalStats:
        """Return a copy of the counts, beside those of a manager that runs.

        Parameters
        ----------
        loads : mapping of str to JobLoad
            Its queues, by the kind of job.
        connected, hung : int
            As in `LocalStats`.
        """
        inference, management = (loads.get(kind, JobLoad(0, 0)) for kind in ("inference", "management"))
        with self._lock:
            return LocalStats(
                connections=self._counts["connections"],
                connected=connected,
                uuids=tuple(self._uuids),
                messages=self._counts["messages"],
                executions=MappingProxyType(dict(self._executions)),
                nacks=MappingProxyType(dict(self._nacks)),
                waiting=inference.waiting,
                running=inference.running,
                management_waiting=management.waiting,
                management_running=management.running,
                hung=hung,
                lost_replies=self._counts["lost_replies"],
            )
