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

from tcm_sync.errors import ConfigError


class Watched(Protocol):
    """What is told of a fork."""

    def after_fork(self) -> None:
        """Leave the parent's threads and sockets behind."""

    def at_exit(self) -> None:
        """Refuse what would wait for threads that the interpreter is about to stop."""


_watched: weakref.WeakSet[Watched] = weakref.WeakSet()
_starting = threading.RLock()  # guards _exiting, and each start of a thread against it
_exiting = False
_pid = os.getpid()  # of the process that the objects of this one belong to
_noticing = (
    threading.RLock()
)  # guards _pid: of a child's threads one leaves the parent behind, the others wait


def watch(what: Watched) -> None:
    """Have `what` told of the end of this process, and of each child's beginning."""
    _watched.add(what)


def start_thread(thread: threading.Thread) -> None:
    """Start a thread, unless the interpreter is ending.

    Raises
    ------
    RuntimeError
        It is, or there can be no more threads.
    """
    with _starting:
        if _exiting:
            raise RuntimeError("the interpreter is ending")
        thread.start()


def notice_fork() -> None:
    """Leave a parent process behind, if this one was forked without Python's hooks.

    uWSGI and C extensions do that. Every public method that takes a lock or waits for a thread begins with
    this: the lock may have been held at the fork, and the thread is the parent's.
    """
    if os.getpid() != _pid:
        with _noticing:
            if os.getpid() != _pid:
                _after_fork_in_child()


def _after_fork_in_child() -> None:
    global _starting, _pid
    _starting = threading.RLock()
    for what in list(_watched):
        what.after_fork()
    _pid = os.getpid()


def _at_exit() -> None:
    global _exiting
    notice_fork()
    with _starting:
        _exiting = True
    for what in list(_watched):
        what.at_exit()


# Threads that are not daemons have ended by then, and handlers that users registered later have run.
atexit.register(_at_exit)

if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)


# What must be the system's own; gevent says threading, and eventlet thread.
_GREEN = ("threading", "thread", "socket", "ssl", "select")


def refuse_green_threads() -> None:
    """Refuse a process whose threads or sockets gevent or eventlet has replaced.

    Raises
    ------
    ConfigError
        It says what to use in their place.
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
