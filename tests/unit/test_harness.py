"""The check of tests/conftest.py, on tests that do leave something behind."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
LEAKY = """
import os, socket, subprocess, sys, tempfile, threading, time
from pathlib import Path
import pytest

kept = []

@pytest.fixture(scope="module", autouse=True)
def clean_up():
    yield
    for undo in kept:
        undo()

def test_thread():
    stop = threading.Event()
    threading.Thread(target=stop.wait, name="straggler", daemon=True).start()
    kept.append(stop.set)

def test_socket():
    leaked = socket.create_server(("127.0.0.1", 0))
    kept.append(leaked.close)

def test_number_given_out_again():
    read, write = os.pipe()
    spare, other = os.pipe()
    for number in (read, write, spare):
        os.close(number)
    kept.append(lambda: os.close(other))

def test_child():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    kept.append(lambda: child.communicate(b"\\n"))

def test_never_waited_for():
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "pass"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    kept.append(lambda: os.waitpid(pid, 0))

def test_shared_memory():
    handle, path = tempfile.mkstemp(prefix="harness_", dir="/dev/shm")
    os.close(handle)
    kept.append(Path(path).unlink)

def test_after_all_these():
    pass

def test_ends_by_itself():
    threading.Timer(0.2, lambda: None).start()

def test_closes_all():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()):
            pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors and processes are counted in /proc")
def test_whatever_a_test_leaves_behind_fails_that_test_and_no_other(tmp_path):
    shutil.copy(CONFTEST, tmp_path / "leakcheck.py")
    (tmp_path / "conftest.py").write_text(
        "import leakcheck\n"
        "leakcheck.PATIENCE = 0.5\n"
        "from leakcheck import _resource_tracker, leaves_nothing_behind\n"
    )
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "test_leaky.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    failed = set(re.findall(r"^ERROR \S+::(\w+)", run.stdout, flags=re.MULTILINE))
    assert failed == {
        "test_thread",
        "test_socket",
        "test_number_given_out_again",
        "test_child",
        "test_never_waited_for",
        "test_shared_memory",
    }, run.stdout
    for named in ("'straggler'", "127.0.0.1", "pipe:[", "input()", "never waited for", "/dev/shm/harness_"):
        assert named in run.stdout
