"""A `LocalManager` in a process of its own, for subjects that are measured with the real scheduler."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from bare import ANSWER, MODEL

from tcm_sync import Route
from tcm_sync.local import LocalManager


def double(inputs: dict[str, Any]) -> dict[str, Any]:
    """Run a model that takes almost no time."""
    return {"y": inputs["x"] * 2}


def slow(inputs: dict[str, Any]) -> dict[str, Any]:
    """Run a model that takes 0.1 s."""
    time.sleep(0.1)
    return double(inputs)


def answer(_: dict[str, Any]) -> dict[str, Any]:
    """Run a model that gives the same answer as the instant server."""
    return {"y": ANSWER}


def serve(end: Connection, core: int | None, settings: dict[str, Any]) -> None:
    """Run the manager until the other process asks for the end."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    with LocalManager({"double": double, "slow": slow, MODEL: answer}, **settings) as manager:
        end.send((manager.uri, manager.route))
        with contextlib.suppress(EOFError):  # the other process has failed
            end.recv()
            end.send(len(manager.stats().uuids))


class Manager:
    """The address of the manager, and the way to end it."""

    def __init__(self, control: Connection) -> None:
        self._control = control
        self.uuids = 0  # how many it has served; set when it has ended
        self.uri: str
        self.route: Route
        self.uri, self.route = control.recv()

    def stop(self) -> None:
        """End the manager."""
        self._control.send("stop")
        self.uuids = self._control.recv()


@contextlib.contextmanager
def local_manager(core: int | None = None, **settings: Any) -> Iterator[Manager]:
    """Run a manager with the models of this file.

    Parameters
    ----------
    core : int, optional
        The core to pin it to.
    **settings
        Arguments of `LocalManager`.
    """
    context = multiprocessing.get_context("spawn")
    control, far = context.Pipe()
    process = context.Process(target=serve, args=(far, core, settings))
    process.start()
    far.close()
    try:
        manager = Manager(control)
        yield manager
        manager.stop()
    finally:
        control.close()  # the process then ends, if it has not yet
        process.join()
