"""The arena: which segment a request gets, what becomes of it, and what is counted."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tcm_sync import InputError, Route
from tcm_sync._shm import arena as module
from tcm_sync._shm.arena import Arena, DeclinedError
from tcm_sync._shm.segment import Segment, Space, directory_space

from ..helpers.interrupts import InterruptAt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /dev/shm here")

A, B = Route("a", "127.0.0.1"), Route("b", "127.0.0.1")
BYTES = np.dtype(np.uint8)


def ours():
    """Return the names of what this process has in /dev/shm."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"tcm_{os.getpid()}_")}


@pytest.fixture
def make():
    """Make arenas, which are closed in the end, and let go of."""
    arenas = []

    def start(max_pinned=2**30, group=None):
        arenas.append(Arena(max_pinned, group))
        return arenas[-1]

    yield start
    for arena in arenas:
        arena.close()
        arena._live.clear()
    arenas.clear()


@pytest.fixture
def arena(make):
    return make()


def used(arena, route=A, size=100, epoch=0):
    """Lend a segment and have it back after a good reply; return its name."""
    segment = arena.acquire(route, size, epoch)
    arena.release(segment)
    return segment.name


# --- which one ---


def test_a_segment_that_was_released_is_acquired_again(arena):
    name = used(arena)
    assert used(arena) == name
    assert ours() == {name}


@pytest.mark.parametrize(
    "other", [{"route": B}, {"size": 99}, {"size": 101}, {"route": Route("a")}, {"route": Route("a", "::1")}]
)
def test_another_server_or_size_gets_another(arena, other):
    name = used(arena)
    assert used(arena, **other) != name
    assert used(arena) == name, "and the first is still there for its own"


def test_what_is_acquired_is_acquired_by_no_other_call(arena):
    segments = [arena.acquire(A, 100, 0) for _ in range(5)]
    assert len({segment.name for segment in segments}) == 5


def test_the_last_one_released_is_the_first_to_be_acquired(arena):
    first, second = arena.acquire(A, 100, 0), arena.acquire(A, 100, 0)
    arena.release(second)
    arena.release(first)
    assert arena.acquire(A, 100, 0) is first
    assert arena.acquire(A, 100, 0) is second


def test_one_that_must_be_new_is(arena):
    name = used(arena)
    assert arena.acquire(A, 100, 0, never_used=True).name != name


def test_a_discarded_one_is_unlinked_and_never_acquired_again(arena):
    segment = arena.acquire(A, 100, 0)
    arena.discard(segment)
    assert not ours()
    assert used(arena) != segment.name
    arena.release(segment)  # whoever is late
    assert arena.acquire(A, 100, 0) is not segment


def test_one_whose_file_is_gone_is_not_acquired(arena):
    gone, name = arena.acquire(A, 100, 0), used(arena)
    arena.release(gone)
    Path(f"/dev/shm/{gone.name}").unlink()
    assert used(arena) == name
    assert arena.read()["shm_segments"] == 1


def test_one_whose_file_was_made_again_is_not_acquired(arena):
    name = used(arena)
    path = Path(f"/dev/shm/{name}")
    path.unlink()
    path.write_bytes(bytes(100))
    try:
        assert used(arena) != name
    finally:
        path.unlink(missing_ok=True)


# --- when the connections are lost ---


def test_a_new_epoch_unlinks_what_is_idle(arena):
    idle = [used(arena), used(arena, B)]
    segment = arena.acquire(A, 100, 1)
    assert ours() == {segment.name}
    assert segment.name not in idle


def test_what_comes_back_from_an_earlier_epoch_is_unlinked(arena):
    early = arena.acquire(A, 100, 0)
    late = arena.acquire(A, 100, 1)
    arena.release(early)
    assert ours() == {late.name}
    assert arena.acquire(A, 100, 1) is not early


def test_a_call_that_is_still_in_an_earlier_epoch_retires_nothing(arena):
    name = used(arena, epoch=1)
    arena.release(arena.acquire(B, 100, 0))
    assert used(arena, epoch=1) == name


def test_a_new_epoch_unlinks_a_callers_too_if_a_server_registered_it(arena):
    known, new = arena.empty(80).array(BYTES, (80,)), arena.empty(70).array(BYTES, (70,))
    arena.release(arena.acquire_array(known, A, 0))
    lent = arena.acquire(A, 100, 1)
    assert len(ours()) == 2
    assert arena.read()["shm_segments"] == 2
    assert arena.acquire_array(known, A, 1) is None
    assert arena.acquire_array(new, A, 1) is not lent


# --- bounds ---


def test_of_too_many_idle_ones_the_least_recently_used_are_unlinked(arena, monkeypatch):
    monkeypatch.setattr(module, "_MAX_IDLE", 3)
    first = used(arena, size=1)
    names = [used(arena, size=size) for size in (2, 3)]
    assert used(arena, size=1) == first
    names.append(used(arena, size=4))
    assert ours() == {first, *names[1:]}


def test_of_too_many_idle_bytes_the_least_recently_used_are_unlinked(make):
    arena = make(max_pinned=250)
    segments = [arena.acquire(A, 100, 0), arena.acquire(A, 100, 0)]
    arena._registered.clear()  # as if the server had forgotten them
    arena._pinned = 0
    segments.append(arena.acquire(A, 100, 0))
    for segment in segments:
        arena.release(segment)
    assert ours() == {segments[1].name, segments[2].name}


def test_what_is_acquired_is_not_among_the_idle(arena, monkeypatch):
    monkeypatch.setattr(module, "_MAX_IDLE", 1)
    lent = [arena.acquire(A, 100, 0) for _ in range(4)]
    assert ours() == {segment.name for segment in lent}


# --- what servers keep ---


def test_what_is_unlinked_is_still_counted_as_pinned(arena):
    arena.discard(arena.acquire(A, 100, 0))
    arena.discard(arena.acquire(B, 50, 0))
    assert arena.read() == {"shm_segments": 0, "shm_bytes": 0, "shm_pinned": 150}


def test_using_one_again_pins_no_more(arena):
    for _ in range(5):
        used(arena)
    assert arena.read() == {"shm_segments": 1, "shm_bytes": 100, "shm_pinned": 100}


def test_more_than_may_be_pinned_is_declined_and_nothing_is_made(make):
    arena = make(max_pinned=250)
    first = arena.acquire(A, 100, 0)
    arena.discard(arena.acquire(B, 100, 0))
    with pytest.raises(DeclinedError, match=r"^pinned: .* 200 bytes .* 51 more .*shm_max_pinned \(250\)"):
        arena.acquire(A, 51, 0)
    assert ours() == {first.name}
    assert arena.acquire(A, 50, 0)


def test_what_a_server_has_registered_may_be_acquired_when_no_more_may_be_pinned(make):
    arena = make(max_pinned=100)
    name = used(arena)
    assert used(arena) == name
    with pytest.raises(DeclinedError, match=r"^pinned"):
        used(arena, B)


def test_threads_that_lend_at_once_do_not_pass_the_budget_together(make, monkeypatch):
    arena = make(max_pinned=250)
    meeting = threading.Barrier(4)

    def met(byte_size, *, group, made=Segment.make):
        meeting.wait(20.0)
        return made(byte_size, group=group)

    monkeypatch.setattr(module.Segment, "make", met)
    with ThreadPoolExecutor(4) as threads:
        lent = [threads.submit(arena.acquire, A, 100, 0) for _ in range(4)]
        failures = [future.exception() for future in lent]
    assert sum(failure is None for failure in failures) == 2
    assert {type(failure) for failure in failures} == {DeclinedError, type(None)}
    assert arena.read()["shm_pinned"] == 200
    del failures
    held = {future.result().name for future in lent if future.exception() is None}
    lent = [future for future in lent if future.exception() is None]
    gc.collect()
    assert ours() == held


def test_a_server_keeps_so_many_and_forgets_the_least_recently_used(arena, monkeypatch):
    monkeypatch.setattr(module, "_MAX_REGISTERED", 3)
    used(arena, size=1)
    used(arena, size=10)
    used(arena, size=1)
    used(arena, size=100)
    used(arena, B, size=1000)
    used(arena, size=10_000)  # the fourth of A
    assert arena.read()["shm_pinned"] == 1 + 100 + 1000 + 10_000


# --- room ---


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, r"no room: /dev/shm has no 1,000 bytes \([\d,]+ are free again\)"),
        (errno.ENOMEM, "no room: there is no memory in which this process could map 1,000 bytes"),
    ],
)
def test_a_directory_that_fills_up_between_the_check_and_the_reservation_is_reported(
    arena, monkeypatch, number, said
):
    def full(*_):
        raise OSError(number, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DeclinedError, match=f"^{said}$"):
        arena.acquire(A, 1000, 0)
    with pytest.raises(DeclinedError, match=r"^no room"):
        arena.empty(1000)
    assert arena.read() == {"shm_segments": 0, "shm_bytes": 0, "shm_pinned": 0}


def test_more_than_the_directory_has_is_no_room(make):
    arena = make(max_pinned=2**62)
    with pytest.raises(DeclinedError, match=r"^no room"):
        arena.acquire(A, directory_space()[0] + 2**20, 0)
    assert not ours()


def test_a_directory_without_an_inode_left_is_not_reported_as_one_without_bytes(arena, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "directory_space", lambda: Space(2**30, 2**29, has_inodes=False))
    monkeypatch.setattr(os, "open", full)
    said = "no room: /dev/shm has as many files as its file system may have (no inode is left)"
    with pytest.raises(DeclinedError, match=f"^{re.escape(said)}$"):
        arena.acquire(A, 1000, 0)
    assert arena.obstacle(1000) == said


def test_a_directory_that_is_gone_is_a_reason_and_no_failure(arena, monkeypatch):
    def gone(path):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    monkeypatch.setattr(os, "statvfs", gone)
    with pytest.raises(DeclinedError, match=r"^not made: no segment in /dev/shm: .*No such file"):
        arena.acquire(A, 1000, 0)
    with pytest.raises(DeclinedError, match=r"^not made: "):
        arena.empty(1000)
    assert arena.obstacle(1000).startswith("not made: ")


def test_any_other_failure_is_reported_in_its_own_words(arena, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module.Segment, "make", refused)
    with pytest.raises(DeclinedError, match=r"^not made: .*Too many open files"):
        arena.acquire(A, 1000, 0)


def test_what_is_in_the_way_is_reported_without_making_anything(make):
    arena = make(max_pinned=100)
    assert arena.obstacle(100) is None
    assert arena.obstacle(101).startswith("pinned: servers keep 0 bytes mapped, and may keep 100")
    assert make(max_pinned=2**62).obstacle(directory_space()[0] + 2**20).startswith("no room: ")
    assert not ours()


# --- a caller's own ---


def test_a_callers_segment_is_borrowed_for_the_whole_of_it(arena):
    array = arena.empty(80).array(np.dtype(np.float64), (2, 5))
    for view in (array, array.reshape(10), array.view(np.int64), array[:], array.view(np.uint8)):
        segment = arena.acquire_array(view, A, 0)
        assert segment is not None
        arena.release(segment)
    assert arena.read()["shm_pinned"] == 80


def test_it_is_not_borrowed_for_a_part_or_in_another_order(arena):
    array = arena.empty(80).array(np.dtype(np.float64), (2, 5))
    views = (array[1:], array[:, 1:], array.T, array[::-1], array[:, ::2], array.copy(), array + 0)
    assert [arena.acquire_array(view, A, 0) for view in views] == [None] * len(views)


def test_it_is_not_borrowed_twice_at_once(arena):
    array = arena.empty(80).array(BYTES, (80,))
    segment = arena.acquire_array(array, A, 0)
    assert arena.acquire_array(array, A, 0) is None
    arena.release(segment)
    assert arena.acquire_array(array, A, 0) is segment


def test_of_many_threads_one_borrows_it(arena):
    array = arena.empty(80).array(BYTES, (80,))
    for _ in range(200):
        with ThreadPoolExecutor(4) as threads:
            borrowed = list(threads.map(lambda _: arena.acquire_array(array, A, 0), range(4)))
        [segment] = [each for each in borrowed if each is not None]
        arena.release(segment)
        borrowed.clear()


def test_it_is_not_borrowed_for_a_second_server(arena):
    array = arena.empty(80).array(BYTES, (80,))
    arena.release(arena.acquire_array(array, A, 0))
    assert arena.acquire_array(array, B, 0) is None
    assert arena.acquire_array(array, A, 0) is not None


@pytest.mark.parametrize("end", ["discard", "close", "epoch", "unlink", "replace"])
def test_it_is_not_borrowed_again_after_what_ended_it_and_stays_of_use(arena, end):
    array = arena.empty(80).array(BYTES, (80,))
    segment = arena.acquire_array(array, A, 0)
    array[:] = 7
    path = Path(f"/dev/shm/{segment.name}")
    if end == "discard":
        arena.discard(segment)
    else:
        arena.release(segment)
    if end == "close":
        arena.close()
    if end in ("unlink", "replace"):
        path.unlink()
    if end == "replace":
        path.write_bytes(bytes(80))
    for _ in range(2):
        assert arena.acquire_array(array, A, 1 if end == "epoch" else 0) is None
    array += 1
    assert array.tolist() == [8] * 80
    if end == "replace":
        path.unlink()


def test_what_comes_back_after_a_new_epoch_is_unlinked_though_it_is_a_callers(arena):
    array = arena.empty(80).array(BYTES, (80,))
    segment = arena.acquire_array(array, A, 0)
    arena.release(arena.acquire(B, 10, 1))
    arena.release(segment)
    assert segment.name not in ours()


def test_one_that_no_server_has_registered_is_acquired_in_a_later_epoch(arena):
    array = arena.empty(80).array(BYTES, (80,))
    arena.release(arena.acquire(B, 10, 1))
    assert arena.acquire_array(array, A, 1) is not None


def test_it_is_not_borrowed_where_no_more_may_be_pinned(make):
    arena = make(max_pinned=100)
    used(arena)
    array = arena.empty(80).array(BYTES, (80,))
    assert arena.acquire_array(array, A, 0) is None
    assert not arena.empty(80).busy


def test_it_is_never_among_those_that_are_acquired(arena):
    segment = arena.acquire_array(arena.empty(80).array(BYTES, (80,)), A, 0)
    arena.release(segment)
    assert arena.acquire(A, 80, 0) is not segment


def test_another_arenas_segment_is_not_borrowed(make):
    array = make().empty(80).array(BYTES, (80,))
    assert make().acquire_array(array, A, 0) is None


def test_a_segment_that_was_acquired_is_no_callers(arena):
    segment = arena.acquire(A, 80, 0)
    arena.release(segment)
    assert arena.acquire_array(segment.array(BYTES, (80,)), A, 0) is None


def test_a_callers_file_goes_with_the_array(arena):
    array = arena.empty(80).array(BYTES, (80,))
    assert arena.read() == {"shm_segments": 1, "shm_bytes": 80, "shm_pinned": 0}
    del array
    assert not ours()
    assert arena.read()["shm_segments"] == 0


# --- closed ---


def test_closing_unlinks_the_idle_the_acquired_and_the_callers(arena):
    used(arena)
    lent = arena.acquire(A, 50, 0)
    array = arena.empty(80).array(BYTES, (80,))
    assert len(ours()) == 3
    arena.close()
    assert not ours()
    assert arena.read()["shm_segments"] == 0
    array[:] = lent.array(BYTES, (50,))[0]


def test_what_comes_back_after_the_closing_is_not_kept(arena):
    lent = arena.acquire(A, 50, 0)
    arena.close()
    arena.release(lent)
    assert not arena._idle


def test_nothing_is_made_after_the_closing(arena):
    used(arena)
    arena.close()
    for call in (lambda: arena.acquire(A, 100, 0), lambda: arena.empty(100)):
        with pytest.raises(DeclinedError, match=r"^closed"):
            call()
    gc.collect()
    assert not ours()


def test_closing_waits_for_what_is_being_made_and_unlinks_that_too(arena, monkeypatch):
    """At the end of the interpreter its thread may go no further."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(byte_size, *, group, made=Segment.make):
        begun.set()
        assert go_on.wait(20.0)
        return made(byte_size, group=group)

    monkeypatch.setattr(module.Segment, "make", slow)
    with ThreadPoolExecutor(2) as threads:
        made = threads.submit(arena.acquire, A, 100, 0)
        assert begun.wait(20.0)
        closed = threads.submit(arena.close)
        while not arena._closed:
            assert not closed.done()
        go_on.set()
        closed.result(20.0)
        assert not ours()
        assert type(made.exception(20.0)) is DeclinedError


def test_closing_waits_no_longer_than_it_can_take(arena, monkeypatch):
    monkeypatch.setattr(module, "_CLOSE_TIMEOUT", 0.01)
    arena._making.add(1)  # as an interrupt may leave it
    arena.close()
    assert arena._closed
    arena._making.clear()


def test_an_arena_that_nobody_has_any_more_unlinks_what_it_had():
    arena = Arena(2**30)
    used(arena)
    assert len(ours()) == 1
    del arena
    gc.collect()
    assert not ours()


def test_it_removes_orphans_when_it_is_made(monkeypatch):
    swept = []
    monkeypatch.setattr(module, "remove_orphans", lambda: swept.append(1))
    Arena(1)
    assert swept == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_unlinks_nothing_whatever_it_does(arena):
    used(arena)
    lent = arena.acquire(A, 50, 0)
    array = arena.empty(80).array(BYTES, (80,))
    names = ours()
    pid = os.fork()
    if not pid:
        try:
            arena.discard(lent)
            arena.close()
            del array
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ours() == names


# --- many threads ---


def test_each_has_its_own_under_reuse_and_everything_is_accounted_for(make, monkeypatch):
    """Segments are filled, given time to be spoilt by somebody else, and read again."""
    monkeypatch.setattr(module, "_MAX_IDLE", 6)
    monkeypatch.setattr(module, "_MAX_REGISTERED", 8)
    arena = make()
    rounds, before = 400, sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def work(thread):
        random = np.random.default_rng(thread)
        for number in range(rounds):
            size = int(random.integers(1, 6)) * 1000
            segment = arena.acquire((A, B)[number % 2], size, 0)
            array = segment.array(BYTES, (size,))
            array[:] = mark = (thread * 31 + number) % 251
            again = segment.array(BYTES, (size,))
            assert (again == mark).all()
            del array, again
            if random.random() < 0.1:
                arena.discard(segment)
            else:
                arena.release(segment)

    try:
        with ThreadPoolExecutor(4) as threads:
            for future in [threads.submit(work, thread) for thread in range(4)]:
                future.result(60.0)
    finally:
        sys.setswitchinterval(before)
    figures = arena.read()
    assert figures["shm_pinned"] == sum(sum(known.values()) for known in arena._registered.values())
    assert figures["shm_segments"] == len(arena._idle) == len(ours()) <= 6
    assert figures["shm_bytes"] == sum(segment.byte_size for segment in arena._idle)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("use", ["acquire", "empty"])
def test_an_interrupt_at_any_moment_of_making_a_segment_leaves_nothing_though_it_is_kept(make, use):
    package = str(Path(module.__file__).parent)
    kept = []
    for moment in itertools.count(1):
        arena, interrupt, segment = make(), InterruptAt(moment, package), None
        with interrupt:
            segment = arena.acquire(A, 100, 0) if use == "acquire" else arena.empty(100)
        kept.append(interrupt.kept)
        assert not arena._making
        if segment is not None:
            break
        assert not ours()
        arena.close()
    assert moment > 15
    arena.discard(segment)


# --- files that somebody truncates ---


def test_a_kept_segment_that_was_truncated_is_not_acquired_again(arena):
    name = used(arena, size=8192)
    os.truncate(f"/dev/shm/{name}", 4096)
    segment = arena.acquire(A, 8192, 0)
    assert segment.name != name
    segment.array(BYTES, (8192,))[:] = 7
    arena.discard(segment)


@pytest.mark.parametrize("unlinked", [False, True])
def test_an_array_whose_segment_was_truncated_is_refused_and_not_read(arena, unlinked):
    segment = arena.empty(8192)
    array = segment.array(BYTES, (8192,))
    os.truncate(segment.path, 4096)
    if unlinked:
        os.unlink(segment.path)
    with pytest.raises(InputError, match=r"truncated .* 4,096 of 8,192 bytes are left"):
        arena.acquire_array(array, A, 0)
