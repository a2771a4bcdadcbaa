"""The listeners of each client and of all, and the thread that delivers events to them."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from contextvars import Context
from time import monotonic, sleep
from typing import Any

from tcm_sync._handlers import is_of_handler
from tcm_sync._locks import OnceEvent, RLock
from tcm_sync._logs import Log
from tcm_sync._process import notice_fork, register_hooks
from tcm_sync._threads import DaemonThreads
from tcm_sync.errors import ConfigError
from tcm_sync.events._records import Event, Listener

log = Log("tcm_sync.events", queued=True)

_MAX_WAITING = 10_000  # events; where listeners are slower than that, `_Delivery` drops further ones
_SLOW = 1.0  # seconds for one event
_IDLE = 1.0  # seconds after which the thread without work ends
# Seconds in which the thread, when it has delivered all events, collects further ones. To wake it costs a
# small call more than to count that call, and without a pause each call wakes it twice. The pause is so short
# that few events collect, whose delivery at one go delays no call noticeably.
_PAUSE = 0.002
_EXIT_TIMEOUT = 1.0  # seconds in which events that wait are delivered when the process ends
_FORK_TIMEOUT = 1.0  # seconds that a fork waits for the listener that is running


class Registration:
    """One listener, and what was logged about it."""

    __slots__ = ("_has_raised", "_was_slow", "listener")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._has_raised = False
        self._was_slow = False

    def deliver(self, event: Event, context: Context | None) -> None:
        """Have the listener receive an event. Whatever it raises, the thread continues."""
        began = monotonic()
        try:
            method = getattr(self.listener, event.method)
            if context is None:
                method(event)
            else:
                context.run(method, event)
        except BaseException as error:  # noqa: BLE001
            if not self._has_raised:
                self._has_raised = True
                text = "the listener %r raised an exception at %s; further ones are not logged"
                log.error(text, self._name, event.method, failure=error)
        if not self._was_slow and (took := monotonic() - began) > _SLOW:
            self._was_slow = True
            text = "the listener %r took %.3g s at %s: events wait meanwhile, and are dropped beyond %d"
            log.warning(text, self._name, took, event.method, _MAX_WAITING)

    @property
    def _name(self) -> str:
        return type(self.listener).__qualname__


# Who is to receive what, and in which context. What `flush` waits for is received by nobody.
_Entry = tuple[tuple[Registration, ...], Event | OnceEvent, Context | None]


class _Delivery:
    """Calls listeners on one daemon thread, in the order of the events.

    Where too many events wait, further ones are dropped, but never an end alone: listeners may count what has
    begun and not ended. What begins then is held back, and dropped together with its end; if it has not ended
    when all that waits is delivered, its beginning is delivered then. So what waits is bounded by twice the
    limit, and what is held back by what is under way.
    """

    def __init__(self) -> None:
        self._renew()
        self._forking: set[int] = set()  # idents of threads that hold _running while they fork
        register_hooks(self)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before_fork, after_in_parent=self._after_fork_in_parent)

    def _renew(self) -> None:
        self._threads = DaemonThreads("tcm-sync-events", 1, idle=_IDLE)
        # What waits, and the beginnings that are held back, by what began. The operations of both are atomic,
        # so that events can be added under any lock.
        self._waiting: deque[_Entry] = deque()
        self._held_back: dict[Hashable, _Entry] = {}
        self._running = RLock()  # held while a listener runs
        self._has_dropped = False  # whether that was logged
        self._is_collecting = False  # whether the thread delivers what is added now without being woken
        self._is_registered = False  # whether `at_exit` runs before the handlers that exist
        self._has_waited = False  # whether `at_exit` has waited in vain

    def add(self, entry: _Entry) -> None:
        """Have an event delivered after the next `wake`. It takes no lock."""
        if self._has_room():
            self._waiting.append(entry)

    def add_beginning(self, thing: Hashable, entry: _Entry) -> None:
        """Have the beginning of a thing delivered after the next `wake`, if it has not ended by then."""
        if self._has_room():
            self._waiting.append(entry)
        else:
            self._held_back[thing] = entry

    def move_end(self, thing: Hashable, ends: list[Any]) -> None:
        """Take the end of a thing out of a list, if it is there, and have it delivered like its beginning.

        An interrupt comes before or after that.
        """
        if self._held_back.pop(thing, None) is None:
            self._move(list.pop, ends)
        ends.clear()

    def _move(self, pop: Callable[[Any], _Entry], argument: object) -> None:
        """Add what is popped, if it is there, to what waits, in one step of the interpreter."""
        with contextlib.suppress(IndexError, KeyError):
            self._waiting.extend(map(pop, (argument,)))

    def _has_room(self) -> bool:
        if len(self._waiting) < _MAX_WAITING and not self._held_back:
            return True
        if not self._has_dropped:
            self._has_dropped = True
            log.warning("events are dropped: the listeners are too slow, %d events wait", _MAX_WAITING)
        return False

    def _is_empty(self) -> bool:
        return not (self._waiting or self._held_back)

    def wake(self) -> None:
        """Have what waits delivered. It waits for nothing but a thread's start."""
        if not (self._is_empty() or self._is_collecting):
            if not self._is_registered:
                self._register_at_exit()
            try:
                self._threads.submit(self._deliver_and_collect, key="deliver")
            except RuntimeError as error:  # no thread: the call is more important than its events
                if is_of_handler(error):
                    raise

    def _register_at_exit(self) -> None:
        """Have `at_exit` called before the handlers that exist: an exporter takes nothing after its own."""
        self._is_registered = True
        atexit.unregister(self.at_exit)  # that of a parent process
        atexit.register(self.at_exit)

    def _deliver_and_collect(self) -> None:
        """Deliver events until none is added within a pause."""
        while not self._is_empty():
            self._deliver_all()
            self._is_collecting = True
            sleep(_PAUSE)
            self._is_collecting = False  # before the look at what waits: an event that is added later wakes

    def _deliver_all(self) -> None:
        while not self._is_empty():
            with self._running:  # a fork waits for one listener, and not for all that waits
                self._deliver_next()

    def _deliver_next(self) -> None:
        try:
            registered, event, context = self._waiting.popleft()
        except IndexError:
            for thing in list(self._held_back):
                self._move(self._held_back.pop, thing)
            return
        if isinstance(event, OnceEvent):
            event.set()
            return
        for registration in registered:
            registration.deliver(event, context)

    def flush(self, timeout: float) -> bool:
        """Wait until what was added so far is delivered, in seconds; whether it is."""
        if threading.current_thread().name == "tcm-sync-events":
            return False
        was_empty = self._is_empty()
        done = OnceEvent()
        try:
            self.add_beginning(done, ((), done, None))
            try:
                self._threads.submit(self._deliver_and_collect, key="deliver")
            except RuntimeError as error:  # no thread
                if is_of_handler(error):
                    raise
                return was_empty
            return done.wait(timeout)
        finally:
            self._held_back.pop(done, None)

    def _before_fork(self) -> None:
        """Wait for the listener that is running: a child would inherit the locks that it holds."""
        if self._running.acquire(timeout=_FORK_TIMEOUT):
            self._forking.add(threading.get_ident())

    def _after_fork_in_parent(self) -> None:
        if threading.get_ident() in self._forking:
            self._forking.discard(threading.get_ident())
            self._running.release()

    def after_fork(self) -> None:
        """Leave the parent's events to the parent."""
        self._forking.clear()
        self._renew()

    def at_exit(self) -> None:
        """Deliver what is left, if the listeners let it; a second call waits for none that does not."""
        if not (self._has_waited or (self._is_empty() and self._threads.is_idle())):
            self._has_waited = not self.flush(_EXIT_TIMEOUT)


class Listeners:
    """Those who listen to one client, its copies and its views.

    Parameters
    ----------
    own : iterable of Listener
        Those of the client; those of all clients are added.
    manager : str
        Host and port, which events name.

    Attributes
    ----------
    registered : tuple of Registration
        All of them; empty if nobody listens, which is tested before anything is made for an event.
    """

    __slots__ = ("__weakref__", "_own", "manager", "registered")

    def __init__(self, own: Iterable[Listener] = (), manager: str = "") -> None:
        self._own = tuple([Registration(listener) for listener in own])
        self.manager = manager
        self.registered: tuple[Registration, ...] = ()
        _all_listeners.add(self)

    def refresh(self, common: tuple[Registration, ...]) -> None:
        """Take over those who listen to all clients."""
        self.registered = self._own + common

    def add(self, event: Event, context: Context | None = None) -> None:
        """Have an event delivered after the next `wake`; for those who hold a lock, and finalizers."""
        _delivery.add((self.registered, event, context))

    def add_beginning(self, thing: Hashable, event: Event, context: Context | None = None) -> None:
        """Have the beginning of a thing delivered after the next `wake`.

        Parameters
        ----------
        thing : hashable
            What begins; its end is added with an equal one, or with the same.
        event : Event
            The beginning.
        context : contextvars.Context, optional
            In which it is delivered.
        """
        _delivery.add_beginning(thing, (self.registered, event, context))

    def add_end(self, thing: Hashable, event: Event, context: Context | None = None) -> None:
        """Have the end of a thing delivered after the next `wake`, unless its beginning was dropped."""
        _delivery.move_end(thing, [(self.registered, event, context)])

    def add_end_once(self, thing: Hashable, event: Event, context: Context, ongoing: list[Any]) -> None:
        """Have the end of a thing delivered as `add_end` does, but once.

        Parameters
        ----------
        thing : hashable
            What has ended.
        event : Event
            The end.
        context : contextvars.Context
            In which it is delivered.
        ongoing : list
            One element until the event is added, none from then on.
        """
        if ongoing:
            ongoing[0] = (self.registered, event, context)
            _delivery.move_end(thing, ongoing)

    def report(self, event: Event, context: Context | None = None) -> None:
        """Have an event delivered."""
        self.add(event, context)
        wake()


class _AllListeners:
    """All clients' listeners, and those who listen to all."""

    def __init__(self) -> None:
        self._lock = RLock()  # guards both
        self._common: tuple[Registration, ...] = ()
        self._members: dict[int, weakref.ref[Listeners]] = {}
        register_hooks(self)

    def add(self, listeners: Listeners) -> None:
        """Add those of one more client."""
        key = id(listeners)
        with self._lock:
            self._members[key] = weakref.ref(listeners, lambda _: self._members.pop(key, None))
            listeners.refresh(self._common)

    def change(self, add: tuple[Listener, ...] = (), remove: Listener | None = None) -> None:
        """Add and remove those who listen to all clients."""
        with self._lock:
            kept = tuple([each for each in self._common if each.listener is not remove])
            self._common = kept + tuple([Registration(listener) for listener in add])
            for member in list(self._members.values()):
                if (listeners := member()) is not None:
                    listeners.refresh(self._common)

    def after_fork(self) -> None:
        """Leave behind a lock that another thread of the parent may have held."""
        self._lock = RLock()

    def at_exit(self) -> None:
        """Do nothing."""


_all_listeners = _AllListeners()
_delivery = _Delivery()
NO_LISTENERS = Listeners()
wake = _delivery.wake


def checked_listeners(listeners: object) -> tuple[Listener, ...]:
    """Return the listeners of a client, or raise a ConfigError."""
    if isinstance(listeners, (list, tuple)):
        for listener in listeners:
            _check(listener)
        return tuple(listeners)
    raise ConfigError(f"listeners must be a list of tcm_sync.events.Listener, not {type(listeners).__name__}")


def _check(listener: object) -> None:
    if not isinstance(listener, Listener):
        kind = listener.__name__ if isinstance(listener, type) else type(listener).__name__
        raise ConfigError(f"a listener must be an instance of tcm_sync.events.Listener, not {kind}")


def add_listener(listener: Listener) -> None:
    """Have a listener receive the events of all clients of this process, of those that exist too.

    Parameters
    ----------
    listener : Listener
        Added twice, it receives each event twice.

    Raises
    ------
    ConfigError
        It is no `Listener`.
    """
    notice_fork()
    _check(listener)
    _all_listeners.change(add=(listener,))


def remove_listener(listener: Listener) -> None:
    """Have a listener that was added for all clients receive no more events; those that wait still come.

    Parameters
    ----------
    listener : Listener
        One that was never added is ignored.
    """
    notice_fork()
    _all_listeners.change(remove=listener)


def flush(timeout: float) -> bool:
    """Wait until all events so far are delivered, for tests and for programs that end abruptly.

    Parameters
    ----------
    timeout : float
        Seconds to wait at most.

    Returns
    -------
    bool
        Whether they are. False in a listener, which would wait for itself.
    """
    notice_fork()
    return _delivery.flush(timeout)
