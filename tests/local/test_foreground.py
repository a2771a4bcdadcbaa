"""``python -m tcm_sync.local``: a process that serves until it gets a signal."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ..helpers.raw_connection import Raw, tensor
from ..helpers.served_models import add_sub_onnx
from ..helpers.waiting import GUARD

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to send")


@pytest.fixture
def launch(tmp_path):
    file = tmp_path / "add_sub.onnx"
    file.write_bytes(add_sub_onnx())
    processes = []

    def start(*arguments, program=("-m", "tcm_sync.local")):
        command = [sys.executable, *program, "--port", "0", "--model", f"m={file}", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        line = process.stdout.readline()
        found = re.fullmatch(r"serving (ws://127\.0\.0\.1:(\d+)/ws) \(container (\S+), vm_ip (\S+)\)\n", line)
        assert found, line + process.stderr.read()
        route = SimpleNamespace(container_id=found[3], vm_ip=found[4])
        return process, SimpleNamespace(uri=found[1], port=int(found[2]), route=route)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_log(process, text):
    while text not in (line := process.stderr.readline()):
        assert line, "it ended before"


INPUTS = tensor([[1.0]], name="INPUT0"), tensor([[2.0]], name="INPUT1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_drains(launch, number):
    process, manager = launch("--digits")
    with contextlib.closing(Raw(manager)) as raw:
        raw.auth("u")
        assert raw.infer("m", *INPUTS)["data"] == {"SUM": [[3.0]], "DIFF": [[-1.0]]}
        (probabilities,) = raw.infer("digits", tensor([[0.0] * 64], name="image"))["data"]["probabilities"]
        assert len(probabilities) == 10
        process.send_signal(number)
        wait_for_log(process, "tcm_sync.local: draining")
        assert raw.wait_for_close() == 1000
    assert process.wait(GUARD) == 0
    assert "Traceback" not in process.stderr.read()


PATIENT = """
import sys, tcm_sync.local.__main__ as program
program._LINGER = 3600
sys.exit(program.main(sys.argv[1:], sys.stdout, sys.stderr))
"""


def test_it_lingers_and_a_second_signal_ends_it_at_once(launch):
    process, manager = launch(program=("-c", PATIENT))
    with contextlib.closing(Raw(manager)) as raw, contextlib.closing(Raw(manager)) as late:
        raw.auth("u")
        late.auth("late")
        process.send_signal(signal.SIGTERM)
        wait_for_log(process, "tcm_sync.local: draining")
        late.ask("m", *INPUTS)
        assert late.receive()["payload"]["message"] == "Server is shutting down; request rejected."
        assert late.wait_for_close() == 1012
        process.send_signal(signal.SIGINT)
        assert raw.wait_for_close() is None
    assert process.wait(GUARD) == 0


def test_a_token_is_asked_for_when_one_is_given(launch):
    _, manager = launch("--token", "one", "--token", "two")
    for token, answer in (("one", "auth.ok"), ("two", "auth.ok"), ("three", "error")):
        with contextlib.closing(Raw(manager)) as raw:
            assert raw.auth("u-" + token, token=token)["type"] == answer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m=/no/such/file.onnx"], "ModelFileError: model 'm': /no/such/file.onnx"),
        (["--model", "m"], "'m' is not NAME=FILE"),
        (["--tick", "-1"], "ConfigError: tick must be a number of at least 0"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(arguments, message):
    command = [sys.executable, "-m", "tcm_sync.local", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
