"""One file of shared memory: how it is made, what is refused, and which leftovers are removed."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tcm_sync._shm import segment as module
from tcm_sync._shm.segment import Segment, directory_space, remove_orphans, segment_of, why_unsupported

from ..helpers.interrupts import leaves_no_descriptor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /dev/shm here")

SHM = Path("/dev/shm")
NOBODY = 65534


def path_of(segment):
    return SHM / segment.name


def ours():
    """Return the names of what this process has in /dev/shm."""
    return {name for name in os.listdir(SHM) if name.startswith(f"tcm_{os.getpid()}_")}


def descriptors():
    """Return the numbers of the open descriptors, but for that of the listing."""
    numbers = os.listdir("/proc/self/fd")
    return [number for number in numbers if os.path.lexists(f"/proc/self/fd/{number}")]


@pytest.fixture
def segment():
    made = Segment.make(4096)
    yield made
    made.unlink()
    made.close()  # pytest keeps what fixtures give until later


# --- made ---


def test_the_name_reports_the_process_and_has_96_random_bits(segment):
    assert re.fullmatch(rf"tcm_{os.getpid()}_[0-9a-f]{{24}}", segment.name)


def test_no_two_have_the_same_name_and_a_name_is_not_used_again():
    names = set()
    for _ in range(500):
        segment = Segment.make(1)
        names.add(segment.name)
        segment.unlink()
    assert len(names) == 500


def test_a_file_that_has_the_name_already_is_neither_used_nor_unlinked(monkeypatch):
    taken = SHM / f"tcm_{os.getpid()}_{'ab' * 12}"
    taken.write_bytes(b"mine")
    monkeypatch.setattr(module.secrets, "token_hex", lambda size: "ab" * size)
    try:
        with pytest.raises(FileExistsError):
            Segment.make(4)
        assert taken.read_bytes() == b"mine"
    finally:
        taken.unlink()


def test_a_symbolic_link_with_the_name_is_not_followed(monkeypatch, tmp_path):
    link = SHM / f"tcm_{os.getpid()}_{'cd' * 12}"
    link.symlink_to(tmp_path / "target")
    monkeypatch.setattr(module.secrets, "token_hex", lambda size: "cd" * size)
    try:
        with pytest.raises(FileExistsError):
            Segment.make(4)
        assert not (tmp_path / "target").exists()
    finally:
        link.unlink()


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_only_this_user_may_read_and_write_it(mask):
    before = os.umask(mask)
    try:
        segment = Segment.make(1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path_of(segment).stat().st_mode) == 0o600


def test_a_group_may_when_one_is_given():
    group = NOBODY if os.getuid() == 0 else os.getgroups()[0]
    segment = Segment.make(1, group=group)
    found = path_of(segment).stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group)


def test_all_of_it_is_reserved_and_zero(segment):
    found = path_of(segment).stat()
    assert found.st_size == 4096
    assert found.st_blocks * 512 >= 4096
    assert not segment.array(np.dtype(np.uint8), (4096,)).any()


def test_programs_that_are_started_do_not_inherit_the_descriptor(segment):
    links = {int(number): os.readlink(f"/proc/self/fd/{number}") for number in descriptors()}
    numbers = [number for number, target in links.items() if target == str(path_of(segment))]
    assert [os.get_inheritable(number) for number in numbers] == [False]


@pytest.mark.parametrize("call", ["posix_fallocate", "fstat"])
def test_nothing_is_left_of_one_that_could_not_be_made(monkeypatch, call):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = descriptors()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        Segment.make(4096)
    monkeypatch.undo()
    gc.collect()
    assert not ours()
    assert descriptors() == before


def test_nothing_is_left_when_the_making_is_interrupted_as_the_file_appears(monkeypatch):
    def interrupted(path, *args, make=os.open, **kwargs):
        os.close(make(path, *args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Segment.make(4096)
    monkeypatch.undo()
    assert not ours()


# --- used ---


def test_what_is_written_is_in_the_file(segment):
    segment.array(np.dtype(np.int64), (2, 256))[:] = 7
    assert path_of(segment).read_bytes() == np.full(512, 7, np.int64).tobytes()


def test_an_array_keeps_the_memory_when_the_file_and_the_segment_are_gone():
    segment = Segment.make(4096)
    name = segment.name
    array = segment.array(np.dtype(np.int64), (512,))
    segment.unlink()
    del segment
    gc.collect()
    array[:] = 7
    assert array.sum() == 7 * 512
    assert f"{name} (deleted)" in Path("/proc/self/maps").read_text()
    del array
    assert name not in Path("/proc/self/maps").read_text()


def test_the_file_goes_when_the_last_array_over_it_does():
    segment = Segment.make(4096)
    view = segment.array(np.dtype(np.int64), (16, 32))[3:5]
    path = path_of(segment)
    del segment
    assert path.exists()
    del view
    assert not path.exists()


def test_unlinking_twice_does_no_harm(segment):
    segment.unlink()
    segment.unlink()
    assert not segment.exists()


def test_one_whose_file_was_replaced_is_not_there(segment):
    assert segment.exists()
    path_of(segment).unlink()
    path_of(segment).write_bytes(bytes(4096))
    assert not segment.exists()


def test_it_cannot_be_pickled(segment):
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(segment)


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array,
        lambda array: array[1:],
        lambda array: array.reshape(-1)[::2].T,
        lambda array: array.view(np.uint8)[..., 0],
        lambda array: np.asarray(memoryview(array)),
        lambda array: array.view(np.ma.MaskedArray),
    ],
    ids=["whole", "part", "strided", "bytes", "memoryview", "subclass"],
)
def test_a_view_reports_its_segment(segment, view):
    assert segment_of(view(segment.array(np.dtype(np.int64), (16, 32)))) is segment


def test_a_copy_and_an_array_of_elsewhere_tell_none(segment):
    assert segment_of(segment.array(np.dtype(np.int64), (512,)).copy()) is None
    assert segment_of(np.zeros(3)) is None
    assert segment_of(np.frombuffer(b"abcd", np.uint8)) is None


# --- supported ---


def test_other_systems_have_none(monkeypatch):
    assert why_unsupported() is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert why_unsupported() == "shared memory needs Linux, and this is darwin"


def test_a_directory_that_cannot_be_written_to_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "DIRECTORY", str(tmp_path / "nowhere"))
    assert why_unsupported() == f"there is no {tmp_path}/nowhere"
    monkeypatch.setattr(module, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_, **how: not how["effective_ids"])
    assert why_unsupported() == f"{tmp_path} cannot be written to by user id {os.geteuid()}"


def test_the_room_is_that_of_the_directory():
    size, free, has_inodes = directory_space()
    found = os.statvfs(SHM)
    assert size == found.f_blocks * found.f_frsize
    assert 0 <= free <= size
    assert has_inodes


def statvfs_of(monkeypatch, **changes):
    found = os.statvfs(SHM)
    fields = {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**{**fields, **changes}))


def test_a_file_system_without_a_limit_has_the_room_of_half_the_memory(monkeypatch):
    statvfs_of(monkeypatch, f_blocks=0, f_bavail=0, f_files=0, f_favail=0)
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    assert directory_space() == (half, half, True)


def test_a_file_system_whose_inodes_are_used_up_is_noticed(monkeypatch):
    statvfs_of(monkeypatch, f_files=30, f_favail=0)
    assert not directory_space().has_inodes


# --- files of processes that have ended ---


@pytest.fixture
def gone():
    """Return the number of a process that is no more."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Have a directory in place of /dev/shm, in which others remove files too."""
    monkeypatch.setattr(module, "DIRECTORY", str(tmp_path))
    return tmp_path


@pytest.fixture
def left(directory):
    """Leave files."""

    def leave(pid, content=b"x", tail="0123456789abcdef01234567"):
        path = directory / f"tcm_{pid}_{tail}"
        path.write_bytes(content)
        return path

    return leave


def test_the_file_of_a_process_that_is_gone_is_removed_at_once(gone, left):
    path = left(gone)
    assert remove_orphans() == [path.name]
    assert not path.exists()


@pytest.mark.parametrize("pid", [1, os.getppid(), os.getpid()], ids=["init", "parent", "own"])
def test_the_file_that_nobody_has_locked_is_removed_though_a_process_has_its_number(left, pid):
    """Each container that shares the directory has a process 1, and numbers the others by itself."""
    path = left(pid)
    assert remove_orphans() == [path.name]
    assert not path.exists()


def test_the_segments_of_a_live_process_are_not_removed(directory):
    segment = Segment.make(4096)
    assert remove_orphans() == []
    assert (directory / segment.name).exists()


def test_the_file_of_another_user_is_not_removed(gone, left):
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    path = left(gone)
    os.chown(path, NOBODY, NOBODY)
    remove_orphans()
    assert path.exists()


def test_whose_file_it_is_is_decided_by_the_user_that_makes_files(gone, left, monkeypatch):
    """The effective user: the real one may differ in a process that has dropped its rights."""
    path = left(gone)
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert remove_orphans() == [path.name]


@pytest.mark.parametrize(
    "name",
    [
        "tcm_{}_0123456789abcdef0123456",
        "tcm_{}_0123456789abcdef012345678",
        "tcm_{}_0123456789ABCDEF01234567",
        "tcm_x_{}_0123456789abcdef01234567",
        "xtcm_{}_0123456789abcdef01234567",
        "tcm_{}",
        "psm_{}_0123456789abcdef01234567",
    ],
)
def test_files_with_other_names_are_not_removed(gone, directory, name):
    path = directory / name.format(gone)
    path.write_bytes(b"x")
    assert remove_orphans() == []
    assert path.exists()


def test_what_is_no_file_is_not_removed(gone, directory):
    link, folder, pipe = (directory / f"tcm_{gone}_0123456789abcdef0123456{n}" for n in range(3))
    link.symlink_to("/etc/hostname")
    folder.mkdir()
    os.mkfifo(pipe)
    assert remove_orphans() == []
    assert link.is_symlink()
    assert folder.is_dir()
    assert pipe.is_fifo()


def test_an_empty_file_is_not_removed_while_it_is_young_since_it_may_not_be_locked_yet(
    gone, left, monkeypatch
):
    path = left(gone, b"")
    remove_orphans()
    assert path.exists()
    monkeypatch.setattr(module, "_NEW", -1.0)
    remove_orphans()
    assert not path.exists()


def test_a_file_that_somebody_holds_the_lock_of_is_not_removed_for_as_long_as_an_array_is_there(
    gone, directory
):
    """As where the process lives in another container, which numbers its processes by itself."""
    segment = Segment.make(4096)
    path = directory / segment.name.replace(str(os.getpid()), str(gone))
    (directory / segment.name).rename(path)
    assert remove_orphans() == []
    array = segment.array(np.dtype(np.uint8), (4096,))[5:]
    del segment
    assert remove_orphans() == []
    del array  # which unmaps it
    assert remove_orphans() == [path.name]
    assert not path.exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_of_the_removal_leaves_no_descriptor(gone, left):
    segment = Segment.make(4096)  # which is opened, and is locked
    leaves_no_descriptor(lambda: (left(gone), remove_orphans()))
    assert segment.exists()


def test_two_that_remove_orphans_at_once_do_not_disturb_each_other(gone, left):
    paths = [left(gone, tail=f"{number:024x}") for number in range(200)]
    swept = []
    threads = [threading.Thread(target=lambda: swept.extend(remove_orphans())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(path.exists() for path in paths)
    assert {path.name for path in paths} <= set(swept)
