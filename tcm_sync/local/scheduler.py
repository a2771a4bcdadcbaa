"""Which inferences run next (docs/wire.rst, "Timing").

Pure bookkeeping: it knows nothing of sockets, threads or time, but for a clock to forget by.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

#: Jobs of the other two kinds that a manager holds; here they never wait.
_INFO_ROOM = 100
_MANAGEMENT_ROOM = 50


@dataclass(eq=False)
class Job:
    """One inference on its way.

    Attributes
    ----------
    uuid : str
        Who asked, and where the reply goes.
    tenant : str
        Whose quantum it uses.
    payload : dict
        The request.
    passed_over : int
        How many ticks served others while this was the next of its uuid.
    """

    uuid: str
    tenant: str
    payload: dict[str, Any]
    passed_over: int = 0


class Round(NamedTuple):
    """What one tick takes out of the queues: to run now, and to drop because the executor is full."""

    run: list[Job]
    dropped: list[Job]


@dataclass
class _User:
    """A uuid that has sent work."""

    last_seen: float
    kinds: set[str] = field(default_factory=set)
    waiting: deque[Job] = field(default_factory=deque)


class Scheduler:
    """Queues by uuid, served a few at a time, the oldest uuids first.

    Parameters
    ----------
    quantum : int
        The most inferences of one tenant that one tick takes.
    queue_size : int
        The most inferences of one uuid that wait.
    executor_queue_size : int
        The most inferences that are with the workers, running ones included.
    forget_after : float
        Seconds after which an idle uuid is forgotten; should it come back, it is the youngest.
    clock : callable
        Returns seconds; it never goes back.
    """

    def __init__(
        self,
        *,
        quantum: int,
        queue_size: int,
        executor_queue_size: int,
        forget_after: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quantum = quantum
        self._queue_size = queue_size
        self._executor_queue_size = executor_queue_size
        self._forget_after = forget_after
        self._clock = clock
        self._users: dict[str, _User] = {}  # in the order in which they first sent something
        self._next_purge = clock() + forget_after
        self.waiting = 0
        self.running = 0

    @property
    def has_room(self) -> bool:
        """Whether the workers can take one more."""
        return self.running < self._executor_queue_size

    def note(self, uuid: str, kind: str) -> None:
        """Remember that the uuid sent work of this kind."""
        user = self._users.get(uuid)
        if user is None:
            user = self._users[uuid] = _User(self._clock())
        user.last_seen = self._clock()
        user.kinds.add(kind)

    def put(self, job: Job) -> bool:
        """Let a job wait for its turn.

        Returns
        -------
        bool
            False if the queue of its uuid is full: the job was not taken.
        """
        self.note(job.uuid, "inference")
        queue = self._users[job.uuid].waiting
        if len(queue) >= self._queue_size:
            return False
        queue.append(job)
        self.waiting += 1
        return True

    def tick(self) -> Round:
        """Take the jobs whose turn it is: from each uuid at most one, from each tenant at most the quantum.

        While the executor is full all of them wait. If it becomes full in the middle of a tick, the rest
        of what the tick takes is dropped.
        """
        self._forget()
        taken = Round([], [])
        room = self._executor_queue_size - self.running
        if room <= 0:
            return taken
        served: Counter[str] = Counter()
        for user in self._users.values():
            if not user.waiting:
                continue
            tenant = user.waiting[0].tenant
            if served[tenant] == self._quantum:
                user.waiting[0].passed_over += 1
                continue
            served[tenant] += 1
            self.waiting -= 1
            job = user.waiting.popleft()
            if len(taken.run) < room:
                taken.run.append(job)
            else:
                taken.dropped.append(job)
        self.running += len(taken.run)
        return taken

    def finish(self) -> None:
        """Note that one of the jobs that ran is done."""
        self.running -= 1

    def drop_all(self) -> list[Job]:
        """Empty the queues.

        Returns
        -------
        list of Job
            What waited in them.
        """
        dropped = [job for user in self._users.values() for job in user.waiting]
        for user in self._users.values():
            user.waiting.clear()
        self.waiting = 0
        return dropped

    def queue_stats(self) -> dict[str, int]:
        """Count users and jobs, as the info action ``queue_stats`` tells them."""
        users = Counter(kind for user in self._users.values() for kind in user.kinds)
        return {
            "info_users": users["info"],
            "management_users": users["management"],
            "inference_users": users["inference"],
            "total_users": len(self._users),
            "total_queued": self.waiting,
            "info_total_queued": 0,
            "management_total_queued": 0,
            "inference_total_queued": self.waiting,
            "executor_info_pending": 0,
            "executor_management_pending": 0,
            "executor_inference_pending": self.running,
            "executor_info_available": _INFO_ROOM,
            "executor_management_available": _MANAGEMENT_ROOM,
            "executor_inference_available": self._executor_queue_size - self.running,
        }

    def _forget(self) -> None:
        """Drop the users that have been idle for long; looked for now and then, since it visits them all."""
        now = self._clock()
        if now < self._next_purge:
            return
        self._next_purge = now + self._forget_after / 10
        oldest = now - self._forget_after
        self._users = {
            uuid: user for uuid, user in self._users.items() if user.waiting or user.last_seen > oldest
        }
