"""The harness itself: the check of tests/conftest.py, and the scripted peer seen by another client."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import websocket

from .. import conftest
from ..conftest import NEEDS
from ..helpers.peer_connection import BINARY, CONTINUATION, TEXT, ClientLeft, make_frame, unmasked
from ..helpers.scripted_peer import ScriptedPeer

ROOT = Path(__file__).parents[2]
CONFTEST = ROOT / "tests" / "conftest.py"
LEAKY = """
import gc, mmap, os, socket, subprocess, sys, tempfile, threading, time
from pathlib import Path
import leakcheck
from leakcheck import kept

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
    handle, path = tempfile.mkstemp(prefix="tcm_harness_", dir=leakcheck._SHM)
    os.close(handle)
    kept.append(Path(path).unlink)

def test_after_all_these():
    pass

def test_ends_by_itself():
    leakcheck.TIMEOUT = 30.0
    threading.Timer(0.1, lambda: None).start()

def test_a_thread_that_ends_during_the_check_leaves_a_cycle():
    leakcheck.TIMEOUT = 0.5
    begun, collected = threading.Event(), threading.Event()
    def collects(phase, info):
        if phase == "stop" and info["generation"] == 2:
            collected.set()
    def hold():
        with tempfile.TemporaryFile() as file:
            file.truncate(4096)
            cycle = [mmap.mmap(file.fileno(), 4096)]
        cycle.append(cycle)
        begun.set()
        assert collected.wait(30)
    threading.Thread(target=hold).start()
    begun.wait()
    gc.callbacks.append(collects)
    kept.append(lambda: gc.callbacks.remove(collects))

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
        "leakcheck.TIMEOUT = 0.5\n"
        "leakcheck._SHM = leakcheck.Path(__file__).parent\n"  # where other suites leave nothing
        "leakcheck.kept = []\n"
        "from leakcheck import _resource_tracker, leaves_nothing_behind\n"
        "def pytest_runtest_logfinish(): leakcheck.kept and leakcheck.kept.pop()()\n"
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
    for named in (
        "'straggler'",
        "127.0.0.1",
        "pipe:[",
        "input()",
        "never waited for",
        "/dev/shm/tcm_harness_",
    ):
        assert named in run.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /dev/shm here")
def test_the_shared_memory_of_other_processes_and_programs_is_no_leak(tmp_path, monkeypatch):
    monkeypatch.setattr(conftest, "_SHM", tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        monkeypatch.setattr(conftest, "_children", frozenset)
        ours = {f"tcm_{os.getpid()}_ab", f"tcm_label_{os.getpid():08x}abcd"}
        for name in {*ours, f"tcm_{other.pid}_ab", f"tcm_label_{other.pid:08x}abcd", "sem.mp-abc", "folder"}:
            (tmp_path / name).touch()
        found = {name for name in conftest._shared_files() if not conftest._belongs_to_others(name)}
        assert found == ours
        other.communicate(b"\n")


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /dev/shm here")
def test_what_a_killed_process_has_left_counts_against_the_run_that_started_it(tmp_path, monkeypatch):
    monkeypatch.setattr(conftest, "_SHM", tmp_path)
    ended = []
    for environment in (os.environ, {}):  # recorded as one of this run, and not
        with subprocess.Popen([sys.executable, "-c", ""], env=environment) as process:
            ended.append(process.pid)
        (tmp_path / f"tcm_{process.pid}_ab").touch()
    assert [conftest._belongs_to_others(f"tcm_{pid}_ab") for pid in ended] == [False, True]


INTERRUPTED = """
import signal
import pytest

def test_interrupt():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
"""


def test_an_interrupt_is_one_in_the_background_of_a_shell_too(tmp_path):
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    (tmp_path / "test_interrupted.py").write_text(INTERRUPTED)
    started = (
        "import pytest, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "sys.exit(pytest.main(['-p', 'no:cacheprovider', 'test_interrupted.py']))"
    )
    command = [sys.executable, "-c", started]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "1 passed" in run.stdout, run.stdout


# --- tests that need more than pip installs ---

MARKED = """
import pytest

def test_plain():
    pass

@pytest.mark.needs_compiler
def test_compiles():
    pass

@pytest.mark.needs_debian("redis-server", "nginx-light")
def test_serves():
    pytest.skip("there is no nginx here")

@pytest.mark.needs_torch
@pytest.mark.needs_debian("tmux")
class TestBoth:
    def test_in_tmux(self):
        pass
"""


def run_marked(tmp_path: Path, *options: str) -> str:
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    (tmp_path / "test_marked.py").write_text(MARKED)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(tmp_path), *options, str(tmp_path)]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    return run.stdout


def test_a_test_that_needs_more_is_left_out_and_the_last_lines_say_so(tmp_path):
    *_, said, summary = run_marked(tmp_path).splitlines()
    assert "1 passed, 3 deselected" in summary
    assert "1 needs_compiler, 2 needs_debian, 1 needs_torch" in said
    assert "--with-needs" in said


def test_a_test_that_needs_more_must_not_be_skipped_where_it_is_asked_for(tmp_path):
    shown = run_marked(tmp_path, "--with-needs")
    assert "1 failed, 3 passed" in shown.splitlines()[-1]
    assert "a marked test must run: Skipped: there is no nginx here" in shown
    assert "left out" not in shown


def test_what_marked_tests_need_is_written_for_whoever_installs_it(tmp_path):
    run_marked(tmp_path, "--collect-only", f"--write-needs={tmp_path / 'needs'}")
    lines = (tmp_path / "needs").read_text().splitlines()
    assert lines == sorted(
        {*NEEDS["needs_compiler"], "apt redis-server", "apt nginx-light", "apt tmux", "pip torch"}
    )


# --- the scripted peer ---


def test_a_script_talks_to_a_client_that_is_not_ours():
    def script(connection):
        connection.accept(["X-Extra: 1"])
        connection.authenticate(["json"])
        payload = connection.recv_request()
        connection.reply({"y": payload["x"]}, fragments=3)
        connection.close(1001, "enough")

    with ScriptedPeer(script) as peer:
        client = websocket.create_connection(peer.uri, timeout=10)
        assert client.getheaders()["x-extra"] == "1"
        client.send('{"uuid": "u-1", "type": "auth", "payload": {"token": "t"}}')
        assert client.recv() == '{"type": "auth.ok", "payload": {"capability": ["json"]}}'
        client.send('{"uuid": "u-1", "type": "inference", "payload": {"x": [1.5]}}')
        assert '"data": {"y": [1.5]}' in client.recv()
        opcode, data = client.recv_data()
        assert (opcode, data) == (8, b"\x03\xe9enough")
        client.shutdown()
    (connection,) = peer.connections
    assert (peer.uuids, peer.requests, connection.auth) == (["u-1"], 1, {"token": "t"})
    assert [frame.opcode for frame in connection.frames] == [TEXT, TEXT]


def test_each_connection_has_its_script_and_the_last_serves_the_rest():
    said = []
    with ScriptedPeer(
        lambda connection: said.append("first"), lambda connection: said.append("later")
    ) as peer:
        for _ in range(3):
            with pytest.raises(websocket.WebSocketException):
                websocket.create_connection(peer.uri, timeout=10)
    assert said == ["first", "later", "later"]


def say(peer, message):
    """Send one message and wait for the end of the connection."""
    client = websocket.create_connection(peer.uri, timeout=10)
    try:
        client.send(message)
        while client.recv():
            pass
    except websocket.WebSocketException:
        pass
    finally:
        client.shutdown()


def test_a_fault_of_a_script_is_raised_in_the_test():
    def script(connection):
        connection.accept()
        assert connection.recv_json() == "expected"

    with pytest.raises(AssertionError, match="expected"), ScriptedPeer(script) as peer:
        say(peer, '"something else"')


def test_a_uuid_that_comes_twice_is_a_fault():
    def script(connection):
        connection.accept()
        connection.authenticate()

    auth = '{"uuid": "u-1", "type": "auth", "payload": {}}'
    with pytest.raises(AssertionError, match="u-1 was used before"), ScriptedPeer(script) as peer:
        say(peer, auth) or say(peer, auth)


def test_probes_are_answered_beside_the_scripts():
    with ScriptedPeer() as peer:
        peer.http["/ready"] = (503, {"status": "not_ready"})
        base = peer.uri.replace("ws://", "http://").removesuffix("/ws")
        with urllib.request.urlopen(f"{base}/health", timeout=10) as answer:
            assert answer.read() == b'{"status": "ok"}'
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            urllib.request.urlopen(f"{base}/ready", timeout=10)
        refused.value.close()
    assert len(peer.probes) == 2
    assert peer.connections == []


def test_a_peer_that_stopped_listening_refuses_and_may_listen_again():
    with ScriptedPeer() as peer:
        address = ("127.0.0.1", peer.port)
        peer.stop_listening()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=10)
        peer.listen()
        socket.create_connection(address, timeout=10).close()
        assert peer.port == address[1]


def test_a_script_that_waits_is_woken_at_the_end():
    reading, woken = threading.Event(), threading.Event()

    def script(connection):
        reading.set()
        try:
            connection.recv_bytes(10**6)
        except ClientLeft:
            woken.set()

    with ScriptedPeer(script) as peer:
        client = socket.create_connection(("127.0.0.1", peer.port), timeout=10)
        client.sendall(b"GET /ws HTTP/1.1\r\n")
        assert reading.wait(10)
    client.close()
    assert woken.is_set()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_frames_are_what_another_implementation_makes(size):
    payload = bytes(index % 251 for index in range(size))
    for opcode, fin in ((TEXT, True), (BINARY, False), (CONTINUATION, True)):
        theirs = websocket.ABNF(int(fin), 0, 0, 0, opcode, 1, payload)
        theirs.get_mask_key = lambda length: b"k3y!"
        assert make_frame(opcode, payload, fin=fin, mask=b"k3y!") == theirs.format()
    assert unmasked(unmasked(payload, b"k3y!"), b"k3y!") == payload
