"""Shared memory at the end of a process or of the room there is: nothing is left, and nothing crashes."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from tcm_sync import TcmClient
from tcm_sync._pool import pool_state
from tcm_sync.local.mapping import is_usable

from ..helpers.segments import total
from ..helpers.waiting import GUARD, wait_until
from .test_fork import Child, forks, in_child
from .test_interrupts import each_moment

pytestmark = pytest.mark.skipif(not is_usable(), reason="there is no /dev/shm here")

SIZE = 5000


@pytest.fixture
def manager(serve):
    return serve({"sum": total})


def ask(client, fill=1.0, size=SIZE, **how):
    found = client.infer("sum", {"x": np.full(size, fill)}, **how)
    assert found["sum"].item() == fill * size


def files_of(pid):
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"tcm_{pid}_")}


# --- forks ---


@forks
def test_a_forked_child_owns_nothing_of_its_parents(connect, manager, ours):
    client = connect(manager)
    ask(client)
    [name] = ours()

    def child():
        before = client.stats()
        ask(client, 2.0)
        made = files_of(os.getpid())
        client.close()
        return before.shm_segments, before.shm_pinned, len(made), files_of(os.getpid()), name in made

    assert in_child(child) == (0, 0, 1, set(), False)
    assert ours() == {name}
    ask(client, 3.0)
    assert ours() == {name}, "and it is used again"


@forks
def test_four_children_call_beside_their_parent_and_each_has_its_own_sums(connect, manager, ours):
    client = connect(manager)
    ask(client)

    def child():
        for fill in range(50):
            ask(client, os.getpid() % 1000 + fill, SIZE + fill % 3)
        client.close()
        return files_of(os.getpid())

    children = [Child(child) for _ in range(4)]
    for fill in range(50):
        ask(client, float(fill))
    assert [each.result() for each in children] == [set()] * 4
    assert len(ours()) == 1


@forks
def test_a_child_that_ends_without_a_word_unlinks_nothing_of_its_parents(connect, manager, ours):
    client = connect(manager)
    array = client.empty_shared(SIZE, np.float64)
    ask(client)
    names = ours()
    assert len(names) == 2
    assert in_child(lambda: array.sum()) == 0.0
    assert ours() == names


# --- processes ---

BEGIN = """
import os, signal, sys, threading
import numpy as np
from tcm_sync import Route, TcmClient, TcmError

uri = sys.argv[1]
client = TcmClient(uri, route=Route("local", "127.0.0.1"), timeout=None)

def ask(fill=1.0, size=5000, model="sum"):
    found = client.infer(model, {"x": np.full(size, fill)})
    if model == "sum":
        assert found["sum"].item() == fill * size

def in_background(work, count=1):
    for _ in range(count):
        threading.Thread(target=work, daemon=True).start()

def files():
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"tcm_{os.getpid()}_")]

def for_ever():
    while True:
        try:
            ask()
        except TcmError:
            pass

array = client.empty_shared(5000, np.float64)
array[:] = 2.0
ask()
assert len(files()) == 2
"""

ENDS = {
    "a return": "",
    "an exit": "sys.exit(0)",
    "a close": "client.close(); assert not files()",
    "a call under way": "in_background(lambda: ask(7.0, model='gated')); input()",
    "threads that continue": "in_background(for_ever, 4); input()",
    "a cycle": "client.myself = client; del client",
    "an exception": "sys.excepthook = lambda *_: sys.stdout.write('raised'); raise RuntimeError",
}


@pytest.fixture
def processes():
    """Start programs with a client, which are killed in the end; what they leave is taken away."""
    with contextlib.ExitStack() as stack:

        def start(manager, script):
            command = [sys.executable, "-X", "dev", "-W", "ignore", "-c", BEGIN + script, manager.uri]
            pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
            process = stack.enter_context(subprocess.Popen(command, text=True, **pipes))
            stack.callback(process.kill)
            return process

        yield start


@pytest.mark.parametrize("name", ENDS)
def test_whatever_ends_a_process_nothing_is_left(manager, gated, processes, name):
    process = processes(manager, ENDS[name])
    if "gated" in ENDS[name]:
        wait_until(lambda: manager.stats().executions.get("gated"), "its call is under way")
    out, errors = process.communicate("now\n", timeout=3 * GUARD)
    expected = (1, "raised", "") if name == "an exception" else (0, "", "")
    assert (process.returncode, out, errors) == expected
    assert files_of(process.pid) == set()


def test_a_killed_process_leaves_files_which_the_next_one_removes(manager, processes, ours):
    """Neither those of a running process nor those of another user."""
    alive = processes(manager, "input()")
    wait_until(lambda: len(files_of(alive.pid)) == 2, "the running one has its files")
    killed = processes(manager, "in_background(for_ever, 4); ask(7.0, model='gated')")
    before = manager.stats().executions.get("sum", 0)
    wait_until(
        lambda: manager.stats().executions.get("sum", 0) > before + 1000, "it has made a thousand calls"
    )
    killed.kill()
    killed.wait()
    left = files_of(killed.pid)
    assert left, "its array at least"
    foreign = None
    if os.getuid() == 0:
        foreign = f"/dev/shm/tcm_{killed.pid}_{'f' * 24}"
        with open(foreign, "xb"):
            os.chown(foreign, 65534, 65534)
    try:
        following = processes(manager, "print('swept', flush=True); input()")
        assert following.stdout.readline() == "swept\n"
        assert files_of(killed.pid) == ({os.path.basename(foreign)} if foreign else set())
        assert len(files_of(alive.pid)) == 2
    finally:
        if foreign:
            os.unlink(foreign)
    for process in (alive, following):
        process.communicate("now\n", timeout=3 * GUARD)
        assert process.returncode == 0
        assert files_of(process.pid) == set()


def test_a_process_that_gets_ctrl_c_in_a_call_leaves_nothing(manager, gated, processes):
    process = processes(
        manager,
        "try: ask(7.0, model='gated')\nexcept KeyboardInterrupt: print(len(files()), flush=True)\nask()",
    )
    wait_until(lambda: manager.stats().executions.get("gated"), "its call is under way")
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=3 * GUARD)
    assert (process.returncode, out, errors) == (0, "1\n", ""), "its array is left, which it may use"
    assert files_of(process.pid) == set()


# --- interrupts ---


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_no_file_that_nobody_accounts_for(manager, ours, monkeypatch):
    monkeypatch.setattr(pool_state, "AUDIT_INTERVAL", 0.01)
    numbers = itertools.count(1)
    with TcmClient(manager.uri, route=manager.route, pool_size=2, timeout=GUARD) as client:

        @contextlib.contextmanager
        def prepare():
            ask(client)
            fill = float(next(numbers))
            yield partial(ask, client, fill)
            ask(client, fill + 0.5)
            arena = client._core.shm._arena
            assert {segment.name for segment in arena._idle} == ours()

        each_moment(prepare, kept=False)  # a file that was just made goes with the frame that has it
    assert ours() == set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_of_the_first_call_leaves_no_file(manager, ours, monkeypatch):
    monkeypatch.setattr(pool_state, "AUDIT_INTERVAL", 0.01)

    @contextlib.contextmanager
    def prepare():
        with TcmClient(manager.uri, route=manager.route, pool_size=2, timeout=GUARD) as client:
            client.open()
            yield partial(ask, client)
            ask(client, 2.0)
            assert len(ours()) == 1
        assert ours() == set()

    each_moment(prepare, kept=False)  # as above


# --- no room ---

FULL = """
import os, subprocess, sys
import numpy as np
from tcm_sync._pool.turn_file import TableError
from tcm_sync._pool.turn_table import Table
from tcm_sync import InputError, MessageTooLargeError, SharedMemoryUnavailableError, TcmClient
from tcm_sync.local import LocalManager

MB = 2**20
found = os.statvfs("/dev/shm")
assert found.f_blocks * found.f_frsize == 64 * MB, "the mount of its own"

def total(arrays):
    return {"sum": [float(np.sum(arrays["x"], dtype=np.float64))]}

def ask(client, size, fill, **how):
    found = client.infer("sum", {"x": np.full(size, fill, np.uint8)}, **how)["sum"].item()
    assert found == float(size) * fill
    return client.stats().shm_sends

with LocalManager({"sum": total}, tick=0, max_message_bytes=64 * MB) as manager:
    settings = {"route": manager.route, "shm_max_pinned": 2**40, "timeout": 60.0}
    with TcmClient(manager.uri, max_message_bytes=64 * MB, **settings) as client:
        ask(client, 20 * MB, 1)
        ask(client, 20 * MB + 1, 2)
        assert ask(client, 20 * MB + 2, 3) == 3, "there was room"
        assert ask(client, 5 * MB, 4) == 3, "there is none"
        assert client.stats().shm_declined == {"no room": 1}
        assert ask(client, 20 * MB, 5) == 4, "what is there already is used again"
        for transport, kind in (("shm", SharedMemoryUnavailableError), ("auto", MessageTooLargeError)):
            with TcmClient(manager.uri, **settings) as other:
                try:
                    ask(other, 30 * MB, 1, transport=transport)
                except kind as error:
                    assert "no room: /dev/shm has no 31,457,280 bytes" in str(error), error
                else:
                    raise AssertionError(transport)
                try:
                    other.empty_shared(30 * MB, np.uint8)
                except InputError as error:
                    assert "no room: " in str(error), error
                else:
                    raise AssertionError("empty_shared")
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("tcm_")]
with LocalManager({"sum": total}, tick=0, max_message_bytes=64 * MB) as manager:  # which has nothing mapped
    with TcmClient(manager.uri, route=manager.route, max_message_bytes=64 * MB, timeout=60.0) as client:
        assert ask(client, 16 * MB, 1) == 1, "a quarter may be pinned"
        assert ask(client, 1 * MB, 1) == 1, "and no more"
        assert client.stats().shm_declined == {"pinned": 1}

def remount(option):
    subprocess.run(["mount", "-o", f"remount,{option}", "/dev/shm"], check=True)

with LocalManager({"sum": total}, tick=0, max_message_bytes=64 * MB) as manager:
    with TcmClient(manager.uri, route=manager.route, max_message_bytes=64 * MB, timeout=60.0) as client:
        assert ask(client, 100_000, 1) == 1
        found = os.statvfs("/dev/shm")
        remount(f"nr_inodes={found.f_files - found.f_ffree}")
        assert ask(client, 100_001, 1) == 1, "no other file may be made"
        assert "no inode is left" in client.explain({"x": np.zeros(100_001, np.uint8)})
        remount("nr_inodes=1000")
        assert ask(client, 100_001, 1) == 2
        with open("/dev/shm/filler", "wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, os.statvfs("/dev/shm").f_bavail * found.f_frsize)
        assert ask(client, 100_002, 1) == 2, "another program has filled it"
        assert client.stats().shm_declined == {"no room": 2}
        try:
            Table("/dev/shm/turns")
        except TableError as error:
            assert "No space left on device" in str(error), error
        else:
            raise AssertionError("a table without room")
        os.unlink("/dev/shm/filler")
        assert ask(client, 100_002, 1) == 3
        assert Table("/dev/shm/turns").claim(1, 2, 3, turns=1, age_ns=10).slot == 0
    remount("size=0")  # there is no limit, and statvfs reports 0 blocks of which 0 are free
    with TcmClient(manager.uri, route=manager.route, timeout=60.0) as client:
        assert ask(client, 100_000, 1) == 1
print("done", flush=True)
"""


def may_mount():
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.needs_debian("mount")
def test_a_full_directory_is_no_crash():
    """No room, no inode, another program that fills it, and no limit: on a tmpfs of its own."""
    if not may_mount():
        pytest.skip("a mount of its own is not allowed here")
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        f'{mount} && exec "$0" -W error -X faulthandler -c "$1"',
        sys.executable,
        FULL,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    logged = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert all(line.startswith("large tensors go as JSON") for line in logged)
    assert any("no room: " in line for line in logged)


def test_calls_of_all_kinds_leave_no_more_than_what_may_be_idle(connect, manager, ours):
    client = connect(manager)
    started = time.monotonic()
    for number in range(300):
        ask(client, 1.0, SIZE + number)
    assert time.monotonic() - started < 10 * GUARD
    assert len(ours()) == client.stats().shm_segments == 64
