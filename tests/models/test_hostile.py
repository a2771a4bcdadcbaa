"""Damaged, truncated, empty and hostile files: a ModelFileError that says what is wrong, and little time."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from onnx import ModelProto, TensorProto, helper

from tcm_sync import ModelFileError
from tcm_sync._tensors import TensorSpec
from tcm_sync.models import analysis, analyze, strip_weights
from tcm_sync.models.batch import guess_first_axis

from ..helpers.interrupts import leaves_no_descriptor
from ..helpers.onnx_build import FLOAT, double, model, outside, value, weight


def field(number: int, content: bytes) -> bytes:
    """Write a field of protobuf that has a length."""
    return bytes([number << 3 | 2]) + length(len(content)) + content


def length(size: int) -> bytes:
    written = b""
    while size > 127:
        written += bytes([size & 127 | 128])
        size >>= 7
    return written + bytes([size])


def refused(tmp_path: Path, content: bytes, match: str) -> None:
    """Hold a file and its bytes to be refused alike, with the source named."""
    path = tmp_path / "hostile.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=match) as caught:
        analyze(path)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(ModelFileError, match=f"^the bytes given: .*{match}"):
        analyze(content)


# --- files ---


def test_a_file_that_is_missing_a_folder_or_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="it cannot be read: "):
        analyze(tmp_path / "none.onnx")
    for name in ("", "pipe"):
        with pytest.raises(ModelFileError, match="it is not a file"):
            analyze(tmp_path / name)
    with pytest.raises(ModelFileError, match="null"):
        analyze("m\0.onnx")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ModelFileError, match="it is empty"):
        analyze(tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match="empty"):
        analyze(b"")


@pytest.mark.parametrize(
    "content",
    [b"hello, world\n", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04" * 20, bytes(1000), b"\xff" * 1000],
)
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, content, "ONNX|damaged")


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = model([value("x"), value("w", dims=[50, 50])], weights=[weight("w", 50, 50)]).SerializeToString()
    analyze(whole)
    for size in [*range(1, 200), *range(200, len(whole), 97), *range(len(whole) - 60, len(whole))]:
        refused(tmp_path, whole[:size], "truncated|damaged|not an ONNX model")


def test_a_file_with_bits_flipped_is_read_or_refused_and_never_crashes() -> None:
    whole = bytearray(
        model(
            [value("x"), value("w", dims=[9])],
            weights=[weight("w", 9), outside("v.bin", 3, name="v")],
            nodes=[helper.make_node("Constant", [], ["c"], value=weight("c", 3))],
        ).SerializeToString()
    )
    chance, read = random.Random(0), 0
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            analyze(bytes(damaged))
            read += 1
        except ModelFileError:
            continue
    assert 0 < read < 3000


def test_a_model_without_graph_version_or_operator_set_is_refused(tmp_path: Path) -> None:
    for name, match in (
        ("graph", "no graph"),
        ("ir_version", "no IR version"),
        ("opset_import", "truncated"),
    ):
        proto = double()
        proto.ClearField(name)
        refused(tmp_path, proto.SerializeToString(), match)


# --- bombs ---


@pytest.mark.parametrize("levels", [34, 5000, 200_000])
def test_graphs_in_graphs_without_end_are_refused(tmp_path: Path, levels: int) -> None:
    opening, size = [], 0
    for _ in range(levels):  # from the inside out: a graph in an attribute in a node of a graph
        for number in (6, 5, 1):
            start = bytes([number << 3 | 2]) + length(size)
            opening.append(start)
            size += len(start)
    bomb = field(7, b"".join(reversed(opening)))
    refused(tmp_path, bytes([8, 10]) + bomb, "nested more than 100 deep")


def test_types_in_types_without_end_are_refused(tmp_path: Path) -> None:
    kind = b""
    for _ in range(500):
        kind = field(4, field(1, kind))
    graph = field(11, field(1, b"x") + field(2, kind))
    refused(tmp_path, bytes([8, 10]) + field(7, graph), "nested too deep")


def test_a_small_file_that_would_become_a_million_objects_does_not(tmp_path: Path) -> None:
    content = field(7, b"\x12\x01g" + b"\x0a\x00" * 1_000_000 + b"\x2a\x00" * 100_000)
    path = tmp_path / "bomb.onnx"
    path.write_bytes(bytes([8, 10]) + content + field(8, b"\x10\x01"))
    found = analyze(path)
    assert (found.graph, found.inputs, found.parameters) == ("g", (), 0)


def test_more_parts_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strip_weights, "MAX_PARTS", 1000)
    refused(tmp_path, bytes([8, 10]) + field(7, b"\x0a\x00" * 1001), "more than 1,000 parts")


def test_more_names_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strip_weights, "MAX_BYTES", 1000)
    inputs = [value(f"x{number}") for number in range(100)]
    refused(tmp_path, model(inputs).SerializeToString(), "over 1,000 bytes")


def test_a_file_that_is_truncated_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapped file would end the process with SIGBUS."""
    path = tmp_path / "m.onnx"
    path.write_bytes(model(weights=[weight("w", 100_000)]).SerializeToString())
    read = os.pread

    def read_and_truncate(descriptor: int, size: int, start: int) -> bytes:
        found = read(descriptor, size, start)
        os.truncate(path, 1000)
        return found

    monkeypatch.setattr(os, "pread", read_and_truncate)
    with pytest.raises(ModelFileError, match="truncated while it was read"):
        analyze(path)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model().SerializeToString())
    leaves_no_descriptor(lambda: analyze(path))


def test_more_small_tensors_than_any_model_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strip_weights, "MAX_KEPT", 1000)
    refused(tmp_path, bytes([8, 10]) + field(7, field(5, b"\x08\x01") * 600), "over 1,000 tensors")


def test_more_inputs_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "MAX_VALUES", 50)
    assert len(analyze(model([value(f"x{number}") for number in range(50)])).inputs) == 50
    inputs = [value(f"x{number}") for number in range(51)]
    refused(tmp_path, model(inputs).SerializeToString(), "more than 50 inputs")


def test_the_name_of_a_dimension_has_a_bound(tmp_path: Path) -> None:
    """It is matched with patterns, whose time grows with the square of its length."""
    assert analyze(model([value("x", dims=["s" * 1000])])).inputs[0].dim_names == ("s" * 1000,)
    content = model([value("x", dims=["s7" * 60_000])]).SerializeToString()
    refused(tmp_path, content, "a dimension whose name has 120,000 characters, more than 1,000")


def test_the_name_of_an_external_file_has_a_bound(tmp_path: Path) -> None:
    content = model(weights=[outside("a/" * 100_000, 4, name="w")]).SerializeToString()
    refused(tmp_path, content, "w.* names a file by over 4,096 characters")


def test_the_names_of_many_inputs_and_outputs_are_not_compared_one_by_one() -> None:
    compared = []

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(1)
            return str.__eq__(self, other)

    def specs(kind: str) -> list[TensorSpec]:
        return [TensorSpec(f"{kind}{n}", "FP32", (-1,), (Name(f"batch_{n}"),)) for n in range(400)]

    assert guess_first_axis(specs("x"), specs("y")).certainty == "certain"
    assert len(compared) < 10_000


def test_a_list_of_numbers_in_a_node_is_not_walked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    forest = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], nodes_values=[0.5] * 100_000)
    monkeypatch.setattr(strip_weights, "MAX_PARTS", 100)
    assert analyze(model(nodes=[forest]).SerializeToString()).parameters == 0


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    weights = [outside("location", 4, name="weight")]
    (tmp_path / "location").write_bytes(bytes(16))
    whole = model([value("input", dims=["dimension"])], weights=weights).SerializeToString()
    for name in (b"input", b"dimension", b"weight", b"location", b"tests"):
        refused(tmp_path, whole.replace(name, b"\xff" * len(name)), "not UTF-8|damaged")


def test_impossible_shapes_are_refused(tmp_path: Path) -> None:
    for dims, match in (
        ([-1, 4], "shape"),
        ([1] * 65, "65 dimensions"),
        ([2**62] * 1000, "1,000 dimensions"),
    ):
        tensor = TensorProto(name="w", data_type=FLOAT, dims=dims)
        refused(tmp_path, model(weights=[tensor]).SerializeToString(), match)
    refused(tmp_path, model([value("x", dims=[1] * 65)]).SerializeToString(), "65 dimensions")


def test_two_tensors_of_one_name_and_one_without_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, model([value("x"), value("x")]).SerializeToString(), "two inputs called 'x'")
    refused(tmp_path, model(outputs=[value("")]).SerializeToString(), "output 0 has no name")


# --- external weights ---


@pytest.mark.parametrize(
    "location", ["../w.bin", "sub/../../w.bin", "/etc/passwd", "..\\w.bin", "C:\\w.bin", "\\\\host\\w.bin"]
)
def test_external_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(100))
    folder = tmp_path / "model"
    folder.mkdir()
    content = model(weights=[outside(location, 4)]).SerializeToString()
    refused(folder, content, "outside the model's folder")
    with pytest.raises(ModelFileError, match="outside"):
        analyze(ModelProto.FromString(content))


@pytest.mark.parametrize("location", ["", ".", "a\0b"])
def test_external_weights_without_a_name_are_refused(tmp_path: Path, location: str) -> None:
    refused(tmp_path, model(weights=[outside(location, 4)]).SerializeToString(), "the name of its file is")


def test_external_weights_in_a_branch_are_looked_at_too(tmp_path: Path) -> None:
    branch = helper.make_graph([], "b", [], [value("z")], [outside("../w.bin", 4)])
    nodes = [helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)]
    refused(tmp_path, model(nodes=nodes).SerializeToString(), "outside the model's folder")


def write(tmp_path: Path, **entries) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    path.write_bytes(model(weights=[outside("w.bin", 25, **entries)]).SerializeToString())
    return path


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(100))
    (path.parent / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelFileError, match="a link out of the model's folder"):
        analyze(path)
    (path.parent / "w.bin").unlink()
    (path.parent / "there").write_bytes(bytes(100))
    (path.parent / "w.bin").symlink_to("there")
    assert analyze(path).external == {"w.bin": 100}


def test_the_links_of_a_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    """Model and weights are links into one folder, where they have the names of their contents."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "main" / "onnx"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / "aaa").write_bytes(model(weights=[outside("w.bin", 25)]).SerializeToString())
    (blobs / "bbb").write_bytes(bytes(100))
    (snapshot / "m.onnx").symlink_to("../../../blobs/aaa")
    (snapshot / "w.bin").symlink_to("../../../blobs/bbb")
    assert analyze(snapshot / "m.onnx").external == {"w.bin": 100}
    (tmp_path / "hub" / "secret").write_bytes(bytes(100))
    (snapshot / "w.bin").unlink()
    (snapshot / "w.bin").symlink_to("../../../secret")
    with pytest.raises(ModelFileError, match="a link out of the model's folder"):
        analyze(snapshot / "m.onnx")


def test_a_folder_that_is_a_link_itself_will_do(tmp_path: Path) -> None:
    path = write(tmp_path)
    (path.parent / "w.bin").write_bytes(bytes(100))
    (tmp_path / "link").symlink_to(path.parent)
    assert analyze(tmp_path / "link" / "m.onnx").external == {"w.bin": 100}


def test_external_weights_that_are_missing_short_or_no_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, offset=10)
    with pytest.raises(ModelFileError, match=r"'w\.bin' are not in its folder: "):
        analyze(path)
    (path.parent / "w.bin").write_bytes(bytes(109))
    with pytest.raises(ModelFileError, match="truncated: 109 bytes, and the model needs 110"):
        analyze(path)
    (path.parent / "w.bin").unlink()
    (path.parent / "w.bin").mkdir()
    with pytest.raises(ModelFileError, match="are not a file"):
        analyze(path)


@pytest.mark.parametrize("entries", [{"offset": -1}, {"length": "many"}, {"offset": "9" * 5000}])
def test_a_place_in_external_weights_that_is_none_is_refused(tmp_path: Path, entries) -> None:
    content = model(weights=[outside("w.bin", 4, **entries)]).SerializeToString()
    refused(tmp_path, content, "has an invalid place in its file")
