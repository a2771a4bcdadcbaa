"""Futures whose use is interrupted inside the standard library."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import itertools
import threading
import weakref
from functools import partial
from pathlib import Path

import pytest

from tcm_sync import ClientClosedError, _futures
from tcm_sync._calls.submit_map import outcomes_of
from tcm_sync._calls.worker_threads import Workers
from tcm_sync._futures import Future
from tcm_sync._reentry import Callers

from ..helpers.interrupts import InterruptAt
from ..helpers.waiting import GUARD, wait_until

FUTURES = str(Path(concurrent.futures.__file__).parent)


@pytest.fixture(autouse=True)
def _no_collector():
    """Run no finalizer of other tests inside a block, where it would be interrupted."""
    gc.disable()
    yield
    gc.enable()


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


def test_a_cancelled_one_is_reported_though_a_callback_was_interrupted():
    def interrupt(_):
        raise KeyboardInterrupt

    future = Future()
    future.add_done_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        future.cancel()
    assert concurrent.futures.wait([future], GUARD).done == {future}


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


@pytest.mark.parametrize("use", ["cancel", "set_result", "set_exception"])
def test_another_thread_that_waits_learns_of_its_end_though_that_was_interrupted(use, monkeypatch):
    monkeypatch.setattr(_futures, "MAX_STEP", 0.001)
    for moment in itertools.count(1):
        future, begun, interrupt = Future(), threading.Event(), InterruptAt(moment, FUTURES)

        def wait(future=future, begun=begun):
            begun.set()
            with contextlib.suppress(concurrent.futures.CancelledError):
                future.exception()

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        assert begun.wait(GUARD)
        with interrupt:
            USES[use](future)
        end_if_not_done(future)
        waiting.join(GUARD)
        assert not waiting.is_alive(), f"moment {moment} leaves it waiting"
        if not interrupt.struck:
            break
    assert moment > 2, "there was hardly anything to interrupt"


@pytest.mark.parametrize("wait", [Future.result, Future.exception])
def test_an_interrupt_ends_a_wait_as_it_is(wait):
    for moment in itertools.count(1):
        interrupt = InterruptAt(moment, (FUTURES, threading.__file__))
        with contextlib.suppress(concurrent.futures.TimeoutError), interrupt:
            wait(Future(), 0.001)
        if not interrupt.struck:
            break
    assert moment > 2, "there was hardly anything to interrupt"


def test_a_failure_that_was_raised_does_not_keep_its_future():
    future = Future()
    future.set_exception(ValueError("planned"))
    with contextlib.suppress(ValueError):
        future.result()
    kept = weakref.ref(future)
    del future
    assert kept() is None


@pytest.mark.parametrize("ordered", [True, False])
def test_results_that_nobody_took_are_freed_with_the_map(ordered):
    class Output:
        pass

    workers, freed = Workers(1, Callers()), []

    def work():
        output = Output()
        weakref.finalize(output, freed.append, 1)
        return output

    outcomes = outcomes_of(iter([work] * 3), workers, 1, ordered=ordered)
    next(outcomes)
    wait_until(lambda: workers._threads.is_idle())
    outcomes.close()
    del outcomes
    workers.join(GUARD)
    assert len(freed) == 3


def test_workers_whose_closing_was_interrupted_end_all_that_waits_when_closed_again():
    for moment in itertools.count(1):
        workers, let, interrupt = Workers(1, Callers()), threading.Event(), InterruptAt(moment)
        first = workers.submit(partial(let.wait, GUARD))
        wait_until(first.running)
        waiting = [workers.submit(id) for _ in range(2)]
        with interrupt:
            workers.close()
        workers.close()
        for each in waiting:
            with pytest.raises(ClientClosedError):
                each.result(GUARD)
        let.set()
        assert first.result(GUARD)
        workers.join(GUARD)
        if not interrupt.struck:
            break
    assert moment > 10, "there was hardly anything to interrupt"
