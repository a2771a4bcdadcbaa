"""What happens to clients when their process forks, and in which processes they refuse to run."""

from __future__ import annotations

import os
import sys
import weakref
from typing import Protocol

from tcm_sync.errors import ConfigError


class Forkable(Protocol):
    """What is told of a fork."""

    def after_fork(self) -> None:
        """Leave the parent's threads and sockets behind."""


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()


def watch_forks(what: Forkable) -> None:
    """Have `what` told in every child process that is forked from now on."""
    _watched.add(what)


def _after_fork_in_child() -> None:
    for what in list(_watched):
        what.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)


def refuse_green_threads() -> None:
    """Refuse a process whose threads gevent or eventlet has replaced.

    Raises
    ------
    ConfigError
        It says what to use in their place.
    """
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        name = "gevent"
    elif eventlet is not None and eventlet.is_monkey_patched("thread"):
        name = "eventlet"
    else:
        return
    raise ConfigError(
        f"{name} has patched the threads of this process, which this client does not support: use worker "
        "processes or threads (gunicorn: --worker-class gthread), or call it in a process of its own"
    )
