"""The table of turns: never more turns than there are, first come first served, no harm from a bad file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import threading
from pathlib import Path
from time import monotonic_ns
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tcm_sync._pool import turn_file
from tcm_sync._pool.turn_file import (
    FILE,
    MAGIC,
    MAX_PROCESSES,
    MAX_TURNS,
    SIZE,
    TableBusyError,
    TableDeletedError,
    TableError,
    TurnRecord,
)
from tcm_sync._pool.turn_table import GRACE_NS, PRESENT_NS, TICK_NS, Table, pause_ns

from ..helpers.waiting import GUARD

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="turns are shared on Linux")

KEY, OTHER_KEY = 0xABCDEF, 7
AGE = 11_000_000
MS = 1_000_000


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self):
        self.now = 10**15

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "turns")


@pytest.fixture
def table(folder, clock):
    table = Table(folder, clock)
    yield table
    table.close()


def claim(table, owner, since, turns=2, key=KEY, age=AGE):
    return table.claim(key, owner, since, turns=turns, age_ns=age)


def release(table, owner, claim, key=KEY):
    table.release(claim.slot, TurnRecord(key, owner, claim.until))


# --- what the table promises ---


def test_there_are_so_many_turns_and_no_more(table, clock):
    claims = [claim(table, owner, clock.now) for owner in (1, 1, 2)]
    assert [each.slot for each in claims] == [0, 1, None]
    assert claims[0].until == clock.now + AGE
    release(table, 1, claims[1])
    assert claim(table, 2, clock.now).slot == 1


def test_a_turn_ends_by_its_age(table, clock):
    first = claim(table, 1, clock.now, turns=1)
    clock.now += AGE - 1
    assert claim(table, 2, clock.now, turns=1).slot is None
    clock.now += 1
    second = claim(table, 2, clock.now, turns=1)
    assert second.slot == first.slot
    release(table, 1, first)  # late: it is another's by now
    assert [turn.owner for turn in table.taken(KEY)] == [2]


def test_the_oldest_ticket_goes_first_whoever_asks_first(table, clock):
    held = claim(table, 1, clock.now, turns=1)
    old, young = clock.now, clock.now + 1
    clock.now += 2
    assert claim(table, 2, old, turns=1).slot is None
    assert claim(table, 3, young, turns=1).slot is None
    release(table, 1, held)
    assert claim(table, 3, young, turns=1).slot is None
    assert claim(table, 2, old, turns=1).slot is not None


def test_a_process_that_does_not_ask_again_in_time_is_passed_over_and_keeps_its_ticket(table, clock):
    held = claim(table, 1, clock.now, turns=1)
    old, young = clock.now, clock.now + 1
    pause = claim(table, 2, old, turns=1).pause_ns
    release(table, 1, held)
    clock.now += pause + GRACE_NS - 1
    assert claim(table, 3, young, turns=1).slot is None
    clock.now += 1
    held = claim(table, 3, young, turns=1)
    assert held.slot is not None
    assert claim(table, 2, old, turns=1).slot is None  # it is back, before all that came later
    release(table, 3, held)
    assert claim(table, 3, clock.now, turns=1).slot is None
    assert claim(table, 2, old, turns=1).slot is not None


def test_a_process_that_withdraws_delays_no_other(table, clock):
    held = claim(table, 1, clock.now, turns=1)
    claim(table, 2, clock.now, turns=1)
    release(table, 1, held)
    table.withdraw(KEY, 2)
    assert claim(table, 3, clock.now + 1, turns=1).slot is not None


def test_a_process_that_was_served_delays_no_other(table, clock):
    held = claim(table, 1, clock.now, turns=1)
    old = clock.now
    claim(table, 2, old, turns=1)
    release(table, 1, held)
    assert claim(table, 2, old, turns=2).slot is not None
    assert claim(table, 3, old + 1, turns=2).slot is not None


def test_managers_and_tenants_have_turns_of_their_own(table, clock):
    assert claim(table, 1, clock.now, turns=1).slot is not None
    assert claim(table, 1, clock.now, turns=1, key=OTHER_KEY).slot is not None
    assert claim(table, 2, clock.now, turns=1).slot is None


def test_other_processes_are_counted_while_they_are_present(table, clock):
    assert claim(table, 1, clock.now).others == 0
    assert claim(table, 2, clock.now).others == 1
    clock.now += 9 * 10**9
    assert claim(table, 2, clock.now).others == 1
    clock.now += 2 * 10**9
    assert claim(table, 2, clock.now).others == 0


def test_a_process_in_the_place_of_one_that_has_gone_hides_none_behind_it(table, clock):
    for owner in (1, 2, 3):
        claim(table, owner, clock.now, turns=9)
    clock.now += PRESENT_NS * 6 // 10
    for owner in (2, 3):
        claim(table, owner, clock.now, turns=9)
    clock.now += PRESENT_NS * 6 // 10  # the first one has gone
    claim(table, 4, clock.now, turns=9)
    assert claim(table, 4, clock.now, turns=9).others == 2


def test_a_process_that_continues_asking_stays_present(table, clock):
    claim(table, 1, clock.now)
    clock.now += PRESENT_NS * 6 // 10
    claim(table, 1, clock.now)
    clock.now += PRESENT_NS * 6 // 10
    assert claim(table, 2, clock.now).others == 1


def test_arrivals_are_counted_once_a_process_until_it_was_gone(table, clock):
    assert table.arrivals() == 0
    assert [claim(table, owner, clock.now, turns=9).arrivals for owner in (1, 2, 1, 2, 3)] == [1, 2, 2, 2, 3]
    clock.now += 11 * 10**9
    assert claim(table, 1, clock.now).arrivals == table.arrivals() == 4


@pytest.mark.parametrize(
    ("older", "pause"),
    [(0, 1), (4, 1), (5, 3), (9, 11), (14, 21)],
    ids=lambda value: f"{value}",
)
def test_who_is_further_back_asks_later(older, pause):
    assert pause_ns(older, 5) == pause * MS


def test_a_thousand_processes_fit_and_one_more_goes_without(folder, clock):
    table = Table(folder, clock)
    for owner in range(1, MAX_PROCESSES + 1):
        claim(table, owner, clock.now, turns=1)
    with pytest.raises(TableError, match="full"):
        claim(table, MAX_PROCESSES + 1, clock.now, turns=1)
    clock.now += 20 * 10**9  # all of them are gone, and the next one reads no more than there is
    assert claim(table, 1, clock.now).others == 0
    read = os.pread(table._file._descriptor, 8, turn_file._USED_AT)
    assert struct.unpack("<II", read) == (1, 1)
    table.close()


def test_more_turns_than_there_is_room_for(table, clock):
    for number in range(MAX_TURNS):
        assert claim(table, 1, clock.now, turns=10**6).slot == number
    with pytest.raises(TableError, match="full"):
        claim(table, 1, clock.now, turns=10**6)


# --- a file that is not as it should be ---


def mangle(folder, at, data):
    with open(Path(folder, FILE), "r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_new_file_is_for_this_user_alone(table, folder):
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(Path(folder, FILE)).st_mode) == 0o600
    assert os.stat(Path(folder, FILE)).st_size == SIZE


@pytest.mark.parametrize("size", [0, 10, 63, 100, SIZE - 1])
def test_a_file_that_is_cut_short_is_an_error_and_is_made_again_when_opened_again(table, folder, clock, size):
    claim(table, 1, clock.now)
    claim(table, 1, clock.now)
    os.truncate(Path(folder, FILE), size)
    if size <= 100:
        with pytest.raises(TableError, match="cut short"):
            claim(table, 2, clock.now)
    again = Table(folder, clock)
    assert os.stat(Path(folder, FILE)).st_size == SIZE
    assert claim(again, 2, clock.now).slot == 0
    again.close()


@pytest.mark.parametrize("used", [(MAX_PROCESSES + 1, 0), (0, MAX_TURNS + 1), (2**32 - 1, 2**32 - 1)])
def test_counts_beyond_the_room_are_damage(table, folder, clock, used):
    mangle(folder, turn_file._USED_AT, struct.pack("<II", *used))
    with pytest.raises(TableError, match="damaged"):
        claim(table, 1, clock.now)


def test_records_from_the_future_count_as_absent(table, folder, clock):
    mangle(folder, turn_file._USED_AT, struct.pack("<II", 3, 3))
    far, soon = clock.now + 10**18, clock.now + 10**9
    for slot in range(3):
        at = turn_file._TURNS_AT + slot * turn_file._TURN.size
        mangle(folder, at, turn_file._TURN.pack(KEY, 9, far))
        at = turn_file._PROCESSES_AT + slot * turn_file._PROCESS.size
        mangle(folder, at, turn_file._PROCESS.pack(KEY, 90 + slot, soon, soon, soon))
    got = claim(table, 1, clock.now, turns=1)
    assert (got.slot, got.others) == (0, 0)


@pytest.mark.parametrize("header", [b"something", b"tcmturn2" + bytes(24)])
def test_a_file_of_another_kind_is_left_alone(folder, clock, header):
    Path(folder).mkdir(mode=0o700)
    Path(folder, FILE).write_bytes(header)
    with pytest.raises(TableError, match="is not a table of turns"):
        Table(folder, clock)
    assert Path(folder, FILE).read_bytes() == header


def test_a_table_of_an_earlier_boot_is_made_again(folder, clock, monkeypatch):
    boot = turn_file._HEADER.pack(MAGIC, b"earlier boot 123", 5)
    Path(folder).mkdir(mode=0o700)
    Path(folder, FILE).write_bytes(boot + b"\xff" * (SIZE - len(boot)))
    table = Table(folder, clock)
    assert claim(table, 1, clock.now) == (0, clock.now + AGE, 0, 0, 1)
    table.close()


def test_a_table_whose_times_are_of_another_namespace_is_refused(table, folder, clock):
    header = turn_file._header()
    mangle(folder, 0, header[:24] + b"\1" * 8)
    with pytest.raises(TableError, match="time namespace"):
        Table(folder, clock)


def test_a_table_whose_making_was_cut_off_by_a_full_disk_is_made_when_there_is_room(
    folder, clock, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step in ("posix_fallocate", "pwrite"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(TableError, match=f"{re.escape(folder)}.*{os.strerror(errno.ENOSPC)}"):
                Table(folder, clock)
    found = Table(folder, clock)
    assert claim(found, 1, clock.now).slot == 0
    found.close()


def test_a_table_has_all_its_room_from_the_beginning(table, folder):
    found = os.stat(Path(folder, FILE))
    assert found.st_blocks * 512 >= SIZE == found.st_size


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_reserves_no_room_has_a_table(folder, clock, monkeypatch, number):
    def unsupported(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    found = Table(folder, clock)
    assert claim(found, 1, clock.now).slot == 0
    found.close()


def test_a_file_that_was_deleted_is_noticed(table, folder, clock):
    Path(folder, FILE).unlink()
    with pytest.raises(TableDeletedError):
        claim(table, 1, clock.now)


def test_a_closed_table_is_an_error(table, clock):
    table.close()
    with pytest.raises(TableError):
        claim(table, 1, clock.now)


def _link_folder(folder):
    Path(folder + "-real").mkdir(mode=0o700)
    Path(folder).symlink_to(folder + "-real")


def _link_file(folder):
    Path(folder).mkdir(mode=0o700)
    Path(folder + "-real").write_bytes(b"")
    Path(folder, FILE).symlink_to(folder + "-real")


def _open_folder(folder):
    Path(folder).mkdir()
    Path(folder).chmod(0o755)


def _fifo(folder):
    Path(folder).mkdir(mode=0o700)
    os.mkfifo(Path(folder, FILE), 0o600)


def _directory(folder):
    Path(folder, FILE).mkdir(mode=0o700, parents=True)


def _plain_file(folder):
    Path(folder).write_bytes(b"")


def _no_parent(folder):
    shutil.rmtree(Path(folder).parent)


@pytest.mark.parametrize(
    "prepare", [_link_folder, _link_file, _open_folder, _fifo, _directory, _plain_file, _no_parent]
)
def test_what_another_user_could_have_put_there_is_refused(folder, clock, prepare):
    prepare(folder)
    with pytest.raises(TableError):
        Table(folder, clock)
    real = Path(folder + "-real")
    assert not real.is_file() or real.read_bytes() == b""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", FILE])
def test_another_users_folder_or_file_is_refused(folder, clock, name):
    Path(folder).mkdir(mode=0o700)
    Path(folder, FILE).write_bytes(b"")
    os.chown(Path(folder, name), 12345, -1)
    with pytest.raises(TableError, match="another user"):
        Table(folder, clock)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.ENOLCK, errno.EIO])
def test_an_error_of_the_file_system_is_a_table_error(table, clock, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(TableError, match=os.strerror(number)):
        claim(table, 1, clock.now)


def test_a_write_that_finds_no_room_is_a_table_error(table, clock, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda *_: 3)
    with pytest.raises(TableError, match="no room"):
        claim(table, 1, clock.now)


# --- the lock ---


def _hold(folder, pipe):
    with open(Path(folder, FILE), "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1)
        pipe.send("held")
        pipe.recv()


def test_a_lock_that_another_process_keeps_is_not_waited_for_long(folder):
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    table = Table(folder)
    holder = context.Process(target=_hold, args=(folder, its))
    holder.start()
    try:
        assert ours.poll(60)
        with pytest.raises(TableBusyError):
            claim(table, 1, 1)
        holder.kill()  # its lock ends with it
        holder.join()
        assert claim(table, 1, 1).slot == 0
    finally:
        holder.kill()
        holder.join()
        holder.close()
        ours.close()
        its.close()
        table.close()


def test_a_handler_that_finds_its_own_thread_inside_goes_without(table, clock):
    def handle():
        with pytest.raises(TableBusyError):
            claim(table, 1, clock.now)

    table._file.locked(handle)
    assert claim(table, 1, clock.now).slot == 0


class _Interrupt:
    """Raises KeyboardInterrupt at the n-th place of a call where Python looks for signals.

    It does so when a function of Python's begins and when one of C's has returned (and at the end of a round
    of a loop).
    """

    def __init__(self, step):
        self.left = step

    def __call__(self, _frame, event, _argument):
        if event in ("call", "c_return"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def _is_free(folder):
    """Whether another process can lock the table, and another thread of this one can use it."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with open(os.path.join(folder, FILE), "r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_file_that_an_interrupt_kept_from_being_opened_is_dropped_without_a_failure():
    turn_file.TurnFile.__new__(turn_file.TurnFile).close()  # which its finalizer is


def test_an_interrupt_at_any_step_leaves_no_lock_held(table, folder, clock):
    step, kept = 0, []
    before = sys.getprofile()
    while True:
        step += 1
        try:
            # kept: before 3.12 the interpreter may call it once more after it has dropped its own reference
            interrupt = _Interrupt(step)
            sys.setprofile(interrupt)
            claim(table, 2, clock.now)
            break
        except KeyboardInterrupt as error:
            kept.append(error)  # with its traceback, as a notebook keeps it
        finally:
            sys.setprofile(before)
        clock.now += AGE
        other = threading.Thread(target=claim, args=(table, 1, clock.now), daemon=True)
        other.start()
        other.join(GUARD)
        assert not other.is_alive(), f"step {step} left the lock held"
        assert _is_free(folder), f"step {step} left the record lock held"
        clock.now += AGE
    assert step > 10


def test_a_child_closes_the_inherited_table(folder, clock):
    table = Table(folder, clock)
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                claim(table, 1, clock.now)
            except TableError:
                code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert claim(table, 1, clock.now).slot == 0
    table.close()


def patiently(what, *arguments, **named):
    """Use a table whose lock others hold nearly all the time."""
    while True:
        with contextlib.suppress(TableBusyError):
            return what(*arguments, **named)


def _hammer(folder, number, rounds, pipe):
    """Take a turn, make a file of that turn for as long, and report whether anybody else had."""
    table = patiently(Table, folder)
    overlaps = taken = 0
    pipe.send("ready")
    pipe.recv()
    for _ in range(rounds):
        since, got = monotonic_ns(), None
        while got is None or got.slot is None:
            got = patiently(claim, table, number, since, turns=2, age=59 * 10**9)
        flag = Path(folder, f"held-{got.slot}")
        try:
            flag.open("x").close()
        except FileExistsError:
            overlaps += 1
        else:
            flag.unlink()
        patiently(release, table, number, got)
        taken += 1
    pipe.send((taken, overlaps))
    table.close()


def test_processes_never_hold_the_same_turn(folder):
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(3)]
    workers = [
        context.Process(target=_hammer, args=(folder, number, 200, its))
        for number, (_, its) in enumerate(pipes, 1)
    ]
    for worker in workers:
        worker.start()
    try:
        for ours, _ in pipes:
            assert ours.poll(60)
            assert ours.recv() == "ready"
        for ours, _ in pipes:
            ours.send("go on")
        for ours, _ in pipes:
            assert ours.poll(60)
            assert ours.recv() == (200, 0)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
            worker.close()
        for ours, its in pipes:
            ours.close()
            its.close()


# --- any sequence of what may happen ---

TURNS = 3


class Tables(RuleBasedStateMachine):
    """Processes that claim, release, time out, end, fork and damage the file, and a model of the rules."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.folder = tempfile.mkdtemp()
        self.table = Table(self.folder, self.clock)
        self.owners = 0
        self.waiting = {}  # owner: ticket, and until when others leave it its place
        self.held = []  # of each turn that was granted: owner, claim

    @initialize(count=st.integers(2, 6))
    def start(self, count):
        for _ in range(count):
            self.arrive()

    def teardown(self):
        self.table.close()
        shutil.rmtree(self.folder)

    def arrive(self):
        self.owners += 1
        self.waiting[self.owners] = None

    def live(self):
        return [(owner, got) for owner, got in self.held if got.until > self.clock.now]

    def alive(self):
        return sorted(owner for owner in self.waiting if owner > 0)

    @rule(data=st.data())
    def claim(self, data):
        owner = data.draw(st.sampled_from(self.alive()))
        ticket = self.waiting[owner][0] if self.waiting[owner] else self.clock.now
        older = [
            other
            for other, waits in self.waiting.items()
            if other != owner and waits and waits[0] < ticket and waits[1] > self.clock.now
        ]
        free = TURNS - len(self.live())
        got = claim(self.table, owner, ticket, turns=TURNS)
        assert (got.slot is not None) == (len(older) < free)
        if got.slot is None:
            self.waiting[owner] = (ticket, self.clock.now + got.pause_ns + GRACE_NS)
        else:
            assert got.until == self.clock.now + AGE
            assert got.slot not in [each.slot for _, each in self.live()]
            self.waiting[owner] = None
            self.held.append((owner, got))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        owner, got = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        release(self.table, owner, got)

    @rule(data=st.data())
    def give_up(self, data):
        owner = data.draw(st.sampled_from(self.alive()))
        self.table.withdraw(KEY, owner)
        self.waiting[owner] = None

    @rule(nanoseconds=st.sampled_from([1, MS, GRACE_NS, 4 * MS, TICK_NS, AGE, 30 * MS]))
    def time_passes(self, nanoseconds):
        self.clock.now += nanoseconds

    @precondition(lambda self: len(self.alive()) > 2)
    @rule(data=st.data())
    def die(self, data):
        """Be killed or stopped: what it holds and its place in the order end by their times."""
        owner = data.draw(st.sampled_from(self.alive()))
        waits = self.waiting.pop(owner)
        if waits:
            self.waiting[-owner] = waits  # still there for others, until its time
        self.arrive()

    @rule()
    def fork(self):
        """Leave the parent's turns to the parent; the child is another process, with a table of its own."""
        self.table.close()
        self.table = Table(self.folder, self.clock)
        self.arrive()

    @rule(at=st.integers(turn_file._TURNS_AT, SIZE - 40), data=st.binary(min_size=1, max_size=40))
    def damage(self, at, data):
        """Write anything over any records: no more than an error comes of it, and time heals it."""
        mangle(self.folder, at, data)
        with contextlib.suppress(TableError):
            claim(self.table, 10**6, self.clock.now, turns=TURNS)
        self.clock.now += 61 * 10**9  # what is damaged lasts no longer
        self.held.clear()
        self.waiting = {owner: None for owner in self.waiting if owner > 0}

    @rule(size=st.integers(0, SIZE))
    def cut_short(self, size):
        os.truncate(Path(self.folder, FILE), size)
        self.table.close()
        self.table = Table(self.folder, self.clock)  # which is empty again, or was not touched
        if size < SIZE:
            self.held.clear()
            self.waiting = {owner: None for owner in self.waiting if owner > 0}

    @invariant()
    def the_table_has_what_was_granted(self):
        assert len(self.live()) <= TURNS
        granted = sorted((owner, got.until) for owner, got in self.live())
        assert sorted((turn.owner, turn.until) for turn in self.table.taken(KEY)) == granted


Tables.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
test_any_sequence_keeps_the_rules = Tables.TestCase


def test_a_kernel_without_namespaces_of_time_counts_as_the_first_one(monkeypatch):
    def no_namespace(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(turn_file, "os", SimpleNamespace(stat=no_namespace))
    *_, namespace = turn_file._HEADER.unpack(turn_file._header())
    assert namespace == 0
