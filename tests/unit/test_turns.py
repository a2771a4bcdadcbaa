"""Turns within a process: first come first served, never more than there are, none where none is needed."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tcm_sync import AuthContext, ClientClosedError, PoolTimeoutError
from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._pool import process_table, turn_file, turns
from tcm_sync._pool.client_turns import ClientTurns
from tcm_sync._pool.process_table import ProcessTable
from tcm_sync._pool.turn_file import FILE, TableBusyError, TableError, TurnFile
from tcm_sync._pool.turn_keys import key_of, shared_table, turns_of
from tcm_sync._pool.turn_table import Table
from tcm_sync._pool.turns import LONG_AGE_NS, SHORT_AGE_NS, Turns
from tcm_sync._transport.tenant import tenant_of

from ..helpers.waiting import GUARD, wait_for, wait_until

FOREVER = 10**15  # ns: no turn of these tests ends by its age, unless the test says so


class NoTable:
    """Stands for a process whose table cannot be used."""

    def get(self):
        return None


@pytest.fixture
def closed():
    return threading.Event()


@pytest.fixture
def alone(monkeypatch):
    """Two turns of one process alone, which last until they are released."""
    monkeypatch.setattr(turns, "LONG_AGE_NS", FOREVER)
    return Turns(1, 2, NoTable())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "turns"
    monkeypatch.setenv("TCM_TURNS_DIR", str(folder))
    return folder


def take(these, closed, timeout=GUARD, model="m"):
    return these.acquire(model, Deadline(timeout), closed)


class Replies:
    """Notes replies of one caller, each sent when the one before has come."""

    def __init__(self, these):
        self.these, self.now = these, 1000.0

    def __call__(self, seconds, after=0.0):
        """Note a reply that took so long to a request that was sent so long after the last reply."""
        sent = self.now + after
        self.now = sent + seconds
        self.these.replied("m", sent, self.now)


class Caller(threading.Thread):
    """Takes a turn in a thread of its own, and keeps what came of it."""

    def __init__(self, these, closed, timeout=GUARD, order=None):
        super().__init__()
        self.these, self.closed, self.timeout, self.order = these, closed, timeout, order
        self.outcome = None
        self.start()
        wait_until(lambda: self.is_waiting() or not self.is_alive())

    def is_waiting(self):
        return any(waiter.thread == self.ident for waiter in list(self.these._waiters))

    def run(self):
        try:
            self.outcome = take(self.these, self.closed, self.timeout)
            if self.order is not None:
                self.order.append(self)
        except (PoolTimeoutError, ClientClosedError) as error:
            self.outcome = error

    def result(self):
        self.join(GUARD)
        assert not self.is_alive()
        return self.outcome


# --- the wait queue ---


def test_callers_are_served_in_the_order_in_which_they_came(alone, closed):
    held = [take(alone, closed) for _ in range(2)]
    order = []
    callers = [Caller(alone, closed, order=order) for _ in range(10)]
    for caller in callers:
        held.pop(0).release()
        held.append(caller.result())
    assert order == callers
    assert all(caller.outcome.waited > 0 for caller in callers)
    assert alone.waiting() == 0


def test_a_turn_that_ended_by_its_age_is_another_callers(monkeypatch, closed):
    now = [10**15]
    monkeypatch.setattr(turns, "monotonic_ns", lambda: now[0])
    these = Turns(1, 1, NoTable())
    old = take(these, closed)
    now[0] += LONG_AGE_NS - 1
    with pytest.raises(PoolTimeoutError):
        take(these, closed, timeout=0.001)
    now[0] += 1
    young = take(these, closed)
    assert young is not None
    old.release()  # it has nothing to give back
    with pytest.raises(PoolTimeoutError):
        take(these, closed, timeout=0.001)


def test_a_turn_is_released_once(alone, closed):
    first, _ = take(alone, closed), take(alone, closed)
    first.release()
    first.release()
    take(alone, closed)
    with pytest.raises(PoolTimeoutError):
        take(alone, closed, timeout=0.001)


def test_who_runs_out_of_time_leaves_the_queue_and_says_who_shares(alone, closed):
    for _ in range(2):
        take(alone, closed)
    with pytest.raises(PoolTimeoutError, match="the callers of this process share 2 messages") as caught:
        take(alone, closed, timeout=0.01)
    assert "Raise timeout or pool_timeout" in str(caught.value)
    assert alone.waiting() == 0
    alone.others = 3
    with pytest.raises(PoolTimeoutError, match="4 processes share 2 messages"):
        take(alone, closed, timeout=0.01)


def test_closing_a_client_ends_its_waiting_and_nobody_elses(alone, closed):
    held = [take(alone, closed) for _ in range(2)]
    other = threading.Event()
    ours, theirs = Caller(alone, closed), Caller(alone, other)
    closed.set()
    alone.wake_all()
    assert isinstance(ours.result(), ClientClosedError)
    assert theirs.is_alive()
    held[0].release()
    assert theirs.result().waited > 0


def test_an_interrupted_waiter_leaves_the_queue(alone, closed, monkeypatch):
    for _ in range(2):
        take(alone, closed)

    def interrupted(self, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(turns._Waiter, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(alone, closed)
    assert alone.waiting() == 0


def test_a_caller_that_times_out_leaves_its_place_to_the_next_which_then_tries(closed, monkeypatch):
    now = [10**15]
    monkeypatch.setattr(turns, "monotonic_ns", lambda: now[0])
    monkeypatch.setattr(turns, "_OVERDUE_NS", FOREVER)  # so that one behind another sleeps until it is woken
    these = Turns(1, 1, NoTable())
    take(these, closed)
    gone = threading.Event()
    first, second = Caller(these, gone), Caller(these, closed, timeout=2 * GUARD)
    gone.set()
    assert isinstance(first.result(), ClientClosedError)
    now[0] += LONG_AGE_NS  # the turn ends by its age, which wakes nobody
    assert second.result() is not None


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGUSR1")
def test_a_signal_handler_that_calls_while_its_thread_waits_goes_without_a_turn(alone, closed):
    held = [take(alone, closed) for _ in range(2)]
    inner = []

    def handler(*_):
        inner.append(take(alone, closed))
        held[0].release()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        killer = threading.Thread(
            target=lambda: (
                wait_until(lambda: alone.waiting() == 1),
                os.kill(os.getpid(), signal.SIGUSR1),
            )
        )
        killer.start()
        outer = take(alone, closed)
        killer.join(GUARD)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert inner == [None]
    assert outer.waited > 0


class _Interrupted:
    """A turn that is looked at in the moment in which a signal handler runs."""

    def __init__(self, handler):
        self.handler = handler

    @property
    def until(self):
        handler, self.handler = self.handler, lambda: None
        handler()
        return FOREVER * 10**6


def test_a_signal_handler_may_take_a_turn_while_its_thread_looks_at_them(alone, closed):
    inner = []
    alone._held[_Interrupted(lambda: inner.append(take(alone, closed, timeout=0.001)))] = None
    for _ in range(2):
        alone._held[turns.Turn(alone, 0)] = None  # which has ended by its age
    with pytest.raises(PoolTimeoutError):
        take(alone, closed, timeout=0.001)
    assert inner[0] in alone._held


def test_a_signal_handler_may_wait_in_a_queue_that_its_thread_looks_at(alone, closed):
    class Waiter:
        since, tries_by = 0, FOREVER * 10**6

        @property
        def thread(self):
            alone._waiters.append(behind)
            return 0

        def wake(self):
            alone._waiters.append(behind)

    behind = turns._Waiter(0)
    alone._waiters.append(Waiter())
    with pytest.raises(PoolTimeoutError):
        take(alone, closed, timeout=0.001)
    alone.wake_all()
    assert list(alone._waiters)[1:] == [behind, behind]


def test_a_first_waiter_whose_thread_does_not_run_is_passed_over(alone, closed, monkeypatch):
    monkeypatch.setattr(turns, "_OVERDUE_NS", 10_000_000)
    held = [take(alone, closed) for _ in range(2)]
    # Of a thread that a signal handler keeps, or that an interrupt left behind.
    stuck = turns._Waiter(turns.monotonic_ns())
    alone._waiters.append(stuck)
    behind = [Caller(alone, closed) for _ in range(2)]
    for turn in held:
        turn.release()
    assert all(caller.result().waited > 0 for caller in behind)
    assert stuck not in alone._waiters


def test_a_waiter_that_comes_late_to_its_own_try_is_served(alone, closed, monkeypatch):
    held = [take(alone, closed) for _ in range(2)]
    monkeypatch.setattr(turns, "_OVERDUE_NS", -(10**9))  # every waiter is overdue at once
    caller = Caller(alone, closed)
    held[0].release()
    assert caller.result().waited > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_begins_with_no_turn_taken(alone, closed):
    for _ in range(2):
        take(alone, closed)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if take(alone, closed, timeout=5.0) is not None and alone.waiting() == 0 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with pytest.raises(PoolTimeoutError):
        take(alone, closed, timeout=0.001)


def test_many_threads_never_hold_more_turns_than_there_are(alone, closed):
    holding, most, lock = [0], [0], threading.Lock()

    def work():
        for _ in range(200):
            turn = take(alone, closed)
            with lock:
                holding[0] += 1
                most[0] = max(most[0], holding[0])
            with lock:
                holding[0] -= 1
            turn.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    assert not any(thread.is_alive() for thread in threads)
    assert most[0] <= 2
    assert (alone.waiting(), len(alone._held)) == (0, 0)


# --- how long a turn lasts, and whether one is needed ---


@pytest.mark.parametrize(
    ("replies", "age"),
    [
        ([], LONG_AGE_NS),
        ([0.010, 0.011], LONG_AGE_NS),
        ([0.1], SHORT_AGE_NS),
        ([0.1, 0.012, 0.1], SHORT_AGE_NS),
        ([0.012, 0.1], SHORT_AGE_NS),
        ([0.012, 0.012, 0.013], LONG_AGE_NS),
        ([0.1, 0.012], LONG_AGE_NS),
    ],
)
def test_a_turn_lasts_long_where_the_reply_comes_with_the_tick(closed, replies, age, monkeypatch):
    now = 10**15
    monkeypatch.setattr(turns, "monotonic_ns", lambda: now)
    these = Turns(1, 5, NoTable())
    note = Replies(these)
    for seconds in replies:
        note(seconds)
    assert take(these, closed).until - now == age
    assert take(these, closed, model="other").until - now == LONG_AGE_NS


def test_a_manager_without_a_tick_needs_no_turns_and_one_with_a_tick_does(alone, closed):
    note = Replies(alone)
    for _ in range(8):
        note(0.001)
    assert alone.is_needed
    note(0.010)  # the row is broken
    for _ in range(8):
        note(0.001)
    assert alone.is_needed
    held = [take(alone, closed) for _ in range(2)]
    waiting = Caller(alone, closed)
    note(0.001)
    assert not alone.is_needed
    assert waiting.result() is None  # who waited goes at once
    assert [take(alone, closed) for _ in range(20)] == [None] * 20
    for _ in range(31):
        note(0.010)
    assert not alone.is_needed
    note(0.010)
    assert alone.is_needed
    with pytest.raises(PoolTimeoutError):
        take(alone, closed, timeout=0.001)
    held[0].release()
    assert take(alone, closed) is not None


@pytest.mark.parametrize("interval", [0.010, 0.020, 0.050])
def test_evenly_spaced_requests_right_before_each_tick_do_not_end_the_turns(alone, interval):
    note = Replies(alone)
    for _ in range(100):
        note(0.002, after=interval - 0.002)
    assert alone.is_needed


def test_evenly_spaced_requests_right_before_each_tick_do_not_keep_turns_off(alone):
    note = Replies(alone)
    for _ in range(9):
        note(0.001)
    assert not alone.is_needed
    for _ in range(32):
        note(0.010)
        note(0.002, after=0.008)
    assert alone.is_needed


def test_replies_that_come_together_with_one_tick_do_not_end_the_turns(alone):
    for tick in range(100):
        for number in range(5):
            alone.replied("m", tick * 0.01 + 0.0081, tick * 0.01 + 0.0101 + number * 0.0001)
    assert alone.is_needed


def test_many_threads_find_that_there_is_no_tick(alone):
    for number in range(100):  # a reply each 0.2 ms, each request 1.5 ms before
        alone.replied("m", number * 0.0002, number * 0.0002 + 0.0015)
        if not alone.is_needed:
            break
    assert not alone.is_needed


class _Crowded(Turns):
    """Another thread notes a reply whenever one has just been counted."""

    _counted = 0
    crowd = ()
    note = None

    @property
    def _run(self):
        return self._counted

    @_run.setter
    def _run(self, value):
        self._counted = value
        crowd, self.crowd = self.crowd, ()
        for seconds in crowd:
            self.note(seconds)


@pytest.mark.parametrize("step", range(1, 8))
def test_threads_that_count_replies_at_once_miss_no_manager_without_a_tick(step):
    these = _Crowded(1, 2, NoTable())
    note = these.note = Replies(these)
    for _ in range(step + 1):
        note(0.001)
    these.crowd = [0.001] * (8 - step)
    for _ in range(2):
        note(0.001)
    assert not these.is_needed
    for _ in range(31):
        note(0.010)
    these.crowd = [0.010]
    for _ in range(2):
        note(0.010)
    assert these.is_needed


def test_only_so_many_models_are_remembered(alone):
    for number in range(1000):
        alone.replied(f"m{number}", 0.0, 0.1)
    assert len(alone._quickest) <= 256


def test_a_turn_begins_when_the_lock_is_free_and_not_when_it_was_waited_for(closed, monkeypatch):
    now = [10**15]
    monkeypatch.setattr(turns, "monotonic_ns", lambda: now[0])
    these = Turns(1, 1, NoTable())
    lock, asked = these._lock, threading.Event()

    class Waited:
        def __enter__(self):
            asked.set()
            lock.acquire()

        def __exit__(self, *_):
            lock.release()

    these._lock = Waited()
    with lock:
        taken = []
        thread = threading.Thread(target=lambda: taken.append(take(these, closed)))
        thread.start()
        wait_for(asked)
        now[0] += 10**9
    thread.join(GUARD)
    assert taken[0].until == now[0] + LONG_AGE_NS


# --- the turns of one client ---


class Connected:
    def __init__(self, tenant):
        self.tenant = tenant


def test_a_client_of_many_tenants_leaves_the_turns_that_it_joined_first(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(process_table, "Table", lambda path: opened.append(path) or Table(path))
    these = ClientTurns(Endpoint.parse("ws://many-tenants:8000/ws"), 5, None)
    joined = []
    for number in range(100):
        joined.append(these.join(Connected(f"t{number % 20}")))
        assert take(joined[-1], these.closed) is not None
        assert len(these.by_tenant) <= 16
    assert list(these.by_tenant) == [f"t{number}" for number in range(4, 20)]
    assert len(opened) <= 1, "the table stays open"
    these.close()
    assert not any(each._users for each in joined)


def test_a_client_of_many_tenants_stays_in_the_turns_that_its_calls_wait_for(folder):
    these = ClientTurns(Endpoint.parse("ws://many-tenants:8001/ws"), 1, None)
    first = these.join(Connected("first"))
    held = take(first, these.closed)
    waiting = Caller(first, these.closed)
    for number in range(40):
        these.join(Connected(f"t{number}"))
    assert these.by_tenant["first"] is first
    assert len(these.by_tenant) == 16
    these.close()
    assert isinstance(waiting.result(), ClientClosedError)
    held.release()


# --- with the table ---

pytestmark_linux = pytest.mark.skipif(sys.platform != "linux", reason="turns are shared on Linux")


@pytest.fixture
def two(folder):
    """The turns of two processes, as far as the table can say."""
    first, second = (Turns(1, 2, ProcessTable()) for _ in range(2))
    for each in (first, second):
        each.join(each)
    yield first, second
    for each in (first, second):
        each.leave(each)


@pytestmark_linux
def test_two_processes_share_turns(two, closed, monkeypatch):
    monkeypatch.setattr(turns, "LONG_AGE_NS", 50 * 10**9)
    first, second = two
    held = [take(first, closed), take(second, closed)]
    with pytest.raises(PoolTimeoutError, match="2 processes share 2 messages"):
        take(second, closed, timeout=0.02)
    waiting = Caller(first, closed)
    held[1].release()
    assert waiting.result().waited > 0
    assert first.others == second.others == 1


@pytestmark_linux
def test_a_process_alone_writes_nothing_until_another_arrives(two, folder, closed, monkeypatch):
    now = [10**15]
    monkeypatch.setattr(turns, "monotonic_ns", lambda: now[0])
    first, second = two
    take(first, closed).release()
    before = Path(folder, FILE).read_bytes()
    for _ in range(5):
        turn = take(first, closed)
        assert turn.slot is None
        turn.release()
    assert Path(folder, FILE).read_bytes() == before
    take(second, closed).release()
    assert take(first, closed).slot is not None
    assert first.others == 1
    now[0] += 30 * 10**9
    monkeypatch.setattr(first._table, "_clock", lambda: now[0])
    assert take(first, closed).slot is not None  # it says again that it is present
    assert first.others == 0


@pytestmark_linux
def test_a_process_alone_with_its_descriptor_leaves_none(folder, closed):
    these = Turns(1, 2, ProcessTable())
    these.join(closed)
    take(these, closed).release()
    table = these._table
    assert os.readlink(f"/proc/self/fd/{table._file._descriptor}") == str(folder / FILE)
    del table
    these.leave(closed)  # the fixture of all tests looks for the descriptor
    assert take(these, closed).slot is None


@pytestmark_linux
@pytest.mark.parametrize("harm", ["truncated", "replaced", "deleted", "folder"])
def test_a_table_that_fails_costs_no_call_and_is_said_once(two, folder, closed, caplog, harm):
    caplog.set_level(logging.INFO, "tcm_sync.pool")
    first, _ = two
    take(first, closed).release()
    file = Path(folder, FILE)
    if harm == "truncated":
        os.truncate(file, 40)
    elif harm == "replaced":
        file.write_bytes(b"\xff" * turn_file.SIZE)
    else:
        file.unlink()
    if harm == "folder":
        folder.rmdir()
        folder.write_bytes(b"")
    first._owner, first._alone_until = 99, 0  # a new record, with which the file's name is looked at
    for _ in range(3):
        turn = take(first, closed)
        assert turn is not None
        turn.release()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (harm != "deleted")
    assert all("take no turns" in each for each in said)
    if harm == "deleted":
        assert file.exists()  # a new one


@pytestmark_linux
def test_a_lock_that_is_held_lets_one_call_go_without(two, closed, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "tcm_sync.pool")
    first, _ = two
    take(first, closed).release()
    first._alone_until = 0
    turn = first._table._file.locked(lambda: take(first, closed))
    assert turn.slot is None
    assert take(first, closed).slot is not None
    assert not caplog.records


def test_a_lock_that_is_held_for_long_is_waited_for_now_and_then(closed, monkeypatch):
    """By a process that was stopped inside; each try takes 5 ms, while all threads wait."""
    now = [10**15]
    monkeypatch.setattr(turns, "monotonic_ns", lambda: now[0])

    class Held:
        claims = 0

        def get(self):
            self.claims += 1
            raise TableBusyError("planted")

    held = Held()
    these = Turns(1, 100, held)
    these.join(closed)
    for tries in (3, 4, 5):
        assert [take(these, closed).slot for _ in range(6)] == [None] * 6
        assert held.claims == tries
        now[0] += 100_000_000


@pytestmark_linux
def test_a_table_that_failed_is_tried_again_after_a_minute(folder, monkeypatch):
    now = [10**15]
    monkeypatch.setattr(process_table, "monotonic_ns", lambda: now[0])
    tables = ProcessTable()
    tables.failed(TableError("planted"))
    tables._opened_by = (os.getpid(), os.geteuid(), str(folder))
    assert tables.get() is None
    now[0] += 60 * 10**9 - 1
    assert tables.get() is None
    now[0] += 1
    table = tables.get()
    assert isinstance(table, Table)
    assert tables.get() is table


@pytestmark_linux
def test_a_table_that_others_hold_while_it_is_opened_is_opened_by_the_next_call(folder, monkeypatch, caplog):
    """As where many processes start at once."""
    caplog.set_level(logging.INFO, "tcm_sync.pool")
    tables = ProcessTable()
    with monkeypatch.context() as held:
        held.setattr(TurnFile, "_take_record_lock", busy)
        with pytest.raises(TableBusyError):
            tables.get()
    assert isinstance(tables.get(), Table)
    assert not caplog.records


@pytestmark_linux
def test_another_folder_or_user_has_another_table(folder, tmp_path, monkeypatch):
    tables = ProcessTable()
    table = tables.get()
    monkeypatch.setenv("TCM_TURNS_DIR", str(tmp_path / "another"))
    other = tables.get()
    assert other is not table
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert tables.get() is None  # the folder is not that user's
    monkeypatch.delenv("TCM_TURNS_DIR")
    assert process_table.folder() == "/dev/shm/tcm_turns_4711"


# --- who shares ---


@pytestmark_linux
def test_the_processes_with_one_folder_have_one_table_and_others_another(folder, tmp_path, monkeypatch):
    program = "from tcm_sync._pool.turn_keys import shared_table; print(shared_table())"
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    mine = shared_table()
    assert there.stdout.strip() == mine
    monkeypatch.setenv("TCM_TURNS_DIR", str(tmp_path / "another"))
    assert shared_table() not in (mine, None)


@pytestmark_linux
def test_a_process_whose_table_cannot_be_used_shares_it_with_nobody(folder):
    folder.touch()
    assert shared_table() is None


@pytestmark_linux
def test_a_table_that_others_hold_while_it_is_opened_is_waited_for(folder, monkeypatch):
    """Or this process would count as one that shares it with nobody."""
    tries = iter([True] * 3)
    take_lock = TurnFile._take_record_lock

    def busy_at_first(file):
        if next(tries, False):
            raise TableBusyError("planted")
        take_lock(file)

    monkeypatch.setattr(TurnFile, "_take_record_lock", busy_at_first)
    assert shared_table() is not None
    monkeypatch.setenv("TCM_TURNS_DIR", str(folder / "another"))
    monkeypatch.setattr(TurnFile, "_take_record_lock", busy)
    assert shared_table() is None


def busy(_file):
    raise TableBusyError("planted")


def key(uri, tenant=""):
    return key_of(Endpoint.parse(uri), tenant)


@pytest.mark.parametrize(
    "uri",
    [
        "ws://127.0.0.1:8000/ws",
        "ws://localhost.:8000/ws",
        "ws://LOCALHOST:8000/ws",
        "ws://127.1.2.3:8000/ws",
        "ws://[::1]:8000/ws",
        "ws://[::ffff:127.0.0.1]:8000/ws",
        "ws://app.localhost:8000/ws",
    ],
)
def test_spellings_of_one_manager_share(uri):
    assert key(uri) == key("ws://localhost:8000/ws")


def test_spellings_of_other_addresses_share():
    assert key("ws://Manager.Example.:8000/ws") == key("wss://manager.example:8000/ws")
    assert key("ws://[2001:DB8::1]/ws") == key("ws://[2001:db8:0::1]:80/ws")


@pytest.mark.parametrize(
    ("uri", "tenant"),
    [
        ("ws://h:8001/ws", "t"),
        ("ws://h:8000/other/ws", "t"),
        ("ws://i:8000/ws", "t"),
        ("ws://h:8000/ws", "u"),
        ("ws://h:8000/ws", ""),
    ],
)
def test_other_managers_and_tenants_do_not_share(uri, tenant):
    assert key(uri, tenant) != key("ws://h:8000/ws", "t")


def test_clients_of_one_process_share_one_object_and_other_numbers_of_turns_do_not():
    endpoint = Endpoint.parse("ws://h:8000/ws")
    assert turns_of(endpoint, "t", 5) is turns_of(endpoint, "t", 5)
    first = turns_of(endpoint, "t", 5)
    assert turns_of(endpoint, "t", 10) is not first
    assert turns_of(endpoint, "u", 5) is not first


def jwt(claims):
    parts = [json.dumps({"alg": "none"}), json.dumps(claims)]
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts) + ".sig"


@pytest.mark.parametrize(
    ("token", "tenant"),
    [
        (None, "of-auth"),
        ("opaque", "of-auth"),
        ("a.b.c", "of-auth"),
        ("!.ü.c", "of-auth"),
        (jwt({"tenant_id": "a", "tenant": "b"}), "a"),
        (jwt({"tenant_id": "", "tenant": "b"}), "b"),
        (jwt({"tenant": "ü"}), "ü"),
        (jwt({"tenant_id": 5}), "of-auth"),
        (jwt(["tenant_id"]), "of-auth"),
        (jwt({}), "of-auth"),
        ("a." + base64.urlsafe_b64encode(b'{"a":' + b"[" * 100_000).decode().rstrip("=") + ".c", "of-auth"),
    ],
)
def test_the_tenant_is_the_tokens_or_the_contexts(token, tenant):
    assert tenant_of(token, AuthContext(tenant_id="of-auth")) == tenant
    if tenant == "of-auth":
        assert tenant_of(token, AuthContext()) == ""


@pytestmark_linux
def test_a_table_that_is_opened_while_the_last_user_leaves_is_not_kept_open(folder, closed):
    class LeavingTable(ProcessTable):
        def get(self):
            found = super().get()
            these.leave(closed)  # as another thread may, which closes the client
            return found

    these = Turns(1, 2, LeavingTable())
    these.join(closed)
    take(these, closed).release()
    assert these._table is None


@pytestmark_linux
def test_a_lock_that_was_free_once_is_tried_as_often_as_at_first(folder, closed, monkeypatch):
    table, outcomes = ProcessTable().get(), iter([False, False, True, False, False, True])

    class OftenHeld:
        def get(self):
            if next(outcomes):
                return table
            raise TableBusyError("planted")

    these = Turns(1, 100, OftenHeld())
    these.join(closed)
    monkeypatch.setattr(these, "_is_alone", lambda now: False)
    shared = [take(these, closed).slot is not None for _ in range(6)]
    assert shared == [False, False, True, False, False, True]
