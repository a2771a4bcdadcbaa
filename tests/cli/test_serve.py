"""``serve``."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from tcm_sync import Route, TcmClient, TritonOverloadedError
from tcm_sync.local import __main__ as foreground
from tcm_sync.local.digits import load_samples

from ..helpers.served_models import add_sub_onnx
from ..helpers.waiting import GUARD

ONE = np.array([[1.0]], np.float32)


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "sums.onnx"
    file.write_bytes(add_sub_onnx())
    return file


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal(start, file, number):
    process = start("serve", file, f"again={file}", "--digits", "--port", 0, "--json")
    where = json.loads(process.stdout.readline())
    assert set(where) == {"uri", "container_id", "vm_ip", "transient_container_id"}
    with TcmClient(where["uri"], route=Route(where["container_id"])) as client:
        for name in ("sums", "again"):
            result = client.infer(name, {"INPUT0": ONE, "INPUT1": ONE + 1})
            assert result["SUM"].tolist() == [[3.0]]
        digit = load_samples()[7]
        found = client.infer("digits", {"image": digit.image.reshape(1, -1)})["probabilities"]
        assert found.argmax() == digit.label
    process.send_signal(number)
    _, err = process.communicate(timeout=GUARD)
    assert process.returncode == 0
    assert "Traceback" not in err


def test_it_prints_its_address(start):
    process = start("serve", "--port", 0, "--token", "secret")
    assert process.stdout.readline().startswith("serving ws://127.0.0.1:")


@pytest.mark.parametrize("command", ["serve", "tcm_sync.local"])
def test_a_port_in_use_is_one_line(command):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        arguments = ["tcm_sync.cli", "serve"] if command == "serve" else [command]
        done = subprocess.run(
            [sys.executable, "-m", *arguments, "--port", port],
            capture_output=True,
            text=True,
            timeout=GUARD,
            check=False,
        )
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"cannot listen on host '127.0.0.1', port {port}" in line


def test_the_options_reach_the_manager(cli, monkeypatch):
    asked = []
    monkeypatch.setattr(foreground, "serve", lambda models, out, **settings: asked.append((models, settings)))
    where = "--host 127.0.0.2 --port 7 --token t --no-shm --digits"
    how = "--container-id c --tick 0 --workers 2 --stream-timeout 3 --step-seconds 4 --fail drop"
    assert cli("serve", "a/b.onnx", "c=d.onnx", *where.split(), *how.split()).code == 0
    ((models, settings),) = asked
    assert models == {"b": "a/b.onnx", "c": "d.onnx"}
    assert settings == {
        "as_json": False,
        "digits": True,
        "host": "127.0.0.2",
        "port": 7,
        "container_id": "c",
        "tokens": ("t",),
        "tick": 0.0,
        "workers": 2,
        "stream_timeout": 3.0,
        "step_seconds": 4.0,
        "fail": ("drop",),
        "shm": False,
    }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("/no/such.onnx",), 1, "/no/such.onnx"),
        (("a=x", "a=y"), 2, "its name is taken"),
        (("=x",), 2, "is not [NAME=]FILE"),
        (("--tick", "-1"), 2, "tick must be a number of at least 0"),
        (("--port", "70000"), 2, "--port"),
        (("--fail", "TRITON_OVERLAODED"), 2, "fault 'TRITON_OVERLAODED'"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(cli, arguments, code, said):
    done = cli("serve", "--port", "0", *arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err.splitlines()[-1]


def test_planned_faults_happen_to_the_first_inferences(start, file):
    process = start("serve", file, "--port", 0, "--fail", "ok", "--fail", "TRITON_OVERLOADED*2", "--json")
    where = json.loads(process.stdout.readline())
    route = Route(where["container_id"])
    with TcmClient(where["uri"], route=route, retry=None) as client:
        outcomes = []
        for _ in range(4):
            try:
                outcomes.append(client.infer("sums", {"INPUT0": ONE, "INPUT1": ONE})["SUM"].tolist())
            except TritonOverloadedError as error:
                outcomes.append(error.code)
    assert outcomes == [[[2.0]], "TRITON_OVERLOADED", "TRITON_OVERLOADED", [[2.0]]]


def test_without_its_extra_it_says_what_to_install(cli, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    done = cli("serve", "--port", "0")
    assert done.code == 2
    assert 'pip install "tcm-sync[local]"' in done.err
