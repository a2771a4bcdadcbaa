"""The command lines of ``tcm-client-cli``, as its users have them in their scripts."""

from __future__ import annotations

import json

import pytest

from tcm_sync.local.digits import model_file

INPUTS = [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1.0, 2.0]]}]
IDENTITY = ("--uuid", "u", "--sub", "s", "--tenant-id", "t", "--roles", "inference,management")


@pytest.mark.parametrize("body", [INPUTS, {"inputs": INPUTS}, {"request": {"inputs": INPUTS}}])
def test_inference_http(cli, manager, tmp_path, body):
    file = tmp_path / "body.json"
    file.write_text(json.dumps(body))
    where = ("--vm-id", "vm-1", "--vm-ip", "127.0.0.1", "--container-id", "local")
    given = ("--uri", manager.uri, *IDENTITY, "inference-http", *where)
    done = cli(*given, "--model-name", "double", "--payload", file)
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["outputs"]["y"]["data"] == [[2.0, 4.0]]


@pytest.mark.parametrize(
    ("text", "said"), [("3", "must hold a list"), ("{}", "must hold a list"), ("[", "not JSON")]
)
def test_inference_http_without_inputs(cli, manager, tmp_path, text, said):
    (tmp_path / "body.json").write_text(text)
    done = cli("inference-http", "--model-name", "double", "--payload", tmp_path / "body.json")
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_queue_stats(cli, manager):
    done = cli("--uri", manager.uri, *IDENTITY, "queue-stats", "--repeat", 4, "--concurrency", 2, "--json")
    assert json.loads(done.out)["queue_stats_summary"]["requests"] == 4


def test_management(cli, manager, tmp_path):
    file = tmp_path / "body.json"
    file.write_text(json.dumps({"openstack": {"name": "red"}, "docker": {"image": "y"}}))
    given = ("--uri", manager.uri, *IDENTITY, "management")
    assert cli(*given, "--action", "create_vm", "--payload", file).code == 0
    assert cli(*given, "--payload", file).code == 0  # whose action is creation
    assert [job.action for job in manager.cloud.jobs] == ["create_vm", "creation"]


def test_model_analyze(cli):
    with model_file() as path:
        found = json.loads(cli("model-analyze", "--path", path, "--name", "digits").out)
    assert found["name"] == "digits"
    assert found["inputs"][0]["name"] == "image"
