"""What every test is held to: it leaves no thread, descriptor, process or shared memory file behind.

The check compares the process before and after each test, fixtures of the test included. What ends by
itself has ``TIMEOUT`` seconds to do so. Descriptors are compared by what they point to, so that a
number that was closed and given out again is not mistaken for the old one. Off Linux only threads are seen.

Tests use loopback addresses only, and so do the Python programs that they start (helpers/loopback).

Tests that need what pip and the lock do not bring are marked (``[tool.pytest.ini_options]`` lists the marks).
They are left out unless ``--with-needs`` is given, and must not be skipped then.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import runpy
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tcm_sync._logs import flush

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

settings.register_profile("no deadlines", deadline=None)  # a busy machine makes no example wrong
settings.load_profile("no deadlines")


class WrittenLog(pytest.LogCaptureFixture):
    """What was logged, once the thread that runs the handlers has written it."""

    @property
    def handler(self):
        flush(TIMEOUT)
        return super().handler

    def get_records(self, when):
        flush(TIMEOUT)
        return super().get_records(when)


@pytest.fixture
def caplog(request):
    log = WrittenLog(request.node, _ispytest=True)
    yield log
    log._finalize()


# Clients of this run, and of every process that it starts, share no turns with others on this machine.
os.environ["TCM_TURNS_DIR"] = tempfile.mkdtemp(prefix="turns-of-tests-")


def _remove(process: int, *paths: str) -> None:
    """Remove files and folders of the run, unless it is a child of `process` that ends."""
    for path in paths if os.getpid() == process else ():
        Path(path).unlink() if Path(path).is_file() else shutil.rmtree(path, ignore_errors=True)


atexit.register(_remove, os.getpid(), os.environ["TCM_TURNS_DIR"])

TIMEOUT = 5.0
_PROC = Path("/proc/self")
_SHM = Path("/dev/shm")
_LINUX = sys.platform == "linux"
#: Opened once by a library and kept: not what a test leaves behind.
_PERMANENT = re.compile(
    r"/dev/u?random$|/sys/|/proc/|/usr/share/zoneinfo/|.*/\.onnxruntime/|.*/\.coverage[^/]*$"
    r"|.*\.(otf|ttc|ttf)$"
)


@dataclass(frozen=True)
class Footprint:
    """What the process holds at one moment."""

    threads: frozenset[threading.Thread]
    descriptors: Counter[str]
    children: frozenset[int]
    shared: frozenset[str]

    @classmethod
    def now(cls) -> Footprint:
        return cls(_threads(), Counter(_descriptors().values()), _children(), _shared_files())

    def grown_to(self, after: Footprint) -> list[str]:
        """Describe what there is after and was not before, one line each."""
        return [
            *(_describe_thread(thread) for thread in after.threads - self.threads),
            *_describe_descriptors(after.descriptors - self.descriptors),
            *(_describe_child(pid) for pid in after.children - self.children),
            *(f"/dev/shm/{name}" for name in after.shared - self.shared if not _belongs_to_others(name)),
        ]


def _threads() -> frozenset[threading.Thread]:
    # A thread that a library started in C has a stand-in object that outlives it.
    return frozenset(t for t in threading.enumerate() if type(t).__name__ != "_DummyThread")


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir(_PROC / "fd") if _LINUX else ():
        try:
            target = os.readlink(_PROC / "fd" / name)
        except OSError:  # the descriptor of this very listing
            continue
        if not _PERMANENT.match(target):
            found[int(name)] = target
    return found


def _children() -> frozenset[int]:
    pids: set[int] = set()
    for children in _PROC.glob("task/*/children") if _LINUX else ():
        try:
            pids.update(map(int, children.read_text().split()))
        except OSError:  # the thread ended meanwhile
            continue
    return frozenset(pids)


def _shared_files() -> frozenset[str]:
    """Return the files of clients and of these tests; those of other programs come and go."""
    return frozenset(name for name in os.listdir(_SHM) if name.startswith("tcm_")) if _LINUX else frozenset()


def _describe_thread(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    at = "".join(traceback.format_stack(frame, limit=3)).rstrip() if frame else "  (just ending)"
    return f"thread {thread.name!r} (daemon={thread.daemon}), which is in\n{at}"


def _describe_descriptors(extra: Counter[str]) -> list[str]:
    lines = []
    for target, count in extra.items():
        numbers = [number for number, there in _descriptors().items() if there == target]
        ends = _addresses(numbers[0]) if numbers else ""
        lines.append(f"{count} x descriptor of {target}{ends}, among the numbers {numbers}")
    return lines


def _addresses(number: int) -> str:
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return ""
        with socket.socket(fileno=os.dup(number)) as end:
            try:
                return f" ({end.getsockname()} -> {end.getpeername()})"
            except OSError:
                return f" ({end.getsockname()}, not connected)"
    except OSError:
        return " (just closed)"


def _describe_child(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        words = []
    command = b" ".join(words).decode(errors="replace").strip()
    return f"child process {pid}: {command or 'ended, and never waited for'}"


def _maker(name: str) -> int | None:
    """Return the process that made a file: a client's name has it at its beginning, a test's at its end."""
    if found := re.match(r"tcm_(\d+)_", name):
        return int(found[1])
    if found := re.search(r"_([0-9a-f]{8})[0-9a-f]{4}$", name):
        return int(found[1], 16)
    return None


def _is_of_this_run(pid: int) -> bool:
    """Whether a process that may have ended was started by this run (helpers/loopback records each)."""
    return Path(os.environ["TCM_TESTS_PROCESSES"], str(pid)).exists()


def _belongs_to_others(name: str) -> bool:
    """Whether the shared memory file is gone, another user's, or of a process that is not of this run."""
    try:
        if (_SHM / name).stat().st_uid != os.getuid():
            return True
    except OSError:
        return True
    ours = {os.getpid(), *_children()}
    maker = _maker(name)  # a file is not mapped at every moment of its life
    if maker is not None and maker not in ours:
        runs = Path(f"/proc/{maker}").exists()
        if runs or not _is_of_this_run(maker):
            return True
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if int(maps.parent.name) not in ours and f"/dev/shm/{name}\n" in maps.read_text():
                return True
        except OSError:
            continue
    return False


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let SIGINT raise, here and in the programs that tests start: a shell's background jobs ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _resource_tracker() -> None:
    """Start multiprocessing's helper process, which lives as long as this one, before anything is counted."""
    if _LINUX:
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail the test that leaves a thread, a descriptor, a child process or a /dev/shm file behind."""
    before = Footprint.now()
    yield
    deadline = time.monotonic() + TIMEOUT
    left = before.grown_to(Footprint.now())
    if left:
        gc.collect()  # what only a cycle keeps open reports itself as a ResourceWarning, which is an error
        left = before.grown_to(Footprint.now())
    while left and time.monotonic() < deadline:
        time.sleep(0.01)
        left = before.grown_to(Footprint.now())
    if left:
        gc.collect()  # also the cycles of a thread that has ended since
        left = before.grown_to(Footprint.now())
    if left:
        pytest.fail("the test left behind:\n" + "\n".join(left), pytrace=False)


# --- loopback addresses only ---

_GUARD = Path(__file__).parent / "helpers" / "loopback"


def _guard_processes() -> None:
    """Refuse other addresses in this process and in the Python programs that it starts, and record these."""
    if os.environ.get("TCM_TESTS_RUN") == os.environ.get("PYTEST_XDIST_WORKER", "alone"):
        return  # tests that a test runs: they have inherited all of it
    os.environ["TCM_TESTS_RUN"] = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    handle, os.environ["TCM_TESTS_REFUSED"] = tempfile.mkstemp(prefix="tcm-tests-refused-")
    os.close(handle)
    os.environ["TCM_TESTS_PROCESSES"] = tempfile.mkdtemp(prefix="tcm-tests-processes-")
    atexit.register(_remove, os.getpid(), os.environ["TCM_TESTS_REFUSED"], os.environ["TCM_TESTS_PROCESSES"])
    paths = [str(_GUARD), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    runpy.run_path(str(_GUARD / "sitecustomize.py"))


_guard_processes()


@pytest.fixture(autouse=True)
def uses_loopback_only() -> Iterator[None]:
    """Fail the test in which another address was refused, whatever became of the exception."""
    report = Path(os.environ["TCM_TESTS_REFUSED"])
    before = report.stat().st_size
    yield
    if report.stat().st_size > before:
        refused = report.read_bytes()[before:].decode(errors="replace")
        pytest.fail(f"the test used addresses that are not loopback's:\n{refused}", pytrace=False)


# --- tests that need more than the lock ---

#: The marks of tests that need more than the lock, and what has to be installed for them, by apt or by pip.
NEEDS = {
    "needs_compiler": ("apt gcc", "apt libc6-dev", "apt python3-dev"),
    "needs_debian": (),  # its arguments name the packages
    "needs_torch": ("pip torch",),
}
_LEFT_OUT = pytest.StashKey[list[pytest.Item]]()


def _needs(item: pytest.Item) -> list[pytest.Mark]:
    return [mark for mark in item.iter_markers() if mark.name in NEEDS]


def _write_needs(path: str, items: Iterable[pytest.Item]) -> None:
    """Write what has to be installed for `items`, one package a line."""
    marks = [mark for item in items for mark in _needs(item)]
    lines = {f"apt {package}" for mark in marks if mark.name == "needs_debian" for package in mark.args}
    lines.update(line for mark in marks for line in NEEDS[mark.name])
    Path(path).write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options about tests that need more than the lock."""
    parser.addoption(
        "--with-needs", action="store_true", help=f"also run the tests marked {', '.join(NEEDS)}"
    )
    parser.addoption(
        "--write-needs", metavar="FILE", help="write there what those tests need, one package a line"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs more than the lock, unless it is asked for."""
    if path := config.getoption("write_needs"):
        _write_needs(path, items)
    left_out = [] if config.getoption("with_needs") else [item for item in items if _needs(item)]
    if left_out:
        items[:] = [item for item in items if not _needs(item)]
        config.hook.pytest_deselected(items=left_out)
        config.stash[_LEFT_OUT] = left_out


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn the skip of a marked test into a failure: whoever asked for it has installed what it needs."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _needs(item):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"with --with-needs a marked test must run: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many tests were left out, and why."""
    counts = Counter(mark.name for item in config.stash.get(_LEFT_OUT, []) for mark in _needs(item))
    if counts:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        terminalreporter.write_line(
            f"left out, since they need more than pip installs here: {listed}. "
            "--with-needs runs them too, .ci/run installs what they need."
        )
