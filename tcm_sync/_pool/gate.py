"""A gate: shut for a while after a failure, longer each time, and then tried by one probe."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import weakref
from math import inf
from time import monotonic, time

from tcm_sync._deadline import Deadline
from tcm_sync._locks import RLock
from tcm_sync._logs import Log
from tcm_sync._waiting import MAX_STEP
from tcm_sync.errors import TcmError
from tcm_sync.events._listeners import NO_LISTENERS, Listeners, wake
from tcm_sync.events._records import GateOpened, GateShut
from tcm_sync.events._watch import cause_of

log = Log("tcm_sync.pool", queued=True)

_ids = itertools.count(1)
_AUDIT_INTERVAL = 1.0  # seconds between two checks whether a prober was collected


class Prober:
    """What passes a shut gate to try it."""

    __slots__ = ("__weakref__",)


_ANYONE = Prober()


class Gate:
    """Holds callers back together, so that only one of them at a time tries a failing manager.

    Open, it lets every caller pass. `shut` closes it for a pause that doubles each time; when the pause is
    over one caller passes as the probe, and its outcome decides: `open`, `shut` again, or `end_probe` (no
    outcome: the next one probes).

    Parameters
    ----------
    name : str
        What the log and the statistics call it.
    initial, maximum : float
        Seconds of the first pause and of the longest, without jitter.
    jitter : float
        The largest random share by which a pause is longer, so that processes do not probe together; of
        `maximum` at most.
    refused_within : float, optional
        Seconds in which a refusal comes if it comes: a probe that was not refused by then has passed.
    of : str
        The manager's address, for the log.
    level : int
        The log level of the line for an open gate that is shut.
    listeners : Listeners
        Who listens to the client.
    """

    def __init__(
        self,
        name: str,
        initial: float,
        maximum: float,
        *,
        jitter: float = 0.1,
        refused_within: float | None = None,
        of: str = "",
        level: int = logging.INFO,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self.name = name
        self._id = next(_ids)
        self._listeners = listeners
        self._where = f" at {of}" if of else ""
        self._level = level
        self._jitter = jitter
        self._refused_within = refused_within
        self._initial = initial
        self._maximum = maximum
        self._lock = RLock()  # guards all attributes below; `cause` is also read without it
        self._changed = threading.Condition(self._lock)  # notified when the gate may be passed
        self._pause = 0.0  # of the last shutting; 0.0 once the pause is reset
        self._opens_at = 0.0
        self._prober: weakref.ref[Prober] | None = None  # the probe that passed, until its outcome is known
        self._probe_ends = inf  # when the probe is over, however it ends
        self._shut_at = 0.0  # when it was shut after it had been open
        self._unlogged: list[tuple[int, str]] = []  # lines for the log, which is not written under a lock
        self.cause: TcmError | None = None  # why it is shut; None is open

    def shut(
        self,
        cause: TcmError,
        pause: float | None = None,
        *,
        exactly: float | None = None,
        log_now: bool = True,
    ) -> bool:
        """Shut, because of `cause`; whether this shut it, and not a failure of the same burst before.

        `pause` is the least pause, in seconds; `exactly` is the pause that the manager asked for. An outage
        is one line at the gate's level: until the pause is reset, shutting the gate again is logged at DEBUG.
        """
        with self._lock:
            now = monotonic()
            if self.cause is not None and self._prober is None and now < self._opens_at:
                return False  # others of the same burst have failed before
            first = self.cause is None and self._pause == 0.0  # not a manager that fails whatever passes
            doubled = min(max(self._initial, self._pause * 2), self._maximum)
            self._pause = exactly if exactly is not None else max(pause or 0.0, doubled)
            longest = 1.0 + self._jitter * self._maximum / max(self._pause, self._maximum)
            seconds = self._pause * random.uniform(1.0, longest)  # noqa: S311 - spreads load, guards no secret
            if first:
                self._shut_at = now
            level = self._level if first else logging.DEBUG
            self._unlogged.append(
                (level, f"{self.name} gate shut{self._where}: {cause}; the next try is in {seconds:.3f} s")
            )
            self._add_shut(cause, seconds)
            # A copy: the error itself holds on to the frames that it was raised in.
            self.cause, self._opens_at, self._prober = copy_for_call(cause), now + seconds, None
            self._changed.notify_all()
        if log_now:
            self.write_log()
        return True

    def open(self, *, reset_pause: bool = True, log_now: bool = True) -> None:
        """Open. Unless `reset_pause`, the next pause is still longer than the last one."""
        with self._lock:
            self._open(reset_pause=reset_pause)
        if log_now:
            self.write_log()

    def _open(self, *, reset_pause: bool) -> None:
        if self.cause is not None:
            lasted = monotonic() - self._shut_at
            text = f"{self.name} gate open again{self._where}, it was shut for {lasted:.3f} s: {self.cause}"
            self._unlogged.append((logging.INFO, text))
            self._add_opened(lasted)
        self.cause, self._prober = None, None
        if reset_pause:
            self._pause = 0.0
        self._changed.notify_all()

    def report_end(self) -> None:
        """Report to listeners that nothing is held back here any more, if it is shut: it is used no more."""
        if self.cause is not None:
            self._add_opened(monotonic() - self._shut_at)
            wake()

    def _add_shut(self, cause: TcmError, seconds: float) -> None:
        listeners = self._listeners
        if listeners.registered:
            event = GateShut(
                at=time(),
                manager=listeners.manager,
                gate=self.name,
                gate_id=self._id,
                code=cause_of(cause),
                message=cause.message,
                seconds=seconds,
            )
            if self.cause is None:
                listeners.add_beginning(self, event)
            else:  # it was shut already
                listeners.add(event)

    def _add_opened(self, lasted: float) -> None:
        listeners = self._listeners
        if listeners.registered:
            event = GateOpened(
                at=time(), manager=listeners.manager, gate=self.name, gate_id=self._id, seconds=lasted
            )
            listeners.add_end(self, event)

    def write_log(self) -> None:
        """Log and report what changed; for those who changed it under a lock, which must not be held here."""
        wake()
        while self._unlogged:
            try:
                level, text = self._unlogged.pop(0)
            except IndexError:  # another thread was faster
                return
            log.log(level, text)

    def describe(self) -> str | None:
        """Describe why it is shut, and for how long, or None."""
        cause, seconds = self.cause, self._opens_at - monotonic()
        if cause is None:
            return None
        return f"shut for {seconds:.1f} s: {cause}" if seconds > 0.0 else f"being tried: {cause}"

    def reset_pause(self) -> None:
        """Begin the next shutting with the first pause again."""
        if self._pause and self.cause is None:
            with self._lock:
                if self.cause is None:
                    self._pause = 0.0

    def is_past(self) -> bool:
        """Whether it is open, or would have opened long ago."""
        return self.cause is None or monotonic() > self._opens_at + self._maximum

    def end_probe(self, prober: Prober | None = None) -> None:
        """End the probe of `prober`, or of anyone, which had no outcome."""
        with self._lock:
            if prober is None or self.is_probed_by(prober):
                self._prober = None
                self._changed.notify_all()

    def is_probed_by(self, prober: Prober) -> bool:
        """Whether `prober` has passed as the probe, and its outcome is not known."""
        return self._prober is not None and self._prober() is prober

    def try_pass(self, prober: Prober = _ANYONE) -> float:
        """Return 0.0 if the caller may pass (as the probe if the gate is not open), else how long to wait.

        It is `math.inf` while a probe is under way.
        """
        if self.cause is None:
            return 0.0
        with self._lock:
            return self._try_pass(prober, inf)

    def _try_pass(self, prober: Prober, lasting: float) -> float:
        if self.cause is None:
            return 0.0
        now = monotonic()
        if self._prober is not None and self._prober() is not None:
            if now < self._probe_ends:
                return inf
            if self._refused_within is not None:
                self._open(reset_pause=True)
                return 0.0
        if now < self._opens_at:
            return self._opens_at - now
        self._prober = weakref.ref(prober)
        self._probe_ends = now + (lasting if self._refused_within is None else self._refused_within)
        return 0.0

    def wait(self, deadline: Deadline, prober: Prober = _ANYONE) -> bool:
        """Wait until the caller may pass; return whether it does so as the probe.

        Parameters
        ----------
        deadline : Deadline
            The call's. A probe is over when it has passed.
        prober : Prober
            Who is asking. Once it is collected its probe is over, however it was lost.

        Raises
        ------
        TcmError
            The cause of the shutting: the gate stays shut for longer than `deadline` allows.
        """
        if self.cause is None:
            return False
        try:
            return self._wait(deadline, prober)
        finally:
            self.write_log()

    def _wait(self, deadline: Deadline, prober: Prober) -> bool:
        with self._lock:
            while True:
                left = deadline.remaining()
                seconds = self._try_pass(prober, inf if left is None else left)
                cause = self.cause
                if seconds <= 0.0:
                    return cause is not None
                assert cause is not None
                if left is not None and (left <= 0.0 or inf > seconds > left):
                    raise copy_for_call(cause)
                if seconds == inf:
                    seconds = min(self._probe_ends - monotonic(), _AUDIT_INTERVAL)
                self._changed.wait(max(0.0, min(seconds, MAX_STEP, inf if left is None else left)))


def copy_for_call(error: TcmError) -> TcmError:
    """Return a copy of an error that another call has met, to be raised by this one."""
    copy = type(error)(error.message)
    vars(copy).update({name: value for name, value in vars(error).items() if name != "__notes__"})
    copy.history, copy.attempts, copy.outcome_unknown = (), 0, False
    copy.uuid = copy.elapsed = copy.model_name = copy.route = None
    return copy
