"""Record when what happened during a load: latencies, answers, failures, and the manager's queue."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tcm_sync._locks import OnceEvent
from tcm_sync.cli.latencies import new_histogram, record
from tcm_sync.errors import ClientClosedError, TcmError

if TYPE_CHECKING:
    from tcm_sync.client import TcmClient
    from tcm_sync.results import QueueStats

_SLOTS = 80  # of a run, at most: so many points a chart can show
_WIDTHS = tuple(digit * 10.0**power for power in range(-1, 5) for digit in (1, 2, 5))
_DIGITS = 2  # significant digits of the latencies of a slot
_SAMPLES = 240  # of the queue during a run, at most
_MIN_INTERVAL = 0.2  # seconds between two samples of the queue, at least
_TIMEOUT = 2.0  # seconds for a sample


@dataclass
class Slot:
    """The requests of a short part of a run.

    Attributes
    ----------
    latencies : HdrHistogram
        In microseconds, of requests that were due in it.
    answered : int
        How many answers came in it.
    errors : Counter
        How many requests failed in it, by the manager's code or the error's class.
    """

    latencies: Any = field(default_factory=lambda: new_histogram(_DIGITS))
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class Timeline:
    """The parts of a run, in as much memory for an hour as for a second.

    Parameters
    ----------
    since : float
        When counting begins, on the monotonic clock.
    duration : float
        Seconds that the run takes.

    Attributes
    ----------
    width : float
        Seconds that a slot covers.
    slots : dict
        By their number; those in which nothing happened are missing.
    """

    def __init__(self, since: float, duration: float) -> None:
        self.since = since
        self.width = next((width for width in _WIDTHS if duration / width <= _SLOTS), duration / _SLOTS)
        self.slots: defaultdict[int, Slot] = defaultdict(Slot)
        self._lock = threading.Lock()  # guards the slots: every thread of a load records in them

    def record_latency(self, due: float, seconds: float) -> None:
        """Record the latency of a request."""
        with self._lock:
            record(self._slot(due).latencies, seconds)

    def record_answer(self, at: float) -> None:
        """Record that an answer came."""
        with self._lock:
            self._slot(at).answered += 1

    def record_error(self, at: float, code: str) -> None:
        """Record that a request failed."""
        with self._lock:
            self._slot(at).errors[code] += 1

    def _slot(self, at: float) -> Slot:
        return self.slots[int((at - self.since) / self.width)]


@dataclass(frozen=True)
class Sample:
    """The manager's inference queue at one moment.

    Attributes
    ----------
    at : float
        On the monotonic clock.
    queued : int
        Jobs that the scheduler has not passed on yet.
    waiting : int
        Jobs that wait for a worker.
    room : int
        How many more jobs the workers accept; a job that waits or runs takes one.
    """

    at: float
    queued: int
    waiting: int
    room: int

    @classmethod
    def of(cls, stats: QueueStats) -> Sample:
        """Take what concerns inference."""
        return cls(
            time.monotonic(),
            stats.inference_total_queued,
            stats.executor_inference_pending,
            stats.executor_inference_available,
        )


class QueueSampler:
    """Asks the manager for its queue at intervals, on a connection and a thread of its own.

    Parameters
    ----------
    client : TcmClient
        It is closed with the sampler.
    duration : float
        Seconds that the run takes, the warm-up included.

    Attributes
    ----------
    samples : list of Sample
        The first is from before the load.
    failed : int
        How many questions failed.
    reason : str or None
        Why the last of them failed.
    """

    def __init__(self, client: TcmClient, duration: float) -> None:
        self.samples: list[Sample] = []
        self.failed = 0
        self.reason: str | None = None
        self._client = client
        self._interval = max(_MIN_INTERVAL, duration / _SAMPLES)
        self._stop = OnceEvent()
        self._thread = threading.Thread(target=self._run, name="tcm-sync-queue", daemon=True)

    def __enter__(self) -> None:
        try:
            self._ask()
            self._thread.start()
        except BaseException:
            self._client.close()
            raise

    def __exit__(self, *_: object) -> Literal[False]:
        self._stop.set()
        self._client.close()  # ends the question under way
        self._thread.join()
        return False

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._ask()

    def _ask(self) -> None:
        try:
            self.samples.append(Sample.of(self._client.queue_stats(timeout=_TIMEOUT)))
        except ClientClosedError:
            return
        except TcmError as error:
            self.failed, self.reason = self.failed + 1, str(error)
