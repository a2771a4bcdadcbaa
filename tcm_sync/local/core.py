"""The state that the sessions of a `LocalManager` share: clients, queues, workers, and shutdown.

All of it runs in the event loop's thread, except models and management jobs, which the workers run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from tcm_sync._ttl_cache import TtlCache
from tcm_sync.local.auth import Authenticator
from tcm_sync.local.faults import Faults
from tcm_sync.local.inference import Inference
from tcm_sync.local.limits import TokenBucket
from tcm_sync.local.management import Management
from tcm_sync.local.outbox import Outbox
from tcm_sync.local.requests import is_stream
from tcm_sync.local.scheduler import Job, JobLoad, Scheduler
from tcm_sync.local.streams import Streams
from tcm_sync.local.triton import Triton
from tcm_sync.local.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tcm_sync.local.cloud import Cloud
    from tcm_sync.local.injection import PlannedFaults
    from tcm_sync.local.loaded_model import LoadedModel
    from tcm_sync.local.settings import Settings
    from tcm_sync.local.shared_memory import SharedMemory
    from tcm_sync.local.stats import Counters, LocalStats

#: For how long a draining manager still queues what is sent to it (docs/wire.rst, "Draining").
SCHEDULER_DRAIN_SECONDS = 0.5
_DRAIN_POLL = 0.005
_MAX_TENANTS = 10_000
_IN_THREAD = 0.020  # seconds before a tick, in which a thread sleeps and not the loop

DROPPED_BY_SHUTDOWN = ("SYSTEM_SHUTDOWN", "Request dropped: system is shutting down.")
QUEUE_FULL = ("BACKPRESSURE_QUEUE_FULL", "Request dropped due to backpressure (per-user queue full).")
EXECUTOR_FULL = ("BACKPRESSURE_EXECUTOR_FULL", "Request dropped due to backpressure (executor full).")
DELAYED = (
    "BACKPRESSURE_INSUFFICIENT_BUDGET",
    "Request delayed due to tenant budget (DRR cost-aware fairness).",
)


def error_message(message: str, code: str | None = None, **more: str) -> dict[str, Any]:
    """Make a message of type ``error``."""
    payload = {"message": message, **more} if code is None else {"code": code, "message": message, **more}
    return {"type": "error", "payload": payload}


class Receiver(Protocol):
    """What the core sends to: a session."""

    outbox: Outbox

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message, after those before it."""

    def send_texts(self, *texts: str) -> None:
        """Send messages that are written already, in one piece."""


class Core:
    """The part of a manager that all its sessions share.

    Parameters
    ----------
    settings : Settings
    models : mapping of str to LoadedModel
    cloud : Cloud
    shared_memory : SharedMemory or None
    counters : Counters
    planned : PlannedFaults
    loop : asyncio.AbstractEventLoop
        The loop that all methods are called in.
    """

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, LoadedModel],
        cloud: Cloud,
        shared_memory: SharedMemory | None,
        counters: Counters,
        planned: PlannedFaults,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.settings = settings
        self.counters = counters
        self.planned = planned
        self.capabilities = ("json",) if shared_memory is None else ("json", "shm")
        self.draining = False
        self.accepts_work = True  # whether new work is accepted, for a while also while draining
        self.authenticator = Authenticator(settings.tokens, settings.auth_failures_per_minute)
        self.scheduler = Scheduler(
            {
                "management": JobLoad(
                    settings.management_queue_size,
                    settings.management_executor_queue_size,
                    settings.management_workers,
                ),
                "inference": JobLoad(settings.queue_size, settings.executor_queue_size, settings.workers),
            },
            quantum=settings.quantum,
        )
        self._workers = {
            "management": Workers(settings.management_workers, "tcm-local-management"),
            "inference": Workers(settings.workers, "tcm-local-worker"),
            "clock": Workers(1, "tcm-local-clock"),
        }
        self.faults = Faults() if settings.known_faults else None
        triton = Triton(
            models,
            shared_memory=shared_memory,
            max_payload_bytes=settings.max_payload_bytes,
            count_execution=counters.count_execution,
            faults=self.faults,
        )
        self._shared_memory = shared_memory
        self._find = cloud.find
        self._inference = Inference(triton, cloud.find)
        self._streams = Streams(
            triton,
            cloud.find,
            timeout=settings.stream_timeout,
            is_discarding=lambda: self._workers["inference"].is_discarding,
        )
        self._management = Management(
            cloud, models, settings.on_cloud_step, known_faults=settings.known_faults
        )
        # for streams of clients that have disconnected
        self._closed_outbox = Outbox(loop, lambda _: None, is_draining=lambda: True)
        self._closed_outbox.close()
        self._loop = loop
        self._sessions: dict[str, Receiver] = {}  # by uuid, in the order in which they connected
        # a bucket that was not used for a second is full, as a new one is
        self._tenants: TtlCache[str, TokenBucket] = TtlCache(1.0, _MAX_TENANTS)
        self._no_delays = threading.Event()  # set when delayed requests wait no longer
        self._work = asyncio.Event()  # set while a tick may have something to take

    @property
    def connected(self) -> int:
        """How many sessions are authenticated now."""
        return len(self._sessions)

    def stats(self) -> LocalStats:
        """Return what the manager has counted so far."""
        hung = 0 if self.faults is None else self.faults.hung
        return self.counters.snapshot(self.scheduler.loads, connected=self.connected, hung=hung)

    def join(self, uuid: str, session: Receiver) -> bool:
        """Register a session under its uuid; return False if another session has it."""
        return self._sessions.setdefault(uuid, session) is session

    def leave(self, uuid: str) -> None:
        """Free a uuid. The requests that were sent under it continue."""
        self._sessions.pop(uuid, None)

    def admit_tenant(self, tenant: str) -> bool:
        """Count a message of the tenant, unless it is over its limit."""
        if self.settings.tenant_messages_per_second is None:
            return True
        bucket = self._tenants.get(tenant) or TokenBucket(self.settings.tenant_messages_per_second)
        self._tenants.put(tenant, bucket)
        return bucket.admit()

    def send(self, uuid: str, message: Mapping[str, Any]) -> None:
        """Send to the session that has the uuid now, if any; another one may have sent the request."""
        session = self._sessions.get(uuid)
        if session is not None:
            session.send(message)

    def alert(self, message: str, error_type: str) -> None:
        """Send an alert to the client that connected first, if there is one."""
        for session in list(self._sessions.values())[:1]:
            session.send(
                {"type": "alert", "error_type": error_type, "message": message, "timestamp": time.time()}
            )

    def enqueue(self, job: Job) -> None:
        """Queue a job, or refuse it."""
        if not self.accepts_work:
            return  # while the manager drains, the session refuses every message itself
        if self.scheduler.put(job):
            self._work.set()
        else:
            self._refuse(job, QUEUE_FULL)

    async def schedule(self) -> None:
        """At each tick at which jobs wait, give those whose turn it is to the workers; never return."""
        tick = self.settings.tick
        due = self._loop.time()
        while True:
            await self._work.wait()
            late = self._loop.time() - due
            if tick:  # as if it had woken at every tick while nothing waited
                due += tick * (math.floor(late / tick) + 1)
                await self._sleep_until(due)
            else:
                await asyncio.sleep(0)
            self._run_tick()
            due = self._loop.time()  # the next tick is a whole one after this round

    async def _sleep_until(self, due: float) -> None:
        """Sleep, in the end in a thread: the timers of a loop with busy sockets are up to 2 ms late."""
        rest = due - self._loop.time() - _IN_THREAD
        if rest > 0.0:
            await asyncio.sleep(rest)
        woken = asyncio.Event()

        def sleep() -> None:
            time.sleep(max(0.0, due - self._loop.time()))
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(woken.set)

        self._workers["clock"].submit(sleep)
        await woken.wait()

    def _run_tick(self) -> None:
        taken = self.scheduler.tick()
        for job in taken.dropped:
            self._refuse(job, EXECUTOR_FULL)
        advise_after = self.settings.advise_after
        for job in taken.run:
            if advise_after is not None and job.passed_over >= advise_after:
                code, message = DELAYED
                self.send(job.uuid, error_message(message, code, job_type=job.kind, tenant_id=job.tenant))
            self._workers[job.kind].submit(lambda job=job: self._run(job))  # type: ignore[misc]
        if not self.scheduler.can_tick:
            self._work.clear()

    def _run(self, job: Job) -> None:
        """Do one job; in a worker's thread."""
        if job.fault.seconds:
            self._no_delays.wait(job.fault.seconds)
        faults = self.faults if job.kind == "inference" else None
        with contextlib.nullcontext() if faults is None else faults.worker():
            if job.kind == "inference" and is_stream(job.payload):
                session = self._sessions.get(job.uuid)
                outbox = self._closed_outbox if session is None else session.outbox
                self._streams.answer(job.uuid, job.payload, outbox, job.fault)
                texts: tuple[str, ...] = ()
            else:
                reply = self._reply(job)
                texts = () if reply is None else job.fault.texts(json.dumps(reply))
        try:
            self._loop.call_soon_threadsafe(self._finish, job, texts)
        except RuntimeError:  # the loop was closed, since the manager was killed
            return

    def _reply(self, job: Job) -> dict[str, Any] | None:
        if job.kind == "inference":
            answer = self._inference.answer(job.payload, job.fault.failure)
            return {"type": "inference", "uuid": job.uuid, "payload": answer}
        payload = self._management.answer(job.uuid, job.payload)
        if self._shared_memory is not None:
            self._shared_memory.drop_deleted(self._find)
        if payload is None:
            return None
        return {
            "uuid": job.uuid,
            "type": "management",
            "payload": payload,
            "_correlation_id": secrets.token_hex(8),
            "_auth": {**job.claims, "capability": ["json"]},
        }

    def _finish(self, job: Job, texts: tuple[str, ...]) -> None:
        self.scheduler.finish(job.kind)
        if self.scheduler.can_tick:
            self._work.set()
        if not texts:
            return  # no reply, or a stream that has been sent already
        session = self._sessions.get(job.uuid)
        if session is None:
            self.counters.count("lost_replies")
        else:
            session.send_texts(*texts)

    def _refuse(self, job: Job, why: tuple[str, str]) -> None:
        code, message = why
        self.send(job.uuid, error_message(message, code, dropped_type=job.kind))

    def begin_draining(self) -> None:
        """Drop waiting jobs; from now on new messages are handled and still refused."""
        if self.draining:
            return
        self.draining = True
        for job in self.scheduler.drop_all():
            self._refuse(job, DROPPED_BY_SHUTDOWN)
        self._loop.call_later(SCHEDULER_DRAIN_SECONDS, self._stop_accepting)

    def _stop_accepting(self) -> None:
        self.accepts_work = False
        self.scheduler.drop_all()  # they were refused when they were sent

    async def drain(self, linger: float) -> None:
        """Drain, and wait for running jobs.

        Parameters
        ----------
        linger : float
            The least seconds that this takes.
        """
        self.begin_draining()
        end = self._loop.time() + linger
        while self.scheduler.is_busy or self._loop.time() < end:
            await asyncio.sleep(_DRAIN_POLL)

    def discard_work(self) -> None:
        """Start no more work, and end streams at their next chunk. Any thread may call this."""
        self._no_delays.set()
        for workers in self._workers.values():
            workers.discard()
        if self.faults is not None:
            self.faults.release()

    def finish_workers(self) -> None:
        """Let the workers end after the jobs that they were given. Any thread may call this."""
        for workers in self._workers.values():
            workers.finish()

    @property
    def is_working(self) -> bool:
        """Whether a worker's thread has not ended."""
        return any(workers.is_working for workers in self._workers.values())

    def join_workers(self) -> None:
        """Wait until the workers have ended, after `finish_workers`. Any thread may call this."""
        for workers in self._workers.values():
            workers.join()
