"""Large arrays of text that are read a piece at a time are the same as read whole."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcm_sync._deadline import Deadline
from tcm_sync._tensors import check_output_dtypes, decode_outputs, text_pieces
from tcm_sync._tensors.datatypes import TensorError
from tcm_sync._tensors.text_pieces import decode_texts_in_pieces
from tcm_sync._wire import text_ends
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
    monkeypatch.setattr(text_ends, "_SHORT", 3)
    monkeypatch.setattr(text_ends, "_SCAN", 7)


def read(nested: Any, depth: int, **how: Any) -> np.ndarray:
    return decode_texts_in_pieces(memoryview(json.dumps(nested, **how).encode()), depth)


def is_array(nested: Any, depth: int) -> bool:
    """Whether these are lists as deep as that, of text alone, and each as long as those beside it."""
    if depth == 0:
        return isinstance(nested, str)
    if not isinstance(nested, list) or not all(is_array(each, depth - 1) for each in nested):
        return False
    return len({np.shape(np.array(each, object)) for each in nested}) <= 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", [{}, {"separators": (",", ":")}, {"indent": 1, "ensure_ascii": False}])
def test_it_is_the_array_whatever_its_shape(shape, how):
    array = np.array([f"é{number}" for number in range(int(np.prod(shape)))], object).reshape(shape)
    found = read(array.tolist(), len(shape), **how)
    assert found.shape == shape
    assert found.tolist() == array.tolist()
    assert found.flags.writeable
    assert found.flags.owndata


@given(st.lists(st.lists(WORDS, min_size=3, max_size=3), min_size=1, max_size=60), st.booleans())
def test_commas_quotes_and_brackets_in_the_texts_are_no_ends(rows, ascii_only):
    assert read(rows, 2, ensure_ascii=ascii_only).tolist() == rows


@given(st.recursive(WORDS | st.integers() | st.none(), st.lists, max_leaves=60), st.integers(1, 4))
def test_what_is_no_array_of_texts_is_refused_and_all_else_is_read(nested, depth):
    nested = [[["a"] * 20], nested]
    if is_array(nested, depth):
        assert read(nested, depth).tolist() == nested
    else:
        with pytest.raises(TensorError):
            read(nested, depth)


@pytest.mark.parametrize(
    "broken",
    [
        *('["a", "b"', '["a", "b"]]', '["a" "b"]', '["a", "b"] x', "[[]]", '["a", ]', '["a", "b]', '["a",'),
        *('["a", "b\\"]', '["a", "b"]\\', '["a": "b"]', '["a", {"b": ["c"]}]', '["a", "\\x"]'),
        f'["a", "{"b" * 400}"',  # nothing is behind a piece
    ],
)
@pytest.mark.parametrize("before", ["", '"x", ' * 100, '"xyz\\\\", ' * 25, '"\\"", ' * 25])
@pytest.mark.parametrize("behind", ["", ', "x"' * 100])
def test_what_is_no_json_is_refused(broken, before, behind):
    text = (broken[0] + before + broken[1:] + behind).encode()
    with pytest.raises(TensorError):
        decode_texts_in_pieces(memoryview(text), 1)


@pytest.mark.parametrize(
    ("broken", "depth"),
    [
        *(('["%s", ]', 1), ('[["%s"], ]', 2), ('[["%s", ], ["b"]]', 2)),
        *((f'["%s",{" " * 70_000}]', 1), (f'[["%s"]{" " * 70_000},{" " * 70_000}]', 2)),
    ],
)
@pytest.mark.parametrize("behind", ["", " " * 200])
def test_a_comma_at_the_end_of_a_list_and_of_a_piece_is_no_json(broken, depth, behind):
    text = memoryview((broken % ("a" * 200)).encode() + behind.encode())
    with pytest.raises(TensorError):
        decode_texts_in_pieces(text, depth)


@pytest.mark.parametrize("number", range(60))
def test_a_text_may_be_longer_than_many_pieces_and_end_anywhere(number):
    texts = ["a" * number + '\\"' * 200, "\\" * number + "b", "", "c" * 300]
    assert read(texts, 1).tolist() == texts


@pytest.mark.parametrize("count", [7, 100, 70_000])
def test_any_number_of_blanks_may_be_between_texts_and_behind_the_last(count):
    rows = [[["a" * 70, "\\"], ["b", "]"]], [["c", '"'], ["d" * 70, ""]]]
    tokens = re.findall(r'"(?:\\.|[^"\\])*"|.', json.dumps(rows, separators=(",", ":")))
    for place in range(1, len(tokens) + 1):
        spaced = "".join([*tokens[:place], (" \t\r\n" * count)[:count], *tokens[place:]])
        assert decode_texts_in_pieces(memoryview(spaced.encode()), 3).tolist() == rows


@pytest.mark.parametrize("rest", ["1, " * 200, "[], " * 200, f"{' ' * 500},{' ' * 500}, "])
def test_other_elements_are_not_decoded_at_once(rest):
    with pytest.raises(TensorError, match="elements that are no text"):
        decode_texts_in_pieces(memoryview(f'["{"a" * 70}", {rest}"b"]'.encode()), 1)


def test_ragged_texts_are_refused_and_others_are_of_the_dtype(monkeypatch):
    monkeypatch.setattr("tcm_sync._tensors.outputs.MEDIUM", 1)
    monkeypatch.setattr("tcm_sync._tensors.pieces.LARGE", 1)
    rows = [[f"é{number}"] for number in range(100)]
    data = json.dumps({"y": rows}).encode()
    used = []
    original = text_pieces._Reader._read_piece
    monkeypatch.setattr(text_pieces._Reader, "_read_piece", lambda reader: used.append(1) or original(reader))
    assert decode_outputs(data)["y"].tolist() == rows
    assert len(used) > 5
    encoded = decode_outputs(data, check_output_dtypes(bytes))["y"]
    assert encoded.tolist() == [[text.encode()] for [text] in rows]
    for wrong in ([*rows, []], [*rows, ["a", "b"]], [*rows, "a"], [*rows, [1]]):
        with pytest.raises(ProtocolError, match="y"):
            decode_outputs(json.dumps({"y": wrong}).encode())
    nothing = decode_outputs(b'{"y": [[], [], []]}', check_output_dtypes(str))["y"]
    assert (nothing.shape, nothing.dtype) == ((3, 0), np.dtype(object))


@pytest.mark.parametrize("encode", [False, True])
def test_a_text_that_is_repeated_is_one_object(encode):
    labels = [f"label {number % 50}" for number in range(5_000)]
    array = decode_texts_in_pieces(memoryview(json.dumps(labels).encode()), 1, encode=encode)
    assert array.tolist() == ([label.encode() for label in labels] if encode else labels)
    assert len({id(text) for text in array}) == 50


def test_texts_that_are_all_different_are_not_remembered(monkeypatch):
    monkeypatch.setattr(text_pieces, "_FEW", 10)
    array = read([f"{number}" for number in range(100)] + ["0"] * 5_000, 1)
    assert array[0] == array[-1] == "0"
    assert array[-1] is not array[-1_000]
    monkeypatch.setattr(text_pieces, "_MAX_REMEMBERED", 20)
    array = read(["0"] * 5_000 + [f"{number}" for number in range(100)] + ["0"] * 5_000, 1)
    assert array[0] is array[4_000]
    assert array[-1] is not array[0]


def test_the_deadline_is_kept():
    with pytest.raises(CallTimeoutError, match="decoded"):
        decode_texts_in_pieces(memoryview(b'["a"]'), 1, Deadline(1e-9))
