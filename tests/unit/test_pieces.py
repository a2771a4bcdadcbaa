"""Large arrays that are read a piece at a time are the same as read whole, and broken ones are left alone."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcm_sync._tensors import check_output_dtypes, decode_outputs, pieces
from tcm_sync._tensors.datatypes import Unfit
from tcm_sync._wire.outline import outline
from tcm_sync.errors import ProtocolError

SHAPES = [(1,), (500,), (1, 500), (1, 1, 500), (500, 1), (1, 7, 5, 11), (1, 1, 7, 60), (20, 30), (3, 1, 200)]
SPACINGS = [(",", ":"), (", ", ": "), (" ,\n", ":")]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 100)


def read(text: str, depth: int) -> tuple[np.ndarray | None, int]:
    """Read a text, and count the pieces that it was read in."""
    seen = []

    def read_one(piece: bytes, axes: int) -> np.ndarray:
        seen.append(piece)
        try:
            return np.array(msgspec.json.decode(piece), np.float64)
        except ValueError as error:
            raise Unfit("ragged") from error

    return pieces.read_in_pieces(memoryview(text.encode()), depth, read_one), len(seen)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("separators", SPACINGS)
def test_it_is_the_array_whatever_its_shape(shape: tuple[int, ...], separators: tuple[str, str]) -> None:
    array = np.random.default_rng(3).random(shape).round(4)
    found, count = read(json.dumps(array.tolist(), separators=separators), array.ndim)
    assert found is not None
    assert np.array_equal(found, array)
    assert found.shape == shape
    assert found.flags.owndata
    assert count > 2 or array.size < 100


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("]", "", 1),
        lambda text: text.replace("]", "]]", 1),
        lambda text: text.replace("],", "],[],", 1),
        lambda text: text.replace("],", "],,", 1),
        lambda text: text.replace("],", "],1,", 1),
        lambda text: re.sub(r"(.*\[)[^,]*,", r"\1", text),  # the last row has one fewer
        lambda text: text.replace(",", ",[1],", 1),
        lambda text: text[:-1] + ",]",
        lambda text: text + "]",
        lambda text: text + "," + text,
        lambda text: text.replace("[", "{", 1),
        lambda text: text.replace("0.", "NaN,0.", 1),
        lambda text: "[" + text,
    ],
)
@pytest.mark.parametrize("shape", [(40, 10), (4, 10, 10), (2, 2, 100)])
def test_what_is_broken_or_ragged_is_left_to_others(change: Any, shape: tuple[int, ...]) -> None:
    text = json.dumps(np.random.default_rng(3).random(shape).round(4).tolist())
    assert read(text, len(shape))[0] is not None
    assert read(change(text), len(shape))[0] is None


@pytest.mark.parametrize("text", ["[]", "[[]]", "[[],[]]", "[ ]", "[[[]]]"])
def test_empty_lists_are_left_to_others_or_right(text: str) -> None:
    found, _ = read(text, text.index("]"))
    assert found is None or found.shape == np.array(json.loads(text)).shape


def mutated(text: str, seed: int) -> Iterator[str]:
    """Take out, double or put in characters that matter."""
    chance = random.Random(seed)
    for _ in range(40):
        place = chance.randrange(len(text))
        yield (
            text[:place]
            + chance.choice(["", "[", "]", ",", "[]", "],[", "1", " "])
            + text[place + chance.randrange(2) :]
        )


@settings(max_examples=30, database=None)
@given(st.integers(0, 10**6))
def test_what_is_read_in_pieces_is_what_is_read_whole(seed: int) -> None:
    array = np.random.default_rng(seed).random([(300,), (20, 15), (1, 5, 5, 12)][seed % 3]).round(3)
    for text in mutated(json.dumps(array.tolist()), seed):
        depth = len(text) - len(text.lstrip("[ "))
        found, _ = read(text, depth)
        try:
            whole = np.array(json.loads(text), np.float64)
        except (ValueError, TypeError):
            assert found is None
        else:
            assert found is None or (found.shape == whole.shape and np.array_equal(found, whole))


def test_a_large_output_is_read_in_pieces_and_a_broken_one_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole decoding: floats out of range and ragged rows are told as ever."""
    monkeypatch.setattr("tcm_sync._tensors.outputs.LARGE", 1)
    used = []
    original = pieces.read_in_pieces
    monkeypatch.setattr(
        "tcm_sync._tensors.outputs.read_in_pieces", lambda *given: used.append(1) or original(*given)
    )
    dtypes = check_output_dtypes("f4")

    def decoded(rows: list[list[float | None]]) -> np.ndarray:
        found = outline(json.dumps({"y": rows}).encode())
        assert found is not None
        return decode_outputs(found, dtypes)["y"]

    array = np.random.default_rng(1).random((1000, 10)).astype("f4")
    assert np.array_equal(decoded(array.tolist()), array)
    assert len(used) == 1
    rows: list[list[float | None]] = array.tolist()
    rows[700][3] = None
    assert np.isnan(decoded(rows)[700, 3])
    rows[700][3] = 1e39
    with pytest.raises(ProtocolError, match="1e\\+39"):
        decoded(rows)
    with pytest.raises(ProtocolError, match="ragged"):
        decoded([*array.tolist(), [1.0]])
