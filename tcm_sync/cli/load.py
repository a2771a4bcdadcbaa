"""Load on a manager: calls from many threads, paced, and how long each took."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from tcm_sync.errors import ClientClosedError, TcmError

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

_LOWEST, _HIGHEST, _DIGITS = 1, 3_600_000_000, 3  # microseconds, and digits that are kept
_LOOK = 0.1  # seconds between two looks at whether it is over


class Turn(NamedTuple):
    """A thread's turn to send a request.

    Attributes
    ----------
    due : float
        Since when the request is due, on the monotonic clock.
    missed : float or None
        Seconds it had waited when the time was over, where no thread was free before: it is not sent.
    """

    due: float
    missed: float | None = None


class Pace(Protocol):
    """Says when requests are due."""

    def wait(self, stop: threading.Event) -> Turn | None:
        """Wait until the next request is due. None when there is none left."""


class ClosedLoop:
    """The next request of a thread is due when its last one is answered.

    Parameters
    ----------
    end : float
        On the monotonic clock.
    """

    def __init__(self, end: float) -> None:
        self._end = end

    def wait(self, stop: threading.Event) -> Turn | None:
        """Take a turn, unless it is over."""
        now = time.monotonic()
        return None if stop.is_set() or now >= self._end else Turn(now)


class OpenLoop:
    """Requests are due at a steady rate, whether those before are answered or not.

    Parameters
    ----------
    start, end : float
        On the monotonic clock.
    rate : float
        Requests a second.
    since : float
        When the counting begins: what was due before, and had no turn by then, is left out, so that it does
        not take the time of those that count.
    """

    def __init__(self, start: float, end: float, rate: float, since: float = 0.0) -> None:
        self._end = end
        self._since = since
        self._due = (start + number / rate for number in itertools.count())
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> Turn | None:
        """Wait until the next request is due. Where all threads were busy it was due a while ago."""
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
    """What was measured.

    Attributes
    ----------
    latencies : HdrHistogram
        In microseconds: of answered requests, and of those never sent what they had waited since they were
        due.
    answered, unsent : int
        How many of each.
    errors : Counter
        How many failed, by the manager's code or the error's class.
    answered_at : float
        When the last answer came, on the monotonic clock.
    """

    latencies: Any = field(default_factory=lambda: HdrHistogram(_LOWEST, _HIGHEST, _DIGITS))
    answered: int = 0
    unsent: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    answered_at: float = field(default_factory=time.monotonic)

    def record(self, seconds: float) -> None:
        """Take a latency."""
        self.latencies.record_value(min(max(round(seconds * 1e6), _LOWEST), _HIGHEST))

    def add(self, other: Tally) -> None:
        """Take what another thread has measured."""
        self.latencies.add(other.latencies)
        self.answered += other.answered
        self.unsent += other.unsent
        self.errors += other.errors

    def milliseconds(self) -> dict[str, float]:
        """Return the latencies as they are told."""
        latencies = self.latencies
        if not latencies.get_total_count():
            return {}
        told = {"min": latencies.get_min_value(), "mean": latencies.get_mean_value()}
        told |= {f"p{rank:g}": latencies.get_value_at_percentile(rank) for rank in PERCENTILES}
        told["max"] = latencies.get_max_value()
        return {name: round(value / 1e3, 3) for name, value in told.items()}


class Load:
    """Threads that call as paced.

    Parameters
    ----------
    call : callable
        One request.
    threads : int
        How many.
    pace : Pace
        When requests are due.
    since : float
        Requests that are due before are not counted: the warm-up.
    """

    def __init__(self, call: Callable[[], object], threads: int, pace: Pace, since: float) -> None:
        self._call = call
        self._pace = pace
        self._since = since
        self._stop = threading.Event()
        self._tallies = [Tally() for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._run, args=(tally,), daemon=True) for tally in self._tallies
        ]

    def run(self, is_lost: Callable[[float], bool]) -> None:
        """Run to the end.

        Parameters
        ----------
        is_lost : callable
            Asked now and then, with the seconds since the last answer, whether to give up.
        """
        for thread in self._threads:
            thread.start()
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            alive[0].join(_LOOK)
            if is_lost(time.monotonic() - max(tally.answered_at for tally in self._tallies)):
                return

    def stop(self) -> None:
        """Send no more, and wait for the threads: their calls must have been ended."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def total(self) -> Tally:
        """Add up what was measured; once it is stopped."""
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
                    tally.record(turn.missed)  # the wait is not hidden
                continue
            try:
                self._call()
            except ClientClosedError:
                return
            except TcmError as error:
                if counted:
                    tally.errors[error.code or type(error).__name__] += 1
                continue
            tally.answered_at = time.monotonic()
            if counted:
                tally.answered += 1
                tally.record(tally.answered_at - turn.due)
