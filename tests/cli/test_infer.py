"""``infer`` and ``pipeline``."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from tcm_sync import InferResult
from tcm_sync.cli.infer import _save
from tcm_sync.local import LocalManager

from ..helpers.scripted_peer import ScriptedPeer


@pytest.fixture
def image(tmp_path):
    file = tmp_path / "image.npy"
    np.save(file, np.array([[1, 2]], np.float32))
    return file


def outputs(done):
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)["outputs"]


@pytest.mark.parametrize("form", ["{file}", "@{file}", "@{json}", "-", "@-", "[[1.0, 2.0]]"])
def test_every_form_of_an_input(cli, manager, image, tmp_path, form):
    (tmp_path / "image.json").write_text("[[1.0, 2.0]]")
    value = form.format(file=image, json=tmp_path / "image.json")
    stdin = image.read_bytes() if value == "-" else b"[[1.0, 2.0]]"
    found = outputs(cli("infer", "echo", "--input", f"x={value}", "--json", stdin=stdin))
    assert found == {"x": {"dtype": "float64", "shape": [1, 2], "data": [[1.0, 2.0]]}}


def test_outputs_for_people(cli, manager):
    done = cli("infer", "double", "--input", "x=[[1, 2], [3, 4]]")
    assert done.out == "y: int64[2, 2]\n[[2 4]\n [6 8]]\n"


def test_texts_and_what_is_no_number(cli, manager):
    found = outputs(cli("infer", "echo", "--input", 'x=["a", "ü"]', "--json"))
    assert found["x"]["data"] == ["a", "ü"]
    found = outputs(cli("infer", "echo", "--input", "x=[1.5, null]", "--dtype", "FP32", "--json"))
    assert found["x"]["data"] == [1.5, None]


@pytest.mark.parametrize("dtype", ["FP32", "x=FP32"])
def test_a_datatype_is_what_is_sent(cli, manager, dtype):
    found = outputs(cli("infer", "describe", "--input", "x=[1, 2]", "--dtype", dtype, "--json"))
    assert found["x"]["data"] == ["float32"]


def test_an_output_is_read_as_asked(cli, manager):
    for asked in ("FP16", "x=FP16"):
        found = outputs(cli("infer", "echo", "--input", "x=[0.1]", "--json", "--output-dtype", asked))
        assert found["x"]["dtype"] == "float16"


def test_every_output_has_a_file_of_its_own(tmp_path):
    names = ["a/b", "a:b", "a b", "_a_b"]
    result = InferResult("m", {name: np.array([place]) for place, name in enumerate(names)}, b"{}", 1, 0.1)
    files = _save(result, tmp_path)
    assert list(files) == names
    assert [np.load(files[name]).item() for name in names] == [0, 1, 2, 3]


def test_outputs_go_into_files(cli, manager, tmp_path):
    done = cli("infer", "split", "--input", "x=[[1, 2, 3]]", "--output", tmp_path / "out", "--json")
    found = outputs(done)
    files = {name: output["file"] for name, output in found.items()}
    assert files == {"first": str(tmp_path / "out/first.npy"), "../rest": str(tmp_path / "out/_rest.npy")}
    assert np.load(files["../rest"]).tolist() == [[2, 3]]
    assert "data" not in found["first"]
    done = cli("infer", "split", "--input", "x=[[1, 2, 3]]", "--output", tmp_path / "out")
    assert files["first"] in done.out


@pytest.mark.parametrize("target", ["folder", "-"])
def test_a_text_that_npy_would_shorten_is_no_file(cli, tmp_path, target):
    def words(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply({"kept": ["a\0b"], "cut": ["a", "b\0"]})
        connection.wait_eof()

    with ScriptedPeer(words) as peer:
        given = ("infer", "words", "--input", "x=[1]", "--uri", peer.uri, "--container-id", "c")
        done = cli(*given, "--output", tmp_path / "out" if target == "folder" else "-")
        shown = outputs(cli(*given, "--json"))
    assert (done.code, done.raw) == (1, b"")
    assert "output 'cut' has a text that ends in NUL" in done.err
    assert not list(tmp_path.glob("**/*.npy"))
    assert shown["cut"]["data"] == ["a", "b\0"]


def test_one_output_on_the_standard_output_is_npy(cli, manager):
    done = cli("infer", "echo", "--input", 'x=["a", "bc"]', "--output", "-")
    assert np.load(io.BytesIO(done.raw)).tolist() == ["a", "bc"]


def test_several_outputs_on_the_standard_output_are_npz(cli, manager):
    done = cli("infer", "split", "--input", "x=[[1, 2, 3]]", "--output", "-")
    with np.load(io.BytesIO(done.raw)) as found:
        assert {name: array.tolist() for name, array in found.items()} == {
            "first": [[1]],
            "../rest": [[2, 3]],
        }


def test_a_batch_that_is_longer_than_a_message(cli, manager, tmp_path):
    rows = np.arange(60_000, dtype=np.int64).reshape(-1, 4)
    np.save(tmp_path / "rows.npy", rows)
    given = ("infer", "double", "--input", f"x={tmp_path / 'rows.npy'}")
    done = cli(*given)
    assert done.code == 1
    assert "--chunked" in done.err
    found = outputs(cli(*given, "--chunked", "--json"))
    assert found["y"]["data"] == (rows * 2).tolist()
    before = manager.stats().executions["double"]
    assert cli(*given, "--chunked", "--rows", 1000, "--output", tmp_path).code == 0
    assert manager.stats().executions["double"] - before == 15


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no --input"),
        (("--input", "x"), "'x' is not NAME=VALUE"),
        (("--input", "x=1", "--input", "x=2"), "--input x: given twice"),
        (("--input", "x=hello"), "--input x: neither JSON nor FILE.npy, @FILE or -; a text is '[\"...\"]' ("),
        (("--input", "x=@/no/such/file"), "'/no/such/file' cannot be read: "),
        (("--input", "x=-", "--input", "y=-"), "the standard input (-) is already read for --input x"),
        (("--input", "x=[[1], [2, 3]]"), 'input "x"'),
        (("--input", "x=[1.5]", "--dtype", "INT8"), "INT8"),
        (("--input", "x=[1]", "--dtype", "y=INT8"), "there is no --input of that name"),
        (("--input", "x=[1]", "--dtype", "FP31"), "'FP31' is not a datatype"),
        (("--input", "x=[1]", "--output-dtype", "float"), "the datatypes are"),
        (("--input", "x=[1]", "--output-dtype", "FP32", "--output-dtype", "y=FP32"), "once and alone"),
        (("--input", "x=[1]", "--rows", "3"), "--rows needs --chunked"),
        (("--input", "x=[1]", "--output", "-", "--json"), "both need the standard output"),
        (("--input", "x=[1]", "--output", "/dev/null/x"), "is not a writable folder"),
    ],
)
def test_what_cannot_be_sent_is_said_before_anything_is(cli, manager, arguments, said):
    done = cli("infer", "echo", *arguments, stdin=b"[1]")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not manager.stats().executions


def test_a_npy_file_that_is_none(cli, manager, tmp_path):
    for name, content in (("cut", b"\x93NUMPY\x01\x00"), ("pickle", None), ("empty", b"")):
        file = tmp_path / f"{name}.npy"
        if content is None:
            np.save(file, np.array([object], dtype=object), allow_pickle=True)
        else:
            file.write_bytes(content)
        done = cli("infer", "echo", "--input", f"x={file}")
        assert done.code == 2
        assert "--input x" in done.err


def test_a_pipeline_runs_its_steps(cli, manager, tmp_path):
    steps = [
        {"model_name": "double", "inputs": {"x": [[1]]}, "name": "first"},
        {"model_name": "echo", "inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [5]}]},
    ]
    file = tmp_path / "steps.json"
    file.write_text(json.dumps(steps))
    found = json.loads(cli("pipeline", file, "--json").out)["steps"]
    assert {name: step["outputs"] for name, step in found.items()} == {
        "first": {"y": {"dtype": "int64", "shape": [1, 1], "data": [[2]]}},
        "echo": {"x": {"dtype": "int64", "shape": [1], "data": [5]}},
    }
    done = cli("pipeline", "-", stdin=json.dumps({"pipeline": steps}).encode())
    assert done.out.splitlines()[:2] == ["step first", "y: int64[1, 1]"]


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"[", "is not JSON"), (b"[]", "no steps"), (b"3", "steps must be"), (b'[{"model_name": 3}]', "step 0")],
)
def test_a_pipeline_that_is_none(cli, manager, text, said):
    done = cli("pipeline", "-", stdin=text)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_a_manager_that_dies_amid_a_long_batch(start, tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(6000, dtype=np.int64).reshape(-1, 2))
    asked = iter(range(10**9))

    def deadly(arrays):
        if next(asked) == 5:
            manager.kill()
        return arrays

    with LocalManager({"deadly": deadly}, tick=0) as manager:
        where = ("--uri", manager.uri, "--container-id", manager.route.container_id, "--timeout", "1")
        process = start(
            "infer", "deadly", "--input", f"x={tmp_path / 'rows.npy'}", "--chunked", "--rows", 100, *where
        )
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "")
    *logged, said = err.splitlines()
    assert said.startswith("tcm-sync: rows ")
    assert all(line.startswith("manager gate shut ") for line in logged)
