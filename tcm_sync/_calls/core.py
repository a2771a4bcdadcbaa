"""What the calls of a client share: its settings, counters and limits, and the connections they run on."""

from __future__ import annotations

import contextlib
import enum
import importlib
import sys
import threading
import warnings
import weakref
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tcm_sync._calls.learned_limits import MessageLimit, RowLimits
from tcm_sync._calls.worker_threads import Workers
from tcm_sync._handlers import is_of_handler
from tcm_sync._locks import RLock
from tcm_sync._pool.connector import Connector
from tcm_sync._pool.runtime import Runtime
from tcm_sync._process import notice_fork, refuse_green_threads, register_hooks, start_thread
from tcm_sync._reentry import Callers, entry_point
from tcm_sync._shm.policy import ShmPolicy
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.counters import Counts
from tcm_sync._wire.encode import size_of
from tcm_sync.errors import ClientClosedError, ConfigError, MessageTooLargeError, TcmError
from tcm_sync.events._listeners import Listeners

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tcm_sync._deadline import Deadline
    from tcm_sync._pool.call import Call
    from tcm_sync._shm.segment import Segment
    from tcm_sync._transport.connection import Connection
    from tcm_sync.events import Listener
    from tcm_sync.settings import Settings
    from tcm_sync.stats import ClientStats

# Imported when a client is made. Later there may be no descriptor left to load them with, and a fork during
# an import leaves the import lock held in the child. Name resolution needs encodings.idna.
_NEEDED_LATER = ["email.utils", "encodings.idna", "http.client", "tenacity"]
if sys.platform != "win32":
    _NEEDED_LATER += ["fcntl", "grp"]


class State(enum.Enum):
    """Where a client is between its making and its closing."""

    UNOPENED = "not open"  # nothing has been called yet in this process
    OPEN = "open"
    CLOSED = "closed"  # it stays closed


class Core:
    """What the calls of a client, of its copies and of its views share.

    Parameters
    ----------
    settings : Settings
        What the client was made with.
    key : str
        Identifies the client among its copies, in this process and in others.
    listeners : iterable of Listener
        Who listens to this client, besides those who listen to all.

    Attributes
    ----------
    counts : Counts
        The counters.
    listeners : Listeners
        Who listens to the client.
    shm : ShmPolicy
        Which calls use shared memory, and the memory.
    callers : Callers
        The threads that are inside a call.
    prober : Connector
        Threads for ``/health`` and ``/ready``, at most two however many requests hang.
    addresses : Addresses
        What was learned about the manager's addresses, for sockets and for probes.
    row_limits : RowLimits
        The most rows of a request, by route and model.
    messages : MessageLimit
        The most bytes of a message.
    runtime : Runtime or None
        The connections, once there was a call.
    workers : Workers or None
        The threads of `submit`, once there was one.
    """

    def __init__(self, settings: Settings, key: str, listeners: Iterable[Listener] = ()) -> None:
        refuse_green_threads()
        try:
            for name in _NEEDED_LATER:
                importlib.import_module(name)
        except (OSError, ImportError) as error:
            if is_of_handler(error):
                raise
            raise ConfigError(f"a module that clients need cannot be loaded: {error}") from error
        self.settings = settings
        self.key = key
        self.counts = Counts()
        self.listeners = Listeners(listeners, urlsplit(settings.uri).netloc)
        self.shm = ShmPolicy(settings)
        self.callers = self._callers = Callers()  # under the name that `entry_point` takes, too
        self.prober = Connector(self.callers)
        self.addresses = Addresses()
        self.row_limits = RowLimits()
        self.messages = MessageLimit(settings)
        self.lock = RLock()  # guards runtime, workers, stats_at_reset and _all_workers
        self.stats_at_reset: ClientStats | None = None  # the counters at the last reset
        self.runtime: Runtime | None = None
        self.workers: Workers | None = None
        self._all_workers: weakref.WeakSet[Workers] = weakref.WeakSet()  # of `submit` and of each `map`
        # The ids of the clients and views that are open; each step is one atomic operation of a set.
        self._clients: set[int] = set()
        self._views: set[int] = set()
        self.may_be_dropped = False  # whether it may end without close(), and without a warning
        self._closing = False  # set without the lock: a signal handler may interrupt its holder
        register_hooks(self)

    @property
    def state(self) -> State:
        """Whether calls can be made, and whether any was."""
        if self._closing:
            return State.CLOSED
        return State.UNOPENED if self.runtime is None else State.OPEN

    def __repr__(self) -> str:
        """One line. It takes no lock, so that it may be shown anywhere, and may be a little off."""
        runtime, state = self.runtime, self.state
        if runtime is None or state is not State.OPEN:
            return f"<TcmClient {self.settings.shown_uri} {state.value}>"
        sockets, busy, waiting = runtime.pool.read_unlocked()
        parts = [f"open, {sockets} of {self.settings.pool_size} sockets, {busy} calls in flight"]
        if waiting:
            parts.append(f"{waiting} waiting")
        if shut := ", ".join(runtime.shut_gates()):
            parts.append(f"shut: {shut}")
        return f"<TcmClient {self.settings.shown_uri} {', '.join(parts)}>"

    # --- opening ---

    @entry_point
    def begin(self) -> Runtime:
        """Return the runtime, started if it does not run."""
        return self.running()

    def running(self) -> Runtime:
        """Do what `begin` does, inside an entry point."""
        notice_fork()
        runtime = self.runtime
        if runtime is not None and runtime.reader.is_reading and not self._closing:
            return runtime
        with self.lock:
            self._check_open()
            if self.runtime is not None and not self.runtime.reader.stopping:
                self.runtime.start_reader()
                return self.runtime
            refuse_green_threads()
            if self.runtime is not None:
                self.runtime.stop()
            runtime = self.runtime = Runtime(
                self.settings, self.counts, self.callers, self.addresses, self.listeners
            )
            try:
                self._check_open()
            except ClientClosedError:  # by a signal handler
                runtime.stop()
                raise
            return runtime

    def _check_open(self) -> None:
        if self._closing:
            raise ClientClosedError("the client is closed, and a closed client stays closed: make another")

    @entry_point
    def open(self, deadline: Deadline, *, wait: bool) -> None:
        """Open a first socket, and wait until it is authenticated if that is wanted."""
        runtime = self.running()
        if not wait:
            runtime.pool.open_first()
            return
        lease = runtime.pool.acquire(deadline, fail_fast=True)
        try:
            lease.release(used=False)
        except BaseException:
            lease.discard("open() was interrupted")
            raise

    @entry_point
    def new_workers(self, max_threads: int) -> Workers:
        """Return threads for calls, which end when the client is closed."""
        return self._new_workers(max_threads)

    def _new_workers(self, max_threads: int) -> Workers:
        notice_fork()
        workers = Workers(max_threads, self.callers)
        with self.lock:
            if self._closing:
                workers.close()
            self._all_workers.add(workers)
        return workers

    @entry_point
    def background(self) -> Workers:
        """Return the threads of `submit`."""
        return self.background_inside()

    def background_inside(self) -> Workers:
        """Do what `background` does, inside an entry point."""
        self.running()
        workers = self.workers
        if workers is None:
            workers = self._new_workers(self.settings.pool_size)
            with self.lock:
                workers = self.workers = self.workers or workers
        return workers

    @entry_point
    def new_segment(self, byte_size: int) -> Segment:
        """Return a segment of shared memory that is the caller's."""
        self.running()
        return self.shm.arena().empty(byte_size)

    # --- what calls ask ---

    @entry_point
    def any_connection(self) -> Connection | None:
        """Return one of the connections that are open, if there is any."""
        return None if self.runtime is None else self.runtime.pool.any_open()

    def message_limit(self) -> int:
        """Return the most bytes of a message: as set, or fewer if this manager said so."""
        return self.messages.now(self.runtime)

    def failed(self, error: TcmError, call: Call) -> None:
        """Put the facts of a call into its error, and count it."""
        self.counts.failed(error)
        if call.target is not None:
            error.route, error.model_name = call.target
        error.elapsed = call.deadline.elapsed()
        error.outcome_unknown = error.outcome_unknown or call.may_have_run
        if isinstance(error, MessageTooLargeError) and error.size is None and call.payload:  # 1009
            refused = size_of(call.payload) + self.messages.envelope_bytes(call.kind)
            self.messages.learn(error.limit, refused, self.runtime)

    # --- closing ---

    def attach(self, client: object, *, is_view: bool) -> None:
        """Record one more client or view of these connections."""
        (self._views if is_view else self._clients).add(id(client))

    def detach(self, client: object) -> None:
        """Record that a client or a view is no longer there."""
        self._clients.discard(id(client))
        self._views.discard(id(client))

    def closed_copy(self) -> Core:
        """Return a closed core with these counters: that of a client whose copies are still open."""
        closed = Core(self.settings, self.key)
        closed.counts, closed.stats_at_reset = self.counts, self.stats_at_reset
        closed._closing = True
        return closed

    def detach_last(self, client: object) -> bool:
        """Detach one client or view; whether that ends all calls, which are refused from then on."""
        is_view = id(client) in self._views
        self.detach(client)
        others = (self._clients or self._views) if is_view else self._clients
        if not others:
            self._closing = True  # whatever this thread is in the middle of
        return self._closing

    def close(self, seconds: float) -> None:
        """End all calls, after waiting up to so many seconds for those in flight."""
        if not self.callers.has_this_thread():
            self._close(seconds)
        elif (runtime := self.runtime) is not None:
            self._stop_on_other_thread(runtime)

    @entry_point
    def _close(self, timeout: float) -> None:
        runtime, all_workers = self._runtime_and_workers()
        for workers in all_workers:
            workers.close()
        if runtime is not None:
            runtime.close(min(timeout, threading.TIMEOUT_MAX))
        for workers in all_workers:
            workers.join(1.0)
        self.shm.close()

    def _stop_on_other_thread(self, runtime: Runtime) -> None:
        """Stop on another thread, which waits for the locks that this one may hold."""
        if not runtime.reader.is_reading:  # it is suspended, and the interrupted call may not start it
            with contextlib.suppress(RuntimeError):  # there can be no more threads
                start_thread(threading.Thread(target=self._stop, name="tcm-sync-closer", daemon=True))
                return
        runtime.reader.run_soon(self._stop)

    def _stop(self) -> None:
        """Stop everything, without waiting for it to end."""
        runtime, all_workers = self._runtime_and_workers()
        for workers in all_workers:
            workers.close()
        if runtime is not None:
            runtime.stop()
        self.shm.close()

    def _runtime_and_workers(self) -> tuple[Runtime | None, list[Workers]]:
        with self.lock:
            return self.runtime, list(self._all_workers)

    def __del__(self) -> None:
        runtime = getattr(self, "runtime", None)
        if runtime is None or self._closing:
            return
        if runtime.reader.is_inherited():
            runtime.close_inherited()
            return
        runtime.reader.stop()  # it waits for nothing: this may run inside any lock
        if not self.may_be_dropped and not sys.is_finalizing():
            warnings.warn(
                f"unclosed {self!r}: close() it, or use it as a context manager", ResourceWarning, 2, self
            )
        runtime.turns.leave()

    def after_fork(self) -> None:
        """Leave the parent's threads and sockets behind; a forked child does this by itself."""
        self.lock = RLock()
        self.callers.clear()
        self.counts.lock = RLock()  # the parent's streams continue to count with them
        self.prober.opening.close_inherited()
        self.prober = Connector(self.callers)
        self.counts, self.stats_at_reset = Counts(), None
        self.shm = ShmPolicy(self.settings)  # the segments are the parent's
        self.workers, self._all_workers = None, weakref.WeakSet()
        runtime, self.runtime = self.runtime, None
        if runtime is not None:
            runtime.close_inherited()

    def at_exit(self) -> None:
        """Refuse calls from now on: the reader is about to be stopped with the interpreter."""
        self._closing = True
        self.shm.close()
