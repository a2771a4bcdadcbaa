"""Futures whose use is interrupted inside the standard library."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import threading
from pathlib import Path

import pytest

from tcm_sync._futures import Future

from ..helpers.interrupts import InterruptAt
from ..helpers.waiting import GUARD

FUTURES = str(Path(concurrent.futures.__file__).parent)


def end_if_not_done(future):
    if not future.done():
        future.set_result(1)


USES = {
    "done": Future.done,
    "cancelled": Future.cancelled,
    "running": Future.running,
    "cancel": Future.cancel,
    "result": lambda future: future.result(0.001),
    "exception": lambda future: future.exception(0.001),
    "wait": lambda future: future.wait(0.001),
    "add_done_callback": lambda future: future.add_done_callback(id),
    "set_running_or_notify_cancel": Future.set_running_or_notify_cancel,
    "set_result": end_if_not_done,
    "set_exception": lambda future: future.set_exception(ValueError()),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_another_thread_can_end_it_whenever_its_use_was_interrupted(use):
    kept = []
    for moment in itertools.count(1):
        future, interrupt = Future(), InterruptAt(moment, FUTURES)
        with contextlib.suppress(concurrent.futures.TimeoutError), interrupt:
            use(future)
        kept.append(interrupt.kept)
        ending = threading.Thread(target=end_if_not_done, args=(future,), daemon=True)
        ending.start()
        ending.join(GUARD)
        assert not ending.is_alive(), f"moment {moment} leaves it locked"
        assert future.wait(GUARD)
        if not interrupt.struck:
            break
    assert moment > 2, "there was hardly anything to interrupt"


def test_it_is_waited_for_as_long_as_was_said():
    future = Future()
    assert not future.wait(0.0)
    assert not future.wait(0.01)
    setting = threading.Thread(target=future.set_result, args=(5,))
    setting.start()
    assert future.wait(None)
    setting.join()
    assert future.wait(0.0)
    assert future.result() == 5


def test_it_is_one_of_the_standard_library_s():
    futures = [Future(), Future()]
    assert all(isinstance(each, concurrent.futures.Future) for each in futures)
    futures[1].set_result("b")
    done, waiting = concurrent.futures.wait(futures, GUARD, concurrent.futures.FIRST_COMPLETED)
    assert (done, waiting) == ({futures[1]}, {futures[0]})
    assert futures[0].cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        futures[0].result()
