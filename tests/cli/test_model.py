"""``model analyze``, ``model config`` and ``model check``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto

from tcm_sync.local import LocalManager
from tcm_sync.models import analyze

from ..helpers.served_models import add_sub_onnx, identity_onnx


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "add_sub.onnx"
    file.write_bytes(add_sub_onnx())
    return file


def test_analyze_shows_inputs_and_outputs(cli, file):
    done = cli("model", "analyze", file)
    assert [line.split()[:3] for line in done.out.splitlines()[-4:]] == [
        ["input", "INPUT0", "FP32"],
        ["input", "INPUT1", "FP32"],
        ["output", "SUM", "FP32"],
        ["output", "DIFF", "FP32"],
    ]


def test_a_model_from_the_standard_input(cli, file):
    found = json.loads(cli("model", "analyze", "-", "--json", stdin=file.read_bytes()).out)
    assert [spec["name"] for spec in found["outputs"]] == ["SUM", "DIFF"]


def test_analyze_as_json_has_every_key(cli, file):
    found = json.loads(cli("model", "analyze", file, "--json").out)
    assert set(found) == set(analyze(file).__struct_fields__)
    assert found["inputs"][0] == {
        "name": "INPUT0",
        "datatype": "FP32",
        "dims": [-1, -1],
        "dim_names": ["batch", "n"],
        "optional": False,
    }


def test_config_is_what_the_library_writes(cli, file):
    options = (
        "--name",
        "sums",
        "--max-batch-size",
        8,
        "--instances",
        2,
        "--kind",
        "cpu",
        "--dynamic-batching",
    )
    wanted = analyze(file).config_pbtxt(
        name="sums", max_batch_size=8, instances=2, kind="cpu", dynamic_batching=True
    )
    assert cli("model", "config", file, *options).out.strip() == wanted.strip()
    assert json.loads(cli("model", "config", file, *options, "--json").out) == {"config": wanted}


@pytest.mark.parametrize("command", ["analyze", "config", "check"])
@pytest.mark.parametrize("content", [None, b"", b"\x08\x08nonsense"])
def test_a_file_that_is_none(cli, manager, tmp_path, command, content):
    file = tmp_path / "x.onnx"
    if content is not None:
        file.write_bytes(content)
    done = cli("model", command, file, *(("--model", "echo") if command == "check" else ()))
    assert (done.code, done.out) == (1, "")
    assert str(file) in done.err


def test_no_command_is_a_usage_error(cli):
    done = cli("model")
    assert (done.code, done.out) == (2, "")
    assert "Missing command" in done.err


@pytest.fixture
def deployed(file, monkeypatch):
    """A manager with the model of the file, and others of its name that are not it."""

    def other(arrays):
        return {"SUM": arrays["INPUT0"][:, :, None], "MORE": arrays["INPUT0"]}

    def typed(arrays):
        return {name: np.ones((2, 1), dtype=object).astype(str) for name in ("SUM", "DIFF")}

    def short(arrays):
        return dict.fromkeys(("SUM", "DIFF"), arrays["INPUT0"][:1])

    models = {"right": str(file), "other": other, "typed": typed, "short": short}
    with LocalManager(models, tick=0) as manager:
        monkeypatch.setenv("TCM_WS_URI", manager.uri)
        monkeypatch.setenv("TCM_CONTAINER_ID", manager.route.container_id)
        yield manager


def test_check_finds_the_model_of_the_file(cli, deployed, file):
    done = cli("model", "check", file, "--model", "right", "--batch", 2)
    assert (done.code, done.err) == (0, "")
    assert [line.split()[-1] for line in done.out.splitlines()[1:]] == ["ok", "ok"]
    found = json.loads(cli("model", "check", file, "--model", "right", "--json").out)
    assert found.pop("elapsed") > 0
    assert found["ok"] is True
    assert found["outputs"][0] == {
        "name": "SUM",
        "expected": "SUM: FP32[batch, n]",
        "shape": [1, 1],
        "problem": None,
    }


@pytest.mark.parametrize(
    ("model", "problems"),
    [
        (
            "other",
            {
                "SUM": "the shape is not [2, 1]",
                "DIFF": "the reply does not have it",
                "MORE": "the file has no such output",
            },
        ),
        ("typed", {"SUM": "object is not FP32", "DIFF": "object is not FP32"}),
        ("short", {"SUM": "the shape is not [2, 1]", "DIFF": "the shape is not [2, 1]"}),
    ],
)
def test_check_reports_another_model(cli, deployed, file, model, problems):
    given = ("model", "check", file, "--model", model, "--batch", 2)
    done = cli(*given, "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert found["ok"] is False
    assert {row["name"]: row["problem"] for row in found["outputs"]} == problems
    done = cli(*given)
    assert done.code == 1
    assert f"{model} differs from the model in {file}" in done.err


def test_check_of_texts_looks_at_no_shape(cli, tmp_path, monkeypatch):
    file = tmp_path / "texts.onnx"
    file.write_bytes(identity_onnx(TensorProto.STRING, ("a", "b")))
    with LocalManager({"texts": str(file)}, tick=0) as manager:
        where = ("--uri", manager.uri, "--container-id", manager.route.container_id)
        assert cli("model", "check", file, "--model", "texts", *where).code == 0
