"""Decide which jobs run next (docs/wire.rst, "Timing").

It does not use sockets or threads, and needs a clock only to forget idle uuids.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tcm_sync.local.injection import NO_FAULT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tcm_sync.local.injection import Fault

#: How many info jobs a manager's executor can hold; here they never wait.
_INFO_EXECUTOR_SIZE = 100


@dataclass(eq=False)
class Job:
    """One inference or management job.

    Attributes
    ----------
    uuid : str
        The client that sent it and gets the reply.
    tenant : str
        The tenant whose quantum it uses.
    payload : dict
        The request.
    kind : str
        ``"inference"`` or ``"management"``.
    claims : mapping
        Subject, tenant and roles of the client, which the reply to a management job repeats.
    fault : Fault
        What was planned for it, for tests.
    passed_over : int
        How many ticks skipped it although it was the next of its uuid.
    """

    uuid: str
    tenant: str
    payload: dict[str, Any]
    kind: str = "inference"
    claims: Mapping[str, Any] = field(default_factory=dict)
    fault: Fault = NO_FAULT
    passed_over: int = 0


class Round(NamedTuple):
    """The jobs that one tick takes out of the queues: to run, and to drop because the executor is full."""

    run: list[Job]
    dropped: list[Job]


@dataclass
class JobLoad:
    """The limits and counts of the jobs of one kind.

    Attributes
    ----------
    queue_size : int
        The most jobs of one uuid in its queue.
    executor_size : int
        The most jobs in the executor, running ones included.
    workers : int
        How many jobs run at the same time.
    waiting, running : int
        How many jobs are in the queues and in the executor.
    """

    queue_size: int
    executor_size: int
    workers: int = 1
    waiting: int = 0
    running: int = 0

    @property
    def pending(self) -> int:
        """How many jobs in the executor wait for a worker."""
        return max(0, self.running - self.workers)

    @property
    def available(self) -> int:
        """How many more jobs the executor can take."""
        return self.executor_size - self.running


@dataclass(slots=True)
class _User:
    """A uuid that has sent work; there may be tens of thousands, since clients change theirs."""

    last_seen: float
    kinds: tuple[str, ...] = ()
    waiting: dict[str, deque[Job]] = field(default_factory=dict)  # no queue is empty


class Scheduler:
    """Queues by kind and uuid, served a few at a time, the oldest uuids first.

    Parameters
    ----------
    loads : mapping of str to JobLoad
        By kind of job.
    quantum : int
        The most jobs of one kind and one tenant that one tick takes.
    forget_after : float
        Seconds after which an idle uuid is forgotten; if it sends work again, it is the youngest.
    clock : callable
        Returns seconds; it never goes back.
    """

    def __init__(
        self,
        loads: Mapping[str, JobLoad],
        *,
        quantum: int,
        forget_after: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loads = loads
        self._quantum = quantum
        self._forget_after = forget_after
        self._clock = clock
        self._users: dict[str, _User] = {}  # in the order in which they first sent something
        self._next_purge = clock() + forget_after

    @property
    def can_tick(self) -> bool:
        """Whether a tick has something to take."""
        return any(load.waiting and load.available > 0 for load in self.loads.values())

    @property
    def is_busy(self) -> bool:
        """Whether anything waits or runs."""
        return any(load.waiting or load.running for load in self.loads.values())

    def note(self, uuid: str, kind: str) -> None:
        """Record that a uuid has sent work of a kind."""
        self._note(uuid, kind)

    def _note(self, uuid: str, kind: str) -> _User:
        self._forget()
        user = self._users.get(uuid)
        if user is None:
            user = self._users[uuid] = _User(self._clock())
        user.last_seen = self._clock()
        if kind not in user.kinds:
            user.kinds += (kind,)
        return user

    def put(self, job: Job) -> bool:
        """Queue a job.

        Returns
        -------
        bool
            False if the queue of its kind and uuid is full, so that the job was not queued.
        """
        waiting = self._note(job.uuid, job.kind).waiting
        load, queue = self.loads[job.kind], waiting.get(job.kind, ())
        if len(queue) >= load.queue_size:
            return False
        waiting.setdefault(job.kind, deque()).append(job)
        load.waiting += 1
        return True

    def tick(self) -> Round:
        """Take the jobs whose turn it is: from each uuid at most one, from each tenant at most the quantum.

        Each kind has its own turn. While its executor is full all of its jobs wait. If it becomes full in
        the middle of a tick, the rest of what the tick takes is dropped.
        """
        self._forget()
        taken = Round([], [])
        for kind, load in self.loads.items():
            if load.waiting and load.available > 0:
                self._take(kind, load, taken)
        return taken

    def _take(self, kind: str, load: JobLoad, taken: Round) -> None:
        served: Counter[str] = Counter()
        for user in self._users.values():
            queue = user.waiting.get(kind)
            if not queue:
                continue
            tenant = queue[0].tenant
            if served[tenant] == self._quantum:
                queue[0].passed_over += 1
                continue
            served[tenant] += 1
            load.waiting -= 1
            job = queue.popleft()
            if not queue:
                del user.waiting[kind]
            if load.available > 0:
                load.running += 1
                taken.run.append(job)
            else:
                taken.dropped.append(job)

    def finish(self, kind: str) -> None:
        """Record that a running job is done."""
        self.loads[kind].running -= 1

    def drop_all(self) -> list[Job]:
        """Empty the queues.

        Returns
        -------
        list of Job
            The jobs that were in them.
        """
        dropped: list[Job] = []
        for user in self._users.values():
            for queue in user.waiting.values():
                dropped += queue
            user.waiting.clear()
        for load in self.loads.values():
            load.waiting = 0
        return dropped

    def queue_stats(self) -> dict[str, int]:
        """Count users and jobs for the info action ``queue_stats``."""
        users = Counter(kind for user in self._users.values() for kind in user.kinds)
        management, inference = self.loads["management"], self.loads["inference"]
        return {
            "info_users": users["info"],
            "management_users": users["management"],
            "inference_users": users["inference"],
            "total_users": len(self._users),
            "total_queued": management.waiting + inference.waiting,
            "info_total_queued": 0,
            "management_total_queued": management.waiting,
            "inference_total_queued": inference.waiting,
            "executor_info_pending": 0,
            "executor_management_pending": management.pending,
            "executor_inference_pending": inference.pending,
            "executor_info_available": _INFO_EXECUTOR_SIZE,
            "executor_management_available": management.available,
            "executor_inference_available": inference.available,
        }

    def _forget(self) -> None:
        """Drop users that have been idle for long; done at intervals, since it visits all of them."""
        now = self._clock()
        if now < self._next_purge:
            return
        self._next_purge = now + self._forget_after / 10
        oldest = now - self._forget_after
        self._users = {
            uuid: user for uuid, user in self._users.items() if user.last_seen > oldest or user.waiting
        }
