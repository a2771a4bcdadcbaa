"""Put load on a manager from many threads at a given pace, and measure the latencies."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tcm_sync._locks import OnceEvent
from tcm_sync.cli.latencies import new_histogram, record
from tcm_sync.errors import ClientClosedError, TcmError

if TYPE_CHECKING:
    from tcm_sync.cli.timeline import Timeline

UNANSWERED = "UNANSWERED"  #: the code of requests that a lost manager did not answer

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

_DIGITS = 3  # significant digits of a latency
_CHECK_INTERVAL = 0.1  # seconds between two checks of whether the load is over


class Turn(NamedTuple):
    """A thread's turn to send a request.

    Attributes
    ----------
    due : float
        When the request is due, on the monotonic clock.
    missed : float or None
        Seconds that a request which is not sent, since no thread was free, had waited at the end.
    """

    due: float
    missed: float | None = None


class Pace(Protocol):
    """Decides when requests are due."""

    def wait(self, stop: OnceEvent) -> Turn | None:
        """Wait until the next request is due; None if there are no more."""


class ClosedLoop:
    """A pace at which a thread's next request is due when its last one is answered.

    Parameters
    ----------
    end : float
        When it ends, on the monotonic clock.
    """

    def __init__(self, end: float) -> None:
        self._end = end

    def wait(self, stop: OnceEvent) -> Turn | None:
        """Take a turn, unless it is over."""
        now = time.monotonic()
        return None if stop.is_set() or now >= self._end else Turn(now)


class OpenLoop:
    """A pace at which requests are due at a steady rate, whether earlier ones are answered or not.

    Parameters
    ----------
    start, end : float
        On the monotonic clock.
    rate : float
        Requests a second.
    since : float
        When counting begins. Requests that were due before and not yet sent are skipped, so that they do not
        delay those that count.
    """

    def __init__(self, start: float, end: float, rate: float, since: float = 0.0) -> None:
        self._end = end
        self._since = since
        self._due = (start + number / rate for number in itertools.count())
        self._lock = threading.Lock()

    def wait(self, stop: OnceEvent) -> Turn | None:
        """Wait until the next request is due; if all threads were busy, it was due earlier."""
        with self._lock:
            now = time.monotonic()
            due = next(due for due in self._due if due >= self._since or now < self._since)
        if due >= self._end or stop.is_set():
            return None
        if now >= self._end:
            return Turn(due, self._end - due)
        return None if stop.wait(max(0.0, due - now)) else Turn(due)


@dataclass
class Tally:
    """The measurements of one or more threads.

    Attributes
    ----------
    latencies : HdrHistogram
        In microseconds: of answered requests, and the waits of those that were never sent.
    answered, unsent : int
        How many of each.
    errors : Counter
        How many failed, by the manager's code or the error's class.
    answered_at : float
        When the last answer came, on the monotonic clock.
    """

    latencies: Any = field(default_factory=lambda: new_histogram(_DIGITS))
    answered: int = 0
    unsent: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    answered_at: float = field(default_factory=time.monotonic)

    def record(self, seconds: float) -> None:
        """Record a latency."""
        record(self.latencies, seconds)

    def add(self, other: Tally) -> None:
        """Add the measurements of another thread."""
        self.latencies.add(other.latencies)
        self.answered += other.answered
        self.unsent += other.unsent
        self.errors += other.errors

    def milliseconds(self) -> dict[str, float]:
        """Return minimum, mean, percentiles and maximum of the latencies."""
        latencies = self.latencies
        if not latencies.get_total_count():
            return {}
        found = {"min": latencies.get_min_value(), "mean": latencies.get_mean_value()}
        found |= {f"p{rank:g}": latencies.get_value_at_percentile(rank) for rank in PERCENTILES}
        found["max"] = latencies.get_max_value()
        return {name: round(value / 1e3, 3) for name, value in found.items()}


class Load:
    """Threads that make calls at a pace.

    Parameters
    ----------
    call : callable
        One request.
    threads : int
        How many.
    pace : Pace
        When requests are due.
    since : float
        Requests that are due before this are the warm-up, and do not count.
    timeline : Timeline, optional
        Where to record when it happened as well.

    Attributes
    ----------
    is_manager_lost : bool
        Whether the manager is lost: requests that end with the client have failed then, when they were due.
    """

    def __init__(
        self,
        call: Callable[[], object],
        threads: int,
        pace: Pace,
        since: float,
        timeline: Timeline | None = None,
    ) -> None:
        self._call = call
        self._pace = pace
        self._since = since
        self._timeline = timeline
        self.is_manager_lost = False
        self._stop = OnceEvent()
        self._tallies = [Tally() for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._run, args=(tally,), daemon=True) for tally in self._tallies
        ]

    def run(self, is_lost: Callable[[float], bool]) -> None:
        """Run to the end.

        Parameters
        ----------
        is_lost : callable
            Called at intervals with the seconds since the last answer; returns whether to stop.
        """
        for thread in self._threads:
            thread.start()
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            alive[0].join(_CHECK_INTERVAL)
            if is_lost(time.monotonic() - max(tally.answered_at for tally in self._tallies)):
                return

    def stop(self) -> None:
        """Send no more requests, and wait for the threads; the calls under way must have been ended."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def total(self) -> Tally:
        """Add up the measurements of all threads, after `stop`."""
        total = Tally()
        for tally in self._tallies:
            total.add(tally)
        return total

    def _run(self, tally: Tally) -> None:
        while (turn := self._pace.wait(self._stop)) is not None:
            counted = turn.due >= self._since
            if turn.missed is not None:
                if counted:
                    tally.unsent += 1
                    self._record(tally, turn.due, turn.missed)  # so that the wait shows in the latencies
                continue
            try:
                self._call()
            except ClientClosedError:
                if counted and self.is_manager_lost:
                    self._record_error(tally, UNANSWERED, turn.due)
                return
            except TcmError as error:
                if counted:
                    self._record_error(tally, error.code or type(error).__name__, time.monotonic())
                continue
            tally.answered_at = time.monotonic()
            if counted:
                tally.answered += 1
                self._record(tally, turn.due, tally.answered_at - turn.due)
                if self._timeline is not None:
                    self._timeline.record_answer(tally.answered_at)

    def _record(self, tally: Tally, due: float, seconds: float) -> None:
        tally.record(seconds)
        if self._timeline is not None:
            self._timeline.record_latency(due, seconds)

    def _record_error(self, tally: Tally, code: str, at: float) -> None:
        tally.errors[code] += 1
        if self._timeline is not None:
            self._timeline.record_error(at, code)
