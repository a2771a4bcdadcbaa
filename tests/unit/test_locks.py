"""Locks and events of the package, when interrupts come at any moment."""

from __future__ import annotations

import ast
import itertools
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import tcm_sync
from tcm_sync import _locks
from tcm_sync._locks import Condition, OnceEvent, RLock

from ..helpers.interrupts import InterruptAt
from ..helpers.waiting import GUARD

PACKAGE = Path(tcm_sync.__file__).parent
#: What runs in threads of its own, or ends with the process at an interrupt.
OTHERS = ("local",)
NAMES = ("Condition", "Event", "RLock")


class Alarm(BaseException):
    """What the handler of a signal raises."""


@pytest.fixture
def alarms():
    """Raise an Alarm in this thread after so many seconds."""

    def raise_alarm(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, raise_alarm)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


def enter_until(lock, alarms, seconds):
    alarms(seconds)
    while True:
        with lock:
            pass


@pytest.mark.parametrize("kind", [RLock, Condition])
def test_a_signal_never_leaves_a_lock_held(alarms, kind):
    lock = kind()
    for _ in range(300):
        with pytest.raises(Alarm):
            enter_until(lock, alarms, 0.000_3)
        assert not lock._is_owned()


def test_a_signal_while_a_lock_is_waited_for_takes_nothing_from_its_owner(alarms):
    lock = RLock()
    held, done = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            done.wait(GUARD)
            kept.append(lock._is_owned())

    kept = []
    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(GUARD)
        with pytest.raises(Alarm):
            enter_until(lock, alarms, 0.01)
    finally:
        done.set()
        thread.join()
    assert kept == [True]
    assert lock.acquire(blocking=False)
    lock.release()


def test_a_thread_may_enter_a_lock_again_and_leaves_it_as_often():
    lock = RLock()
    with lock, lock:
        pass
    assert not lock._is_owned()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    assert not lock._is_owned()


def test_a_condition_hands_over_what_another_thread_waits_for():
    condition, given, taken = Condition(), [], []

    def take():
        with condition:
            assert condition.wait_for(lambda: given, GUARD)
            taken.extend(given)

    thread = threading.Thread(target=take)
    thread.start()
    with condition:
        given.append(1)
        condition.notify()
    thread.join()
    assert taken == [1]


def test_an_event_wakes_all_that_wait_and_stays_set():
    event = OnceEvent()
    assert not event.is_set()
    assert not event.wait(0.0)
    woken = []
    threads = [threading.Thread(target=lambda: woken.append(event.wait(GUARD))) for _ in range(5)]
    for thread in threads:
        thread.start()
    event.set()
    event.set()
    for thread in threads:
        thread.join()
    assert woken == [True] * 5
    assert event.is_set()
    assert event.wait()


def test_an_event_that_does_not_happen_is_waited_for_as_long_as_was_said():
    began = time.monotonic()
    assert not OnceEvent().wait(0.05)
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize("use", [OnceEvent.set, lambda event: event.wait(0.001)])
def test_an_event_can_be_set_and_waited_for_whenever_its_use_was_interrupted(use):
    kept = []
    for moment in itertools.count(1):
        event, interrupt = OnceEvent(), InterruptAt(moment)
        with interrupt:
            use(event)
        kept.append(interrupt.kept)
        setting = threading.Thread(target=event.set, daemon=True)
        setting.start()
        assert event.wait(GUARD)
        setting.join(GUARD)
        assert not setting.is_alive()
        if not interrupt.struck:
            break
    assert moment > 2, "there was hardly anything to interrupt"


def test_an_event_wakes_those_that_still_wait_when_one_was_interrupted_in_between(monkeypatch):
    event = OnceEvent()
    monkeypatch.setattr(_locks, "MAX_STEP", 0.01)
    event.set()
    assert event._wakes.acquire(blocking=False)  # by one that was interrupted before it could wake the next
    assert event.wait(GUARD)


def uses_of(tree):
    """Yield (line, what) for each lock that an interrupt may leave held."""
    conditions = {
        target.attr if isinstance(target, ast.Attribute) else target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "threading.Condition"
        for target in node.targets
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("threading.RLock", "threading.Event"):
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.module == "threading":
            yield from ((node.lineno, each.name) for each in node.names if each.name in NAMES)
        if isinstance(node, ast.With):
            for item in node.items:
                entered = item.context_expr
                if getattr(entered, "attr", getattr(entered, "id", None)) in conditions:
                    yield node.lineno, f"with {ast.unparse(entered)}"


def test_the_check_finds_what_an_interrupt_may_leave_held():
    source = """
from threading import RLock
class C:
    def __init__(self):
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._done = threading.Event()
    def f(self):
        with self._lock:
            pass
        with self._changed:
            pass
"""
    assert [what for _, what in sorted(uses_of(ast.parse(source)))] == [
        "RLock",
        "threading.RLock",
        "threading.Event",
        "with self._changed",
    ]


def test_no_lock_is_used_in_a_way_that_an_interrupt_may_leave_it_held():
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {what}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in (*OTHERS, "_locks.py")
        for line, what in uses_of(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "see tcm_sync/_locks.py"


def test_other_pythons_have_their_own_lock():
    assert (RLock is threading.RLock) == (sys.version_info[:2] != (3, 14))
