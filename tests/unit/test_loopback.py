"""Tests can use loopback addresses only, and their child processes as well: what helpers/loopback checks.

The foreign address of these tests is the broadcast address, which the kernel itself sends nothing to, and the
foreign name ends in ``.invalid``: no packet would leave the machine if the check were missing.
"""

from __future__ import annotations

import errno
import multiprocessing
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

FOREIGN, NAME = "255.255.255.255", "nowhere.invalid"
CONFTEST = Path(__file__).parents[1] / "conftest.py"

USES = {
    "connect": lambda sock: sock.connect((FOREIGN, 9)),
    "connect_ex": lambda sock: sock.connect_ex((FOREIGN, 9)),
    "bind": lambda sock: sock.bind((FOREIGN, 0)),
    "bind to all interfaces": lambda sock: sock.bind(("", 0)),
    "sendto": lambda sock: sock.sendto(b"x", (FOREIGN, 9)),
    "sendmsg": lambda sock: sock.sendmsg([b"x"], [], 0, (FOREIGN, 9)),
    "getaddrinfo": lambda _: socket.getaddrinfo(NAME, 9),
    "gethostbyname": lambda _: socket.gethostbyname(NAME),
    "gethostbyaddr": lambda _: socket.gethostbyaddr(FOREIGN),
    "getnameinfo": lambda _: socket.getnameinfo((FOREIGN, 9), 0),
}


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Return what is refused, which then does not count against the test itself."""
    report = tmp_path / "refused"
    report.touch()
    monkeypatch.setenv("TCM_TESTS_REFUSED", str(report))
    yield report.read_text
    monkeypatch.undo()


@pytest.mark.parametrize("name", USES)
def test_another_address_is_refused_and_reported(refused, name):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(PermissionError, match="loopback addresses only"),
    ):
        USES[name](sock)
    assert len(refused().splitlines()) == 1


def test_loopback_addresses_numbers_and_sockets_of_files_are_used_as_ever(refused, tmp_path):
    for host in ("127.0.0.1", "127.8.9.1", "localhost"):
        with socket.create_server((host, 0)) as server, socket.create_connection(server.getsockname()):
            pass
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    assert socket.getaddrinfo(FOREIGN, 9)  # a number: nobody is asked
    assert socket.getaddrinfo(None, 9)
    assert refused() == ""


def test_an_address_reserved_for_documentation_may_be_bound_to_and_nothing_else(refused):
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(OSError) as caught:
            sock.bind(("192.0.2.7", 0))
        assert caught.value.errno == errno.EADDRNOTAVAIL
        assert refused() == ""
        with pytest.raises(PermissionError, match="loopback addresses only"):
            sock.sendto(b"x", ("192.0.2.7", 9))
        assert "192.0.2.7" in refused()


CHILD = f"import socket; socket.socket(type=socket.SOCK_DGRAM).bind(({FOREIGN!r}, 0))"


def test_a_program_that_a_test_starts_is_refused_too(refused):
    run = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60, check=False
    )
    assert "loopback addresses only" in run.stderr
    assert FOREIGN in refused()


STARTS_A_PROCESS = f"""
import multiprocessing, os, socket, sys

def bind():
    try:
        with socket.socket() as sock:
            sock.bind(({FOREIGN!r}, 0))
    except PermissionError as error:
        os._exit(7 if "loopback addresses only" in str(error) else 8)

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=bind)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_process_of_multiprocessing_is_refused_too(refused, tmp_path, method):
    """In a program of its own, with which the server of "forkserver" ends."""
    program = tmp_path / "program.py"
    program.write_text(STARTS_A_PROCESS)
    run = subprocess.run(
        [sys.executable, program, method], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 7, run.stderr
    assert FOREIGN in refused()


SWALLOWS = f"""
import contextlib, socket

def test_swallows():
    with socket.socket() as sock, contextlib.suppress(OSError):
        sock.bind(({FOREIGN!r}, 0))

def test_of_nothing():
    pass
"""


def test_a_test_that_swallows_the_refusal_fails(tmp_path, monkeypatch):
    for name in ("TCM_TESTS_RUN", "TCM_TESTS_REFUSED", "PYTHONPATH"):
        monkeypatch.delenv(name)
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    shutil.copytree(CONFTEST.parent / "helpers" / "loopback", tmp_path / "helpers" / "loopback")
    (tmp_path / "test_swallows.py").write_text(SWALLOWS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_swallows.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "2 passed, 1 error" in run.stdout, run.stdout
    assert "ERROR test_swallows.py::test_swallows" in run.stdout
    assert FOREIGN in run.stdout


def test_a_network_namespace_of_its_own_is_exempt(refused):
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here")
    command = [unshare, "-rn", sys.executable, "-c", CHILD]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert refused() == ""
