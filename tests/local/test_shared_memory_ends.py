"""Shared memory when the manager ends, in whatever way, and the process that sees to it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tcm_sync.local import shared_memory
from tcm_sync.local.cleanup_process import clean_up
from tcm_sync.local.mapping import is_usable

from ..helpers.raw_connection import Raw, tensor
from ..helpers.segments import is_invalid_args, maps_of, refused, total, use
from ..helpers.served_models import add_sub_onnx
from ..helpers.waiting import GUARD, wait_until

pytestmark = pytest.mark.skipif(not is_usable(), reason="there is no /dev/shm here")


@pytest.fixture
def kept_arrays():
    return []


@pytest.fixture
def manager(serve, kept_arrays):
    """A manager whose models are a sum, and one that keeps what it is given."""

    def keep(arrays):
        kept_arrays.append(arrays["x"])
        return {}

    return serve({"sum": total, "keep": keep})


@pytest.fixture
def raw(manager, dial):
    return dial(manager, "u")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_end_unlinks_all_that_was_ever_attached_and_nothing_else(
    raw, manager, segments, monkeypatch, how
):
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 1)
    for label in ("pushed_out", "mapped", "short", "never"):
        segments.write(label, [1.0])
    use(raw, segments.reference("pushed_out", 1))
    use(raw, segments.reference("mapped", 1))
    assert is_invalid_args(use(raw, segments.reference("short", 2)))
    getattr(manager, how)()
    left = [label for label in ("pushed_out", "mapped", "short", "never") if segments.path(label).exists()]
    assert left == ["never"]


def test_an_array_that_a_model_keeps_outlives_the_manager(raw, manager, segments, kept_arrays):
    path = segments.write("a", [1.0, 2.0])
    use(raw, segments.reference("a", 2), model="keep")
    manager.stop()
    assert kept_arrays[0].tolist() == [1.0, 2.0]
    kept_arrays.clear()
    assert maps_of(path.name) == set()


def test_a_killed_manager_attaches_nothing_more(serve, dial, gated, segments):
    manager = serve(workers=1)
    raw = dial(manager, "u")
    raw.ask("gated", tensor([1.0]))
    wait_until(lambda: manager.stats().executions, "the first one runs")
    server = manager._server
    manager.kill()
    with pytest.raises(Exception, match="the manager has ended"):
        server.shared_memory.attach([], None)
    gated.open_all()


def test_the_next_manager_serves_new_segments_and_refuses_those_of_the_last(manager, dial, segments):
    for label in "ab":
        segments.write(label, [1.0])
    use(dial(manager, "u"), segments.reference("a", 1))
    manager.stop()
    manager.start()
    raw = dial(manager, "v")
    segments.write("a", [1.0])
    assert refused(use(raw, segments.reference("a", 1)))[0] == "TRITON_SHM_REGISTRATION_FAILED"
    assert use(raw, segments.reference("b", 1))["data"] == {"sum": [1.0]}


def children():
    found = Path("/proc/self").glob("task/*/children")
    return {int(pid) for file in found for pid in file.read_text().split()}


def test_no_process_is_started_before_something_is_attached(raw, segments):
    before = children()
    use(raw, tensor([1.0]))
    use(raw, segments.reference("no_such", 1))
    assert children() == before
    segments.write("a", [1.0])
    use(raw, segments.reference("a", 1))
    assert len(children() - before) == 1


def test_a_cleanup_process_that_somebody_killed_is_replaced(raw, manager, segments, caplog):
    for label in "ab":
        segments.write(label, [1.0])
    before = children()
    use(raw, segments.reference("a", 1))
    [cleanup] = children() - before
    os.kill(cleanup, signal.SIGKILL)
    os.waitid(os.P_PID, cleanup, os.WEXITED | os.WNOWAIT)
    assert use(raw, segments.reference("b", 1))["data"] == {"sum": [1.0]}
    assert "the process that unlinks" in caplog.text
    manager.stop()
    assert segments.path("a").exists()
    assert not segments.path("b").exists()


def test_a_cleanup_process_forgets_what_others_have_unlinked(tmp_path, monkeypatch):
    monkeypatch.setattr("tcm_sync.local.cleanup_process._SPARE", 10)
    looked_for = []
    monkeypatch.setattr(
        os.path, "lexists", lambda path, there=os.path.lexists: (looked_for.append(path), there(path))[1]
    )
    (tmp_path / "there").touch()
    (tmp_path / "other").touch()
    names = [b"there", *(b"gone-%d" % number for number in range(100))]
    clean_up([name.hex().encode() + b"\n" for name in names], os.fsencode(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert len(looked_for) < 3 * len(names)
    assert len(set(looked_for)) < len(looked_for), "what is there is kept, and looked for again"


# Processes

PROGRAM = """
import os, signal, sys, time
from tcm_sync.local import LocalManager

manager = LocalManager({"sum": lambda arrays: {"sum": [float(arrays["x"].sum())]}}, tick=0)
manager.start()
print(manager.port, manager.route.container_id, manager.route.vm_ip, flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


@pytest.fixture
def program():
    """A process with a manager in it, that runs the lines that it is sent; it leads a group."""
    with contextlib.ExitStack() as stack:

        def start():
            command = [sys.executable, "-c", PROGRAM]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            process = stack.enter_context(
                subprocess.Popen(command, text=True, bufsize=1, start_new_session=True, **pipes)
            )
            stack.callback(process.kill)
            port, container_id, vm_ip = process.stdout.readline().split()
            route = SimpleNamespace(container_id=container_id, vm_ip=vm_ip)
            raw = stack.enter_context(contextlib.closing(Raw(SimpleNamespace(port=int(port), route=route))))
            raw.auth("u", capability=["shm"])

            def tell(line):
                process.stdin.write(line + "\n")
                assert process.stdout.readline() == "done\n"

            return process, raw, tell

        yield start


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_sigkill_unlinks_what_was_attached_also_when_it_takes_the_group(program, segments, kill):
    process, raw, _ = program()
    path = segments.write("a", [1.0])
    other = segments.write("b", [1.0])
    assert use(raw, segments.reference("a", 1))["data"] == {"sum": [1.0]}
    kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not path.exists(), "the file is unlinked")
    assert other.exists()


def test_sigkill_unlinks_though_a_forked_child_lives_on(program, segments):
    process, raw, tell = program()
    path = segments.write("a", [1.0])
    use(raw, segments.reference("a", 1))
    tell("child = os.fork() or (os.close(0), os.close(1), time.sleep(3600))")
    try:
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[-1])
        process.kill()
        wait_until(lambda: not path.exists(), "the file is unlinked")
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_unlinks_nothing(program, segments):
    _, raw, tell = program()
    path = segments.write("a", [1.0])
    use(raw, segments.reference("a", 1))
    tell("child = os.fork() or (manager._server.shared_memory.close(), manager.shared_memory, os._exit(7))")
    tell("assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7")
    assert path.exists()
    segments.write("a", [2.0])
    assert use(raw, segments.reference("a", 1))["data"] == {"sum": [2.0]}


@pytest.mark.parametrize("line", ["sys.exit()", "os._exit(0)"])
def test_the_end_of_the_process_unlinks_in_any_case(program, segments, line):
    process, raw, _ = program()
    path = segments.write("a", [1.0])
    use(raw, segments.reference("a", 1))
    process.stdin.write(line + "\n")
    wait_until(lambda: not path.exists(), "the file is unlinked")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_command_line_unlinks_when_it_gets_a_signal(segments, tmp_path, number):
    model = tmp_path / "m.onnx"
    model.write_bytes(add_sub_onnx())
    command = [sys.executable, "-m", "tcm_sync.local", "--port", "0", "--model", f"m={model}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            port, container_id, vm_ip = re.search(
                r":(\d+)/ws \(container (\S+), vm_ip (\S+)\)", process.stdout.readline()
            ).groups()
            route = SimpleNamespace(container_id=container_id, vm_ip=vm_ip)
            with contextlib.closing(Raw(SimpleNamespace(port=int(port), route=route))) as raw:
                assert raw.auth("u", capability=["shm"])["payload"] == {"capability": ["shm"]}
                path = segments.write("a", [1.0, 2.0])
                inputs = [segments.reference("a", 1, 2, name=name) for name in ("INPUT0", "INPUT1")]
                assert use(raw, *inputs, model="m")["data"]["SUM"] == [[2.0, 4.0]]
            process.send_signal(number)
            process.wait(GUARD)
            wait_until(lambda: not path.exists(), "the file is unlinked")
        finally:
            process.kill()
