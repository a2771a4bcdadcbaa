"""What happens to clients when their process forks or ends, and in which processes they refuse to run.

A thread that is started while the interpreter ends may crash it, before Python 3.12: no thread of ours is.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from typing import Protocol

from tcm_sync._locks import RLock
from tcm_sync.errors import ConfigError


class ProcessHooks(Protocol):
    """An object that holds threads, sockets or locks: its hooks run after a fork and at the exit."""

    def after_fork(self) -> None:
        """Leave the parent's threads and sockets behind; called in the child."""

    def at_exit(self) -> None:
        """Refuse what would wait for threads that the interpreter is about to stop."""


# By id. Plain operations of a dict are atomic; iterating over a WeakSet is not, and may fail.
_registered: dict[int, weakref.ref[ProcessHooks]] = {}
_starts_lock = RLock()  # guards _starting and _exiting
_start_ended = threading.Condition(_starts_lock)
_starting: set[threading.Thread] = set()  # those that are being started, by any client
_exiting = False
_START_TIMEOUT = 1.0  # seconds in which a thread starts; one that cannot start must not delay the exit
_pid = os.getpid()  # of the process that the objects of this one belong to
_fork_lock = RLock()  # guards _pid: one thread of a child leaves the parent behind, others wait


def register_hooks(hooks: ProcessHooks) -> None:
    """Call the hooks of an object in each forked child of this process, and when this process ends."""
    key = id(hooks)
    _registered[key] = weakref.ref(hooks, lambda _: _registered.pop(key, None))


def _all_registered() -> list[ProcessHooks]:
    return [hooks for reference in list(_registered.values()) if (hooks := reference()) is not None]


def start_thread(thread: threading.Thread) -> None:
    """Start a thread, unless the interpreter is ending.

    No lock is held during the start: one that never returns (for lack of memory) blocks no other client.

    Raises
    ------
    RuntimeError
        It is, or there can be no more threads.
    """
    try:
        with _starts_lock:
            if _exiting:
                raise RuntimeError("the interpreter is ending")
            _starting.add(thread)
        thread.start()
    finally:
        _starting.discard(thread)  # at once: an interrupt may come before the lock is taken
        with _starts_lock:
            _start_ended.notify_all()


def notice_fork() -> None:
    """Leave a parent process behind, if this one was forked without Python's hooks.

    uWSGI and C extensions do that. Every public method that takes a lock or waits for a thread begins with
    this: the lock may have been held at the fork, and the thread is the parent's.
    """
    if os.getpid() != _pid:
        with _fork_lock:
            if os.getpid() != _pid:
                _after_fork_in_child()


def _after_fork_in_child() -> None:
    global _starts_lock, _start_ended, _pid
    _starts_lock = RLock()
    _start_ended = threading.Condition(_starts_lock)
    _starting.clear()
    for hooks in _all_registered():
        hooks.after_fork()
    _pid = os.getpid()


def _at_exit() -> None:
    global _exiting
    notice_fork()
    with _starts_lock:
        _exiting = True
        _start_ended.wait_for(lambda: not _starting, _START_TIMEOUT)
    for hooks in _all_registered():
        hooks.at_exit()


# Threads that are not daemons have ended by then, and handlers that users registered later have run.
atexit.register(_at_exit)

if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)


# What must be the system's own; gevent's name is threading, and eventlet's thread.
_GREEN = ("threading", "thread", "socket", "ssl", "select")


def refuse_green_threads() -> None:
    """Refuse a process whose threads or sockets gevent or eventlet has replaced.

    Raises
    ------
    ConfigError
        The message names what to use in their place.
    """
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    for name, is_patched in (
        ("gevent", getattr(gevent, "is_module_patched", None)),
        ("eventlet", getattr(eventlet, "is_monkey_patched", None)),
    ):
        patched = [] if is_patched is None else [module for module in _GREEN if is_patched(module)]
        if patched:
            raise ConfigError(
                f"{name} has patched {', '.join(patched)} in this process, which this client does not "
                "support: use worker processes or threads (gunicorn: --worker-class gthread), or call it in "
                "a process of its own"
            )
