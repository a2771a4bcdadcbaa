"""Large arrays of text that are read a piece at a time are the same as read whole."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcm_sync._deadline import Deadline
from tcm_sync._tensors import check_output_dtypes, decode_outputs, text_pieces
from tcm_sync._tensors.text_pieces import decode_texts_in_pieces
from tcm_sync.errors import CallTimeoutError, ProtocolError

WORDS = st.text('ab",[]\\ é', max_size=4)
SHAPES = [
    (1,),
    (300,),
    (1, 300),
    (300, 1),
    (20, 15),
    (2, 150),
    (3, 1, 50),
    (1, 1, 300),
    (5, 6, 7),
    (7, 6, 1, 2),
]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_pieces, "_PIECE", 60)


def read(nested: Any, depth: int, **how: Any) -> np.ndarray | None:
    return decode_texts_in_pieces(memoryview(json.dumps(nested, **how).encode()), depth)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", [{}, {"separators": (",", ":")}, {"indent": 1, "ensure_ascii": False}])
def test_it_is_the_array_whatever_its_shape(shape, how):
    array = np.array([f"é{number}" for number in range(int(np.prod(shape)))], object).reshape(shape)
    found = read(array.tolist(), len(shape), **how)
    assert found is not None
    assert found.shape == shape
    assert found.tolist() == array.tolist()
    assert found.flags.writeable


@given(st.lists(st.lists(WORDS, min_size=3, max_size=3), min_size=1, max_size=60))
def test_commas_quotes_and_brackets_in_the_texts_are_no_ends(rows):
    found = read(rows, 2)
    assert found is None or found.tolist() == rows


def test_most_texts_of_commas_and_quotes_are_read_in_pieces():
    rows = [[",", '","', "],[", f"{number}"] for number in range(200)]
    found = read(rows, 2)
    assert found is not None
    assert found.tolist() == rows


@given(st.recursive(WORDS | st.integers() | st.none(), st.lists, max_leaves=60), st.integers(1, 4))
def test_what_is_no_array_of_texts_is_left_to_be_read_whole(nested, depth):
    nested = [[["a"] * 20], nested]
    found = read(nested, depth)
    if found is not None:
        assert found.tolist() == nested
        assert found.ndim == depth


@pytest.mark.parametrize(
    "broken", ['["a", "b"', '["a", "b"]]', '["a" "b"]', '["a", "b"] x', "[[]]", '["a", ]']
)
@pytest.mark.parametrize("before", ["", '"x", ' * 100])
def test_what_is_no_json_is_left_to_be_read_whole(broken, before):
    assert decode_texts_in_pieces(memoryview((broken[0] + before + broken[1:]).encode()), 1) is None


@pytest.mark.parametrize(("broken", "depth"), [('["%s", ]', 1), ('[["%s"], ]', 2), ('[["%s", ], ["b"]]', 2)])
def test_a_comma_at_the_end_of_a_list_and_of_a_piece_is_no_json(broken, depth):
    text = memoryview((broken % ("a" * 200)).encode())
    assert decode_texts_in_pieces(text, depth) is None


def test_ragged_texts_are_refused_and_others_are_of_the_dtype(monkeypatch):
    monkeypatch.setattr("tcm_sync._tensors.outputs.MEDIUM", 1)
    monkeypatch.setattr("tcm_sync._tensors.pieces.LARGE", 1)
    rows = [[f"é{number}"] for number in range(100)]
    data = json.dumps({"y": rows}).encode()
    used = []
    original = text_pieces._Reader.read_piece
    monkeypatch.setattr(text_pieces._Reader, "read_piece", lambda reader: used.append(1) or original(reader))
    assert decode_outputs(data)["y"].tolist() == rows
    assert len(used) > 5
    assert decode_outputs(data, check_output_dtypes(bytes))["y"][3, 0] == "é3".encode()
    for wrong in ([*rows, []], [*rows, ["a", "b"]], [*rows, "a"], [*rows, [1]]):
        with pytest.raises(ProtocolError, match="y"):
            decode_outputs(json.dumps({"y": wrong}).encode())


def test_the_deadline_is_kept():
    with pytest.raises(CallTimeoutError, match="decoded"):
        decode_texts_in_pieces(memoryview(b'["a"]'), 1, Deadline(1e-9))
